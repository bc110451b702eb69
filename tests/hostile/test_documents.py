import re
from pathlib import Path

import pytest

from tests.hostile.run import STATED_GIB

ROOT = Path(__file__).resolve().parents[2]


@pytest.mark.parametrize(
    ("document", "statement"),
    [
        ("SECURITY.md", r"stays below (\d+) GiB of memory"),
        ("docs/sizing.md", r"stays below (\d+) GiB"),
    ],
)
def test_the_attacks_are_held_to_the_memory_that_the_documents_state(
    document: str, statement: str
) -> None:
    text = " ".join((ROOT / document).read_text().split())
    assert [int(found) for found in re.findall(statement, text)] == [STATED_GIB]
