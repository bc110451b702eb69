import os
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
# In a process of its own: this one has imported everything already.
SCRIPT = """
import asyncio, sys, threading
import httpx
from app.api.main import create_app
from app.services import build_services
from app.settings import Settings

late = []

class Watch:
    def find_spec(self, name, path=None, target=None):
        if threading.current_thread() is threading.main_thread():
            late.append(name)

async def main():
    photo = open("tests/data/photos/obama.jpg", "rb").read()
    app = create_app(build_services(Settings()))
    transport = httpx.ASGITransport(app)
    async with (
        app.router.lifespan_context(app),
        httpx.AsyncClient(transport=transport, base_url="http://x") as client,
    ):
        await client.get("/livez")
        sys.meta_path.insert(0, Watch())
        document = (await client.get("/openapi.json")).json()
        for path, methods in document["paths"].items():
            if "get" in methods:
                await client.get(path.replace("{collection}", "default"))
        for path in ("/docs", "/redoc", "/nothing", "/static-offline-docs/swagger-ui-bundle.js"):
            await client.get(path)
        for _ in range(2):
            assert (await client.post("/v1/detect", files={"image": photo})).status_code == 200
            form = {"files": {"image": photo}, "data": {"person_id": "a"}}
            assert (await client.post("/v1/enroll", **form)).status_code == 200
            assert (await client.post("/v1/verify", **form)).status_code == 200
            assert (await client.post("/v1/identify", files={"image": photo})).status_code == 200
        await client.delete("/v1/collections/default/persons/a")
        print(*late)

asyncio.run(main())
"""


@pytest.mark.slow
def test_no_request_imports_a_module_on_the_event_loop(tmp_path: Path) -> None:
    """An import there serves nothing else meanwhile: 35 ms for the larger part of anyio."""
    found = subprocess.run(
        [sys.executable, "-c", SCRIPT],
        cwd=ROOT,
        env={**os.environ, "LIKENESS_DATA_DIR": str(tmp_path), "PYTHONPATH": str(ROOT)},
        capture_output=True,
        text=True,
        timeout=120,
        check=True,
    )
    assert found.stdout.split() == []
