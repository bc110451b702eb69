"""Limits of photos, and copies that are decoded at a fraction of their size."""

import io
import subprocess
import sys
import textwrap
import zlib
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pytest
from PIL import Image as PillowImage

from app.errors import (
    ImageTooLarge,
    UnreadableImage,
)
from app.imaging import ImageLimits, decode_at_least, decode_image
from tests.imaging.pictures import LIMITS, picture, png, saved

# What the decoder merely warns of, such as damaged EXIF data, is no failure of the tests.
pytestmark = pytest.mark.filterwarnings("ignore::UserWarning", "ignore::RuntimeWarning")


class TestLimits:
    def test_bytes(self) -> None:
        data = saved(picture(), "PNG")
        assert decode_image(data, ImageLimits(max_bytes=len(data))).size
        with pytest.raises(ImageTooLarge, match=f"more than the {len(data) - 1:,} bytes") as caught:
            decode_image(data, ImageLimits(max_bytes=len(data) - 1))
        assert caught.value.status == 413

    def test_segments(self) -> None:
        data = saved(picture(), "JPEG")
        with pytest.raises(UnreadableImage, match="more than 4,096 marker segments"):
            decode_image(data[:2] + b"\xff\xfe\0\2" * 5_000 + data[2:], LIMITS)

    def test_pixels(self) -> None:
        data = saved(picture(48, 32), "PNG")
        assert decode_image(data, ImageLimits(max_pixels=48 * 32)).size
        with pytest.raises(ImageTooLarge, match="48 × 32 pixels"):
            decode_image(data, ImageLimits(max_pixels=48 * 32 - 1))

    @pytest.mark.parametrize("form", ["PNG", "JPEG", "WEBP"])
    @pytest.mark.parametrize("size", [(48, 32), (32, 48)])
    def test_sides(self, form: str, size: tuple[int, int]) -> None:
        data = saved(picture(*size), form)
        assert decode_image(data, ImageLimits(max_side=48)).size
        with pytest.raises(ImageTooLarge, match="47 on a side") as caught:
            decode_image(data, ImageLimits(max_side=47))
        assert caught.value.code == "image_too_large"

    def test_one_pixel(self) -> None:
        assert decode_image(saved(picture(1, 1), "PNG"), LIMITS).shape == (1, 1, 3)

    @pytest.mark.skipif(sys.platform != "linux", reason="reads /proc/self/statm")
    @pytest.mark.parametrize(
        ("side", "depth", "colour"), [(30_000, 1, 0), (30_000, 8, 3), (13_000, 8, 3)]
    )
    def test_a_bomb_is_refused_before_its_pixels_take_memory(
        self, tmp_path: Path, side: int, depth: int, colour: int
    ) -> None:
        """30,000 x 30,000 pixels in about 100 kB (900 kB with a palette), and a smaller one that
        the decoder's own guard lets pass. It may take 60 MiB more than there is at the start; the
        least of the pictures takes 107."""
        deflate = zlib.compressobj(9)
        lines = bytes((1 + side * depth // 8) * 100)
        first, more, last = (
            deflate.compress(lines) + deflate.flush(mode)
            for mode in (zlib.Z_FULL_FLUSH, zlib.Z_FULL_FLUSH, zlib.Z_FINISH)
        )  # what follows a full flush does not depend on what came before
        checksum = len(lines) * side // 100 % 65_521 << 16 | 1  # Adler's of zeros
        body = first + more * (side // 100 - 2) + last[:-4] + checksum.to_bytes(4, "big")
        palette = (b"PLTE" + bytes(6),) if colour == 3 else ()
        bomb = tmp_path / "bomb.png"
        bomb.write_bytes(png(side, side, depth, colour, body, *palette))
        assert bomb.stat().st_size < LIMITS.max_bytes
        script = textwrap.dedent("""
            import resource, sys
            from pathlib import Path
            from app.errors import ImageTooLarge
            from app.imaging import ImageLimits, decode_image
            data = Path(sys.argv[1]).read_bytes()
            used = int(Path("/proc/self/statm").read_text().split()[0]) * resource.getpagesize()
            limit = used + 60 * 1024 * 1024
            resource.setrlimit(resource.RLIMIT_AS, (limit, limit))
            try:
                decode_image(data, ImageLimits())
            except ImageTooLarge as error:
                print(error.code)
        """)
        run = subprocess.run(
            [sys.executable, "-c", script, str(bomb)],
            capture_output=True,
            text=True,
            check=True,
            cwd=Path(__file__).parents[2],
            timeout=60,
        )
        assert run.stdout.strip() == "image_too_large"


def test_a_lack_of_memory_is_no_fault_of_the_photo() -> None:
    """An import would reject it for good, and a client would not send it again."""
    script = textwrap.dedent("""
        import io, resource
        from pathlib import Path
        from PIL import Image
        from app.errors import LikenessError
        from app.imaging import ImageLimits, decode_image
        photo = io.BytesIO()
        Image.new("RGB", (6_000, 6_000)).save(photo, "PNG")
        used = int(Path("/proc/self/statm").read_text().split()[0]) * resource.getpagesize()
        limit = used + 60 * 1024 * 1024
        resource.setrlimit(resource.RLIMIT_AS, (limit, limit))
        try:
            decode_image(photo.getvalue(), ImageLimits())
        except LikenessError as error:
            print(error.code, error.status)
    """)
    run = subprocess.run(
        [sys.executable, "-c", script],
        capture_output=True,
        text=True,
        check=True,
        cwd=Path(__file__).parents[2],
        timeout=60,
    )
    assert run.stdout.strip() == "overloaded 503"


class TestReducedCopies:
    LIMITS = ImageLimits()

    def photo(self, width: int, height: int, form: str = "JPEG", **options: Any) -> bytes:
        ramp = np.linspace(0, 255, width * height * 3).reshape(height, width, 3).astype(np.uint8)
        buffer = io.BytesIO()
        PillowImage.fromarray(ramp).save(buffer, form, **options)
        return buffer.getvalue()

    @pytest.mark.parametrize(
        ("size", "reduction"),
        [((639, 400), 1), ((1_279, 800), 1), ((1_280, 800), 2), ((2_559, 1_001), 2),
         ((2_563, 1_001), 4), ((5_121, 77), 8), ((5_121, 3), 2), ((77, 5_121), 8), ((2_000, 1), 1)],
    )  # fmt: skip
    def test_never_fewer_pixels_than_enough(self, size: tuple[int, int], reduction: int) -> None:
        decoded = decode_at_least(self.photo(*size), self.LIMITS, 640)
        assert decoded.reduction == reduction
        assert (decoded.width, decoded.height) == size
        expected = (-(-size[1] // reduction), -(-size[0] // reduction), 3)
        assert decoded.pixels.shape == expected

    @pytest.mark.parametrize("form", ["PNG", "WEBP"])
    def test_other_formats_come_whole(self, form: str) -> None:
        assert decode_at_least(self.photo(1_400, 30, form), self.LIMITS, 640).reduction == 1

    @pytest.mark.parametrize("orientation", range(1, 9))
    def test_turned(self, orientation: int) -> None:
        tags = PillowImage.Exif()
        tags[0x0112] = orientation
        data = self.photo(1_304, 904, exif=tags.tobytes())
        decoded = decode_at_least(data, self.LIMITS, 640)
        assert decoded.reduction == 2
        size = (1_304, 904) if orientation < 5 else (904, 1_304)
        assert (decoded.width, decoded.height) == size
        whole = decode_image(data, self.LIMITS)
        assert whole.shape[:2] == size[::-1]
        small = decoded.pixels.astype(int)
        averaged = cv2.resize(whole, None, fx=0.5, fy=0.5, interpolation=cv2.INTER_AREA)
        assert np.median(np.abs(small - averaged.astype(int))) <= 2

    def test_turned_with_sides_that_do_not_divide(self) -> None:
        """The decoder adds to the far side, which a turn would make the near one."""
        tags = PillowImage.Exif()
        tags[0x0112] = 3
        data = self.photo(1_301, 903, exif=tags.tobytes())
        assert decode_at_least(data, self.LIMITS, 640).reduction == 1

    def test_a_truncated_photo_is_still_refused(self) -> None:
        data = self.photo(2_600, 1_000)
        with pytest.raises(UnreadableImage):
            decode_at_least(data[: len(data) // 2], self.LIMITS, 640)
