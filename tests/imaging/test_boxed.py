"""HEIC and AVIF, decoded in a process of their own.

The HEIC files show `picture()`, written by pillow-heif 1.8.1 (quality 95, 4:4:4); `turned.heic` is
stored on its side, with `irot` and with EXIF data that say so too.
"""

import io
import os
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray
from PIL import Image as PillowImage

from app.errors import ImageTooLarge, UnreadableImage
from app.imaging import ImageLimits, PhotoDecoder, read_header
from app.imaging.boxed import decode_boxed
from app.imaging.decoding import decode_here

HEIC = Path(__file__).parents[1] / "data" / "heic"
LIMITS = ImageLimits()
Pixels = NDArray[np.uint8]


@pytest.fixture(scope="module")
def decoder() -> Iterator[PhotoDecoder]:
    decoder = PhotoDecoder(LIMITS)
    yield decoder
    decoder.close()


def picture(width: int = 96, height: int = 64) -> Pixels:
    x = np.linspace(0, 1, width)[np.newaxis, :]
    y = np.linspace(0, 1, height)[:, np.newaxis]
    channels = [np.broadcast_to(c, (height, width)) for c in (x, y, (x + y * y) / 2)]
    return (np.stack(channels, axis=2) * 255).astype(np.uint8)


def avif(pixels: PillowImage.Image | Pixels, **options: Any) -> bytes:
    image = pixels if isinstance(pixels, PillowImage.Image) else PillowImage.fromarray(pixels)
    buffer = io.BytesIO()
    image.save(buffer, "AVIF", **({"quality": 95, "subsampling": "4:4:4"} | options))
    return buffer.getvalue()


def distance(bgr: Pixels, rgb: Pixels) -> float:
    assert bgr.shape == rgb.shape
    return float(np.abs(bgr[:, :, ::-1].astype(int) - rgb).mean())


@pytest.mark.parametrize("name", ["plain", "turned", "ten_bits"])
def test_heic(decoder: PhotoDecoder, name: str) -> None:
    photo = decoder.decode((HEIC / f"{name}.heic").read_bytes())
    assert (photo.width, photo.height, photo.reduction) == (96, 64, 1)
    assert distance(photo.pixels, picture()) < 1


def test_heic_of_tiles(decoder: PhotoDecoder) -> None:
    data = (HEIC / "tiles.heic").read_bytes()
    header = read_header(data)
    assert header is not None
    assert (header.width, header.height) == (192, 128)
    assert distance(decoder.decode(data).pixels, picture(192, 128)) < 1


def test_grey_heic(decoder: PhotoDecoder) -> None:
    grey = np.asarray(PillowImage.fromarray(picture()).convert("L"))
    seen = decoder.decode((HEIC / "grey.heic").read_bytes()).pixels
    assert distance(seen, np.repeat(grey[:, :, np.newaxis], 3, axis=2)) < 1


def test_transparency_is_laid_on_white(decoder: PhotoDecoder) -> None:
    rgba = np.dstack([picture(), np.zeros((64, 96), np.uint8)])
    rgba[:32, :, 3] = 255
    for data in (avif(rgba), (HEIC / "transparent.heic").read_bytes()):
        seen = decoder.decode(data).pixels
        assert distance(seen[:32], picture()[:32]) < 2
        assert (seen[33:] > 250).all()


@pytest.mark.parametrize("orientation", range(1, 9))
def test_avif_is_turned_once(decoder: PhotoDecoder, orientation: int) -> None:
    exif = PillowImage.Exif()
    exif[0x0112] = orientation
    store = {
        1: lambda p: p,
        2: lambda p: p[:, ::-1],
        3: lambda p: p[::-1, ::-1],
        4: lambda p: p[::-1],
        5: lambda p: p.transpose(1, 0, 2),
        6: lambda p: np.rot90(p, 1),
        7: lambda p: p.transpose(1, 0, 2)[::-1, ::-1],
        8: lambda p: np.rot90(p, -1),
    }[orientation]
    data = avif(np.ascontiguousarray(store(picture())), exif=exif)
    photo = decoder.decode(data)
    assert (photo.width, photo.height) == (96, 64)
    assert distance(photo.pixels, picture()) < 2


def test_the_first_picture_of_an_avif_sequence(decoder: PhotoDecoder) -> None:
    frames = [PillowImage.fromarray(p) for p in (picture(), picture()[::-1])]
    data = avif(frames[0], save_all=True, append_images=frames[1:])
    assert distance(decoder.decode(data).pixels, picture()) < 2


def test_a_track_larger_than_the_header_is_refused_before_it_is_decoded(
    decoder: PhotoDecoder,
) -> None:
    """Of a sequence the track is decoded, and the memory is counted by the header's `meta`."""
    frames = [PillowImage.fromarray(p) for p in (picture(), picture()[::-1])]
    data = bytearray(avif(frames[0], save_all=True, append_images=frames[1:]))
    at = data.find(b"ispe") + 8
    data[at : at + 8] = (64).to_bytes(4, "big") * 2
    with pytest.raises(
        UnreadableImage, match="states 64 × 64 pixels, and the picture in it 96 × 64"
    ):
        decoder.decode(bytes(data))


