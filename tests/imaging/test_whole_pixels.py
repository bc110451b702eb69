"""Files that break a rule beside their pixels are decoded; those that lack pixels are not."""

import io
import struct
import zlib
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray
from PIL import Image as PillowImage
from PIL import PngImagePlugin

from app.errors import ImageError, UnreadableImage
from app.imaging import ImageLimits, decode_image
from app.imaging.png import MAX_CHUNKS

pytestmark = pytest.mark.filterwarnings("ignore::UserWarning", "ignore::RuntimeWarning")

LIMITS = ImageLimits()
MIB = 1024 * 1024
END = b"\xff\xd9"
Pixels = NDArray[np.uint8]


def noise(width: int = 48, height: int = 32, seed: int = 1) -> Pixels:
    return np.random.default_rng(seed).integers(0, 256, (height, width, 3), dtype=np.uint8)


def saved(pixels: Pixels, form: str, **options: Any) -> bytes:
    buffer = io.BytesIO()
    PillowImage.fromarray(pixels).save(buffer, form, **options)
    return buffer.getvalue()


def chunk(kind: bytes, body: bytes, checksum: int | None = None) -> bytes:
    value = zlib.crc32(kind + body) if checksum is None else checksum
    return struct.pack(">I", len(body)) + kind + body + struct.pack(">I", value)


def with_chunk(png: bytes, added: bytes, *, last: bool = False) -> bytes:
    at = png.rindex(b"IEND") - 4 if last else 33
    return png[:at] + added + png[at:]


ORIENTATION = b'<x xmlns:tiff="t" tiff:Orientation="3"/>'
LARGE = b"a" * (1100 * 1024)


class TestPng:
    @pytest.mark.parametrize("last", [False, True])
    @pytest.mark.parametrize(
        "added",
        [
            chunk(b"zTXt", b"Comment\0\0" + zlib.compress(LARGE)),
            chunk(b"tEXt", b"Comment\0" + LARGE),
            chunk(b"iTXt", b"XML:com.adobe.xmp\0\1\0\0\0" + zlib.compress(LARGE)),
            chunk(b"iCCP", b"profile\0\0" + zlib.compress(LARGE)),
            chunk(b"iCCP", b"profile\0\0" + b"damaged"),
            chunk(b"tEXt", b"Comment\0hello", checksum=7),
            chunk(b"eXIf", b"MM\0*\0\0\0\x08", checksum=7),
            chunk(b"pHYs", b"too short"),
            chunk(b"tIME", b"", checksum=0),
            chunk(b"acTL", struct.pack(">II", 500_000, 0)),
            chunk(b"acTL", struct.pack(">II", 0, 0)) * 3,
            chunk(b"fcTL", b"\0" * 26),
            chunk(b"zTXt", b"XML:com.adobe.xmp\0\0" + zlib.compress(LARGE)) * 70,
        ],
    )
    def test_what_stands_beside_the_pixels_does_no_harm(self, added: bytes, last: bool) -> None:
        data = with_chunk(saved(noise(), "PNG"), added, last=last)
        assert np.array_equal(decode_image(data, LIMITS)[:, :, ::-1], noise())

    @pytest.mark.parametrize("last", [False, True])
    @pytest.mark.parametrize(
        "text",
        [
            ORIENTATION,
            ORIENTATION + LARGE,
        ],
    )
    @pytest.mark.parametrize("kind", ["iTXt", "packed iTXt", "zTXt", "tEXt"])
    def test_an_orientation_in_a_text_counts_however_long_it_is(
        self, kind: str, text: bytes, last: bool
    ) -> None:
        body = {
            "iTXt": b"\0\0\0\0" + text,
            "packed iTXt": b"\1\0\0\0" + zlib.compress(text),
            "zTXt": b"\0" + zlib.compress(text),
            "tEXt": text,
        }[kind]
        added = chunk(kind[-4:].encode(), b"XML:com.adobe.xmp\0" + body)
        data = with_chunk(saved(noise(), "PNG"), added, last=last)
        assert np.array_equal(decode_image(data, LIMITS)[:, :, ::-1], noise()[::-1, ::-1])

    @pytest.mark.parametrize(("checksum", "turned"), [(None, True), (7, False)])
    def test_a_damaged_orientation_does_not_count(self, checksum: int | None, turned: bool) -> None:
        exif = PillowImage.Exif()
        exif[0x0112] = 3
        added = chunk(b"eXIf", exif.tobytes()[6:], checksum)
        seen = decode_image(with_chunk(saved(noise(), "PNG"), added), LIMITS)[:, :, ::-1]
        assert np.array_equal(seen, noise()[::-1, ::-1] if turned else noise())

    def test_exif_as_other_programs_write_it_into_texts(self) -> None:
        exif = PillowImage.Exif()
        exif[0x0112] = 3
        info = PngImagePlugin.PngInfo()
        text = f"\nexif\n{len(exif.tobytes()):8}\n{exif.tobytes().hex()}\n"
        info.add_text("Raw profile type exif", text, zip=True)
        data = saved(noise(), "PNG", pnginfo=info)
        assert np.array_equal(decode_image(data, LIMITS)[:, :, ::-1], noise()[::-1, ::-1])

    def test_pixels_in_many_pieces(self) -> None:
        whole = saved(noise(), "PNG")
        start, end = whole.index(b"IDAT") - 4, whole.rindex(b"IEND") - 4
        body = whole[start + 8 : end - 4]
        pieces = [chunk(b"IDAT", body[i : i + 1]) for i in range(len(body))]
        empty = chunk(b"IDAT", b"") * 1_000
        data = whole[:start] + empty + b"".join(pieces) + whole[end:]
        assert np.array_equal(decode_image(data, LIMITS)[:, :, ::-1], noise())
        flood = chunk(b"IDAT", b"") * MAX_CHUNKS
        with pytest.raises(UnreadableImage, match="more than 65,536 chunks"):
            decode_image(whole[:start] + flood + whole[start:], LIMITS)

    @pytest.mark.parametrize("kind", [b"IHDR", b"PLTE"])
    def test_a_damaged_critical_chunk_is_refused(self, kind: bytes) -> None:
        palette = PillowImage.fromarray(noise()).quantize(16)
        buffer = io.BytesIO()
        palette.save(buffer, "PNG")
        data = bytearray(buffer.getvalue())
        data[data.index(kind) + 5] ^= 1
        with pytest.raises(ImageError):
            decode_image(bytes(data), LIMITS)


