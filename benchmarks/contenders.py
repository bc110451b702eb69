"""The servers that `serve.py` compares, each a process of its own."""

import argparse
import json
import os
import socket
import subprocess
import sys
import tempfile
import time
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import psutil
from embeddings import embed_photos, made_up, random_directions

from app.gallery.gallery import Gallery
from app.index.factory import IndexFactory
from app.inference.packs import load_pack
from app.store.backends import create_engine
from app.store.records import NewTemplate, PersonEnrollment
from app.store.schema import migrate
from app.store.store import Store

HERE = Path(__file__).resolve().parent
START_S = 120
PEER = "insightface"
CALLS = {
    "embed": "/v1/embed",
    "identify": "/v1/identify",
    # Not of a checkout that is older than this line: its gallery lacks the person.
    "verify": "/v1/verify?person_id=one",
    "enroll": "/v1/enroll?person_id=p{n}",
}
# Calls that need a gallery of `--templates`.
IN_A_GALLERY = ("identify", "verify", "enroll")


@dataclass(slots=True)
class Contender:
    """A server under load."""

    name: str
    process: psutil.Process
    port: int
    path: str
    engine: str = "–"


@dataclass(frozen=True, slots=True)
class Kind:
    """A service to be compared: a pack, run by ENGINE[:PRECISION] or auto, of this checkout or of
    another one that has an environment of its own."""

    call: str
    pack: str
    engine: str = "auto"
    checkout: Path | None = None

    @property
    def python(self) -> Path:
        """The interpreter of its environment."""
        if self.checkout is None:
            return Path(sys.executable)
        return self.checkout.resolve() / ".venv" / "bin" / "python"

    @property
    def name(self) -> str:
        parts = ["likeness", self.call if self.call != "embed" else "", Path(self.pack).name]
        return " ".join(part for part in parts if part and part != "default") + (
            f" ({self.checkout.name})" if self.checkout else ""
        )


@contextmanager
def likeness(options: argparse.Namespace, kind: Kind) -> Iterator[Contender]:
    with tempfile.TemporaryDirectory() as folder:
        if kind.call in IN_A_GALLERY:
            fill_of(kind, Path(folder), options)
        port = free_port()
        program = str(kind.python.with_name("likeness"))
        command = [program, "serve", "--port", str(port)]
        settings = {"LIKENESS_PACK": kind.pack, "LIKENESS_DATA_DIR": folder,
                    "LIKENESS_PROCESSES": options.processes}  # fmt: skip
        if kind.engine != "auto":
            engine, _, precision = kind.engine.partition(":")
            settings |= {"LIKENESS_CPU_ENGINE": engine,
                         "LIKENESS_CPU_PRECISION": precision or "auto"}  # fmt: skip
        ready = f"http://127.0.0.1:{port}/readyz"
        with server(command, settings, ready, kind.checkout) as process:
            yield Contender(kind.name, process, port, CALLS[kind.call], engine_of(port))


def engine_of(port: int) -> str:
    """What runs the networks, as the service says."""
    with urllib.request.urlopen(f"http://127.0.0.1:{port}/readyz", timeout=30) as answer:
        return str(json.load(answer)["provider"])


@contextmanager
def peer(options: argparse.Namespace) -> Iterator[Contender]:
    port = free_port()
    command = [sys.executable, str(HERE / "peer.py"), "--port", str(port)]
    command += ["--models", str(options.models)]
    with server(command, {}, f"http://127.0.0.1:{port}/livez") as process:
        yield Contender(PEER, process, port, CALLS["embed"])


@contextmanager
def server(
    command: list[str], settings: dict[str, str], ready: str, folder: Path | None = None
) -> Iterator[psutil.Process]:
    process = subprocess.Popen(
        command,
        env=os.environ | settings,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
        cwd=folder,
    )
    try:
        wait_for(ready, process)
        yield psutil.Process(process.pid)
    finally:
        process.terminate()
        process.wait(60)


def wait_for(url: str, process: subprocess.Popen[bytes]) -> None:
    deadline = time.monotonic() + START_S
    while time.monotonic() < deadline and process.poll() is None:
        try:
            with urllib.request.urlopen(url, timeout=5):
                return
        except OSError:
            time.sleep(0.2)
    raise SystemExit(f"{url} was not ready within {START_S} s (exit code {process.poll()}).")


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port: int = probe.getsockname()[1]
        return port


# Run by the checkout that will serve the gallery: another one may have another schema.
_FILL = """
import argparse, pathlib, sys
sys.path.insert(0, "benchmarks")
try:
    from contenders import fill
except ImportError:  # before contenders.py was split from it
    from serve import fill
folder, pack, templates, *faces = sys.argv[1:]
options = argparse.Namespace(pack=pack, templates=int(templates), faces=faces)
fill(pathlib.Path(folder), options)
"""


def fill_of(kind: Kind, folder: Path, options: argparse.Namespace) -> None:
    """Fill the gallery of a service that is not started yet."""
    command = [str(kind.python), "-c", _FILL, str(folder), kind.pack, str(options.templates)]
    command += options.faces
    checkout = kind.checkout or HERE.parent
    environment = os.environ | {"PYTHONPATH": str(checkout.resolve())}
    subprocess.run(command, check=True, cwd=checkout, env=environment)


def fill(folder: Path, options: argparse.Namespace) -> None:
    """A gallery of people made of the photos `options.faces`, or of random directions without."""
    pack = load_pack(options.pack)
    engine = create_engine(f"sqlite:///{folder / 'likeness.db'}")
    migrate(engine)
    dimension = pack.recogniser.dimension
    gallery = Gallery(
        Store(engine), IndexFactory(1, folder / "index"), pack.embedding_space, dimension
    )
    count = options.templates + 1
    vectors = random_directions(count, dimension, 0)
    if options.faces:
        faces = embed_photos(options.faces, options.pack)
        vectors = np.concatenate(list(made_up(faces, count, np.random.default_rng(0))))
    people = [
        PersonEnrollment(f"held-{number}", None, [NewTemplate(vector, f"held-{number}")])
        for number, vector in enumerate(vectors[1:])
    ]
    for start in range(0, len(people), 1_000):
        gallery.enroll_together("default", people[start : start + 1_000])
    one = PersonEnrollment("one", None, [NewTemplate(vectors[0], "one")])  # for verify
    gallery.enroll_together("default", [one])
    gallery.close()
