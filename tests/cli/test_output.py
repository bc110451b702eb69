"""What an operator reads where the file that they named cannot be written."""

import errno
import os
from pathlib import Path

import pytest

from app.cli.output import OutputError, require_not_read, require_writable, writing
from app.errors import LikenessError, StoreFull


@pytest.mark.parametrize(
    ("number", "kind"),
    [(errno.ENOENT, OutputError), (errno.EACCES, OutputError), (errno.ENOSPC, StoreFull)],
)
def test_the_reason_is_named(number: int, kind: type[LikenessError]) -> None:
    with pytest.raises(kind, match="there cannot be written: ") as raised, writing("there"):
        raise OSError(number, os.strerror(number))
    assert os.strerror(number) in raised.value.detail


def test_what_could_not_be_replaced_is_said_before(tmp_path: Path) -> None:
    """As `write_file` would say it after minutes of work."""
    (tmp_path / "left.json.new").write_text("of an earlier command")
    os.mkfifo(tmp_path / "pipe")
    for name, reason in (
        ("left.json", r"left\.json\.new exists"),
        ("pipe", "not a regular file"),
        ("none/out.json", "No such file"),
        ("n" * 256, "File name too long"),
    ):
        with pytest.raises(OutputError, match=reason):
            require_writable(tmp_path / name)
    (tmp_path / "old.json").write_text("{}")
    require_writable(tmp_path / "old.json")


def test_what_is_read_is_not_replaced(tmp_path: Path) -> None:
    folder, table = tmp_path / "people", tmp_path / "pairs.csv"
    (folder / "ada").mkdir(parents=True)
    (folder / "ada" / "1.jpg").write_bytes(b"photo")
    table.write_text("image_a,image_b,same\n")
    link = tmp_path / "link.csv"
    link.symlink_to(table)
    for output in (table, link, folder / "ada" / "1.jpg", tmp_path / "x" / ".." / "pairs.csv"):
        (tmp_path / "x").mkdir(exist_ok=True)
        with pytest.raises(OutputError, match="would be replaced"):
            require_not_read(output, [None, folder, table])
    for output in (tmp_path / "new.csv", folder / "new.json"):
        require_not_read(output, [None, folder, table, tmp_path / "none"])
