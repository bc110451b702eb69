"""Decoding: every format a camera or a phone sends, and every way a file can be wrong."""

import io
import itertools
import struct
from collections.abc import Callable
from datetime import timedelta
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image as PillowImage

from app.errors import (
    EmptyImage,
    ImageError,
    UnreadableImage,
    UnsupportedImage,
)
from app.imaging import decode_image
from tests.imaging.pictures import (
    LIMITS,
    ORIENTATION,
    SAMPLES,
    Pixels,
    decoded_rgb,
    distance,
    exif,
    lines,
    picture,
    png,
    saved,
)
from tests.waiting import PATIENCE_S

# What the decoder merely warns of, such as damaged EXIF data, is no failure of the tests.
pytestmark = pytest.mark.filterwarnings("ignore::UserWarning", "ignore::RuntimeWarning")


class TestFormats:
    @pytest.mark.parametrize(
        ("form", "options"),
        [
            ("JPEG", {"quality": 95}),
            ("JPEG", {"quality": 95, "progressive": True}),
            ("JPEG", {"quality": 95, "subsampling": 0, "optimize": True}),
            ("WEBP", {"quality": 95}),
        ],
    )
    def test_lossy(self, form: str, options: dict[str, Any]) -> None:
        assert distance(decoded_rgb(saved(picture(), form, **options)), picture()) < 4

    @pytest.mark.parametrize(("form", "options"), [("PNG", {}), ("WEBP", {"lossless": True})])
    def test_lossless(self, form: str, options: dict[str, Any]) -> None:
        assert np.array_equal(decoded_rgb(saved(picture(), form, **options)), picture())

    def test_result_is_a_contiguous_bgr_array(self) -> None:
        red = np.zeros((3, 5, 3), np.uint8)
        red[:, :, 0] = 255
        for form in ("PNG", "JPEG", "WEBP"):
            image = decode_image(saved(red, form, quality=100), LIMITS)
            assert image.shape == (3, 5, 3)
            assert image.dtype == np.uint8
            assert image.flags.c_contiguous
            assert image[1, 2, 2] > 240
            assert image[1, 2, 0] < 20

    def test_transparency_is_laid_on_white(self) -> None:
        rgba = np.dstack([picture(), np.zeros((32, 48), np.uint8)])
        rgba[:16, :, 3] = 255
        rgba[:, 20:30, 3] = 128
        for form, options in (("PNG", {}), ("WEBP", {"lossless": True, "exact": True})):
            seen = decoded_rgb(saved(rgba, form, **options))
            assert np.array_equal(seen[:16, :20], picture()[:16, :20])
            assert (seen[16:, :20] == 255).all()
            half = (picture()[:, 20:30].astype(int) + 255) / 2
            assert np.abs(seen[:, 20:30] - half).max() <= 2

    def test_grey_with_transparency(self) -> None:
        la = np.zeros((4, 6, 2), np.uint8)
        la[:, :, 0], la[:2, :, 1] = 90, 255
        seen = decoded_rgb(saved(PillowImage.fromarray(la, "LA"), "PNG"))
        assert (seen[:2] == 90).all()
        assert (seen[2:] == 255).all()

    def test_palette(self) -> None:
        palette = PillowImage.fromarray(picture()).quantize(64)
        seen = decoded_rgb(saved(palette, "PNG"))
        assert np.array_equal(seen, np.asarray(palette.convert("RGB")))
        assert distance(seen, picture()) < 16

    @pytest.mark.parametrize("transparency", [0, b"\x00\xff"])
    def test_palette_with_transparency(self, transparency: int | bytes) -> None:
        palette = PillowImage.new("P", (4, 2))
        palette.putpalette([10, 20, 30, 200, 100, 50])
        palette.putpixel((3, 1), 1)
        seen = decoded_rgb(saved(palette, "PNG", transparency=transparency))
        assert seen[0, 0].tolist() == [255, 255, 255]
        assert seen[1, 3].tolist() == [200, 100, 50]

    def test_one_bit(self) -> None:
        chequered = np.indices((8, 8)).sum(axis=0) % 2 == 0
        seen = decoded_rgb(saved(PillowImage.fromarray(chequered), "PNG"))
        assert np.array_equal(seen[:, :, 0], chequered * np.uint8(255))

    def test_sixteen_bit_grey_keeps_its_high_byte(self) -> None:
        grey = np.linspace(0, 65535, 48, dtype=np.uint16)[np.newaxis].repeat(3, axis=0)
        seen = decoded_rgb(png(48, 3, 16, 0, lines(grey)))
        assert np.array_equal(seen, (grey >> 8).astype(np.uint8)[:, :, np.newaxis].repeat(3, 2))

    def test_sixteen_bit_colour_keeps_its_high_byte(self) -> None:
        deep = picture().astype(np.uint16) * 257
        assert np.array_equal(decoded_rgb(png(48, 32, 16, 2, lines(deep))), picture())

    def test_grey_jpeg(self) -> None:
        grey = picture()[:, :, 0]
        seen = decoded_rgb(saved(grey, "JPEG", quality=95))
        assert distance(seen, np.repeat(grey[:, :, np.newaxis], 3, axis=2)) < 3

    def test_adobe_cmyk_jpeg_is_not_a_negative(self) -> None:
        cmyk = PillowImage.fromarray(picture()).convert("CMYK")
        data = saved(cmyk, "JPEG", quality=95)
        assert b"Adobe" in data  # whose CMYK is stored inverted
        assert distance(decoded_rgb(data), picture()) < 6

    @pytest.mark.parametrize("form", ["WEBP", "PNG"])
    def test_an_animation_gives_its_first_frame(self, form: str) -> None:
        frames = [
            PillowImage.fromarray(p) for p in (picture(), picture()[::-1], picture()[:, ::-1])
        ]
        data = saved(
            frames[0], form, save_all=True, append_images=frames[1:], duration=50, lossless=True
        )
        assert PillowImage.open(io.BytesIO(data)).n_frames == 3
        assert np.array_equal(decoded_rgb(data), picture())

    def test_a_phone_s_multi_picture_jpeg(self) -> None:
        pair = [PillowImage.fromarray(p) for p in (picture(), picture()[::-1])]
        data = saved(pair[0], "MPO", save_all=True, append_images=pair[1:], quality=95)
        assert distance(decoded_rgb(data), picture()) < 4


