"""Enroll, verify, identify over HTTP, with real photos."""

import base64
import io
import threading
from typing import Any

import cv2
import httpx
import numpy as np
import pytest
from PIL import Image

from app.api.problems import Problem


def code_of(response: httpx.Response) -> str:
    """The stable code of a problem document, whose form is checked on the way."""
    assert response.headers["content-type"] == "application/problem+json"
    problem = Problem.model_validate(response.json())
    assert problem.status == response.status_code
    assert problem.request_id == response.headers["x-request-id"]
    assert len(problem.detail) > 15
    return problem.code


class TestIdentify:
    def test_a_known_person_on_another_photo(self, presidents: Any) -> None:
        answer = presidents.identify(presidents.photo("obama2.jpg")).json()
        (face,) = answer["faces"]
        assert face["status"] == "identified"
        assert face["person_id"] == "obama"
        best, other = face["candidates"]
        assert best["person_id"] == "obama"
        assert best["similarity"] > answer["threshold"] > other["similarity"]
        assert best["margin"] == pytest.approx(best["similarity"] - other["similarity"])
        assert best["fmr"] is None

    def test_a_stranger_is_unknown(self, presidents: Any, astronaut: bytes) -> None:
        faces = presidents.identify(astronaut).json()["faces"]
        assert [face["status"] for face in faces] == ["unknown"]
        assert faces[0]["person_id"] is None

    def test_every_face_of_a_group_gets_an_answer(
        self, presidents: Any, group_photo: bytes
    ) -> None:
        faces = presidents.identify(group_photo).json()["faces"]
        assert len(faces) == 6
        assert {face["status"] for face in faces} == {"unknown"}

    def test_a_member_of_the_group_is_found_among_them(
        self, gallery: Any, group_photo: bytes
    ) -> None:
        faces = gallery.identify(group_photo).json()["faces"]
        member = faces[0]
        x1, y1, x2, y2 = member["box"]
        margin = (x2 - x1) / 2
        with Image.open(io.BytesIO(group_photo)) as picture:
            crop = picture.crop(
                (int(x1 - margin), int(y1 - margin), int(x2 + margin), int(y2 + margin))
            )
        buffer = io.BytesIO()
        crop.save(buffer, "PNG")
        gallery.enroll("member", buffer.getvalue(), face_selection="largest").raise_for_status()
        faces = gallery.identify(group_photo).json()["faces"]
        assert [face["status"] for face in faces].count("identified") == 1
        assert faces[0]["person_id"] == "member"

    def test_an_empty_gallery_knows_nobody(self, gallery: Any) -> None:
        (face,) = gallery.identify(gallery.photo("obama.jpg")).json()["faces"]
        assert face["status"] == "unknown"
        assert face["candidates"] == []

    def test_no_face_is_an_empty_list(self, presidents: Any, blank_photo: bytes) -> None:
        answer = presidents.identify(blank_photo)
        assert answer.status_code == 200
        assert answer.json()["faces"] == []

    def test_the_callers_threshold_decides(self, presidents: Any) -> None:
        photo = presidents.photo("obama2.jpg")
        strict = presidents.identify(photo, threshold="0.99").json()
        assert strict["threshold"] == 0.99
        assert strict["faces"][0]["status"] == "unknown"
        assert strict["faces"][0]["candidates"][0]["person_id"] == "obama"

    def test_top_k_bounds_the_candidates(self, presidents: Any) -> None:
        photo = presidents.photo("obama2.jpg")
        (face,) = presidents.identify(photo, top_k="1").json()["faces"]
        assert [c["person_id"] for c in face["candidates"]] == ["obama"]
        assert face["candidates"][0]["margin"] is not None

    def test_filter_looks_only_at_persons_with_that_metadata(self, gallery: Any) -> None:
        gallery.enroll("obama", gallery.photo("obama.jpg"), metadata='{"team": "a"}')
        gallery.enroll("biden", gallery.photo("biden.jpg"), metadata='{"team": "b"}')
        photo = gallery.photo("obama2.jpg")
        (face,) = gallery.identify(photo, filter='{"team": "b"}').json()["faces"]
        assert face["status"] == "unknown"
        assert [c["person_id"] for c in face["candidates"]] == ["biden"]

    def test_max_faces_keeps_the_largest(self, presidents: Any, group_photo: bytes) -> None:
        everyone = presidents.identify(group_photo).json()["faces"]
        two = presidents.identify(group_photo, max_faces="2").json()["faces"]
        assert [face["box"] for face in two] == [face["box"] for face in everyone[:2]]

    def test_an_unknown_collection_is_404(self, client: httpx.Client, gallery: Any) -> None:
        answer = client.post(
            "/v1/identify",
            data={"collection": "nowhere"},
            files={"image": gallery.photo("obama.jpg")},
        )
        assert (answer.status_code, code_of(answer)) == (404, "collection_not_found")