class TestJpegWithoutEnd:
    @pytest.mark.parametrize("options", [{}, {"progressive": True}, {"optimize": True}])
    @pytest.mark.parametrize("cut", [1, 2])
    @pytest.mark.parametrize("size", [(48, 32), (1, 1), (33, 17)])
    def test_its_pixels_are_whole(
        self, options: dict[str, Any], cut: int, size: tuple[int, int]
    ) -> None:
        data = saved(noise(*size), "JPEG", quality=90, **options)
        assert data.endswith(END)
        assert np.array_equal(decode_image(data[:-cut], LIMITS), decode_image(data, LIMITS))

    @pytest.mark.parametrize("pixels", [noise(), np.full((37, 58, 3), 57, np.uint8)])
    @pytest.mark.parametrize("options", [{}, {"progressive": True}, {"optimize": True}])
    def test_one_that_lacks_pixels_too_is_refused(
        self, pixels: Pixels, options: dict[str, Any]
    ) -> None:
        data = saved(pixels, "JPEG", quality=90, **options)
        whole = decode_image(data, LIMITS)
        for end in range(len(data) - 60, len(data) - 2):
            try:
                seen = decode_image(data[:end], LIMITS)
            except UnreadableImage:
                continue
            # No more than the bits that fill up the last byte were missing.
            assert np.array_equal(seen, whole)

    def test_missing_scans_are_missing_pixels(self) -> None:
        data = saved(noise(), "JPEG", progressive=True)
        last_scan = data.rindex(b"\xff\xc4", 0, data.rindex(b"\xff\xda"))
        with pytest.raises(UnreadableImage):
            decode_image(data[:last_scan], LIMITS)

    def test_a_header_that_claims_more_than_its_bytes_can_hold(self) -> None:
        data = saved(noise(16, 16), "JPEG", optimize=True)
        at = data.index(b"\xff\xc0") + 5
        claims = data[:at] + struct.pack(">HH", 6_324, 6_324) + data[at + 4 :]
        for ended in (claims, claims[:-2], claims[:-2] + END):
            with pytest.raises(UnreadableImage, match="send the whole file"):
                decode_image(ended, LIMITS)
