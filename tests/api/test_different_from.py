"""Persons who must never be confused: declared over HTTP, and what identify and verify answer."""

from typing import Any
from urllib.parse import quote

import httpx
import numpy as np
import pytest

from app.recognition.enroll import template_from_embedding
from app.services import Services
from app.store.backends import create_engine
from app.store.store import Store
from tests.api.test_decisions import code_of
from tests.writing import enroll_person

COMPOSED, DECOMPOSED = "jos\u00e9", "jose\u0301"
ODD = [
    "a b",
    "?q=1#x",
    "%2e%2e",
    "50%",
    "王小明",
    "a+b&c;d",
    "\u0639\u0644\u06cc\u200c\u0631\u0636\u0627",
]


def pairs_url(collection: str, person_id: str, other_id: str = "") -> str:
    url = f"/v1/collections/{collection}/persons/{quote(person_id, safe='')}/different-from"
    return f"{url}/{quote(other_id, safe='')}" if other_id else url


def declare(gallery: Any, person_id: str, other_id: str) -> httpx.Response:
    answer: httpx.Response = gallery.client.post(pairs_url(gallery.name, person_id, other_id))
    return answer


def create(gallery: Any, *person_ids: str) -> None:
    for person_id in person_ids:
        url = f"/v1/collections/{gallery.name}/persons"
        gallery.client.post(url, json={"person_id": person_id}).raise_for_status()


def listed(gallery: Any, person_id: str) -> list[str]:
    answer = gallery.client.get(pairs_url(gallery.name, person_id)).raise_for_status()
    return [item["different_from"] for item in answer.json()["items"]]


@pytest.fixture
def twins(gallery: Any, services: Services) -> Any:
    """Obama, and a made-up twin who is just as similar to obama2.jpg; they are 0.7 alike."""
    gallery.enroll("obama", gallery.photo("obama.jpg")).raise_for_status()
    enrolled, probe = (
        np.array(
            gallery.client.post("/v1/embed", files={"image": gallery.photo(name)})
            .json()["faces"][0]["embedding"]
        )
        for name in ("obama.jpg", "obama2.jpg")
    )  # fmt: skip
    along = float(enrolled @ probe)
    across = enrolled - along * probe
    turned = np.random.default_rng(0).normal(size=len(probe))
    for direction in (probe, across):
        turned -= (turned @ direction) / (direction @ direction) * direction
    size = float(np.linalg.norm(across))
    cosine = (0.7 - along**2) / size**2
    turned *= size * np.sqrt(1 - cosine**2) / np.linalg.norm(turned)
    twin = along * probe + cosine * across + turned
    made = [template_from_embedding(services, twin)]
    enroll_person(services.gallery, gallery.name, "twin", {"team": "night"}, made)
    return gallery


def face_of(answer: httpx.Response) -> dict[str, Any]:
    face: dict[str, Any] = answer.raise_for_status().json()["faces"][0]
    return face


class TestDeclaring:
    def test_there_and_back(self, gallery: Any) -> None:
        create(gallery, "ada", "bea", "cleo")
        first = declare(gallery, "ada", "bea").raise_for_status().json()
        assert (first["person_id"], first["different_from"]) == ("ada", "bea")
        again = declare(gallery, "bea", "ada").raise_for_status().json()
        assert again["declared_at"] == first["declared_at"]
        declare(gallery, "ada", "cleo").raise_for_status()
        assert listed(gallery, "ada") == ["bea", "cleo"]
        assert listed(gallery, "bea") == ["ada"]
        gone = gallery.client.delete(pairs_url(gallery.name, "bea", "ada")).raise_for_status()
        assert gone.json()["erased"] in ("done", "pending")
        assert (listed(gallery, "ada"), listed(gallery, "bea")) == (["cleo"], [])

    def test_page_by_page(self, gallery: Any) -> None:
        create(gallery, "ada", *(f"p{i}" for i in range(5)))
        for i in (3, 1, 4, 0, 2):
            declare(gallery, "ada", f"p{i}").raise_for_status()
        found, cursor = [], None
        while True:
            query = {"limit": 2} | ({"cursor": cursor} if cursor else {})
            page = gallery.client.get(pairs_url(gallery.name, "ada"), params=query).json()
            found += [item["different_from"] for item in page["items"]]
            cursor = page["next_cursor"]
            if cursor is None:
                break
        assert found == [f"p{i}" for i in range(5)]
        answer = gallery.client.get(pairs_url(gallery.name, "ada"), params={"cursor": "?"})
        assert code_of(answer) == "invalid_cursor"

    def test_what_is_refused(self, gallery: Any) -> None:
        create(gallery, "ada", "bea")
        url = pairs_url(gallery.name, "ada", "bea")
        refused = [
            (declare(gallery, "ada", "eve"), 404, "person_not_found"),
            (declare(gallery, "eve", "ada"), 404, "person_not_found"),
            (declare(gallery, "ada", "ada"), 422, "invalid_request"),
            (gallery.client.delete(url), 404, "pair_not_found"),
            (gallery.client.delete(pairs_url(gallery.name, "ada", "eve")), 404, "person_not_found"),
            (gallery.client.get(pairs_url(gallery.name, "eve")), 404, "person_not_found"),
            (gallery.client.post(pairs_url("absent", "a", "b")), 404, "collection_not_found"),
            (gallery.client.post(f"{url}?force=true"), 422, "unknown_field"),
        ]
        for answer, status, code in refused:
            assert (answer.status_code, code_of(answer)) == (status, code)
        assert listed(gallery, "ada") == []

    def test_ids_with_odd_characters(self, gallery: Any) -> None:
        create(gallery, COMPOSED, *ODD)
        for other in ODD:
            assert declare(gallery, DECOMPOSED, other).json()["different_from"] == other
        assert listed(gallery, DECOMPOSED) == sorted(ODD)
        for other in ODD:
            assert listed(gallery, other) == [COMPOSED]
            url = pairs_url(gallery.name, other, DECOMPOSED)
            gallery.client.delete(url).raise_for_status()
        assert declare(gallery, COMPOSED, DECOMPOSED).status_code == 422
        for never in ("ad%00a", "%ED%A0%BD", "%E2%80%AE"):
            url = f"/v1/collections/{gallery.name}/persons/{never}/different-from/{COMPOSED}"
            assert code_of(gallery.client.post(url)) == "person_not_found"

    def test_a_declared_pair_is_not_merged_but_follows(self, gallery: Any) -> None:
        create(gallery, "ada", "bea", "cleo")
        declare(gallery, "ada", "bea").raise_for_status()
        url = f"/v1/collections/{gallery.name}/persons"
        answer = gallery.client.post(f"{url}/bea/merge", json={"into": "ada"})
        assert (answer.status_code, code_of(answer)) == (409, "declared_different")
        gallery.client.patch(f"{url}/bea", json={"person_id": "bea.b"}).raise_for_status()
        assert listed(gallery, "ada") == ["bea.b"]
        gallery.client.post(f"{url}/bea.b/merge", json={"into": "cleo"}).raise_for_status()
        assert listed(gallery, "ada") == ["cleo"]
        gallery.client.delete(f"{url}/cleo").raise_for_status()
        assert listed(gallery, "ada") == []


