"""Thumbnails decode again, are small and upright, and carry nothing but pixels."""

import base64
import io
from pathlib import Path

import pytest
from PIL import ExifTags
from PIL import Image as PillowImage

from app.lab.evaluation.html import MAX_SIDE_PX, thumbnail_uri

PHOTOS = Path(__file__).resolve().parents[2] / "data" / "photos"


def decoded(uri: str | None) -> PillowImage.Image:
    assert uri is not None
    head, _, body = uri.partition(",")
    assert head == "data:image/jpeg;base64"
    picture = PillowImage.open(io.BytesIO(base64.b64decode(body, validate=True)))
    picture.load()
    return picture


def written(picture: PillowImage.Image, kind: str, **options: object) -> bytes:
    data = io.BytesIO()
    picture.save(data, format=kind, **options)
    return data.getvalue()


def test_a_photo_becomes_a_small_jpeg() -> None:
    picture = decoded(thumbnail_uri((PHOTOS / "obama.jpg").read_bytes()))
    assert max(picture.size) == MAX_SIDE_PX


@pytest.mark.parametrize("kind", ["JPEG", "PNG", "WEBP"])
def test_colours_survive(kind: str) -> None:
    red = PillowImage.new("RGB", (300, 200), (220, 30, 30))
    picture = decoded(thumbnail_uri(written(red, kind)))
    assert picture.size == (112, 75)
    r, g, b = picture.convert("RGB").resize((1, 1)).tobytes()
    assert r > 200
    assert max(g, b) < 60


def test_a_photo_that_is_small_stays_so() -> None:
    assert decoded(thumbnail_uri(written(PillowImage.new("L", (40, 30)), "PNG"))).size == (40, 30)


def test_it_is_upright_and_tells_nothing_of_the_camera() -> None:
    exif = PillowImage.Exif()
    exif[ExifTags.Base.Orientation] = 6
    exif[ExifTags.Base.Make] = "Spy"
    photo = written(PillowImage.new("RGB", (200, 100)), "JPEG", exif=exif)
    picture = decoded(thumbnail_uri(photo))
    assert picture.size == (56, 112)
    assert not picture.getexif()


@pytest.mark.parametrize("photo", [b"", b"no photo", b"GIF89a....", b"\xff\xd8\xff\xe0 cut"])
def test_what_is_no_photo_is_none(photo: bytes) -> None:
    assert thumbnail_uri(photo) is None


def test_a_photo_cut_short_is_none() -> None:
    assert thumbnail_uri((PHOTOS / "obama.jpg").read_bytes()[:2000]) is None
