"""Access control over HTTP: every route, every scope, every kind of key and of collection."""

import asyncio
import itertools
import sys
import threading
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from datetime import UTC, datetime, timedelta
from pathlib import Path

import httpx
import pytest
from fastapi import APIRouter
from fastapi.routing import APIRoute

from app.access.keys import WHOLE_SERVICE, AccessKey, NewKey, Scope
from app.access.limits import KeyLimits
from app.access.registry import LEASE_S
from app.api.access import AccessControl, protected_routes, scope_of
from app.api.endpoints.access_keys import KeyInfo
from app.api.main import ROUTERS
from app.api.openapi import SECURITY
from app.services import Services, build_services
from app.settings import Settings
from app.store.sql.audit_log import AuditFilter
from tests.access.issuer import AUDIENCE, Issuer
from tests.api.conftest import DeclaredProblems, run_server
from tests.waiting import until

OWN, FOREIGN, ABSENT = "own", "foreign", "absent"
ELSEWHERE = {"person_id": "nobody", "face_id": "0" * 8, "import_id": "0" * 32, "key": "nothing",
             "other_id": "nobody-else"}  # fmt: skip
# Their collection is a field, not part of the path.
BY_FIELD = {"identify", "verify", "enroll"}


@pytest.fixture(scope="module")
def keyed(tmp_path_factory: pytest.TempPathFactory) -> Services:
    settings = Settings(data_dir=tmp_path_factory.mktemp("keyed"), probing_misses=3)
    services = build_services(settings)
    for name in (OWN, FOREIGN):
        services.gallery.create_collection(name, {})
    return services


@pytest.fixture(scope="module")
def tokens(keyed: Services) -> dict[str, str]:
    """A token of each kind, by name."""
    create = keyed.access_keys.create
    made = {scope.value: create(NewKey(scope, [scope]))[1] for scope in Scope}
    made["all"] = create(NewKey("all", [*Scope]))[1]
    made["limited"] = create(NewKey("limited", [*Scope], [OWN]))[1]
    made["expired"] = create(NewKey("x", [*Scope], None, datetime.now(UTC) - timedelta(1)))[1]
    made["revoked"] = create(NewKey("revoked", [*Scope]))[1]
    keyed.access_keys.revoke("revoked")
    made["changed"] = made["all"][:-2] + ("AA" if made["all"][-2:] != "AA" else "BB")
    keyed.access.refresh()
    return made


@pytest.fixture(scope="module")
def site(keyed: Services, tokens: dict[str, str]) -> Iterator[httpx.Client]:
    with run_server(keyed) as url, httpx.Client(base_url=url, timeout=60) as client:
        declared = DeclaredProblems(client.get("/openapi.json").json())
        client.event_hooks = {"response": [declared.check]}
        yield client


ROUTES = list(protected_routes(ROUTERS))


def call(
    client: httpx.Client, route: APIRoute, token: str | None, collection: str = ABSENT
) -> httpx.Response:
    """The call of a route, with nothing useful in it."""
    path = route.path.format(collection=collection, **ELSEWHERE)
    method = "".join(route.methods or ())
    query = {"collection": collection, "person_id": "nobody"} if route.name in BY_FIELD else {}
    if route.name == "identify":
        del query["person_id"]
    photo = {"content": b"no photo", "headers": {"Content-Type": "image/jpeg"}}
    body = photo if route.name in {*BY_FIELD, "detect", "embed"} else {}
    if not body and method in ("POST", "PATCH", "PUT"):
        body = {"json": {}}
    request = client.build_request(method, path, params=query, **body)  # type: ignore[arg-type]
    if token is not None:
        request.headers["Authorization"] = f"Bearer {token}"
    return client.send(request)


def code_of(response: httpx.Response) -> str:
    return str(response.json()["code"]) if response.status_code >= 400 else "fine"


def test_every_route_without_a_usable_key(site: httpx.Client, tokens: dict[str, str]) -> None:
    cells = 0
    for route in ROUTES:
        for token in (None, "lk_", tokens["expired"], tokens["revoked"], tokens["changed"]):
            answer = call(site, route, token)
            assert answer.status_code == 401, (route.path, token)
            assert answer.headers["WWW-Authenticate"].startswith("Bearer")
            assert not answer.content or code_of(answer) == "unauthenticated"
            cells += 1
    assert cells >= 5 * 38


