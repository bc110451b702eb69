"""The audit log over HTTP: who did what, by their keys."""

from collections.abc import Iterator
from datetime import UTC, datetime, timedelta
from typing import Any

import httpx
import pytest

from app.access.keys import KeyLimits, NewKey, Scope
from app.services import Services, build_services
from app.settings import Settings
from app.store.audit_verification import verify_audit
from app.store.sql.audit_log import AuditFilter
from tests.api.conftest import DeclaredProblems, run_server


@pytest.fixture(scope="module")
def keyed(tmp_path_factory: pytest.TempPathFactory) -> Services:
    return build_services(Settings(data_dir=tmp_path_factory.mktemp("audited")))


@pytest.fixture(scope="module")
def site(keyed: Services) -> Iterator[httpx.Client]:
    token = keyed.access_keys.create(NewKey("operator", [*Scope]))[1]
    keyed.access.refresh()
    headers = {"X-Api-Key": token}
    with (
        run_server(keyed) as url,
        httpx.Client(base_url=url, headers=headers, timeout=60) as client,
    ):
        declared = DeclaredProblems(client.get("/openapi.json").json())
        client.event_hooks = {"response": [declared.check]}
        yield client


def last(site: httpx.Client, **query: Any) -> dict[str, Any]:
    items = site.get("/v1/audit", params={"limit": 1000, **query}).json()["items"]
    entry: dict[str, Any] = items[-1]
    return entry


def test_an_entry_names_the_key_and_the_request(site: httpx.Client, keyed: Services) -> None:
    answer = site.post("/v1/collections", json={"name": "staff"})
    entry = last(site, action="collection.created", collection="staff")
    (key,) = keyed.access_keys.all()[1]
    assert entry["actor"] == f"key:{key}"
    assert entry["request_id"] == answer.json()["request_id"]


def test_persons_from_enrollment_to_erasure(site: httpx.Client, astronaut: bytes) -> None:
    site.post("/v1/collections", json={"name": "crew"})
    photo = {"image": ("photo.jpg", astronaut)}
    site.post("/v1/enroll", files=photo, data={"person_id": "eileen", "collection": "crew"})
    enrolled = last(site, collection="crew")
    assert [enrolled["action"], enrolled["details"]] == [
        "person.enrolled", {"templates": 1, "duplicates": 0, "metadata": False},
    ]  # fmt: skip
    site.delete("/v1/collections/crew/persons/eileen")
    erased = last(site, collection="crew")
    assert [erased["action"], erased["person"]] == ["person.deleted", enrolled["person"]]
    assert "eileen" not in site.get("/v1/audit").text


def test_searches_where_the_policy_asks_for_them(site: httpx.Client, astronaut: bytes) -> None:
    site.post("/v1/collections", json={"name": "vault"})
    photo = {"image": ("photo.jpg", astronaut)}
    site.post("/v1/enroll", files=photo, data={"person_id": "eileen", "collection": "vault"})
    before = last(site)["sequence"]
    site.post("/v1/identify", files=photo, data={"collection": "vault"})
    assert last(site)["sequence"] == before
    site.patch("/v1/collections/vault", json={"policy": {"audit_searches": True}})
    site.post("/v1/identify", files=photo, data={"collection": "vault"})
    identified = last(site, collection="vault")
    assert identified["action"] == "face.identified"
    assert identified["person"] is not None
    assert identified["details"]["status"] == "identified"
    assert identified["details"]["similarity"] > 0.99
    claim = {"person_id": "eileen", "collection": "vault"}
    site.post("/v1/verify", files=photo, data=claim)
    verified = last(site, collection="vault")
    assert [verified["action"], verified["person"]] == ["face.verified", identified["person"]]
    assert verified["details"]["reached"] is True
    assert verified["details"]["rejected"] is False


def test_pages_follow_each_other(site: httpx.Client) -> None:
    numbers, after, more = [], 0, True
    while more:
        page = site.get("/v1/audit", params={"after": after, "limit": 2}).json()
        numbers += [one["sequence"] for one in page["items"]]
        after, more = numbers[-1], page["more"]
    assert numbers == list(range(1, len(numbers) + 1))


@pytest.mark.parametrize(
    "query",
    [
        {"after": -1},
        {"limit": 0},
        {"since": "yesterday"},
        {"since": "0001-01-01T00:00:00+14:00"},
    ],
)
def test_queries_that_are_refused(site: httpx.Client, query: dict[str, Any]) -> None:
    assert site.get("/v1/audit", params=query).status_code == 422