class TestEnroll:
    def test_several_photos_at_once(self, gallery: Any) -> None:
        answer = gallery.enroll(
            "obama", gallery.photo("obama.jpg"), gallery.photo("obama2.jpg"), metadata='{"a": 1}'
        ).json()
        assert [item["index"] for item in answer["enrolled"]] == [0, 1]
        assert answer["rejected"] == []
        assert answer["person_id"] == "obama"
        person = gallery.client.get(f"/v1/collections/{gallery.name}/persons/obama").json()
        assert (person["faces"], person["metadata"]) == (2, {"a": 1})

    def test_what_cannot_be_used_is_rejected_and_the_rest_enrolled(
        self, gallery: Any, group_photo: bytes, blank_photo: bytes
    ) -> None:
        good = gallery.photo("obama.jpg")
        answer = gallery.enroll("obama", blank_photo, good, group_photo, b"text", good[:5000], b"")
        assert answer.status_code == 200
        assert [item["index"] for item in answer.json()["enrolled"]] == [1]
        reasons = {item["index"]: item["reasons"] for item in answer.json()["rejected"]}
        assert reasons == {
            0: ["no_face"],
            2: ["several_faces"],
            3: ["unsupported_image"],
            4: ["unreadable_image"],
            5: ["empty_image"],
        }

    def test_a_small_face_is_refused_with_advice(self, gallery: Any) -> None:
        with Image.open(io.BytesIO(gallery.photo("obama.jpg"))) as picture:
            picture.thumbnail((90, 90))
            buffer = io.BytesIO()
            picture.save(buffer, "PNG")
        answer = gallery.enroll("obama", buffer.getvalue())
        assert (answer.status_code, code_of(answer)) == (422, "face_too_small")

    def test_a_blurred_face_is_refused(self, gallery: Any) -> None:
        with Image.open(io.BytesIO(gallery.photo("obama.jpg"))) as picture:
            tiny = picture.resize((24, 30)).resize(picture.size, Image.Resampling.BICUBIC)
            buffer = io.BytesIO()
            tiny.save(buffer, "PNG")
        answer = gallery.enroll("obama", buffer.getvalue())
        assert (answer.status_code, code_of(answer)) == (422, "low_quality")

    def test_nothing_usable_is_an_error_that_creates_nobody(
        self, gallery: Any, blank_photo: bytes
    ) -> None:
        answer = gallery.enroll("ghost", blank_photo, b"text")
        assert (answer.status_code, code_of(answer)) == (422, "nothing_enrolled")
        assert [item["reasons"] for item in answer.json()["rejected"]] == [
            ["no_face"],
            ["unsupported_image"],
        ]
        person = gallery.client.get(f"/v1/collections/{gallery.name}/persons/ghost")
        assert person.status_code == 404

    def test_the_largest_face_on_request(self, gallery: Any, group_photo: bytes) -> None:
        answer = gallery.enroll("someone", group_photo, face_selection="largest")
        assert len(answer.json()["enrolled"]) == 1

    def test_another_face_of_a_photo_that_is_enrolled(self, gallery: Any) -> None:
        """To answer that the photo is known would leave the wrong face under the id."""
        both, buffer = Image.new("RGB", (900, 480)), io.BytesIO()
        for name, size, place in (("obama.jpg", (384, 480), 0), ("biden.jpg", (240, 300), 390)):
            portrait = Image.open(io.BytesIO(gallery.photo(name))).convert("RGB")
            both.paste(portrait.resize(size), (place, 60 if place else 0))
        both.save(buffer, "PNG")
        first = gallery.enroll("joe", buffer.getvalue(), face_selection="largest").json()
        again = gallery.enroll("joe", buffer.getvalue(), face_selection="largest").json()
        assert again["enrolled"][0]["duplicate"]
        other = gallery.enroll("joe", buffer.getvalue(), face_selection="centre")
        assert (other.status_code, code_of(other)) == (409, "other_face_enrolled")
        wrong = first["enrolled"][0]["face_id"]
        assert other.json()["face_id"] == wrong
        gallery.client.delete(f"/v1/collections/{gallery.name}/faces/{wrong}").raise_for_status()
        right = gallery.enroll("joe", buffer.getvalue(), face_selection="centre")
        assert right.json()["enrolled"][0]["duplicate"] is False
        (face,) = gallery.identify(gallery.photo("biden.jpg")).json()["faces"]
        assert face["person_id"] == "joe"

    def test_the_same_photo_twice_is_stored_once(self, gallery: Any) -> None:
        photo = gallery.photo("obama.jpg")
        first = gallery.enroll("obama", photo).json()["enrolled"][0]
        again = gallery.enroll("obama", photo).json()["enrolled"][0]
        assert (first["duplicate"], again["duplicate"]) == (False, True)
        assert first["face_id"] == again["face_id"]
        assert gallery.client.get(f"/v1/collections/{gallery.name}").json()["faces"] == 1

    def test_many_clients_enroll_the_same_photo_at_once(self, gallery: Any) -> None:
        photo = gallery.photo("obama.jpg")
        answers: list[httpx.Response] = []
        clients = [
            threading.Thread(target=lambda: answers.append(gallery.enroll("obama", photo)))
            for _ in range(8)
        ]
        for one in clients:
            one.start()
        for one in clients:
            one.join()
        assert {answer.status_code for answer in answers} == {200}
        assert len({answer.json()["enrolled"][0]["face_id"] for answer in answers}) == 1

    def test_embeddings_instead_of_photos(self, gallery: Any) -> None:
        photo = gallery.photo("obama.jpg")
        embedded = gallery.client.post("/v1/embed", files={"image": photo}).json()
        vector = embedded["faces"][0]["embedding"]
        body = {"person_id": "obama", "collection": gallery.name, "embeddings": [vector]}
        space = embedded["model"]["embedding_space"]
        named = {**body, "embedding_space": space}
        gallery.client.post("/v1/enroll", json=named).raise_for_status()
        (face,) = gallery.identify(photo).json()["faces"]
        assert face["candidates"][0]["similarity"] == pytest.approx(1, abs=1e-5)
        (again,) = gallery.client.post("/v1/enroll", json=body).json()["enrolled"]
        assert again["duplicate"], "the space may be left out"

    def test_embeddings_of_another_embedding_space(self, gallery: Any) -> None:
        """Two packs have embeddings of as many numbers, and nothing else tells them apart."""
        body = {"person_id": "from10", "collection": gallery.name, "embeddings": [[1.0] * 192]}
        other = {**body, "embedding_space": "es-038d0789502f026c"}
        answer = gallery.client.post("/v1/enroll", json=other)
        assert (answer.status_code, code_of(answer)) == (409, "embedding_space_mismatch")
        assert "es-038d0789502f026c" in answer.json()["detail"]
        path = f"/v1/collections/{gallery.name}/persons/from10"
        assert gallery.client.get(path).status_code == 404
        form = {"person_id": "x", "collection": gallery.name, "embedding_space": "es-1"}
        photo = {"image": gallery.photo("obama.jpg")}
        answer = gallery.client.post("/v1/enroll", data=form, files=photo)
        assert (answer.status_code, code_of(answer)) == (422, "invalid_request")

    def test_fields_may_be_null(self, gallery: Any) -> None:
        photo = base64.b64encode(gallery.photo("obama.jpg")).decode()
        null = {"metadata": None, "embeddings": None}
        body = {"person_id": "obama", "collection": gallery.name, "image": photo, **null}
        assert gallery.client.post("/v1/enroll", json=body).status_code == 200
        null = {"filter": None, "threshold": None, "max_faces": None}
        body = {"collection": gallery.name, "image": photo, **null}
        (face,) = gallery.client.post("/v1/identify", json=body).json()["faces"]
        assert face["person_id"] == "obama"

    @pytest.mark.parametrize("vector", [[0.0] * 192, [1.0] * 191])
    def test_an_embedding_that_cannot_be_one(self, gallery: Any, vector: list[float]) -> None:
        body = {"person_id": "x", "collection": gallery.name, "embeddings": [vector]}
        answer = gallery.client.post("/v1/enroll", json=body)
        assert (answer.status_code, code_of(answer)) == (422, "invalid_embedding")

    @pytest.mark.parametrize("person_id", ["", "a/b", "line\nbreak", " x", "..", "x" * 257])
    def test_a_person_id_that_cannot_be_one(self, gallery: Any, person_id: str) -> None:
        answer = gallery.enroll(person_id, gallery.photo("obama.jpg"))
        assert answer.status_code == 422
        assert code_of(answer) in ("invalid_request", "missing_field")

    def test_an_id_in_any_script(self, gallery: Any) -> None:
        gallery.enroll("Łukasz 王 #1?", gallery.photo("obama.jpg")).raise_for_status()
        (face,) = gallery.identify(gallery.photo("obama2.jpg")).json()["faces"]
        assert face["person_id"] == "Łukasz 王 #1?"
        path = httpx.URL(gallery.client.base_url).join(
            f"/v1/collections/{gallery.name}/persons/%C5%81ukasz%20%E7%8E%8B%20%231%3F"
        )
        assert gallery.client.delete(path).json()["deleted"] == {"persons": 1, "faces": 1}

    @pytest.mark.parametrize(
        "metadata",
        [
            "not json",
            "[1]",
            '{"a": "' + "x" * 20_000 + '"}',
            '{"a": NaN}',
            '{"a": 1e999}',
            '{"a": "\\ud800"}',
        ],
    )
    def test_metadata_must_be_a_small_object(self, gallery: Any, metadata: str) -> None:
        answer = gallery.enroll("obama", gallery.photo("obama.jpg"), metadata=metadata)
        assert (answer.status_code, code_of(answer)) == (422, "invalid_request")
        assert "metadata" in answer.json()["detail"]