def test_every_route_with_every_scope(site: httpx.Client, tokens: dict[str, str]) -> None:
    for route in ROUTES:
        for scope in Scope:
            answer = call(site, route, tokens[scope])
            if scope is scope_of(route):
                assert answer.status_code not in (401, 403), (route.path, scope)
            else:
                assert answer.status_code == 403, (route.path, scope)


def test_another_collection_is_answered_as_one_that_does_not_exist(
    site: httpx.Client, tokens: dict[str, str]
) -> None:
    checked = set()
    for route in ROUTES:
        if scope_of(route) in WHOLE_SERVICE:
            assert call(site, route, tokens["limited"]).status_code == 403, route.path
            continue
        if "{collection}" not in route.path and route.name not in BY_FIELD:
            continue
        answers = [call(site, route, tokens["limited"], name) for name in (FOREIGN, ABSENT)]
        assert [code_of(one) for one in answers] == ["collection_not_found"] * 2, route.path
        details = [one.json()["detail"] for one in answers]
        assert details[0].replace(FOREIGN, ABSENT) == details[1]
        if route.name != "delete_collection":
            own = call(site, route, tokens["limited"], OWN)
            assert code_of(own) not in ("collection_not_found", "forbidden"), route.path
        checked.add(route.name)
    assert checked > BY_FIELD


@pytest.mark.slow
def test_the_whole_matrix(
    site: httpx.Client, keyed: Services, tokens: dict[str, str], capsys: pytest.CaptureFixture[str]
) -> None:
    """Every route, with a key of every scope for one collection and with everything that is no
    usable key, in that collection, another one, and one that does not exist."""
    own = {
        scope: keyed.access_keys.create(
            NewKey(f"own-{scope}", [scope], None if scope in WHOLE_SERVICE else [OWN])
        )[1]
        for scope in Scope
    }
    keyed.access.refresh()
    unusable = (None, "lk_", tokens["expired"], tokens["revoked"], tokens["changed"])
    cells = 0
    for route, collection in itertools.product(ROUTES, (OWN, FOREIGN, ABSENT)):
        for token in unusable:
            assert call(site, route, token, collection).status_code == 401, route.path
            cells += 1
        for scope, token in own.items():
            answer = call(site, route, token, collection)
            cell = (route.name, scope, collection, answer.status_code)
            has_collection = "{collection}" in route.path or route.name in BY_FIELD
            if scope is not scope_of(route):
                assert answer.status_code == 403, cell
            elif has_collection and collection != OWN:
                assert code_of(answer) == "collection_not_found", cell
            else:
                assert answer.status_code not in (401, 403), cell
                assert answer.is_success or code_of(answer) != "collection_not_found", cell
            cells += 1
            if route.name == "delete_collection" and answer.status_code == 200:
                keyed.gallery.create_collection(OWN, {})
    for scope in Scope:
        keyed.access_keys.revoke(f"own-{scope}")
    with capsys.disabled():
        sys.stdout.write(f"\n{len(ROUTES)} routes, {cells:,} cells\n")
    assert cells == len(ROUTES) * 3 * (len(unusable) + len(Scope))


def test_a_list_has_only_what_the_key_is_for(site: httpx.Client, tokens: dict[str, str]) -> None:
    def names(token: str, **query: object) -> list[str]:
        headers = {"X-Api-Key": tokens[token]}
        answer = site.get("/v1/collections", headers=headers, params=query)  # type: ignore[arg-type]
        return [one["name"] for one in answer.json()["items"]]

    assert {OWN, FOREIGN} <= {*names("all")}
    assert names("limited") == [OWN]
    assert names("limited", limit=1) == [OWN]


def test_a_limited_key_creates_only_its_collections(
    site: httpx.Client, tokens: dict[str, str]
) -> None:
    headers = {"Authorization": f"Bearer {tokens['limited']}"}
    for name in (FOREIGN, "another"):
        answer = site.post("/v1/collections", headers=headers, json={"name": name})
        assert (answer.status_code, code_of(answer)) == (403, "forbidden")


@pytest.mark.parametrize(
    "path",
    ["/v1", "/v1/", "//v1/keys", "/v1//keys", "/V1/keys", "/%76%31/keys", "/v1/keys/", "/nothing",
     "/docs/../v1/keys", "/metrics", "/metrics/"],
)  # fmt: skip
def test_no_spelling_of_a_path_avoids_the_key(site: httpx.Client, path: str) -> None:
    assert site.get(path).status_code == 401


