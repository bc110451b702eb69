"""Detect and embed: three kinds of body, three kinds of answer, and all that can be wrong."""

import base64
import io
import struct
import zlib
from pathlib import Path

import httpx
import msgpack
import numpy as np
import pytest
from PIL import Image

from tests.api.test_decisions import code_of

WIDTH, HEIGHT = 307, 384


@pytest.fixture(scope="session")
def portrait(photos: Path) -> bytes:
    return (photos / "obama.jpg").read_bytes()


def test_detect_describes_each_face(client: httpx.Client, portrait: bytes) -> None:
    answer = client.post("/v1/detect", files={"image": portrait}).json()
    assert answer["images"] == [
        {"index": 0, "width": WIDTH, "height": HEIGHT, "faces": 1, "error": None}
    ]
    (face,) = answer["faces"]
    x1, y1, x2, y2 = face["box"]
    assert 0 <= x1 < x2 <= WIDTH
    assert 0 <= y1 < y2 <= HEIGHT
    assert face["box_normalised"] == pytest.approx(
        [x1 / WIDTH, y1 / HEIGHT, x2 / WIDTH, y2 / HEIGHT], abs=1e-4
    )
    left_eye, right_eye, nose, left_mouth, right_mouth = face["landmarks"]
    assert left_eye[0] < nose[0] < right_eye[0]
    assert left_eye[1] < nose[1] < left_mouth[1]
    assert left_mouth[0] < right_mouth[0]
    assert face["quality"]["embedding_norm"] is None
    assert "embedding" not in face
    assert answer["model"]["pack"] == "default"
    assert set(answer["timings_ms"]) >= {"decode", "detect", "total"}


def lying(photo: bytes, transpose: Image.Transpose) -> bytes:
    """The photo turned, with nothing in the file that says so."""
    turned = io.BytesIO()
    with Image.open(io.BytesIO(photo)) as picture:
        picture.transpose(transpose).save(turned, "JPEG", quality=95)
    return turned.getvalue()


def test_a_photo_turned_without_an_exif_tag(client: httpx.Client, portrait: bytes) -> None:
    """Coordinates are those of the photo as it was sent."""
    turned = lying(portrait, Image.Transpose.ROTATE_90)  # counterclockwise
    upright, answer = (
        client.post("/v1/detect", files={"image": data}).json() for data in (portrait, turned)
    )
    (face,), (before,) = answer["faces"], upright["faces"]
    assert (face["rotation"], before["rotation"]) == (90, 0)
    assert (answer["images"][0]["width"], answer["images"][0]["height"]) == (HEIGHT, WIDTH)
    x1, y1, x2, y2 = before["box"]
    assert face["box"] == pytest.approx([y1, WIDTH - x2, y2, WIDTH - x1], abs=4)
    assert face["quality"]["roll"] == pytest.approx(before["quality"]["roll"], abs=2)


def test_turned_photos_are_enrolled_identified_and_verified(
    client: httpx.Client, portrait: bytes
) -> None:
    on_the_head = lying(portrait, Image.Transpose.ROTATE_180)
    form = {"collection": "turned", "person_id": "obama"}
    client.post("/v1/collections", json={"name": "turned"})
    enrolled = client.post("/v1/enroll", data=form, files={"image": on_the_head})
    assert enrolled.status_code == 200, enrolled.text
    on_the_side = lying(portrait, Image.Transpose.ROTATE_270)
    answer = client.post(
        "/v1/identify", data={"collection": "turned"}, files={"image": on_the_side}
    ).json()
    assert [face["person_id"] for face in answer["faces"]] == ["obama"]
    assert answer["faces"][0]["candidates"][0]["similarity"] > 0.95
    verified = client.post("/v1/verify", data=form, files={"image": on_the_side}).json()
    assert verified["is_match"]
    assert verified["face"]["rotation"] == 270
    client.delete("/v1/collections/turned")


