"""Tokens of an OpenID Connect issuer over HTTP."""

from collections.abc import Iterator
from pathlib import Path

import httpx
import pytest

from app.access.keys import NewKey, Scope
from app.services import build_services
from app.settings import Settings
from tests.access.issuer import AUDIENCE, Issuer
from tests.api.conftest import OWN, run_server


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