# How a stored picture is shown, by EXIF orientation (CIPA DC-008), and how to store one so.
STORE: dict[int, Callable[[Pixels], Pixels]] = {
    1: lambda p: p,
    2: lambda p: p[:, ::-1],
    3: lambda p: p[::-1, ::-1],
    4: lambda p: p[::-1],
    5: lambda p: p.transpose(1, 0, 2),
    6: lambda p: np.rot90(p, 1),
    7: lambda p: p.transpose(1, 0, 2)[::-1, ::-1],
    8: lambda p: np.rot90(p, -1),
}


class TestOrientation:
    @pytest.mark.parametrize("orientation", range(1, 9))
    @pytest.mark.parametrize(
        ("form", "options", "tolerance"),
        [("JPEG", {"quality": 95}, 4), ("PNG", {}, 0), ("WEBP", {"lossless": True}, 0)],
    )
    def test_every_orientation_comes_out_upright(
        self, form: str, options: dict[str, Any], tolerance: float, orientation: int
    ) -> None:
        stored = np.ascontiguousarray(STORE[orientation](picture()))
        data = saved(stored, form, exif=exif(orientation), **options)
        image = decode_image(data, LIMITS)
        assert image.flags.c_contiguous
        assert distance(image[:, :, ::-1], picture()) <= tolerance

    @pytest.mark.parametrize("form", ["JPEG", "PNG", "WEBP"])
    @pytest.mark.parametrize(
        "damaged",
        [
            b"",
            b"Exif\0\0",
            b"Exif\0\0MM\0*\0\0",
            b"Exif\0\0II*\0\xff\xff\xff\xff",
            b"Exif\0\0" + bytes(range(60)),
            exif(0),
            exif(9),
            exif(700),
            exif(6)[:-9],
        ],
    )
    def test_damaged_exif_counts_as_none(self, form: str, damaged: bytes) -> None:
        options = {"JPEG": {"quality": 95}, "PNG": {}, "WEBP": {"lossless": True}}[form]
        data = saved(picture(), form, exif=damaged, **options)
        assert distance(decoded_rgb(data), picture()) < 4

    def test_a_good_orientation_beside_a_damaged_tag(self) -> None:
        """Tag 0x010e claims to be longer than the file; tag 0x0112 is fine."""
        tags = [(0x010E, 2, 0x7FFFFF00, 0x7FFFFF00), (ORIENTATION, 3, 1, 6), (0xFFFE, 99, 5, 5)]
        block = b"II*\0" + struct.pack("<IH", 8, len(tags))
        block += b"".join(struct.pack("<HHII", *tag) for tag in tags) + bytes(4)
        stored = np.ascontiguousarray(STORE[6](picture()))
        data = saved(stored, "JPEG", quality=95, exif=b"Exif\0\0" + block)
        assert distance(decoded_rgb(data), picture()) < 4