class TestIdentify:
    def test_a_small_lead_is_ambiguous(self, twins: Any) -> None:
        photo = twins.photo("obama2.jpg")
        before = face_of(twins.identify(photo))
        assert (before["status"], before["between"]) == ("identified", [])
        declare(twins, "obama", "twin").raise_for_status()
        for fields in ({}, {"top_k": "1"}, {"one_person_once": "true"}, {"threshold": "0.3"}):
            face = face_of(twins.identify(photo, **fields))
            assert (face["status"], face["person_id"]) == ("ambiguous", None)
            assert face["reasons"] == ["margin_too_small"]
            assert {one["person_id"] for one in face["between"]} == {"obama", "twin"}
            first, second = face["between"]
            assert 0 <= first["margin"] == first["similarity"] - second["similarity"]
            assert first["margin"] < face["margin_required"] < 0.2
            assert first["fmr_interval"] is not None

    def test_a_large_lead_decides(self, twins: Any) -> None:
        declare(twins, "obama", "twin").raise_for_status()
        face = face_of(twins.identify(twins.photo("obama.jpg")))
        assert (face["status"], face["person_id"]) == ("identified", "obama")
        assert (face["reasons"], face["between"], face["margin_required"]) == ([], [], None)

    def test_a_filter_does_not_switch_it_off(self, twins: Any) -> None:
        """Who is left out of the search may still be the one in the photo."""
        photo, night = twins.photo("obama2.jpg"), '{"team": "night"}'
        assert face_of(twins.identify(photo, filter=night))["person_id"] == "twin"
        declare(twins, "obama", "twin").raise_for_status()
        for name in ("obama2.jpg", "obama.jpg"):
            face = face_of(twins.identify(twins.photo(name), filter=night))
            assert face["status"] == "ambiguous"
            assert [one["person_id"] for one in face["candidates"]] == ["twin"]
            assert {one["person_id"] for one in face["between"]} == {"obama", "twin"}
        assert face["reasons"] == ["nearer_to_other"]

    def test_only_who_may_be_meant_is_named_if_the_policy_says_so(self, twins: Any) -> None:
        """With `candidates: identified` it has no candidates, and its two in `between`."""
        twins.enroll("biden", twins.photo("biden.jpg")).raise_for_status()
        declare(twins, "obama", "twin").raise_for_status()
        for shown, candidates in (("all", {"obama", "twin", "biden"}), ("identified", set())):
            url, policy = f"/v1/collections/{twins.name}", {"candidates": shown}
            twins.client.patch(url, json={"policy": policy}).raise_for_status()
            face = face_of(twins.identify(twins.photo("obama2.jpg")))
            assert face["status"] == "ambiguous"
            assert {one["person_id"] for one in face["candidates"]} == candidates
            assert {one["person_id"] for one in face["between"]} == {"obama", "twin"}

    def test_another_process_is_seen_at_once(self, twins: Any, services: Services) -> None:
        photo = twins.photo("obama2.jpg")
        engine = create_engine(services.settings.resolved_database_url)
        other = Store(engine)
        other.pairs.declare(twins.name, "obama", "twin")
        assert face_of(twins.identify(photo))["status"] == "ambiguous"
        other.pairs.withdraw(twins.name, "obama", "twin")
        assert face_of(twins.identify(photo))["status"] == "identified"
        engine.dispose()

    def test_strangers_and_others_are_answered_as_before(
        self, twins: Any, astronaut: bytes
    ) -> None:
        twins.enroll("biden", twins.photo("biden.jpg")).raise_for_status()
        declare(twins, "obama", "twin").raise_for_status()
        assert face_of(twins.identify(astronaut))["status"] == "unknown"
        assert face_of(twins.identify(twins.photo("biden.jpg")))["person_id"] == "biden"


