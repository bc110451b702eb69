"""Changes of a collection's policy, and collections that need a consent."""

import json
import uuid
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import pytest

from app.store.sql.audit_log import AuditFilter

CONSENT = {"consent": {"reference": "form 17", "expires": "2999-12-31"}}
ENDED = {"consent": {"reference": "form 17", "withdrawn": True}}


def policy_of(client: httpx.Client, url: str, **change: Any) -> Any:
    """The policy after a change."""
    answer = client.patch(url, json={"policy": change})
    assert answer.status_code == httpx.codes.OK, answer.text
    return client.get(url).json()["policy"]


def test_members_that_a_change_does_not_name_stay(client: httpx.Client, collection: str) -> None:
    url = f"/v1/collections/{collection}"
    policy_of(client, url, keep_crops=True, target_fpir=0.003, identify_gate={"min_sharpness": 9})
    changed = policy_of(client, url, audit_searches=True)
    assert [changed["keep_crops"], changed["target_fpir"]] == [True, 0.003]
    assert changed["identify_gate"]["min_sharpness"] == 9
    changed = policy_of(client, url, target_fpir=None, identify_gate={"min_face_size_px": 40})
    assert [changed["target_fpir"], changed["audit_searches"]] == [0.01, True]
    assert changed["identify_gate"]["min_sharpness"] is None  # a gate is one value
    assert policy_of(client, url)["keep_crops"]


def test_candidates_may_be_only_who_is_identified(presidents: Any, astronaut: bytes) -> None:
    """A client that identifies cannot list who is enrolled, whatever it sends."""

    def faces(photo: bytes, **fields: str) -> list[tuple[str, list[str]]]:
        answer = presidents.identify(photo, **fields).raise_for_status()
        return [
            (face["status"], [one["person_id"] for one in face["candidates"]])
            for face in answer.json()["faces"]
        ]

    known, url = presidents.photo("obama2.jpg"), f"/v1/collections/{presidents.name}"
    assert faces(known) == [("identified", ["obama", "biden"])]
    shown = policy_of(presidents.client, url, candidates="identified")
    assert shown["candidates"] == "identified"
    for fields in ({}, {"top_k": "100"}, {"one_person_once": "true"}, {"target_fpir": "0.001"}):
        assert faces(known, **fields) == [("identified", ["obama"])]
        assert faces(astronaut, **fields) == [("unknown", [])]
    assert faces(known, threshold="0.99") == [("unknown", [])]
    for field, value in (("threshold", "-1"), ("target_fpir", "0.5"), ("target_fmr", "0.5")):
        answer = presidents.identify(astronaut, **{field: value})
        assert (answer.status_code, answer.json()["code"]) == (422, "invalid_request")
        assert "candidates=identified" in answer.json()["detail"]
        assert "obama" not in answer.text
    policy_of(presidents.client, url, identify_gate={"min_sharpness": 1e6})
    assert faces(known) == [("rejected", [])]
    policy_of(presidents.client, url, candidates=None)
    assert faces(known) == [("rejected", ["obama", "biden"])]


@pytest.mark.parametrize("target", [{"target_fmr": 1e-12}, {"target_fpir": 1e-12}])
def test_a_target_that_no_calibration_supports(
    client: httpx.Client, collection: str, services: Any, target: dict[str, float]
) -> None:
    """It would be shown as the target of decisions that have another one, as with a call's."""
    url = f"/v1/collections/{collection}"
    for answer in (
        client.patch(url, json={"policy": target}),
        client.post("/v1/collections", json={"name": f"{collection}-2", "policy": target}),
    ):
        assert (answer.status_code, answer.json()["code"]) == (422, "rate_out_of_reach")
        assert next(iter(target)) in answer.json()["detail"]
    # With a fixed threshold no target decides, until that is removed.
    assert policy_of(client, url, threshold=0.5, **target)["threshold"] == 0.5
    assert client.patch(url, json={"policy": {"threshold": None}}).status_code == 422
    policy_of(client, url, threshold=None, **dict.fromkeys(target))
    # One that was set before, with another calibration, keeps no other member from being changed.
    store = services.gallery.store.collections
    store.update(collection, None, lambda known: {**known.policy, **target})
    assert policy_of(client, url, audit_searches=True)["audit_searches"]