def test_the_log_is_whole(keyed: Services, site: httpx.Client) -> None:
    site.post("/v1/collections", json={"name": "last"})
    found = verify_audit(keyed.gallery.store.audit.everything())
    assert found.problem is None
    assert found.entries > 1


def calls_of(keyed: Services, action: str) -> list[dict[str, Any]]:
    """The entries of refused calls so far; maintenance writes them within moments."""
    keyed.refused.flush()
    audit = keyed.gallery.store.audit
    return [one.members for one in audit.latest(1000, AuditFilter(action=action))]


def test_calls_that_were_denied(site: httpx.Client, keyed: Services) -> None:
    site.post("/v1/collections", json={"name": "vip"})
    made = keyed.access_keys.create(NewKey("entrance", [Scope.IDENTIFY, Scope.MANAGE], ["staff"]))
    keyed.access.refresh()
    mine = {"X-Api-Key": made[1]}
    first = site.get("/v1/audit", headers=mine)
    assert first.json()["code"] == "forbidden"
    for _ in range(30):
        site.get("/v1/audit", headers=mine)
    assert site.delete("/v1/collections/vip", headers=mine).status_code == 404
    assert site.delete("/v1/collections/ada-lovelace", headers=mine).status_code == 404
    assert site.get("/v1/nothing", headers={"X-Api-Key": "lk_wrong"}).status_code == 401
    denied = calls_of(keyed, "call.denied")
    actor = f"key:{made[0].key_id}"
    asked = [one for one in denied if one["details"]["call"] == "GET /v1/audit"]
    assert sum(one["details"]["times"] for one in asked) == 31
    assert [asked[0]["actor"], asked[0]["outcome"]] == [actor, "denied"]
    assert asked[0]["request_id"] == first.json()["request_id"]
    deleted = [one for one in denied if one["details"]["code"] == "collection_not_found"]
    assert [one["collection"] for one in deleted] == ["vip", None]  # no name of a client's own
    assert "ada-lovelace" not in str(denied)
    assert ["anonymous", "GET unmatched"] in [
        [one["actor"], one["details"]["call"]] for one in denied
    ]


def test_calls_over_the_limit_and_calls_that_failed(site: httpx.Client, keyed: Services) -> None:
    made = keyed.access_keys.create(
        NewKey("slow", [Scope.MANAGE], limits=KeyLimits(requests_per_second=0.01))
    )
    keyed.access.refresh()
    mine = {"X-Api-Key": made[1]}
    statuses = [site.get("/v1/collections", headers=mine).status_code for _ in range(5)]
    assert httpx.codes.TOO_MANY_REQUESTS in statuses
    site.delete("/v1/collections/default/persons/nobody")
    site.get("/v1/collections/default/persons/nobody")  # one that changes nothing
    (limited,) = {one["actor"] for one in calls_of(keyed, "call.limited")}
    assert limited == f"key:{made[0].key_id}"
    failed = calls_of(keyed, "call.failed")
    assert [[one["details"]["code"], one["outcome"]] for one in failed][-1] == [
        "person_not_found", "failed",
    ]  # fmt: skip
    call = "DELETE /v1/collections/{collection}/persons/{person_id}"
    assert {one["details"]["call"] for one in failed} == {call}
    shown = last(site, action="call.failed")
    assert shown["outcome"] == "failed"
    assert verify_audit(keyed.gallery.store.audit.everything()).problem is None


@pytest.mark.parametrize("zone", ["", "Z", "+00:00"])
def test_since_is_a_day_or_a_time(site: httpx.Client, zone: str) -> None:
    site.post("/v1/collections", json={"name": "dated"})
    written = datetime.fromisoformat(last(site)["at"]).astimezone(UTC)
    tomorrow = written.date() + timedelta(days=1)

    def found(since: str) -> bool:
        answer = site.get("/v1/audit", params={"since": since})
        assert answer.status_code == 200, answer.text
        return bool(answer.json()["items"])

    assert found(f"{written.date()}")
    assert found(f"{written.date()}T00:00:00{zone}")
    assert not found(f"{tomorrow}")
    assert not found(f"{tomorrow}T00:00:00{zone}")
