"""What is known of a photo before it is decoded: format, size, memory, work."""

import io
from typing import Any

import numpy as np
import pytest
from PIL import Image as PillowImage

from app.imaging import estimate_memory, read_header, sniff_format
from app.imaging.jpeg import (
    MAX_SCANS,
    MAX_SEGMENTS,
    TooManySegments,
    count_scanned_samples,
    is_complete,
    least_bytes,
    read_frame,
)

MIB = 1024 * 1024


def saved(form: str, mode: str = "RGB", size: tuple[int, int] = (48, 32), **options: Any) -> bytes:
    buffer = io.BytesIO()
    PillowImage.new(mode, size).save(buffer, form, **options)
    return buffer.getvalue()


@pytest.mark.parametrize(
    ("data", "name"),
    [
        (b"\0\0\0\x14ftypqt  \0\0\0\0qt  " + bytes(64), "QuickTime video"),
        (b"\0\0\0\x14ftypisom\0\0\0\0mp41" + bytes(64), "MP4 video"),
        (b"\0\0\x10\0moov" + bytes(64), "QuickTime video"),
        (b"\0\0\0\x18ftypheic\0\0\0\0mif1heic" + bytes(64), "HEIC"),
        (b"\0\0\0\x18ftypmif1\0\0\0\0mif1heic" + bytes(64), "HEIC"),
        (b"\0\0\0\x1cftypmif1\0\0\0\0mif1avifmiaf" + bytes(64), "AVIF"),
        (b"\0\0\0\x14ftypmif1\0\0\0\0mif1" + bytes(64), "HEIF"),
        (b"\0\0\0\x18ftypcrx \0\0\0\1crx isom" + bytes(64), "Canon raw"),
        (b"\0\0\0\x0cjP  \r\n\x87\n" + bytes(64), "JPEG 2000"),
        (b"\0\0\0\x0cJXL \r\n\x87\n" + bytes(64), "JPEG XL"),
        (b"\0\0\0\x08ftyp", "MP4 video"),
        (b"hello, I am photo.jpg", None),
    ],
)
def test_formats_by_their_brands(data: bytes, name: str | None) -> None:
    assert sniff_format(data) == name


@pytest.mark.parametrize("size", [(48, 32), (1, 1), (3, 700)])
@pytest.mark.parametrize(
    ("form", "options", "least"),
    [
        ("JPEG", {}, 7),
        ("JPEG", {"progressive": True, "subsampling": 0}, 13),
        ("PNG", {}, 7),
        ("WEBP", {}, 7),
        ("WEBP", {"lossless": True}, 11),
        ("WEBP", {"save_all": True, "append_images": [PillowImage.new("RGB", (1, 1))]}, 15),
    ],
)
def test_size_and_memory(
    form: str, options: dict[str, Any], least: float, size: tuple[int, int]
) -> None:
    if options.get("save_all"):
        options = options | {"append_images": [PillowImage.new("RGB", size, "white")]}
    data = saved(form, size=size, **options)
    header = read_header(data)
    assert header is not None
    assert (header.format, header.width, header.height) == (form, *size)
    assert header.bytes_per_pixel >= least
    assert estimate_memory(data) == header.memory >= size[0] * size[1] * least


def test_memory_of_a_few_bytes_that_claim_forty_megapixels() -> None:
    assert estimate_memory(saved("WEBP", "RGBA", lossless=True)) < 9 * MIB
    bits = (8_000 - 1) | (5_000 - 1) << 14 | 1 << 28
    data = b"RIFF\x26\0\0\0WEBPVP8L\x19\0\0\0\x2f" + bits.to_bytes(4, "little") + bytes(21)
    assert 400 * MIB < estimate_memory(data) < 460 * MIB


def test_a_suspicious_jpeg_is_held_by_the_process_and_once_more_here() -> None:
    usual = saved("JPEG", "CMYK", progressive=True, size=(640, 480))
    frame = read_frame(usual)
    assert frame is not None
    many = usual[:-2] + usual[frame.first_scan : -2] * 100
    assert estimate_memory(many) - estimate_memory(usual) == 640 * 480 * 3


