"""`score` of a collection's policy: persons compared by centroid, or by centroid and best face."""

from typing import Any

import httpx
import pytest

from app.decision.calibrations import Calibrations
from app.decision.policy import policy_of
from app.services import Services
from app.store.records import CollectionRecord
from tests.api.test_decisions import code_of


@pytest.fixture
def presidents_twice(presidents: Any) -> Any:
    """A second photo of one of them."""
    presidents.enroll("obama", presidents.photo("obama2.jpg"))
    return presidents


def set_score(client: httpx.Client, collection: str, **policy: Any) -> httpx.Response:
    return client.patch(f"/v1/collections/{collection}", json={"policy": policy})


def test_the_score_decides_and_is_shown(
    presidents_twice: Any, client: httpx.Client, collection: str
) -> None:
    photo, found = presidents_twice.photo("obama3.jpg"), {}
    for score in ("best", "centroid", "fused"):
        answer = set_score(client, collection, score=score).json()
        assert answer["policy"]["score"] == score
        identified = presidents_twice.identify(photo).json()
        verified = presidents_twice.verify(photo, person_id="obama").json()
        assert identified["score"] == verified["score"] == score
        first, other = identified["faces"][0]["candidates"]
        assert first["person_id"] == "obama"
        assert first["similarity"] == pytest.approx(verified["similarity"], abs=1e-5)
        assert first["face_id"] == verified["face_id"]
        assert first["margin"] == pytest.approx(first["similarity"] - other["similarity"])
        found[score] = (first["similarity"], identified["threshold"], verified["threshold"])
    best, centroid, fused = (found[score] for score in ("best", "centroid", "fused"))
    assert fused[0] == pytest.approx((best[0] + centroid[0]) / 2, abs=1e-5)
    assert centroid[1] < fused[1] < best[1]
    assert centroid[2] < fused[2] < best[2]


def test_a_filter_is_searched_by_the_score_too(
    presidents_twice: Any, client: httpx.Client, collection: str
) -> None:
    set_score(client, collection, score="fused")
    photo = presidents_twice.photo("obama3.jpg")
    whole = presidents_twice.identify(photo).json()["faces"][0]["candidates"][0]
    client.patch(f"/v1/collections/{collection}/persons/obama", json={"metadata": {"team": "a"}})
    (face,) = presidents_twice.identify(photo, filter='{"team": "a"}').json()["faces"]
    (some,) = face["candidates"]
    assert some["similarity"] == pytest.approx(whole["similarity"], abs=1e-5)


def test_a_score_without_a_calibration_is_refused(
    client: httpx.Client, collection: str, services: Services, monkeypatch: pytest.MonkeyPatch
) -> None:
    shipped = services.calibrations.pack
    assert shipped is not None
    old = shipped.model_copy(update={"score_exponents": None})
    monkeypatch.setattr(services.calibrations, "pack", old)
    refused = set_score(client, collection, score="fused")
    assert code_of(refused) == "not_calibrated"
    assert "score=best" in refused.json()["detail"]
    name = f"{collection}-2"
    new = client.post("/v1/collections", json={"name": name, "policy": {"score": "centroid"}})
    assert code_of(new) == "not_calibrated"
    assert set_score(client, collection, score="best").status_code == 200
    assert set_score(client, collection, score="fused", threshold=0.5).status_code == 200


def test_a_policy_is_checked_as_it_is_when_it_is_stored(
    client: httpx.Client, collection: str, services: Services, monkeypatch: pytest.MonkeyPatch
) -> None:
    shipped, store = services.calibrations.pack, services.gallery.store.collections
    assert shipped is not None
    old = shipped.model_copy(update={"score_exponents": None})
    monkeypatch.setattr(services.calibrations, "pack", old)
    set_score(client, collection, threshold=0.5).raise_for_status()
    read = store.get

    def read_before_a_change(name: str) -> CollectionRecord:
        record = read(name)
        store.update(name, None, {})
        return record

    monkeypatch.setattr(store, "get", read_before_a_change)
    set_score(client, collection, score="fused")
    record = read(collection)
    services.calibrations.check(policy_of(record), record)


def test_a_pack_that_knows_less_falls_back_to_the_best_face(
    presidents_twice: Any, client: httpx.Client, collection: str, services: Services,
    monkeypatch: pytest.MonkeyPatch,
) -> None:  # fmt: skip
    photo = presidents_twice.photo("obama3.jpg")
    by_best = presidents_twice.identify(photo).json()
    set_score(client, collection, score="fused")
    monkeypatch.setattr(Calibrations, "own", lambda *_: None)
    shipped = services.calibrations.pack
    assert shipped is not None
    old = shipped.model_copy(update={"score_exponents": None})
    monkeypatch.setattr(services.calibrations, "pack", old)
    answer = presidents_twice.identify(photo).json()
    assert answer["score"] == "best"
    assert answer["threshold"] == by_best["threshold"]
    assert answer["faces"][0]["candidates"] == by_best["faces"][0]["candidates"]


def test_a_calibration_says_for_which_scores_it_is(
    presidents_twice: Any, client: httpx.Client, collection: str
) -> None:
    set_score(client, collection, score="fused")
    shown = client.get(f"/v1/collections/{collection}/calibration").json()
    assert shown["score"] == "fused"
    assert 0 < shown["score_exponents"]["centroid"] < shown["score_exponents"]["fused"] < 1
    (point,) = [one for one in shown["fpir"] if one["target"] == 0.01]
    answer = presidents_twice.identify(presidents_twice.photo("obama3.jpg")).json()
    assert point["threshold"] == pytest.approx(answer["threshold"], abs=1e-4)


def test_a_score_that_does_not_exist(client: httpx.Client, collection: str) -> None:
    assert code_of(set_score(client, collection, score="mean")) == "invalid_request"