@pytest.mark.parametrize("prefix", ["", "/faces", "/faces/faces", "/faces/faces/faces"])
def test_no_prefix_of_a_proxy_avoids_the_key(tmp_path: Path, prefix: str) -> None:
    services = build_services(Settings(data_dir=tmp_path, root_path="/faces"))
    services.access_keys.create(NewKey("any", [Scope.DETECT]))
    services.access.refresh()
    with run_server(services) as url:
        assert httpx.get(f"{url}{prefix}/v1/collections").status_code == 401
        assert httpx.get(f"{url}{prefix}/metrics").status_code == 401


def test_probes_and_the_description_are_open(site: httpx.Client) -> None:
    for path in ("/livez", "/readyz", "/docs", "/openapi.json"):
        assert site.get(path).status_code == 200, path


def test_two_different_keys_are_refused(site: httpx.Client, tokens: dict[str, str]) -> None:
    same = {"Authorization": f"bearer {tokens['all']}", "X-Api-Key": tokens["all"]}
    assert site.get("/v1/keys", headers=same).status_code == 200
    other = {**same, "X-Api-Key": tokens["admin"]}
    assert site.get("/v1/keys", headers=other).status_code == 401


@pytest.mark.slow
def test_a_key_from_creation_to_revocation(site: httpx.Client, tokens: dict[str, str]) -> None:
    admin = {"Authorization": f"Bearer {tokens['admin']}"}
    new = {"name": "gate", "scopes": ["manage"], "collections": [OWN]}
    made = site.post("/v1/keys", headers=admin, json=new)
    assert made.headers["Cache-Control"] == "no-store"
    mine = {"X-Api-Key": made.json()["token"]}
    time.sleep(LEASE_S)  # a new key is usable within the lease
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
    time.sleep(LEASE_S)
    rotated = site.post("/v1/keys/self/rotate", headers=mine, json={"overlap_hours": 0})
    mine = {"X-Api-Key": rotated.json()["token"]}
    time.sleep(LEASE_S)
    assert site.delete("/v1/keys/self", headers=mine).status_code == 200
    assert site.get("/v1/keys", headers=mine).status_code == 401


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


def test_without_any_key_every_call_is_open_but_those_of_keys(tmp_path: Path) -> None:
    """Otherwise anybody who reaches an open service could lock its users out for good."""
    services = build_services(Settings(data_dir=tmp_path))
    with run_server(services) as url, httpx.Client(base_url=url) as client:
        assert client.get("/v1/collections").status_code == 200
        made = client.post("/v1/keys", json={"name": "first", "scopes": ["admin"]})
        assert (made.status_code, code_of(made)) == (403, "forbidden")
        assert "likeness keys create" in made.json()["detail"]
        services.access_keys.create(NewKey("first", [Scope.MANAGE]))
        time.sleep(LEASE_S)
        assert client.get("/v1/collections").status_code == 401


@pytest.mark.slow
def test_a_database_that_hangs_ends_calls_and_nothing_else(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    services = build_services(Settings(data_dir=tmp_path))
    _, token = services.access_keys.create(NewKey("any", [Scope.MANAGE]))
    services.access.refresh()
    answers = threading.Event()
    revision = services.access_keys.revision

    def hanging() -> int:
        assert answers.wait(60)
        return revision()

    monkeypatch.setattr(services.access_keys, "revision", hanging)
    mine = {"X-Api-Key": token}
    with run_server(services) as url, ThreadPoolExecutor(50, "client") as pool:
        time.sleep(LEASE_S)
        before = {*threading.enumerate()}
        refused = [pool.submit(httpx.get, f"{url}/v1/collections", headers=mine, timeout=30)
                   for _ in range(50)]  # fmt: skip
        assert httpx.get(f"{url}/livez").status_code == 200
        codes = {(one.result().status_code, code_of(one.result())) for one in refused}
        assert codes == {(503, "store_unavailable")}
        began = {one.name for one in {*threading.enumerate()} - before}
        waiting = {name for name in began if not name.startswith("client")}
        assert len(waiting) < 10, "no thread for each call that waits"
        answers.set()
        assert httpx.get(f"{url}/v1/collections", headers=mine).status_code == 200


def test_a_route_without_a_scope_stops_the_application() -> None:
    router = APIRouter()

    @router.get("/v1/new")
    def undeclared() -> None: ...

    with pytest.raises(LookupError, match="undeclared"):
        AccessControl(
            router,
            registry=None,
            limiter=None,
            probing=None,
            refused=None,
            oidc=None,
            metrics=None,
            routers=[router],
        )  # type: ignore[arg-type]


def test_every_operation_of_the_description_is_among_them(site: httpx.Client) -> None:
    paths = site.get("/openapi.json").json()["paths"]
    described = {one["operationId"] for methods in paths.values() for one in methods.values()}
    assert described - {"livez", "readyz"} == {route.name for route in ROUTES}


def test_each_call_has_the_scope_that_the_documentation_gives_it() -> None:
    """docs/access.md: all calls not named here are about the gallery's content."""
    others = {
        "detect": Scope.DETECT, "embed": Scope.DETECT,
        "identify": Scope.IDENTIFY, "verify": Scope.IDENTIFY,
        "enroll": Scope.ENROLL, "metrics": Scope.METRICS,
        "list_keys": Scope.ADMIN, "create_key": Scope.ADMIN, "rotate_key": Scope.ADMIN,
        "limit_key": Scope.ADMIN, "revoke_key": Scope.ADMIN, "list_audit": Scope.ADMIN,
    }  # fmt: skip
    assert {route.name: scope_of(route) for route in ROUTES} == {
        route.name: others.get(route.name, Scope.MANAGE) for route in ROUTES
    }


def test_the_description_names_the_keys(site: httpx.Client) -> None:
    document = site.get("/openapi.json").json()
    assert document["components"]["securitySchemes"].keys() == SECURITY.keys()
    assert document["paths"]["/v1/identify"]["post"]["security"] == [
        {"bearer": []}, {"api_key": []}, {}
    ]  # fmt: skip
    assert "security" not in document["paths"]["/livez"]["get"]


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
        new = NewKey("door", [Scope.DETECT], limits=KeyLimits(photos_per_day=3))
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
    site: httpx.Client, keyed: Services, astronaut: bytes
) -> None:
    headers = {"X-Api-Key": keyed.access_keys.create(NewKey("curious", [Scope.IDENTIFY]))[1]}
    keyed.access.refresh()
    photo = {"image": ("photo.jpg", astronaut)}
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


