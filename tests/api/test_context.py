"""What a route works with."""

from concurrent.futures import ThreadPoolExecutor
from types import SimpleNamespace

import pytest
from fastapi import Request

from app.api.context import CallContext
from app.api.responses import ModelInfo
from app.services import Services
from app.telemetry.logs import request_id


@pytest.fixture
def context(services: Services) -> CallContext:
    token = request_id.set("camera-7")
    try:
        model = ModelInfo(pack="default", version="2.0.0", embedding_space="es-1")
        app = SimpleNamespace(state=SimpleNamespace(services=services, model=model))
        return CallContext(Request({"type": "http", "app": app}))
    finally:
        request_id.reset(token)


def test_an_answer_made_on_a_thread_has_the_id_of_its_request(context: CallContext) -> None:
    """A thread of a pool does not see the variables of the request's task."""
    with ThreadPoolExecutor(1) as pool:
        envelope = pool.submit(context.envelope).result()
    assert envelope["request_id"] == "camera-7"


def test_the_envelope_adds_up_the_stages(context: CallContext) -> None:
    context.times.add({"decode": 1.111})
    context.times.add({"decode": 2.0, "embed": 4.0})
    times = context.envelope()["timings_ms"]
    assert {**times, "total": 0} == {"decode": 3.11, "embed": 4.0, "total": 0}
    assert times["total"] >= 0