def test_a_photo_turned_by_its_exif_tag_answers_upright(
    client: httpx.Client, portrait: bytes
) -> None:
    with Image.open(io.BytesIO(portrait)) as picture:
        exif = Image.Exif()
        exif[0x0112] = 6  # stored lying; to be shown turned clockwise
        lying = io.BytesIO()
        picture.transpose(Image.Transpose.ROTATE_90).save(lying, "JPEG", quality=95, exif=exif)
    upright, turned = (
        client.post("/v1/detect", files={"image": data}).json()
        for data in (portrait, lying.getvalue())
    )
    assert turned["images"] == upright["images"]
    assert turned["faces"][0]["box"] == pytest.approx(upright["faces"][0]["box"], abs=3)


def test_three_kinds_of_body_say_the_same(client: httpx.Client, portrait: bytes) -> None:
    encoded = base64.b64encode(portrait).decode()
    answers = [
        client.post("/v1/embed", files={"image": portrait}),
        client.post("/v1/embed", json={"image": encoded}),
        client.post("/v1/embed", json={"image": [f"data:image/jpeg;base64,{encoded}"]}),
        client.post("/v1/embed", content=portrait, headers={"content-type": "image/jpeg"}),
        client.post("/v1/embed?max_faces=1", content=portrait, headers={"content-type": "image/*"}),
    ]
    vectors = [answer.json()["faces"][0]["embedding"] for answer in answers]
    assert all(vector == vectors[0] for vector in vectors)
    assert np.linalg.norm(vectors[0]) == pytest.approx(1, abs=1e-5)


def test_embeddings_as_octets_and_msgpack(client: httpx.Client, portrait: bytes) -> None:
    files = {"image": portrait}
    plain = client.post("/v1/embed", files=files).json()["faces"][0]["embedding"]
    octets = client.post("/v1/embed", files=files, headers={"accept": "application/octet-stream"})
    assert octets.headers["x-embedding-shape"] == "1,192"
    assert np.frombuffer(octets.content, "<f4") == pytest.approx(plain)
    packed = client.post("/v1/embed", files=files, headers={"accept": "application/msgpack"})
    faces = msgpack.unpackb(packed.content)["faces"]
    assert np.frombuffer(faces[0]["embedding"], "<f4") == pytest.approx(plain)


def test_many_images_one_of_them_bad(
    client: httpx.Client, portrait: bytes, group_photo: bytes
) -> None:
    files = [("image", portrait), ("image", b"not a photo"), ("image", group_photo)]
    answer = client.post("/v1/embed", files=files).json()
    assert [image["faces"] for image in answer["images"]] == [1, 0, 6]
    assert answer["images"][1]["error"]["code"] == "unsupported_image"
    assert [face["image_index"] for face in answer["faces"]] == [0] + [2] * 6


