"""What an operator reads where the file that they named cannot be written."""

import errno
import os

import pytest

from app.cli.output import OutputError, writing
from app.errors import LikenessError, StoreFull


@pytest.mark.parametrize(
    ("number", "kind"),
    [(errno.ENOENT, OutputError), (errno.EACCES, OutputError), (errno.ENOSPC, StoreFull)],
)
def test_the_reason_is_named(number: int, kind: type[LikenessError]) -> None:
    with pytest.raises(kind, match="there cannot be written: ") as raised, writing("there"):
        raise OSError(number, os.strerror(number))
    assert os.strerror(number) in raised.value.detail
