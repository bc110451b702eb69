"""Memory to use: the machine's, and no more than the container is given."""

from pathlib import Path

import pytest

from app.inference.memory import usable_memory

MACHINE = usable_memory(Path("/nowhere"))


@pytest.mark.parametrize("name", ["memory.max", "memory/memory.limit_in_bytes"])
@pytest.mark.parametrize(
    ("limit", "usable"),
    [("1000000\n", 1_000_000), ("max\n", MACHINE), ("9223372036854771712\n", MACHINE)],
)
def test_a_control_groups_limit(tmp_path: Path, name: str, limit: str, usable: int) -> None:
    (tmp_path / name).parent.mkdir(exist_ok=True)
    (tmp_path / name).write_text(limit)
    assert usable_memory(tmp_path) == usable


def test_no_control_group() -> None:
    assert MACHINE > 2**28