def png_header(width: int, height: int) -> bytes:
    """A PNG of one bit a pixel, all black: huge when decoded, tiny as sent."""

    def chunk(kind: bytes, body: bytes) -> bytes:
        return (
            struct.pack(">I", len(body)) + kind + body + struct.pack(">I", zlib.crc32(kind + body))
        )

    row = b"\0" * (1 + (width + 7) // 8)
    packer = zlib.compressobj(9)
    rows = b"".join([packer.compress(row) for _ in range(height)]) + packer.flush()
    head = struct.pack(">IIBBBBB", width, height, 1, 0, 0, 0, 0)
    parts = chunk(b"IHDR", head) + chunk(b"IDAT", rows) + chunk(b"IEND", b"")
    return b"\x89PNG\r\n\x1a\n" + parts


@pytest.mark.parametrize("path", ["/v1/detect", "/v1/embed", "/v1/identify"])
def test_bad_images_are_named_and_the_service_goes_on(
    client: httpx.Client, portrait: bytes, path: str
) -> None:
    bomb = png_header(30_000, 30_000)
    assert len(bomb) < 200_000
    cases = {
        (415, "unsupported_image"): b"just text, renamed to photo.jpg",
        (422, "empty_image"): b"",
        (422, "unreadable_image"): portrait[: len(portrait) // 2],
        (413, "image_too_large"): bomb,
    }
    for expected, data in cases.items():
        answer = client.post(path, files={"image": ("photo.jpg", data, "image/jpeg")})
        assert (answer.status_code, code_of(answer)) == expected
    too_heavy = portrait + b"\0" * (10 * 1024 * 1024)
    answer = client.post(path, files={"image": too_heavy})
    assert (answer.status_code, code_of(answer)) == (413, "image_too_large")
    assert len(client.post("/v1/detect", files={"image": portrait}).json()["faces"]) == 1
    assert client.get("/readyz").status_code == 200


def test_a_request_over_the_limit_is_refused_while_it_is_read(client: httpx.Client) -> None:
    def endless() -> object:
        for _ in range(70):
            yield b"\0" * 1024 * 1024

    try:
        answer = client.post(
            "/v1/detect", content=endless(), headers={"content-type": "image/jpeg"}
        )
    except (httpx.WriteError, httpx.ReadError):
        return  # the service closed the connection before the client had sent it all
    assert (answer.status_code, code_of(answer)) == (413, "request_too_large")


def test_wrong_field_names_are_reported(client: httpx.Client, portrait: bytes) -> None:
    answer = client.post("/v1/detect", files={"file": portrait})
    assert (answer.status_code, code_of(answer)) == (422, "unknown_field")
    assert "'image'" in answer.json()["detail"]
    answer = client.post("/v1/identify", files={"image": portrait}, data={"treshold": "0.5"})
    assert (answer.status_code, code_of(answer)) == (422, "unknown_field")
    assert "threshold" in answer.json()["detail"]


def test_missing_and_misplaced_photos(client: httpx.Client) -> None:
    answer = client.post("/v1/detect", files={"max_faces": (None, "3")})
    assert (answer.status_code, code_of(answer)) == (422, "missing_field")
    answer = client.post("/v1/detect", files={"image": (None, "photo.jpg")})
    assert (answer.status_code, code_of(answer)) == (422, "invalid_request")
    assert "-F image=@photo.jpg" in answer.json()["detail"]


@pytest.mark.parametrize(
    ("body", "kind", "expected"),
    [
        (b"image=x", "application/x-www-form-urlencoded", (415, "unsupported_media_type")),
        (b"x", "", (415, "unsupported_media_type")),
        (b"{", "application/json", (422, "invalid_request")),
        (b"[1]", "application/json", (422, "invalid_request")),
        (b"[" * 100_000, "application/json", (422, "invalid_request")),
        (b'{"\\ud800": 1}', "application/json", (422, "invalid_request")),
        (b'{"image": "!!"}', "application/json", (422, "invalid_request")),
        (b'{"image": {"url": "x"}}', "application/json", (422, "invalid_request")),
        (b"--x\r\n", "multipart/form-data", (422, "invalid_request")),
        (b"garbage", "multipart/form-data; boundary=x", (422, "invalid_request")),
        (b"", "image/jpeg", (422, "empty_image")),
    ],
)
def test_bodies_that_cannot_be_read(
    client: httpx.Client, body: bytes, kind: str, expected: tuple[int, str]
) -> None:
    answer = client.post("/v1/detect", content=body, headers={"content-type": kind})
    assert (answer.status_code, code_of(answer)) == expected


@pytest.mark.parametrize(
    ("field", "value"),
    [("max_faces", "0"), ("max_faces", "many"), ("threshold", "2"), ("threshold", "nan"),
     ("top_k", "0"), ("top_k", "101"), ("collection", "../x"), ("filter", "3")],
)  # fmt: skip
def test_values_out_of_range_are_named(
    client: httpx.Client, portrait: bytes, field: str, value: str
) -> None:
    answer = client.post("/v1/identify", files={"image": portrait}, data={field: value})
    assert (answer.status_code, code_of(answer)) == (422, "invalid_request")
    assert field in answer.json()["detail"]


def test_too_many_images(client: httpx.Client, portrait: bytes) -> None:
    answer = client.post("/v1/detect", files=[("image", portrait)] * 9)
    assert (answer.status_code, code_of(answer)) == (413, "request_too_large")
