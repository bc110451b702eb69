"""JPEG files as they lie in memory: their size, and the work of decoding them (ITU-T T.81).

Nothing here decodes. What is counted is an upper bound, because a decoder knows no other way to
find a scan than these two bytes, which no coded data can hold.
"""

from dataclasses import dataclass

_START_OF_SCAN = b"\xff\xda"
END_OF_IMAGE = b"\xff\xd9"
_FRAMES = {0xC0, 0xC1, 0xC2, 0xC3, 0xC5, 0xC6, 0xC7, 0xC9, 0xCA, 0xCB, 0xCD, 0xCE, 0xCF}
# The longest metadata that a camera splits into segments (64 KiB each) takes some hundred.
MAX_SEGMENTS = 4_096


@dataclass(frozen=True, slots=True)
class Frame:
    """The frame header of a JPEG, and where its first scan begins.

    `areas` are the samples of each component, by its identifier.
    """

    width: int
    height: int
    kind: int
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
    """The file is split into more marker segments than any camera writes."""


def read_frame(data: bytes) -> Frame | None:
    """The frame header; None where there is none before the first scan.

    Raises TooManySegments.
    """
    at, frame = 2, None
    for _ in range(MAX_SEGMENTS):
        at = data.find(b"\xff", at)
        while at >= 0 and data[at + 1 : at + 2] in (b"\xff", b"\x00"):
            at = data.find(b"\xff", at + 1)
        if at < 0 or at + 4 > len(data):
            return None
        marker = data[at + 1]
        if marker == _START_OF_SCAN[1]:
            return frame and _with_first_scan(frame, at)
        length = 0
        if not 0xD0 <= marker <= 0xD9 and marker != 0x01:
            length = int.from_bytes(data[at + 2 : at + 4], "big")
        if marker in _FRAMES:
            frame = _parse_frame(marker, data[at + 4 : at + 2 + length])
            if frame is None:
                return None
        at += 2 + length
    raise TooManySegments


def _parse_frame(marker: int, body: bytes) -> Frame | None:
    if len(body) < 6 or len(body) < 6 + 3 * body[5]:
        return None
    height, width = int.from_bytes(body[1:3], "big"), int.from_bytes(body[3:5], "big")
    factors = {body[i]: (body[i + 1] >> 4, body[i + 1] & 15) for i in range(6, 6 + 3 * body[5], 3)}
    widest = max((h for h, _ in factors.values()), default=0)
    tallest = max((v for _, v in factors.values()), default=0)
    if not widest or not tallest:
        return None
    areas = {
        name: -(-width * h // widest) * -(-height * v // tallest)
        for name, (h, v) in factors.items()
    }
    return Frame(width, height, marker, areas, 0)


def _with_first_scan(frame: Frame, at: int) -> Frame:
    return Frame(frame.width, frame.height, frame.kind, frame.areas, at)


def has_several_scans(data: bytes, frame: Frame) -> bool:
    """Whether the decoder has to keep all coefficients until it has read the last scan."""
    in_scan = data[frame.first_scan + 4 : frame.first_scan + 5]
    return frame.progressive or not in_scan or in_scan[0] < len(frame.areas)


def count_scanned_samples(data: bytes, frame: Frame, enough: int) -> int:
    """Samples that the decoder walks over in all scans; counting ends once there are `enough`."""
    if not has_several_scans(data, frame):
        return frame.samples
    total, at = 0, frame.first_scan
    while at >= 0 and total < enough:
        names = data[at + 5 : at + 5 + 2 * min(4, (data[at + 4 : at + 5] or b"\0")[0]) : 2]
        scanned = sum(frame.areas.get(name, 0) for name in set(names))
        total += scanned or frame.samples
        at = data.find(_START_OF_SCAN, at + 2)
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

    The last of them may still be cut. False where the header cannot be read.
    """
    try:
        frame = read_frame(data)
    except TooManySegments:
        return False
    if frame is None:
        return False
    missing = {name: set(range(64)) for name in frame.areas}
    at = frame.first_scan
    while at >= 0:
        count = (data[at + 4 : at + 5] or b"\0")[0]
        behind = at + 5 + 2 * count
        names, script = data[at + 5 : behind : 2], data[behind : behind + 3]
        if not frame.progressive:
            script = b"\0\x3f\0"
        if len(script) == 3 and script[2] & 15 == 0:
            for name in names:
                missing.get(name, set()).difference_update(range(script[0], script[1] + 1))
        at = data.find(_START_OF_SCAN, at + 2)
    return not any(missing.values())
