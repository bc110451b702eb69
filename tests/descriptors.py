"""Which files this process has open.

Only those of a test's own folder are counted: threads that outlive other tests open and close files
of theirs meanwhile.
"""

from contextlib import suppress
from pathlib import Path


def open_under(folder: Path) -> list[Path]:
    """The open files at or below `folder`, one entry a descriptor, deleted files included."""
    files = []
    for descriptor in Path("/proc/self/fd").iterdir():
        with suppress(FileNotFoundError):  # closed meanwhile
            files.append(descriptor.readlink())
    return [file for file in files if file.is_relative_to(folder)]