@pytest.mark.parametrize("magic", [b"\xff\xd8\xff", b"\x89PNG\r\n\x1a\n", b"RIFF1234WEBP", b""])
def test_no_header_costs_nothing(magic: bytes) -> None:
    noise = np.random.default_rng(2).bytes(2_000)
    for end in (0, 1, 5, 17, 40, 2_000):
        assert estimate_memory(magic + noise[:end]) >= 0
    assert estimate_memory(magic) == 0


class TestScans:
    def test_one_scan(self) -> None:
        data = saved("JPEG", subsampling=0)
        frame = read_frame(data)
        assert frame is not None
        assert not frame.progressive
        assert count_scanned_samples(data, frame, 10**12) == 48 * 32 * 3

    def test_progressive_scans_are_counted_until_there_are_enough(self) -> None:
        data = saved("JPEG", subsampling=0, progressive=True)
        frame = read_frame(data)
        assert frame is not None
        assert frame.progressive
        whole = count_scanned_samples(data, frame, 10**12)
        # Three components in the first and the sixth scan, one in each of the other eight.
        assert whole == (3 + 3 + 8) * 48 * 32
        scans = data[frame.first_scan : -2] * 50
        assert count_scanned_samples(data[:-2] + scans, frame, 10**12) == whole * 51
        assert count_scanned_samples(data[:-2] + scans, frame, whole) == whole

    def test_the_number_of_scans_is_bounded_however_small_they_are(self) -> None:
        """Each is read in Python."""
        scans = b"\xff\xda" * MAX_SCANS
        small = saved("JPEG", progressive=True) + scans
        frame = read_frame(small)
        assert frame is not None
        assert count_scanned_samples(small, frame, 10**15) == 10**15
        whole = saved("JPEG")[:-2]
        assert is_complete(whole)
        assert is_complete(whole + scans[:-2])
        assert not is_complete(whole + scans)

    def test_subsampled_components_are_smaller(self) -> None:
        frame = read_frame(saved("JPEG", subsampling=2))
        assert frame is not None
        assert sorted(frame.areas.values()) == [24 * 16, 24 * 16, 48 * 32]

    def test_components_that_share_an_identifier_are_counted_each(self) -> None:
        data = saved("JPEG", subsampling=0, progressive=True)
        at = data.index(b"\xff\xc2") + 10
        shared = bytearray(data)
        shared[at + 3] = shared[at + 6] = shared[at]
        frame, other = read_frame(data), read_frame(bytes(shared))
        assert frame is not None
        assert other is not None
        assert other.samples == frame.samples
        # A decoder takes any of them for the one that a scan names.
        assert count_scanned_samples(bytes(shared), other, 10**12) >= 10 * frame.samples

    def test_many_segments_are_not_walked(self) -> None:
        data = saved("JPEG")
        comment = b"\xff\xfe\0\2"
        assert read_frame(data[:2] + comment * 1_000 + data[2:]) is not None
        with pytest.raises(TooManySegments):
            read_frame(data[:2] + comment * MAX_SEGMENTS + data[2:])

    def test_much_between_segments_is_not_skipped(self) -> None:
        data = saved("JPEG")
        assert read_frame(data[:2] + b"\xff" * 1_000 + data[2:]) is not None
        with pytest.raises(TooManySegments):
            read_frame(data[:2] + b"\xff" * 10_000_000 + data[2:])

    def test_the_least_size_of_a_real_file_is_below_it(self) -> None:
        for options in ({}, {"progressive": True}, {"subsampling": 0}, {"quality": 1}):
            data = saved("JPEG", size=(2_000, 2_000), **options)
            frame = read_frame(data)
            assert frame is not None
            assert 0 < least_bytes(frame) < len(data)

    @pytest.mark.parametrize("end", range(2, 60))
    def test_cut_headers(self, end: int) -> None:
        assert read_frame(saved("JPEG")[:end]) is None
