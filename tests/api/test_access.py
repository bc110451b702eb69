"""Access control over HTTP: every route, every scope, every kind of key and of collection."""

import itertools
import sys
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import httpx
import pytest
from fastapi import APIRouter
from fastapi.routing import APIRoute

from app.access.keys import WHOLE_SERVICE, NewKey, Scope
from app.access.registry import LEASE_S
from app.api.access import AccessControl, protected_routes, scope_of
from app.api.main import ROUTERS
from app.api.openapi import SECURITY
from app.services import Services, build_services
from app.settings import Settings
from tests.api.conftest import FOREIGN, OWN, run_server

ABSENT = "absent"
ELSEWHERE = {"person_id": "nobody", "face_id": "0" * 8, "import_id": "0" * 32, "key": "nothing",
             "other_id": "nobody-else"}  # fmt: skip
# Their collection is a field, not part of the path.
BY_FIELD = {"identify", "verify", "enroll"}


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


def test_a_refused_call_is_counted_under_its_route(
    site: httpx.Client, tokens: dict[str, str]
) -> None:
    """So that an alert can name it; what is no route is counted together."""
    key = {"Authorization": f"Bearer {tokens['identify']}"}
    photo = {"image": ("photo.jpg", b"no photo")}
    assert site.post("/v1/enroll", files=photo).status_code == 401
    assert site.delete("/v1/collections/nothing", headers=key).status_code == 403
    assert site.get("/v1/nothing").status_code == 401
    text = site.get("/metrics", headers={"Authorization": f"Bearer {tokens['metrics']}"}).text
    for method, route, status in (
        ("POST", "/v1/enroll", 401),
        ("DELETE", "/v1/collections/{collection}", 403),
        ("GET", "unmatched", 401),
    ):
        labels = f'{{method="{method}",route="{route}",status="{status}"}}'
        assert f"likeness_requests_total{labels}" in text


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