@pytest.mark.parametrize("gate", ["identify_gate", "verify_gate", "enroll_gate"])
@pytest.mark.parametrize(
    ("limits", "code", "detail"),
    [
        ({"min_brightness": 0.9, "max_brightness": 0.1}, "invalid_request", "is 0.9, above max"),
        ({"min_face_size_px": 1e9}, "invalid_request", "min_face_size_px is 1e+09"),
        ({"min_sharpness": 1.1e6}, "invalid_request", "at most 1,040,400 can be reached"),
        ({"min_quality_score": 0.1}, "invalid_request", "no quality network"),
        ({"min_liveness": 0.5}, "liveness_unavailable", "no liveness networks"),
    ],
)
def test_a_gate_that_no_face_can_pass(
    client: httpx.Client, collection: str, services: Any, gate: str, limits: Any, code: str,
    detail: str,
) -> None:  # fmt: skip
    url = f"/v1/collections/{collection}"
    policy = {gate: limits}
    for answer in (
        client.patch(url, json={"policy": policy}),
        client.post("/v1/collections", json={"name": f"{collection}-2", "policy": policy}),
    ):
        assert answer.json()["code"] == code
        assert answer.json()["detail"].startswith(f"policy.{gate}.min_")
        assert detail in answer.json()["detail"]
    # One of an earlier version is read, and keeps no other member from being changed.
    services.gallery.store.collections.update(collection, None, lambda _: policy)
    assert policy_of(client, url, audit_searches=True)[gate].items() >= limits.items()


def test_crops_are_erased_only_by_their_name(
    client: httpx.Client, collection: str, photos: Path, services: Any
) -> None:
    url = f"/v1/collections/{collection}"
    policy_of(client, url, keep_crops=True)
    photo = {"image": (photos / "obama.jpg").read_bytes()}
    fields = {"person_id": "obama", "collection": collection}
    client.post("/v1/enroll", files=photo, data=fields).raise_for_status()

    def kept() -> int:
        held = services.gallery.store.embeddings.exported(collection, 0, 9)
        return sum(one.crop is not None for one in held)

    policy_of(client, url, retention_days=1095)
    assert kept() == 1
    policy_of(client, url, keep_crops=False)
    assert kept() == 0


class TestConsents:
    @pytest.fixture
    def strict(self, client: httpx.Client) -> Iterator[str]:
        name = f"c-{uuid.uuid4().hex[:8]}"
        body = {"name": name, "policy": {"consent_required": True}}
        client.post("/v1/collections", json=body).raise_for_status()
        yield name
        client.delete(f"/v1/collections/{name}").raise_for_status()

    def enroll(self, client: httpx.Client, photo: Path, **call: Any) -> httpx.Response:
        data = {
            name: one if isinstance(one, str) else json.dumps(one) for name, one in call.items()
        }
        return client.post("/v1/enroll", files={"image": photo.read_bytes()}, data=data)

    def test_from_the_first_photo_to_its_end(
        self, client: httpx.Client, strict: str, photos: Path
    ) -> None:
        photo = photos / "obama.jpg"
        call = {"person_id": "obama", "collection": strict}
        refused = self.enroll(client, photo, **call)
        assert [refused.status_code, refused.json()["code"]] == [422, "consent_missing"]
        assert "decode" not in refused.json().get("timings_ms", {})
        self.enroll(client, photo, **call, metadata=CONSENT).raise_for_status()
        search = {"collection": strict}
        files = {"image": photo.read_bytes()}
        (face,) = client.post("/v1/identify", files=files, data=search).json()["faces"]
        assert face["person_id"] == "obama"
        person = f"/v1/collections/{strict}/persons/obama"
        client.patch(person, json={"metadata": ENDED}).raise_for_status()
        (face,) = client.post("/v1/identify", files=files, data=search).json()["faces"]
        assert [face["status"], face["candidates"]] == ["unknown", []]
        verified = client.post("/v1/verify", files=files, data=call)
        assert verified.json()["code"] == "consent_missing"
        gone = client.delete(person, params={"reason": "consent_withdrawn"})
        assert gone.json()["deleted"] == {"persons": 1, "faces": 1}

    def test_a_policy_that_would_erase_persons_is_refused(
        self, client: httpx.Client, collection: str
    ) -> None:
        url = f"/v1/collections/{collection}"
        client.post(f"{url}/persons", json={"person_id": "ada"}).raise_for_status()
        refused = client.patch(url, json={"policy": {"consent_required": True}})
        assert refused.json()["code"] == "consent_missing"
        assert refused.json()["person_ids"] == ["ada"]

    def test_the_audit_log_has_it(self, client: httpx.Client, strict: str, services: Any) -> None:
        url = f"/v1/collections/{strict}/persons"
        client.post(url, json={"person_id": "ada", "metadata": CONSENT}).raise_for_status()
        client.delete(f"{url}/ada", params={"reason": "consent_withdrawn"}).raise_for_status()
        log, mine = services.gallery.store.audit, AuditFilter(collection=strict)
        entries = [one.members for one in log.latest(4, mine)][1:]
        assert [one["action"] for one in entries] == [
            "consent.recorded", "person.created", "person.deleted",
        ]  # fmt: skip
        assert entries[2]["details"]["reason"] == "consent_withdrawn"
        wrong = client.delete(f"{url}/ada", params={"reason": "ada left the company"})
        assert wrong.status_code == httpx.codes.UNPROCESSABLE_ENTITY
