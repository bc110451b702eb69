"""Forms as browsers send them: fields that were left empty are there, with nothing in them."""

from typing import Any

import pytest

from tests.api.test_decisions import code_of


def test_optional_fields_left_empty_are_absent(presidents: Any) -> None:
    empty = {"threshold": "", "target_fpir": "", "filter": "", "max_faces": "", "top_k": ""}
    answer = presidents.identify(presidents.photo("obama2.jpg"), **empty)
    assert answer.status_code == 200, answer.text
    assert answer.json() | {"request_id": 0, "timings_ms": 0} == (
        presidents.identify(presidents.photo("obama2.jpg")).json()
        | {"request_id": 0, "timings_ms": 0}
    )


@pytest.mark.parametrize("reference", ["", ("", b"")], ids=["text", "file"])
def test_a_reference_left_empty_is_absent(presidents: Any, reference: Any) -> None:
    answer = presidents.client.post(
        "/v1/verify",
        data={"collection": presidents.name, "person_id": "obama"},
        files=[
            ("image", presidents.photo("obama2.jpg")),
            ("reference", reference if reference else (None, b"")),
        ],
    )
    assert answer.status_code == 200, answer.text
    assert answer.json()["is_match"]


def test_a_required_field_left_empty_is_refused(gallery: Any) -> None:
    answer = gallery.enroll("", gallery.photo("obama.jpg"))
    assert (answer.status_code, code_of(answer)) == (422, "invalid_request")
    assert "person_id" in answer.json()["detail"]


def test_photos_left_empty_are_missing(gallery: Any) -> None:
    answer = gallery.client.post("/v1/detect", files={"image": ("", b"")})
    assert (answer.status_code, code_of(answer)) == (422, "missing_field")
    answer = gallery.client.post("/v1/detect", files={"image": ("face.jpg", b"")})
    assert (answer.status_code, code_of(answer)) == (422, "empty_image")