@pytest.fixture
def issuer() -> Iterator[Issuer]:
    issuer = Issuer()
    issuer.add("k1")
    yield issuer
    issuer.close()


def test_tokens_of_an_issuer(tmp_path: Path, issuer: Issuer) -> None:
    settings = Settings(data_dir=tmp_path, oidc_issuer=issuer.url, oidc_audience=AUDIENCE,
                        oidc_collections_claim="sites")  # fmt: skip
    services = build_services(settings)
    services.gallery.create_collection(OWN, {})
    _, token = services.access_keys.create(NewKey("own", [Scope.MANAGE]))
    services.access.refresh()
    with run_server(services) as url, httpx.Client(base_url=url) as client:

        def listed(text: str) -> httpx.Response:
            return client.get("/v1/collections", headers={"Authorization": f"Bearer {text}"})

        assert client.get("/v1/collections").status_code == 401
        assert listed(issuer.token(scope="likeness:detect", sites=[OWN])).status_code == 403
        own = listed(issuer.token(scope="likeness:manage", sites=[OWN]))
        assert [one["name"] for one in own.json()["items"]] == [OWN]
        assert listed(issuer.token(scope="likeness:manage", aud="another")).status_code == 401
        assert len(listed(token).json()["items"]) == 2


def test_a_subject_s_limits(tmp_path: Path, issuer: Issuer) -> None:
    settings = Settings(data_dir=tmp_path, oidc_issuer=issuer.url, oidc_audience=AUDIENCE,
                        oidc_requests_per_second=0.01)  # fmt: skip
    with run_server(build_services(settings)) as url, httpx.Client(base_url=url) as client:

        def answer(subject: str) -> httpx.Response:
            token = issuer.token(scope="likeness:manage", sub=subject)
            return client.get("/v1/collections", headers={"Authorization": f"Bearer {token}"})

        assert answer("ada").headers["ratelimit"].startswith('"requests";r=0')
        refused = answer("ada")
        assert (refused.status_code, refused.json()["code"]) == (429, "rate_limited")
        assert int(refused.headers["retry-after"]) > 1
        assert answer("bob").status_code == 200


def test_an_issuer_alone_makes_calls_need_a_token(tmp_path: Path, issuer: Issuer) -> None:
    settings = Settings(data_dir=tmp_path, oidc_issuer=issuer.url, oidc_audience=AUDIENCE)
    with run_server(build_services(settings)) as url, httpx.Client(base_url=url) as client:
        assert client.get("/v1/collections").status_code == 401
        headers = {"Authorization": f"Bearer {issuer.token(scope='likeness:admin')}"}
        new = {"name": "first", "scopes": ["identify"]}
        assert client.post("/v1/keys", headers=headers, json=new).status_code == 201
