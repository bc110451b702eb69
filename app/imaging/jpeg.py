"""JPEG files as they are in memory: their size, and the work of decoding them (ITU-T T.81).

Nothing here decodes. What is counted is an upper bound, because a decoder knows no other way to
find a scan than these two bytes, which no coded data can hold.
"""

import re
from collections.abc import Iterator
from dataclasses import dataclass

_START_OF_SCAN = b"\xff\xda"
END_OF_IMAGE = b"\xff\xd9"
_FRAMES = {0xC0, 0xC1, 0xC2, 0xC3, 0xC5, 0xC6, 0xC7, 0xC9, 0xCA, 0xCB, 0xCD, 0xCE, 0xCF}
# The longest metadata that a camera splits into segments (64 KiB each) takes some hundred.
MAX_SEGMENTS = 4_096
# Ten are usual. In the largest file that is accepted, bytes of a film behind the photo look like a
# few hundred more.
MAX_SCANS = 16_384
# Components of one scan (T.81, B.2.3).
_MOST_IN_SCAN = 4
# Bytes that fill up the space between two segments.
MAX_FILL = 4_096
_MARKER = re.compile(rb"\xff[^\x00\xff]")


@dataclass(frozen=True, slots=True)
class Frame:
    """The frame header of a JPEG, and where its first scan begins.

    `areas` are samples by the identifier of their component, which several `components` may share.
    """

    width: int
    height: int
    kind: int
    components: int
    areas: dict[int, int]
    first_scan: int

    @property
    def progressive(self) -> bool:
        return self.kind in (0xC2, 0xCA)

    @property
    def arithmetic(self) -> bool:
        return self.kind >= 0xC9

    @property
    def samples(self) -> int:
        """Samples of all components together."""
        return sum(self.areas.values())


class TooManySegments(ValueError):
    """The file has more marker segments, or more between them, than any camera writes."""


def read_frame(data: bytes) -> Frame | None:
    """The frame header; None where there is none before the first scan.

    Raises TooManySegments.
    """
    at, skipped, kind, body = 2, 0, 0, b""
    for _ in range(MAX_SEGMENTS):
        found = _MARKER.search(data, at, at + MAX_FILL + 2 - skipped)
        if not found and at + MAX_FILL < len(data):
            break
        if not found or found.end() + 2 > len(data):
            return None
        skipped += found.start() - at
        at, marker = found.end(), data[found.end() - 1]
        if marker == _START_OF_SCAN[1]:
            return _parse_frame(kind, body, at - 2)
        if 0xD0 <= marker <= 0xD9 or marker == 0x01:
            continue
        length = data[at] << 8 | data[at + 1]
        if marker in _FRAMES:
            kind, body = marker, data[at + 2 : at + length]
        at += length
    raise TooManySegments


def _parse_frame(kind: int, body: bytes, first_scan: int) -> Frame | None:
    if len(body) < 6 or len(body) < 6 + 3 * body[5]:
        return None
    height, width = body[1] << 8 | body[2], body[3] << 8 | body[4]
    names, factors = body[6 : 6 + 3 * body[5] : 3], body[7 : 6 + 3 * body[5] : 3]
    widest = max([factor >> 4 for factor in factors], default=0)
    tallest = max([factor & 15 for factor in factors], default=0)
    if not widest or not tallest:
        return None
    areas = dict.fromkeys(names, 0)
    for name, factor in zip(names, factors, strict=True):
        columns, rows = width * (factor >> 4), height * (factor & 15)
        areas[name] += -(-columns // widest) * -(-rows // tallest)
    return Frame(width, height, kind, len(names), areas, first_scan)


def has_several_scans(data: bytes, frame: Frame) -> bool:
    """Whether the decoder has to keep all coefficients until it has read the last scan."""
    in_scan = data[frame.first_scan + 4 : frame.first_scan + 5]
    return frame.progressive or not in_scan or in_scan[0] < frame.components


class TooManyScans(ValueError):
    """The file has more scans than any camera or program writes, however small they are."""


def _scans(data: bytes, frame: Frame) -> Iterator[tuple[bytes, bytes]]:
    """Of each scan the identifiers of its components, and the three bytes that say which part of
    them it has. Raises TooManyScans after MAX_SCANS."""
    at = frame.first_scan
    for _ in range(MAX_SCANS):
        count = min(_MOST_IN_SCAN, (data[at + 4 : at + 5] or b"\0")[0])
        behind = at + 5 + 2 * count
        yield data[at + 5 : behind : 2], data[behind : behind + 3]
        at = data.find(_START_OF_SCAN, at + 2)
        if at < 0:
            return
    raise TooManyScans


def count_scanned_samples(data: bytes, frame: Frame, enough: int) -> int:
    """Samples that the decoder walks over in all scans; counting ends once there are `enough`, and
    more than MAX_SCANS scans are enough."""
    if not has_several_scans(data, frame):
        return frame.samples
    total = 0
    try:
        for names, _ in _scans(data, frame):
            total += sum(frame.areas.get(name, 0) for name in set(names)) or frame.samples
            if total >= enough:
                break
    except TooManyScans:
        return enough
    return total


def least_bytes(frame: Frame) -> int:
    """Bytes of coded data below which no Huffman-coded file holds all of its blocks.

    Each block of 64 samples takes a bit for its first coefficient, and in a sequential scan another
    one for its end. Arithmetic coding has no such bound.
    """
    if frame.arithmetic:
        return 0
    return frame.samples // 64 * (1 if frame.progressive else 2) // 8


def ends(data: bytes) -> bool:
    """Whether an end marker follows the last scan."""
    return data.find(END_OF_IMAGE, data.rfind(_START_OF_SCAN) + 2) >= 0


def is_complete(data: bytes) -> bool:
    """Whether the scans there are hold every bit of every coefficient (T.81, G.1.1).

    The last of them may still be cut. False where the header cannot be read, or the scans are too
    many.
    """
    try:
        frame = read_frame(data)
        return frame is not None and not _missing(data, frame)
    except (TooManySegments, TooManyScans):
        return False


def _missing(data: bytes, frame: Frame) -> set[int]:
    """The identifiers of components of which no scan has the last bit of some coefficient."""
    missing = {name: set(range(64)) for name in frame.areas}
    for names, stated in _scans(data, frame):
        script = stated if frame.progressive else b"\0\x3f\0"
        if len(script) == 3 and script[2] & 15 == 0:
            for name in missing.keys() & names:
                missing[name].difference_update(range(script[0], script[1] + 1))
    return {name for name, left in missing.items() if left}
