"""Overwrites what lies in the unused part of an SQLite database's pages.

`secure_delete` zeroes a row where it is deleted. Where SQLite moved the row to another page before,
because pages were split or merged, a copy can stay behind in the first page's unused part: between
the list of its cells and the cells themselves. Nobody reads those bytes, so they can be zeroed
beside readers. File format: https://www.sqlite.org/fileformat2.html, sections 1.3 and 1.6.
"""

import os
import struct
from dataclasses import dataclass

HEADER_BYTES = 100
# By the first byte of a page: the length of its header, for interior and leaf pages of indexes and
# tables. The first byte of any other page is 0 in a database of less than 32 million pages.
_HEADER_OF = {2: 12, 5: 12, 10: 8, 13: 8}
MOST_PAGES = 0x0200_0000


@dataclass(frozen=True, slots=True)
class PageSizes:
    """Bytes of a page, and how many of them SQLite uses."""

    page: int
    usable: int


def read_sizes(file: int) -> PageSizes | None:
    """The page sizes of an open database file; None where its pages cannot be identified."""
    header = os.pread(file, HEADER_BYTES, 0)
    if len(header) < HEADER_BYTES or not header.startswith(b"SQLite format 3\0"):
        return None
    (page,) = struct.unpack_from(">H", header, 16)
    page = 65_536 if page == 1 else page
    (largest_root,) = struct.unpack_from(">I", header, 52)
    too_many = os.fstat(file).st_size // page >= MOST_PAGES
    # With auto-vacuum there are pages of another kind, which begin with the same bytes.
    return None if largest_root or too_many else PageSizes(page, page - header[20])


def blank_pages(file: int, sizes: PageSizes, first: int, count: int) -> int:
    """Zero the unused parts of `count` pages from number `first` (2 or higher: the first page holds
    the schema alone); how many pages had something there. On disk when this returns.

    The caller keeps every other writer out. Raises OSError.
    """
    blanked = 0
    pages = os.pread(file, count * sizes.page, (first - 1) * sizes.page)
    for start in range(0, len(pages) - sizes.page + 1, sizes.page):
        gap = _unused(pages, start, sizes.usable)
        if gap is not None and pages[gap].strip(b"\0"):
            place = (first - 1) * sizes.page + gap.start
            os.pwrite(file, bytes(gap.stop - gap.start), place)
            blanked += 1
    if blanked:
        os.fsync(file)
    return blanked


def _unused(pages: bytes, start: int, usable: int) -> slice | None:
    """Where the unused part of a page lies that begins at `start`; None where it has none."""
    length = _HEADER_OF.get(pages[start])
    if length is None:
        return None
    cells, content = struct.unpack_from(">HH", pages, start + 3)
    begin, end = length + 2 * cells, content or 65_536
    return slice(start + begin, start + end) if begin < end <= usable else None
