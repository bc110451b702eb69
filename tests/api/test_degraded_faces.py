"""Blurred photos: marked where they are enrolled, and never compared with other blurred ones."""

import io
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image, ImageDraw, ImageFilter

from app.services import Services
from tests.conftest import PHOTOS


@pytest.fixture
def photos() -> Path:
    """As they are: a blurred face is still found in these."""
    return PHOTOS


def blurred(photo: bytes, radius: float = 18) -> bytes:
    buffer = io.BytesIO()
    picture = Image.open(io.BytesIO(photo)).convert("RGB")
    picture.filter(ImageFilter.GaussianBlur(radius)).save(buffer, "JPEG", quality=95)
    return buffer.getvalue()


def reduced(photo: bytes) -> bytes:
    buffer = io.BytesIO()
    picture = Image.open(io.BytesIO(photo)).convert("RGB")
    picture.thumbnail((320, 320))
    picture.save(buffer, "JPEG", quality=95)
    return buffer.getvalue()


@pytest.fixture
def open_gallery(gallery: Any) -> Any:
    """A collection that takes any photo."""
    policy = {"enroll_gate": {}}
    url = f"/v1/collections/{gallery.name}"
    gallery.client.patch(url, json={"policy": policy}).raise_for_status()
    return gallery


def test_a_face_s_degradation_is_shown(open_gallery: Any) -> None:
    photo = open_gallery.photo("obama.jpg")
    found = []
    for one in (photo, blurred(photo)):
        answer = open_gallery.client.post("/v1/embed", files={"image": one}).json()
        found.append(answer["faces"][0]["degradation"])
    assert found[0] < 0.2 < found[1]
    (detected,) = open_gallery.client.post("/v1/detect", files={"image": photo}).json()["faces"]
    assert detected["degradation"] is None  # it was not embedded


def test_a_degraded_template_is_marked_and_listed(open_gallery: Any, services: Services) -> None:
    photo = open_gallery.photo("obama.jpg")
    good, bad = (open_gallery.enroll(name, one).json()["enrolled"][0]
                 for name, one in (("good", photo), ("bad", blurred(photo))))  # fmt: skip
    assert good["degraded"] == []
    assert "blurred" in bad["degraded"]
    assert "degraded" in bad["degraded"]
    answer = open_gallery.client.get(f"/v1/collections/{open_gallery.name}/hygiene").json()
    assert [one["face_id"] for one in answer["degraded"]] == [bad["face_id"]]
    assert answer["counts"]["degraded"] == 1
    assert answer["degraded"][0]["degradation"] == pytest.approx(bad["degradation"], abs=1e-3)


def covered(photo: bytes, landmarks: list[list[float]]) -> bytes:
    """With a plain surface over the lower half of the face."""
    right, left, nose, right_mouth, left_mouth = landmarks
    width = left[0] - right[0]
    top, chin = nose[1] - 0.15 * width, left_mouth[1] + 0.8 * width
    picture = Image.open(io.BytesIO(photo)).convert("RGB")
    surface = (right_mouth[0] - 0.5 * width, top, left_mouth[0] + 0.5 * width, chin)
    ImageDraw.Draw(picture).rounded_rectangle(surface, radius=width / 4, fill=(160, 190, 214))
    buffer = io.BytesIO()
    picture.save(buffer, "JPEG", quality=95)
    return buffer.getvalue()


def test_a_covered_face_is_marked_and_listed(open_gallery: Any) -> None:
    photo = open_gallery.photo("obama.jpg")
    (found,) = open_gallery.client.post("/v1/embed", files={"image": photo}).json()["faces"]
    mask = covered(photo, found["landmarks"])
    (masked,) = open_gallery.client.post("/v1/embed", files={"image": mask}).json()["faces"]
    assert found["covering"] < 0.6 < masked["covering"]
    good, bad = (open_gallery.enroll(name, one).json()["enrolled"][0]
                 for name, one in (("good", photo), ("bad", mask)))  # fmt: skip
    assert (good["degraded"], bad["degraded"]) == ([], ["covered"])
    answer = open_gallery.client.get(f"/v1/collections/{open_gallery.name}/hygiene").json()
    assert [one["face_id"] for one in answer["degraded"]] == [bad["face_id"]]
    assert answer["degraded"][0]["covering"] == pytest.approx(masked["covering"], abs=1e-3)


@pytest.mark.slow
def test_only_two_covered_faces_are_less_similar_for_it(open_gallery: Any) -> None:
    photo = reduced(open_gallery.photo("obama.jpg"))  # to what embed and verify look at alike
    (found,) = open_gallery.client.post("/v1/embed", files={"image": photo}).json()["faces"]
    mask = covered(photo, found["landmarks"])
    embeddings = [
        np.array(open_gallery.client.post("/v1/embed", files={"image": one}).json()["faces"][0]
                 ["embedding"])
        for one in (photo, mask)
    ]  # fmt: skip

    def similarity(one: bytes, other: bytes) -> float:
        files = {"image": one, "reference": other}
        answer = open_gallery.client.post("/v1/verify", files=files).json()
        return float(answer["similarity"])

    assert similarity(photo, mask) == pytest.approx(embeddings[0] @ embeddings[1], abs=1e-3)
    assert similarity(mask, mask) < 0.95


def test_two_blurred_photos_prove_nothing(open_gallery: Any) -> None:
    obama, biden = (blurred(open_gallery.photo(n)) for n in ("obama.jpg", "biden.jpg"))
    for one, other in ((obama, biden), (obama, obama)):
        files = {"image": one, "reference": other}
        answer = open_gallery.client.post("/v1/verify", files=files).json()
        assert (answer["status"], answer["is_match"]) == ("rejected", False)
        assert answer["reasons"] == ["outside_calibration"]
    open_gallery.enroll("obama", obama).raise_for_status()
    claimed = open_gallery.verify(obama, person_id="obama").json()
    assert (claimed["status"], claimed["reasons"]) == ("rejected", ["outside_calibration"])
    fixed = open_gallery.verify(obama, person_id="obama", threshold="0.2").json()
    assert fixed["status"] == "match", "a fixed threshold promises nothing, and decides"


def test_one_blurred_photo_is_decided(open_gallery: Any) -> None:
    sharp, bad = open_gallery.photo("obama.jpg"), blurred(open_gallery.photo("obama2.jpg"), 6)
    answer = open_gallery.client.post("/v1/verify", files={"image": bad, "reference": sharp}).json()
    assert answer["status"] in ("match", "no_match")


def test_an_identification_that_rests_on_two_blurred_photos_is_rejected(open_gallery: Any) -> None:
    bad = blurred(open_gallery.photo("obama.jpg"))
    open_gallery.enroll("obama", bad).raise_for_status()
    answer = open_gallery.identify(bad, target_fpir="0.5").json()
    (face,) = answer["faces"]
    assert face["candidates"][0]["similarity"] >= answer["threshold"]
    assert (face["status"], face["person_id"]) == ("rejected", None)
    assert face["reasons"] == ["outside_calibration"]
    (sharp,) = open_gallery.identify(open_gallery.photo("obama.jpg")).json()["faces"]
    assert sharp["status"] != "rejected"