@pytest.mark.skipif((os.cpu_count() or 1) > 16, reason="its decoder's threads need more memory")
def test_coded_data_of_a_larger_picture_is_not_decoded(decoder: PhotoDecoder) -> None:
    """Its boxes state 64 × 64 everywhere; it would be decoded as 16,000 × 16,000 and scaled."""
    data = (HEIC / "larger_inside.avif").read_bytes()
    header = read_header(data)
    assert header is not None
    assert (header.width, header.height) == (64, 64)
    with pytest.raises(UnreadableImage):
        decoder.decode(data)
    assert decoder.decode(avif(picture())).pixels.shape == (64, 96, 3)


@pytest.mark.parametrize("kind", ["avif", "heic", "webp", "png", "jpeg"])
def test_nothing_larger_than_what_was_counted_is_decoded(kind: str) -> None:
    """Whatever a format's parser takes for the size."""
    buffer = io.BytesIO()
    if kind in ("webp", "png", "jpeg"):
        PillowImage.fromarray(picture()).save(buffer, kind)
    data = buffer.getvalue() or samples()[kind]
    header = read_header(data)
    assert header is not None
    decode = decode_boxed if kind in ("avif", "heic") else decode_here
    assert decode(header, data, LIMITS).pixels.shape == (64, 96, 3)
    with pytest.raises(UnreadableImage, match="and the picture in it 96 × 64"):
        decode(replace(header, height=63), data, LIMITS)


def samples() -> dict[str, bytes]:
    return {"avif": avif(picture()), "heic": (HEIC / "plain.heic").read_bytes()}


@pytest.mark.parametrize("kind", ["avif", "heic"])
def test_limits_hold_before_decoding(kind: str) -> None:
    data = samples()[kind]
    decoder = PhotoDecoder(ImageLimits(max_pixels=96 * 64 - 1))
    with pytest.raises(ImageTooLarge, match="96 × 64 pixels"):
        decoder.decode(data)
    assert not decoder._idle, "no process was needed to say so"


@pytest.mark.parametrize("kind", ["avif", "heic"])
@pytest.mark.parametrize("share", [0.1, 0.5, 0.9])
def test_cut_files_are_refused(decoder: PhotoDecoder, kind: str, share: float) -> None:
    data = samples()[kind]
    with pytest.raises(UnreadableImage):
        decoder.decode(data[: int(len(data) * share)])


def box(name: bytes, content: bytes) -> bytes:
    return (len(content) + 8).to_bytes(4, "big") + name + content


def meta(*properties: bytes) -> bytes:
    return box(b"meta", bytes(4) + box(b"iprp", box(b"ipco", b"".join(properties))))


def ispe(width: int, height: int) -> bytes:
    return box(b"ispe", bytes(4) + width.to_bytes(4, "big") + height.to_bytes(4, "big"))


HEIC_TYPE = box(b"ftyp", b"heic" + bytes(4) + b"mif1heic")


@pytest.mark.parametrize(
    ("boxes", "size"),
    [
        (meta(ispe(2, 3), ispe(20, 30), ispe(5, 4)), (20, 30)),
        # What looks like one within another box is none, nor is it searched.
        (box(b"free", meta(ispe(9, 9))) + meta(ispe(2, 3)), (2, 3)),
        (meta(box(b"colr", ispe(9, 9)), ispe(2, 3)), (2, 3)),
        (meta(ispe(2, 3)) + meta(ispe(20, 30)), (20, 30)),
        (b"\0\0\0\1free" + (24).to_bytes(8, "big") + bytes(8) + meta(ispe(2, 3)), (2, 3)),
        (b"\0\0\0\0" + meta(ispe(2, 3))[4:], (2, 3)),
        # A profile with tables, and many boxes.
        (meta(box(b"colr", bytes(2_500_000)), ispe(2, 3)), (2, 3)),
        (box(b"free", b"") * 2_000 + meta(ispe(2, 3)), (2, 3)),
        (meta(*[ispe(2, 3)] * 1_023), (2, 3)),
        (box(b"meta", b""), None),
        (meta(), None),
        (box(b"mdat", b"meta" + ispe(2, 3)), None),
        (b"\0\0\0\3free" + meta(ispe(2, 3)), None),
        (meta(ispe(2, 3))[:-5], None),
    ],
)
def test_the_largest_picture_that_a_file_describes(
    boxes: bytes, size: tuple[int, int] | None
) -> None:
    header = read_header(HEIC_TYPE + boxes)
    assert (header and (header.width, header.height)) == size


@pytest.mark.parametrize(
    ("boxes", "reason"),
    [
        (box(b"free", b"") * 5_000 + meta(ispe(2, 3)), "has more than 4,096 boxes"),
        (meta(*[ispe(2, 3)] * 1_024), "describes more than 1,023 pictures"),
    ],
)
def test_more_boxes_than_are_read_are_named(
    decoder: PhotoDecoder, boxes: bytes, reason: str
) -> None:
    """Nothing is wrong with such a file, so it need not be sent again."""
    assert read_header(HEIC_TYPE + boxes) is None
    with pytest.raises(UnreadableImage, match=f"{reason}, which .* save it again"):
        decoder.decode(HEIC_TYPE + boxes)


def test_a_large_color_profile(decoder: PhotoDecoder) -> None:
    """Those of printers and scanners have tables of some megabytes."""
    profile = np.random.default_rng(1).bytes(2_000_000)
    assert distance(decoder.decode(avif(picture(), icc_profile=profile)).pixels, picture()) < 2
