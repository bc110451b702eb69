"""The service runs with the packages of its own lock alone, as trimmed for the image."""

import importlib.metadata
import json
import os
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import httpx
import numpy as np
import pytest
from packaging.utils import canonicalize_name

from app.inference.pack_spec import ModelPack
from scripts.trim_packages import UNUSED, matching, trim
from tests.ports import free_port
from tests.test_packaging import pins, read

ROOT = Path(__file__).parent.parent
PEOPLE = 120
SECONDS = 120
CALL = "from app.cli import main; main()"

Likeness = Callable[..., subprocess.CompletedProcess[str]]


def link_packages(names: set[str], folder: Path) -> None:
    """Give a folder the installed files of some distributions, without copying them."""
    for distribution in importlib.metadata.distributions():
        if canonicalize_name(distribution.name) not in names:
            continue
        for file in distribution.files or ():
            source = Path(str(distribution.locate_file(file)))
            if ".." not in file.parts and source.is_file():
                (folder / file).parent.mkdir(parents=True, exist_ok=True)
                try:
                    (folder / file).hardlink_to(source)
                except OSError:  # another file system
                    shutil.copy2(source, folder / file)


@pytest.fixture(scope="module")
def environment(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """An environment with the packages of requirements/cpu.txt, trimmed, and this tree."""
    folder = tmp_path_factory.mktemp("service") / "venv"
    subprocess.run([sys.executable, "-m", "venv", "--without-pip", folder], check=True)
    (packages,) = folder.glob("lib/python3*/site-packages")
    version = f"{sys.version_info.major}.{sys.version_info.minor}"
    link_packages(set(pins(read("cpu"), version)), packages)
    trim(packages)
    (packages / "likeness.pth").write_text(str(ROOT))
    return folder


@pytest.fixture
def likeness(environment: Path, tmp_path: Path) -> Likeness:
    """likeness("import", folder): the command in that environment, which ends with status 0."""

    def run(*arguments: str | Path, status: int = 0) -> subprocess.CompletedProcess[str]:
        done = subprocess.run(
            [environment / "bin" / "python", "-c", CALL, *arguments],
            cwd=tmp_path, env=settings(tmp_path), capture_output=True, text=True, timeout=SECONDS,
            check=False,
        )  # fmt: skip
        assert done.returncode == status, done.stdout + done.stderr
        return done

    return run


def settings(folder: Path, **others: str) -> dict[str, str]:
    kept = {name: os.environ[name] for name in ("PATH", "HOME") if name in os.environ}
    return {**kept, "LIKENESS_DATA_DIR": str(folder / "data"), "COLUMNS": "200", **others}


def embeddings(path: Path, space: str, size: int) -> None:
    """A table of people with two templates each."""
    generator = np.random.default_rng(21)
    with path.open("w") as file:
        for person in range(PEOPLE):
            own = generator.normal(size=size)
            for _ in range(2):
                vector = own + 0.5 * generator.normal(size=size)
                vector /= np.linalg.norm(vector)
                row = {"person_id": f"p{person}", "embedding": vector.tolist()}
                file.write(json.dumps({**row, "embedding_space": space}) + "\n")


@pytest.mark.slow
def test_import_calibrate_hygiene_export(
    likeness: Likeness, pack: ModelPack, photos: Path, tmp_path: Path
) -> None:
    for person, name in (("obama", "obama"), ("obama", "obama2"), ("biden", "biden")):
        (tmp_path / "people" / person).mkdir(parents=True, exist_ok=True)
        shutil.copy(photos / f"{name}.jpg", tmp_path / "people" / person)
    likeness("import", tmp_path / "people")
    embeddings(tmp_path / "many.jsonl", pack.embedding_space, pack.recogniser.dimension)
    likeness("import", tmp_path / "many.jsonl")
    likeness("export", tmp_path / "all.parquet")
    imported = likeness("import", tmp_path / "all.parquet", "--collection", "copy")
    assert "243" in imported.stdout + imported.stderr
    assert f"{PEOPLE + 2} people" in likeness("calibrate").stdout
    assert json.loads(likeness("hygiene", "--json").stdout)
    likeness("doctor")
    likeness("backup", tmp_path / "all.backup")


@pytest.mark.slow
def test_enroll_and_identify(environment: Path, photos: Path, tmp_path: Path) -> None:
    port = free_port()
    process = subprocess.Popen(
        [environment / "bin" / "python", "-c", CALL, "serve"],
        cwd=tmp_path, env=settings(tmp_path, LIKENESS_PORT=str(port)),
    )  # fmt: skip
    try:
        transport = httpx.HTTPTransport(retries=20)
        with httpx.Client(
            base_url=f"http://127.0.0.1:{port}", timeout=SECONDS, transport=transport
        ) as client:
            client.get("/readyz")
            photo = {"image": (photos / "obama.jpg").read_bytes()}
            client.post("/v1/enroll", data={"person_id": "obama"}, files=photo).raise_for_status()
            (face,) = client.post("/v1/identify", files=photo).raise_for_status().json()["faces"]
            assert (face["status"], face["person_id"]) == ("identified", "obama")
            assert client.get("/docs").raise_for_status()
    finally:
        process.terminate()
        process.wait(SECONDS)


@pytest.mark.slow
def test_a_command_of_the_laboratory_names_its_extra(likeness: Likeness, photos: Path) -> None:
    """Without --output an evaluation needs nothing more."""
    for extra, arguments in {
        "lab": ["evaluate", photos, "--output", "report"],
        "insightface": ["models", "pull", "buffalo_s"],
    }.items():
        said = likeness(*arguments, status=2).stderr
        assert "which the service does not need" in said
        assert f"make {extra} in a checkout, or pip install 'likeness[{extra}]'" in said
        assert "Traceback" not in said


def test_what_is_trimmed_is_there() -> None:
    """A release that moves its files is noticed here."""
    packages = Path(np.__file__).parent.parent
    assert [pattern for pattern in UNUSED if not matching(packages, pattern)] == []


def test_the_lists_of_installed_files_are_kept_true(tmp_path: Path) -> None:
    for name in ("numpy/core.py", "numpy/lib/tests/test_x.py", "pyarrow/_s3fs.so"):
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_text("12345")
    record = tmp_path / "numpy-2.0.dist-info" / "RECORD"
    record.parent.mkdir()
    record.write_text("numpy/core.py,sha256=a,5\nnumpy/lib/tests/test_x.py,sha256=b,5\n")
    assert trim(tmp_path) == 10
    assert record.read_text() == "numpy/core.py,sha256=a,5\n"
    assert not (tmp_path / "numpy" / "lib").exists(), "an empty folder is removed"
    assert (tmp_path / "numpy" / "core.py").exists()
