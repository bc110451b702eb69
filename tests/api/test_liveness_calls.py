"""Liveness over HTTP: asked for by a call, demanded by a collection's policy, or not to be had."""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import pytest

from app.inference.pack_spec import ModelPack
from app.lab.packing.own import OwnNetworks, make_pack
from app.services import build_services
from app.settings import Settings
from tests.api.conftest import run_server
from tests.api.test_decisions import code_of

# No photo is certain to be live to a network of 2 MB: nothing passes this.
BEYOND_REACH = 0.9999999


@pytest.fixture(scope="module")
def live_client(
    pack: ModelPack, eval_models: Path, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[httpx.Client]:
    """A service of a pack with a liveness network."""
    folder = tmp_path_factory.mktemp("live")
    network = eval_models / "minifasnet" / "MiniFASNetV2.onnx"
    made = make_pack(pack, OwnNetworks(liveness=(f"2.7:{network}",)), folder / "pack")
    services = build_services(Settings(data_dir=folder / "data", pack=str(made.folder)))
    with run_server(services) as url, httpx.Client(base_url=url, timeout=60) as client:
        yield client


def ask(client: httpx.Client, call: str, photo: Path, **fields: Any) -> httpx.Response:
    return client.post(f"/v1/{call}", files={"image": photo.read_bytes()}, data=fields)


def set_policy(client: httpx.Client, **policy: Any) -> None:
    """A policy with these gates and no others."""
    gates = dict.fromkeys(("identify_gate", "verify_gate", "enroll_gate"))
    body = {"policy": gates | policy}
    client.patch("/v1/collections/default", json=body).raise_for_status()


@pytest.mark.parametrize("call", ["detect", "embed", "identify"])
def test_it_is_reported_when_asked_for(live_client: httpx.Client, photos: Path, call: str) -> None:
    for asked in (True, False):
        answer = ask(live_client, call, photos / "obama.jpg", liveness=asked).json()
        reported = answer["faces"][0]["quality"]["liveness"]
        assert (reported is not None) is asked
        assert ("liveness" in answer["timings_ms"]) is asked


def test_a_policy_that_demands_it(live_client: httpx.Client, photos: Path) -> None:
    photo = photos / "obama.jpg"
    ask(live_client, "enroll", photo, person_id="obama").raise_for_status()
    gate = {"min_liveness": BEYOND_REACH}
    set_policy(live_client, identify_gate=gate, verify_gate=gate, enroll_gate=gate)
    try:
        face = ask(live_client, "identify", photo).json()["faces"][0]
        assert (face["status"], face["reasons"]) == ("rejected", ["not_live"])
        verified = ask(live_client, "verify", photo, person_id="obama")
        assert (verified.status_code, code_of(verified)) == (422, "not_live")
        enrolled = ask(live_client, "enroll", photos / "obama2.jpg", person_id="obama")
        assert (enrolled.status_code, code_of(enrolled)) == (422, "not_live")
        set_policy(live_client, verify_gate={"min_liveness": 1e-9})
        assert ask(live_client, "verify", photo, person_id="obama").json()["is_match"]
    finally:
        set_policy(live_client)


def test_the_reference_may_be_any_picture(live_client: httpx.Client, photos: Path) -> None:
    set_policy(live_client, verify_gate={"min_liveness": 1e-9})
    files = {name: (photos / "obama.jpg").read_bytes() for name in ("image", "reference")}
    answer = live_client.post("/v1/verify", files=files).json()
    set_policy(live_client)
    assert answer["is_match"]
    assert answer["face"]["quality"]["liveness"] is not None
    assert answer["reference_face"]["quality"]["liveness"] is None


def test_a_pack_that_cannot_tell_says_so(
    client: httpx.Client, collection: str, photos: Path, services: Any
) -> None:
    asked = ask(client, "detect", photos / "obama.jpg", liveness=True)
    assert (asked.status_code, code_of(asked)) == (409, "liveness_unavailable")
    gate = {"identify_gate": {"min_liveness": 0.5}}
    refused = client.patch(f"/v1/collections/{collection}", json={"policy": gate})
    assert (refused.status_code, code_of(refused)) == (409, "liveness_unavailable")
    # One that was set with another pack still lets nobody pass.
    services.gallery.store.collections.update(collection, None, lambda _: gate)
    demanded = ask(client, "identify", photos / "obama.jpg", collection=collection)
    assert (demanded.status_code, code_of(demanded)) == (409, "liveness_unavailable")
