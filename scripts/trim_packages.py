"""Removes from an environment the installed files that the service never loads (for the image).

    /opt/venv/bin/python scripts/trim_packages.py [SITE_PACKAGES]

The lists of installed files (RECORD) are kept true, so that pip and vulnerability scanners see what
is there. A pattern that finds nothing is named on standard error; a test says so for the CPU build.
"""

import csv
import sys
import sysconfig
from collections.abc import Iterable
from pathlib import Path

# Patterns below the folder of installed packages.
UNUSED = (
    "numpy/**/tests/**/*",
    "scipy/**/tests/**/*",
    "pyarrow/tests/**/*",
    "pyarrow/include/**/*",
    "pyarrow/src/**/*",
    "pyarrow/*flight*",  # client and server of Arrow's own protocol
    "pyarrow/*s3*",  # the service opens files itself
    "pyarrow/libarrow_python*.so",  # copies by other names, for linkers
    "pyarrow/libarrow_python*.so.*.*.*",
    "onnxruntime/capi/libonnxruntime.so*",  # for programs in C; the module for Python holds its own
)


def matching(site_packages: Path, pattern: str) -> set[Path]:
    """The files that a pattern names."""
    return {file for file in site_packages.glob(pattern) if not file.is_dir()}


def trim(site_packages: Path) -> int:
    """Remove the unused files and their entries in the lists; the bytes that they had."""
    found = {pattern: matching(site_packages, pattern) for pattern in UNUSED}
    for pattern, files in found.items():
        if not files:
            print(f"{site_packages} has no file {pattern}.", file=sys.stderr)
    unused = set().union(*found.values())
    size = sum(file.stat().st_size for file in unused)
    for file in unused:
        file.unlink()
    for record in site_packages.glob("*.dist-info/RECORD"):
        _update(record, site_packages)
    _remove_empty({folder for file in unused for folder in file.parents})
    return size


def _update(record: Path, site_packages: Path) -> None:
    """Take the files that are gone out of a list of installed files."""
    with record.open(encoding="utf-8", newline="") as file:
        rows = list(csv.reader(file))
    left = [row for row in rows if (site_packages / row[0]).exists()]
    if left == rows:
        return
    written = record.with_name("RECORD.new")
    with written.open("w", encoding="utf-8", newline="") as file:
        csv.writer(file, lineterminator="\n").writerows(left)
    written.replace(record)


def _remove_empty(folders: Iterable[Path]) -> None:
    for folder in sorted(folders, key=lambda one: len(one.parts), reverse=True):
        if folder.is_dir() and not any(folder.iterdir()):
            folder.rmdir()


def main() -> None:
    given = sys.argv[1] if len(sys.argv) > 1 else sysconfig.get_path("purelib")
    print(f"Removed {trim(Path(given)) / 1e6:.0f} MB of files that the service never loads.")


if __name__ == "__main__":
    main()