class TestVerify:
    def test_against_a_person(self, presidents: Any) -> None:
        photo = presidents.photo("obama2.jpg")
        same = presidents.verify(photo, person_id="obama").json()
        other = presidents.verify(photo, person_id="biden").json()
        assert (same["is_match"], other["is_match"]) == (True, False)
        assert same["similarity"] > same["threshold"] > other["similarity"]
        assert same["face_id"]

    def test_the_best_of_several_templates_counts(self, presidents: Any) -> None:
        probe = presidents.photo("obama2.jpg")
        before = presidents.verify(probe, person_id="obama").json()["similarity"]
        presidents.enroll("obama", probe)
        after = presidents.verify(probe, person_id="obama").json()["similarity"]
        assert before < after == pytest.approx(1, abs=1e-5)

    def test_image_against_image(self, client: httpx.Client, gallery: Any) -> None:
        def compare(a: str, b: str) -> Any:
            files = {"image": gallery.photo(a), "reference": gallery.photo(b)}
            return client.post("/v1/verify", files=files).json()

        assert compare("obama.jpg", "obama2.jpg")["is_match"] is True
        assert compare("obama.jpg", "biden.jpg")["is_match"] is False

    def test_it_says_how_many_faces_each_photo_has(
        self, client: httpx.Client, presidents: Any, group_photo: bytes
    ) -> None:
        """The largest face is compared: the count shows that there were others."""
        alone = presidents.verify(presidents.photo("obama2.jpg"), person_id="obama").json()
        assert (alone["faces_found"], alone["reference_faces_found"]) == (1, None)
        group = presidents.verify(group_photo, person_id="obama").json()
        only = presidents.verify(group_photo, person_id="obama", face_selection="only")
        assert group["faces_found"] == only.json()["faces_found"] > 1
        assert code_of(only) == "several_faces"
        files = {"image": presidents.photo("obama.jpg"), "reference": group_photo}
        pair = client.post("/v1/verify", files=files).json()
        assert (pair["faces_found"], pair["reference_faces_found"] > 1) == (1, True)

    def test_an_unknown_person_is_404(self, presidents: Any) -> None:
        answer = presidents.verify(presidents.photo("obama.jpg"), person_id="nobody")
        assert (answer.status_code, code_of(answer)) == (404, "person_not_found")

    def test_no_face_is_422_and_says_in_which_photo(
        self, client: httpx.Client, gallery: Any, blank_photo: bytes
    ) -> None:
        files = {"image": gallery.photo("obama.jpg"), "reference": blank_photo}
        answer = client.post("/v1/verify", files=files)
        assert (answer.status_code, code_of(answer)) == (422, "no_face")
        assert answer.json()["detail"].startswith("'reference'")

    def test_the_code_says_whether_the_photo_or_the_person_has_no_face(
        self, gallery: Any, blank_photo: bytes
    ) -> None:
        persons = f"/v1/collections/{gallery.name}/persons"
        gallery.client.post(persons, json={"person_id": "empty"}).raise_for_status()
        for photo, code in (
            (blank_photo, "no_face"), (gallery.photo("obama.jpg"), "no_face_enrolled"),
        ):  # fmt: skip
            answer = gallery.verify(photo, person_id="empty")
            assert (answer.status_code, code_of(answer)) == (422, code)

    def test_neither_person_nor_reference(self, gallery: Any) -> None:
        answer = gallery.verify(gallery.photo("obama.jpg"))
        assert (answer.status_code, code_of(answer)) == (422, "missing_field")


