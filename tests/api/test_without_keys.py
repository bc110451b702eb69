"""While no access key exists: pages of other origins, open in a browser on the same machine."""

from typing import Any

import httpx
import pytest

from tests.api.test_decisions import code_of


@pytest.mark.parametrize(
    "origin", ["http://evil.example", "https://evil.example:8000", "null", "http://127.0.0.1:1"]
)
def test_a_page_of_another_origin_enrolls_nobody(gallery: Any, origin: str) -> None:
    """A form with a photo is sent without asking the service, from any page."""
    answer = gallery.client.post(
        "/v1/enroll",
        headers={"Origin": origin},
        data={"person_id": "obama", "collection": gallery.name},
        files={"image": gallery.photo("obama.jpg")},
    )
    assert (answer.status_code, code_of(answer)) == (403, "forbidden")
    assert "LIKENESS_CORS_ORIGINS" in answer.json()["detail"]
    assert gallery.client.get(f"/v1/collections/{gallery.name}").json()["persons"] == 0


def test_pages_of_the_service_itself_may_call(gallery: Any, base_url: str) -> None:
    for origin in (base_url, base_url.upper().replace("HTTP", "http")):
        answer = gallery.client.patch(
            f"/v1/collections/{gallery.name}", headers={"Origin": origin}, json={"metadata": {}}
        )
        assert answer.status_code == 200


def test_health_is_for_everybody(client: httpx.Client) -> None:
    assert client.get("/readyz", headers={"Origin": "http://evil.example"}).status_code == 200


def test_with_a_key_the_key_decides(site: httpx.Client, tokens: dict[str, str]) -> None:
    headers = {"Origin": "http://evil.example", "X-Api-Key": tokens["all"]}
    assert site.get("/v1/collections", headers=headers).status_code == 200
