"""A service whose networks are in one process: `LIKENESS_DEVICE=cuda` with several processes.

CUDA is a stand-in (benchmarks/standin): real networks on the CPU, in batches as on a device, and a
gallery in the host's memory.
"""

import contextlib
import json
import os
import signal
import subprocess
import sys
import threading
import urllib.error
import urllib.request
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import psutil
import pytest

from app.faces.loading import build_pipeline
from app.imaging import ImageLimits
from app.inference.pack_spec import ModelPack
from app.settings import Device
from tests.ports import free_port
from tests.waiting import PATIENCE_S, until

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(not sys.platform.startswith("linux"), reason="Linux alone has memfd"),
]
ROOT = Path(__file__).parents[2]
START_S = 3 * PATIENCE_S
SERVE = "from app.cli import main; main()"


class Service:
    """`likeness serve` with two processes that answer and one that runs the networks."""

    def __init__(self, folder: Path, **settings: str) -> None:
        self.port = free_port()
        environment = os.environ | {
            "PYTHONPATH": f"{ROOT / 'benchmarks' / 'standin'}{os.pathsep}{ROOT}",
            "STANDIN_MS": "real",
            "STANDIN_DEVICE": "cuda",
            "STANDIN_SIZES": "1,2",
            "LIKENESS_DEVICE": "cuda",
            "LIKENESS_PROCESSES": "2",
            "LIKENESS_PORT": str(self.port),
            "LIKENESS_DATA_DIR": str(folder),
            "LIKENESS_DRAIN_SECONDS": "0",
            **settings,
        }
        self.process = subprocess.Popen(
            [sys.executable, "-c", SERVE, "serve"],
            env=environment, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True,
        )  # fmt: skip

    def ask(self, path: str, body: bytes | None = None) -> tuple[int, Any]:
        """Status and JSON; 0 where nobody answers."""
        request = urllib.request.Request(
            f"http://127.0.0.1:{self.port}{path}", body, {"content-type": "image/jpeg"}
        )
        try:
            with urllib.request.urlopen(request, timeout=PATIENCE_S) as answer:
                return answer.status, json.loads(answer.read())
        except urllib.error.HTTPError as error:
            return error.code, json.loads(error.read())
        except OSError:
            return 0, None

    def until_ready(self) -> "Service":
        until(lambda: self.ask("/readyz")[0] == 200 or self.process.poll() is not None, START_S)
        assert self.process.poll() is None
        return self

    def networks(self) -> list[psutil.Process]:
        """The process that runs the networks; none while there is none."""
        return [one for one in psutil.Process(self.process.pid).children()
                if any('"role": "networks"' in part for part in one.cmdline())]  # fmt: skip

    def close(self) -> None:
        if self.process.poll() is None:
            self.process.kill()
        self.process.communicate()


@contextlib.contextmanager
def service(folder: Path, **settings: str) -> Iterator[Service]:
    with contextlib.closing(Service(folder, **settings)) as started:
        yield started


def embeddings(answer: dict[str, Any]) -> list[list[float]]:
    (result,) = answer.get("results", [answer])
    return [face["embedding"] for face in result["faces"]]


def test_one_process_runs_the_networks_of_all(
    tmp_path: Path, photos: Path, pack: ModelPack
) -> None:
    """The answers are those of a CPU; a death of either kind of process ends requests, not the
    service; a stop ends all of them."""
    photo = sorted(photos.glob("*.jpg"))[0].read_bytes()
    pipeline = build_pipeline(pack, Device.CPU, ImageLimits())
    wanted = [face.embedding for face in pipeline.analyse(photo, max_faces=10).faces]
    pipeline.close()
    given = {"LIKENESS_INDEX_DEVICE": "cuda", "STANDIN_CPU_NODES": "Gather a,Concat b"}
    with service(tmp_path, **given) as started:
        started.until_ready()
        (first,) = started.networks()
        _, ready = started.ask("/readyz")
        assert ready["provider"] == "CUDAExecutionProvider"
        assert ready["nodes_on_cpu"]["recogniser"] == ["Gather a", "Concat b"]
        status, answer = started.ask("/v1/embed", photo)
        assert status == 200
        assert len(embeddings(answer)) == len(wanted) > 0
        for mine, expected in zip(embeddings(answer), wanted, strict=True):
            assert expected is not None
            assert np.dot(mine, expected) > 0.99

        first.kill()
        until(lambda: started.ask("/v1/embed", photo)[0] == 503)
        assert started.ask("/readyz")[0] == 503
        assert started.ask("/livez")[0] == 200
        until(lambda: started.ask("/v1/embed", photo)[0] == 200, START_S)
        started.until_ready()
        (second,) = started.networks()
        assert second.pid != first.pid

        others = [one for one in psutil.Process(started.process.pid).children() if one != second]
        others[0].kill()
        until(lambda: started.ask("/v1/embed", photo)[0] == 200, START_S)
        started.until_ready()
        assert started.networks() == [second]

        everyone = psutil.Process(started.process.pid).children(recursive=True)
        started.process.send_signal(signal.SIGTERM)
        assert started.process.wait(PATIENCE_S) == 0
        assert psutil.wait_procs(everyone, PATIENCE_S)[1] == []


def test_without_a_gpu_the_start_ends(tmp_path: Path) -> None:
    """The process that answers does not wait for networks that never come."""
    with service(tmp_path, STANDIN_DEVICE="") as started:
        assert started.process.wait(PATIENCE_S) == 2
        assert started.process.stderr is not None
        assert "CUDA cannot be used" in started.process.stderr.read()


def test_networks_of_another_pack_take_over_and_no_request_is_lost(
    tmp_path: Path, photos: Path, pack: ModelPack
) -> None:
    """SIGHUP, while a client asks all the time: first every answer is of the old pack, and then of
    the new one."""
    photo = sorted(photos.glob("*.jpg"))[0].read_bytes()
    chosen = tmp_path / "pack"
    chosen.symlink_to(pack.folder.parent / "default-1.0")
    with service(tmp_path / "data", LIKENESS_PACK=str(chosen)) as started:
        started.until_ready()
        (first,), answers = started.networks(), list[tuple[int, Any]]()
        _, before = started.ask("/readyz")
        done = threading.Event()

        def ask_all_the_time() -> None:
            while not done.is_set():
                answers.append(started.ask("/v1/embed", photo))

        client = threading.Thread(target=ask_all_the_time)
        client.start()
        chosen.unlink()
        chosen.symlink_to(pack.folder)
        started.process.send_signal(signal.SIGHUP)
        until(lambda: not first.is_running(), START_S)
        done.set()
        client.join(PATIENCE_S)
        _, after = started.ask("/readyz")
        assert before["embedding_space"] != after["embedding_space"] == pack.embedding_space
        assert {status for status, _ in answers} == {200}
        assert len({str(embeddings(answer)) for _, answer in answers}) >= 2