class TestVerify:
    def test_a_small_lead_is_no_match(self, twins: Any) -> None:
        photo = twins.photo("obama2.jpg")
        before = twins.verify(photo, person_id="obama").json()
        assert (before["is_match"], before["status"]) == (True, "match")
        declare(twins, "obama", "twin").raise_for_status()
        for claimed in ("obama", "twin"):
            answer = twins.verify(photo, person_id=claimed).json()
            assert (answer["is_match"], answer["status"]) == (False, "ambiguous")
            assert answer["reasons"] == ["margin_too_small"]
            assert answer["similarity"] > answer["threshold"]
            assert {one["person_id"] for one in answer["between"]} == {"obama", "twin"}
            assert answer["margin_required"] > 0.1

    def test_a_large_lead_decides(self, twins: Any) -> None:
        declare(twins, "obama", "twin").raise_for_status()
        photo = twins.photo("obama.jpg")
        answer = twins.verify(photo, person_id="obama").json()
        assert (answer["is_match"], answer["reasons"], answer["between"]) == (True, [], [])
        answer = twins.verify(photo, person_id="twin").json()
        assert (answer["is_match"], answer["status"]) == (False, "ambiguous")
        assert answer["reasons"] == ["nearer_to_other"]
        assert [one["person_id"] for one in answer["between"]] == ["obama", "twin"]

    def test_no_match_and_two_photos_are_as_before(self, twins: Any) -> None:
        declare(twins, "obama", "twin").raise_for_status()
        answer = twins.verify(twins.photo("biden.jpg"), person_id="obama").json()
        assert (answer["is_match"], answer["status"]) == (False, "no_match")
        files = {"image": twins.photo("obama2.jpg"), "reference": twins.photo("obama3.jpg")}
        answer = twins.client.post("/v1/verify", files=files).json()
        assert (answer["is_match"], answer["status"]) == (True, "match")

    def test_a_lowered_threshold_names_nobody_who_is_hidden(
        self, twins: Any, astronaut: bytes
    ) -> None:
        """With `candidates: identified` a stranger's photo would otherwise name the other one."""
        declare(twins, "obama", "twin").raise_for_status()
        low = [{"threshold": "-1"}, {"target_fmr": "0.5"}, {"target_fpir": "0.5"}]
        answer = twins.verify(astronaut, person_id="obama", **low[0]).json()
        assert {one["person_id"] for one in answer["between"]} == {"obama", "twin"}
        url = f"/v1/collections/{twins.name}"
        policy = {"policy": {"candidates": "identified"}}
        twins.client.patch(url, json=policy).raise_for_status()
        for fields in low:
            refused = twins.verify(astronaut, person_id="obama", **fields)
            assert (refused.status_code, refused.json()["code"]) == (422, "invalid_request")
            assert "candidates=identified" in refused.json()["detail"]
            assert "twin" not in refused.text
        for high in ({}, {"threshold": "0.9"}, {"target_fmr": "0.0001"}, {"target_fmr": "0.00005"}):
            assert twins.verify(astronaut, person_id="obama", **high).json()["between"] == []
        files = {"image": astronaut, "reference": astronaut}
        fields = {"collection": twins.name, "threshold": "0"}
        twins.client.post("/v1/verify", files=files, data=fields).raise_for_status()


def test_neither_a_search_nor_a_correction_enrols(twins: Any, astronaut: bytes) -> None:
    """Confirming who somebody is, or is not, stores no face: that takes a call to enroll."""
    url = f"/v1/collections/{twins.name}"

    def held() -> tuple[int, list[str], int]:
        collection = twins.client.get(url).json()
        faces = twins.client.get(f"{url}/faces").json()["items"]
        return collection["persons"], sorted(one["face_id"] for one in faces), collection["faces"]

    before = held()
    for photo in (twins.photo("obama2.jpg"), twins.photo("obama3.jpg"), astronaut):
        twins.identify(photo).raise_for_status()
        twins.verify(photo, person_id="obama").raise_for_status()
    declare(twins, "obama", "twin").raise_for_status()
    for photo in (twins.photo("obama2.jpg"), astronaut):
        twins.identify(photo).raise_for_status()
    assert declare(twins, "obama", "the stranger in that photo").status_code == 404
    twins.client.delete(pairs_url(twins.name, "obama", "twin")).raise_for_status()
    assert held() == before