class TestRefusals:
    def test_zero_bytes(self) -> None:
        with pytest.raises(EmptyImage) as caught:
            decode_image(b"", LIMITS)
        assert caught.value.code == "empty_image"

    @pytest.mark.parametrize("data", [b"hello, I am photo.jpg", b"<svg/>", b"\0", b"\xff\xd8"])
    def test_no_image_at_all(self, data: bytes) -> None:
        with pytest.raises(UnsupportedImage, match="send JPEG, PNG, WebP, HEIC or AVIF") as caught:
            decode_image(data, LIMITS)
        assert caught.value.code == "unsupported_image"
        assert caught.value.status == 415

    @pytest.mark.parametrize(
        ("name", "data"),
        [
            ("GIF", saved(picture(), "GIF")),
            ("TIFF", saved(picture(), "TIFF")),
            ("BMP", saved(picture(), "BMP")),
            ("PDF", saved(picture(), "PDF")),
            ("JPEG 2000", b"\0\0\0\x0cjP  \r\n\x87\n" + bytes(64)),
            ("JPEG XL", b"\0\0\0\x0cJXL \r\n\x87\n" + bytes(64)),
        ],
    )
    def test_other_formats_are_called_by_their_name(self, name: str, data: bytes) -> None:
        with pytest.raises(UnsupportedImage, match=f"^{name} images are not supported"):
            decode_image(data, LIMITS)

    @pytest.mark.parametrize("magic", [b"\xff\xd8\xff\xe0", b"\x89PNG\r\n\x1a\n"])
    def test_a_promising_start_and_then_noise(self, magic: bytes) -> None:
        noise = np.random.default_rng(5).bytes(3000)
        with pytest.raises(UnreadableImage) as caught:
            decode_image(magic + noise, LIMITS)
        assert caught.value.code == "unreadable_image"


class TestDamage:
    @pytest.mark.parametrize("kind", SAMPLES)
    def test_a_truncated_file_is_refused_wherever_it_ends(self, kind: str) -> None:
        """Never another exception, and never a picture that is grey where bytes are missing."""
        data = SAMPLES[kind]
        whole = decode_image(data, LIMITS)
        header = 12  # without it, no format announces itself
        for end in itertools.chain(range(1, 200), range(200, len(data), 7)):
            try:
                seen = decode_image(data[:end], LIMITS)
            except UnreadableImage:
                continue
            except UnsupportedImage:
                assert end < header
                continue
            # A PNG whose last chunk alone is damaged has all its pixels, and so has a JPEG that
            # lacks its end marker.
            assert end >= len(data) - {"jpeg": 2, "progressive": 2, "png": 31, "palette": 31}[kind]
            assert np.array_equal(seen, whole)

    @pytest.mark.parametrize("kind", SAMPLES)
    @pytest.mark.parametrize("share", [0.3, 0.5, 0.7, 0.9, 0.97])
    def test_a_truncated_file_is_unreadable(self, kind: str, share: float) -> None:
        data = SAMPLES[kind]
        with pytest.raises(UnreadableImage, match="send the whole file") as caught:
            decode_image(data[: int(len(data) * share)], LIMITS)
        assert caught.value.status == 422

    @pytest.mark.slow
    @given(
        kind=st.sampled_from(sorted(SAMPLES)),
        changes=st.lists(st.tuples(st.integers(0, 1 << 16), st.integers(0, 255)), max_size=12),
    )
    @settings(max_examples=300, deadline=timedelta(seconds=PATIENCE_S))
    def test_changed_bytes_give_a_picture_or_an_image_error(
        self, kind: str, changes: list[tuple[int, int]]
    ) -> None:
        data = bytearray(SAMPLES[kind])
        for position, value in changes:
            data[position % len(data)] = value
        try:
            image = decode_image(bytes(data), LIMITS)
        except ImageError:
            return
        assert image.ndim == 3
        assert image.dtype == np.uint8