class TestDeletion:
    def test_a_deleted_person_is_not_found_again(self, presidents: Any) -> None:
        url = f"/v1/collections/{presidents.name}/persons/obama"
        assert presidents.client.delete(url).json()["deleted"] == {"persons": 1, "faces": 1}
        (face,) = presidents.identify(presidents.photo("obama2.jpg")).json()["faces"]
        assert face["status"] == "unknown"
        assert [c["person_id"] for c in face["candidates"]] == ["biden"]
        assert presidents.client.delete(url).status_code == 404

    def test_a_deleted_face_no_longer_answers(self, gallery: Any) -> None:
        photos = gallery.photo("obama.jpg"), gallery.photo("obama2.jpg")
        enrolled = gallery.enroll("obama", *photos).json()["enrolled"]
        gallery.client.delete(f"/v1/collections/{gallery.name}/faces/{enrolled[0]['face_id']}")
        (face,) = gallery.identify(photos[0]).json()["faces"]
        assert face["candidates"][0]["face_id"] == enrolled[1]["face_id"]
        assert face["candidates"][0]["similarity"] < 0.99

    def test_a_collection_made_again_starts_empty(self, presidents: Any) -> None:
        client, name = presidents.client, presidents.name
        presidents.identify(presidents.photo("obama.jpg")).raise_for_status()
        assert client.delete(f"/v1/collections/{name}").json()["deleted"]["persons"] == 2
        client.post("/v1/collections", json={"name": name}).raise_for_status()
        (face,) = presidents.identify(presidents.photo("obama.jpg")).json()["faces"]
        assert face["candidates"] == []


def test_similarities_are_cosines_of_the_embeddings(presidents: Any, encode: Any) -> None:
    """Of a photo that enroll and embed look at in the same size."""
    pixels = cv2.imdecode(np.frombuffer(presidents.photo("obama.jpg"), np.uint8), cv2.IMREAD_COLOR)
    factor = 320 / max(pixels.shape)
    small = encode(cv2.resize(pixels, None, fx=factor, fy=factor, interpolation=cv2.INTER_AREA))
    presidents.enroll("small", small).raise_for_status()

    def embedding(photo: bytes) -> Any:
        answer = presidents.client.post("/v1/embed", files={"image": photo}).json()
        return np.array(answer["faces"][0]["embedding"])

    probe = presidents.photo("obama2.jpg")
    expected = float(embedding(small) @ embedding(probe))
    (face,) = presidents.identify(probe).json()["faces"]
    (found,) = [one for one in face["candidates"] if one["person_id"] == "small"]
    assert found["similarity"] == pytest.approx(expected, abs=1e-5)
