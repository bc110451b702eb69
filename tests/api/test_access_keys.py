"""Access keys over HTTP: created, rotated and revoked, their limits, and many misses."""

import asyncio
from collections.abc import Iterator
from concurrent.futures import Future

import httpx
import pytest

from app.access.keys import AccessKey, KeyLimits, NewKey, Scope, new_token
from app.access.registry import AccessRegistry
from app.api.endpoints.access_keys import KeyInfo
from app.errors import StoreUnavailable
from app.services import Services
from app.store.sql.audit_log import AuditFilter
from tests.api.conftest import OWN
from tests.api.test_access import code_of
from tests.waiting import until


@pytest.mark.slow
def test_a_key_from_creation_to_revocation(site: httpx.Client, tokens: dict[str, str]) -> None:
    admin = {"Authorization": f"Bearer {tokens['admin']}"}
    new = {"name": "gate", "scopes": ["manage"], "collections": [OWN]}
    made = site.post("/v1/keys", headers=admin, json=new)
    assert made.headers["Cache-Control"] == "no-store"
    mine = {"X-Api-Key": made.json()["token"]}
    assert site.get(f"/v1/collections/{OWN}", headers=mine).status_code == 200
    listed = site.get("/v1/keys", headers=admin)
    assert made.json()["token"] not in listed.text
    assert site.delete("/v1/keys/gate", headers=admin).status_code == 200
    assert site.get(f"/v1/collections/{OWN}", headers=mine).status_code == 401


@pytest.mark.slow
def test_a_key_may_revoke_and_rotate_itself(site: httpx.Client, tokens: dict[str, str]) -> None:
    """The answer must arrive: it may hold the only usable token."""
    admin = {"Authorization": f"Bearer {tokens['admin']}"}
    made = site.post("/v1/keys", headers=admin, json={"name": "self", "scopes": ["admin"]})
    mine = {"X-Api-Key": made.json()["token"]}
    rotated = site.post("/v1/keys/self/rotate", headers=mine, json={"overlap_hours": 0})
    mine = {"X-Api-Key": rotated.json()["token"]}
    assert site.delete("/v1/keys/self", headers=mine).status_code == 200
    assert site.get("/v1/keys", headers=mine).status_code == 401


def test_a_new_key_is_accepted_at_once(site: httpx.Client, keyed: Services) -> None:
    """By every process: the next reading of the keys may be half a second away."""
    codes = []
    for number in range(5):
        _, token = keyed.access_keys.create(NewKey(f"new-{number}", [Scope.MANAGE]))
        codes.append(site.get("/v1/collections", headers={"X-Api-Key": token}).status_code)
        keyed.access_keys.revoke(f"new-{number}")
    assert codes == [200] * 5


def test_a_new_key_is_not_refused_while_the_keys_cannot_be_read(
    site: httpx.Client, keyed: Services, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A client that is answered with 401 does not try again."""

    def away() -> int:
        raise StoreUnavailable("The database does not answer.")

    _, token = keyed.access_keys.create(NewKey("at-a-bad-moment", [Scope.MANAGE]))
    with monkeypatch.context() as patched:
        patched.setattr(keyed.access_keys, "revision", away)
        answer = site.get("/v1/collections", headers={"X-Api-Key": token})
    assert (answer.status_code, code_of(answer)) == (503, "store_unavailable")
    keyed.access_keys.revoke("at-a-bad-moment")


def test_one_reading_serves_a_request_without_a_lease_whose_id_is_unknown(
    site: httpx.Client, keyed: Services, monkeypatch: pytest.MonkeyPatch
) -> None:
    renewals = list[object]()
    renewal = AccessRegistry.renewal

    def noted(registry: AccessRegistry) -> Future[bool]:
        renewals.append(registry)
        return renewal(registry)

    monkeypatch.setattr(AccessRegistry, "fresh", property(lambda _: False))
    monkeypatch.setattr(AccessRegistry, "renewal", noted)
    answer = site.get("/v1/collections", headers={"X-Api-Key": new_token()[1]})
    assert (answer.status_code, renewals) == (401, [keyed.access])


def test_a_body_that_is_complete_after_the_revocation_is_not_processed(
    site: httpx.Client, keyed: Services, tokens: dict[str, str]
) -> None:
    _, token = keyed.access_keys.create(NewKey("uploads", [Scope.MANAGE], [OWN]))
    keyed.access.refresh()

    received = keyed.settings.data_dir / "imports"

    def slow() -> Iterator[bytes]:
        yield b'{"person_id": "ada", '
        until(lambda: [*received.glob("*.jsonl")])  # the key was accepted
        keyed.access_keys.revoke("uploads")
        keyed.access.refresh()
        yield b'"without_face": true}'

    headers = {"X-Api-Key": token, "Content-Type": "application/jsonl"}
    with pytest.raises(httpx.TransportError):
        site.post(f"/v1/collections/{OWN}/imports", headers=headers, content=slow())
    until(lambda: not [*received.glob("*.jsonl")])  # what was received is deleted
    imports = site.get(f"/v1/collections/{OWN}/imports", headers={"X-Api-Key": tokens["all"]})
    assert imports.json()["items"] == []


@pytest.mark.parametrize(
    ("wrong", "why"),
    [({"expires_at": "2020-01-01T00:00:00Z"}, "future"),
     ({"expires_at": "9999-12-31T23:59:59-14:00"}, "years"),
     ({"expires_at": "2099-01-01T00:00:00"}, "timezone"),
     ({"scopes": ["admin"], "collections": [OWN]}, "whole service"),
     ({"scopes": ["metrics"], "collections": [OWN]}, "whole service"),
     ({"scopes": ["detect"] * 65}, "at most 64"),
     ({"collections": [1] * 20_000}, "at most 1000")],
)  # fmt: skip
def test_a_key_that_could_do_nothing_is_not_created(
    site: httpx.Client, tokens: dict[str, str], wrong: dict[str, object], why: str
) -> None:
    new = {"name": "useless", "scopes": ["detect"], **wrong}
    answer = site.post("/v1/keys", headers={"X-Api-Key": tokens["admin"]}, json=new)
    assert answer.status_code == 422
    assert why in answer.json()["detail"]


def test_the_list_of_keys_is_written_off_the_event_loop(
    site: httpx.Client, tokens: dict[str, str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """It has no pages, and each key may have a thousand collections."""
    of, loops = KeyInfo.of, list[object]()

    def noted(key: AccessKey) -> KeyInfo:
        loops.append(asyncio._get_running_loop())
        return of(key)

    monkeypatch.setattr(KeyInfo, "of", noted)
    listed = site.get("/v1/keys", headers={"X-Api-Key": tokens["admin"]})
    assert len(loops) == len(listed.json()["items"]) > 0
    assert set(loops) == {None}


class TestLimits:
    def test_a_key_that_is_used_too_much(self, site: httpx.Client, keyed: Services) -> None:
        new = NewKey("slow", [Scope.MANAGE], limits=KeyLimits(requests_per_second=0.01))
        headers = {"X-Api-Key": keyed.access_keys.create(new)[1]}
        keyed.access.refresh()
        first = site.get("/v1/collections", headers=headers)
        assert first.status_code == 200
        assert first.headers["RateLimit-Policy"] == '"requests";q=1;w=100'
        assert first.headers["RateLimit"].startswith('"requests";r=0;t=')
        second = site.get("/v1/collections", headers=headers)
        assert second.status_code == 429
        assert code_of(second) == "rate_limited"
        assert second.json()["limit"] == "requests_per_second"
        assert 0 < int(second.headers["Retry-After"]) <= 100
        assert second.headers["RateLimit"].startswith('"requests";r=0;t=')

    @pytest.mark.parametrize("path", ["/v1/collections/foreign", "/v1/nothing", "/metrics"])
    def test_calls_that_the_key_is_not_for_count_too(
        self, site: httpx.Client, keyed: Services, path: str
    ) -> None:
        limits = KeyLimits(requests_per_second=0.01)
        new = NewKey(f"k{abs(hash(path))}", [Scope.MANAGE], [OWN], limits=limits)
        headers = {"X-Api-Key": keyed.access_keys.create(new)[1]}
        keyed.access.refresh()
        first, second = (site.get(path, headers=headers) for _ in range(2))
        assert first.status_code in (403, 404)
        assert first.headers["RateLimit"].startswith('"requests";r=0;t=')
        assert second.status_code == 429

    def test_photos_are_counted_by_the_photo(self, site: httpx.Client, keyed: Services) -> None:
        new = NewKey("entrance", [Scope.DETECT], limits=KeyLimits(photos_per_day=3))
        headers = {"X-Api-Key": keyed.access_keys.create(new)[1]}
        keyed.access.refresh()
        files = [("image", ("photo.jpg", b"no photo"))] * 2
        first = site.post("/v1/detect", files=files, headers=headers)
        assert code_of(first) == "unsupported_image"
        assert first.headers["RateLimit"].startswith('"photos-a-day";r=1;t=')
        second = site.post("/v1/detect", files=files, headers=headers)
        assert second.status_code == 429
        assert code_of(second) == "quota_exceeded"
        assert "3 photos a day and has 1 left; this call has 2" in second.json()["detail"]

    def test_limits_over_http(self, site: httpx.Client, tokens: dict[str, str]) -> None:
        headers = {"X-Api-Key": tokens["admin"]}
        made = site.post(
            "/v1/keys", headers=headers,
            json={"name": "counted", "scopes": ["detect"], "limits": {"photos_per_second": 5}},
        ).json()  # fmt: skip
        assert made["key"]["limits"]["photos_per_second"] == 5
        limited = site.put(
            "/v1/keys/counted/limits", headers=headers, json={"concurrent_requests": 2}
        ).json()
        (found,) = limited["limited"]
        assert found["limits"] == {
            "requests_per_second": None, "photos_per_second": None, "concurrent_requests": 2,
            "photos_per_day": None,
        }  # fmt: skip
        for wrong in ({"photos_per_day": 0}, {"requests_per_second": -1}, {"photos": 1}):
            answer = site.put("/v1/keys/counted/limits", headers=headers, json=wrong)
            assert answer.status_code == 422, wrong
        answer = site.put("/v1/keys/nothing/limits", headers=headers, json={})
        assert code_of(answer) == "access_key_not_found"


def test_a_key_with_many_misses_is_reported(
    site: httpx.Client, keyed: Services, astronaut: bytes, group_photo: bytes
) -> None:
    headers = {"X-Api-Key": keyed.access_keys.create(NewKey("curious", [Scope.IDENTIFY]))[1]}
    keyed.access.refresh()
    photo = {"image": ("photo.jpg", astronaut)}
    two = photo | {"reference": ("group.jpg", group_photo)}
    for _ in range(2):  # says nothing about who is enrolled
        answer = site.post("/v1/verify", files=two, headers=headers)
        assert answer.json()["status"] == "no_match", answer.text
    for _ in range(2):
        answer = site.post("/v1/identify", files=photo, headers=headers).json()
        assert answer["faces"][0]["status"] == "unknown"
    assert b'key="curious"' not in keyed.metrics.render()
    claim = site.post("/v1/verify", files=photo, data={"person_id": "ada"}, headers=headers)
    assert code_of(claim) == "person_not_found"
    assert b'likeness_probing_total{key="curious"} 1.0' in keyed.metrics.render()
    audit = keyed.gallery.store.audit
    until(lambda: audit.latest(1, AuditFilter(action="key.probing")))
    entry = audit.latest(1, AuditFilter(action="key.probing"))[0].members
    assert entry["details"] == {"name": "curious", "misses": 3, "seconds": 60}
    assert entry["actor"].startswith("key:")
