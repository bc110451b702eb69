"""`likeness models pull accurate` and `fast`: the default pack with a network of others."""

import hashlib
import os
import pickle
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from typer.testing import CliRunner

from app.cli.commands import app
from app.decision.calibrations import CALIBRATION_FILE, pack_calibration, read_calibration
from app.decision.pair_lifts import MOST_LIFT
from app.errors import PackError
from app.faces.loading import build_pipeline
from app.imaging import ImageLimits
from app.index.port import PRECISION
from app.inference.pack_spec import ModelPack
from app.inference.packs import BUILTIN_FOLDERS, known_packs, load_pack
from app.lab.packing.composed import ACCURATE, COMPOSED, FAST, ComposedPack, compose, composed_of
from app.lab.packing.published import PublishedFile
from app.settings import Device
from tests.lab.packing.conftest import Zoo

FILES = {"accurate": "foamliu/mobilefacenet.pt", "fast": "yunet/yunet_n_dynamic.onnx"}


@pytest.fixture
def installed(tmp_path: Path) -> Path:
    return tmp_path / "installed"


def published(eval_models: Path, name: str) -> Path:
    return eval_models / FILES[name]


def similarity(pack: ModelPack, photos: Path) -> float:
    """Of two photos of one person."""
    pipeline = build_pipeline(pack, Device.CPU, ImageLimits())
    one, other = (
        pipeline.analyse((photos / name).read_bytes(), max_faces=1).faces[0].embedding
        for name in ("obama.jpg", "obama2.jpg")
    )
    pipeline.close()
    assert one is not None
    assert other is not None
    return float(one @ other)


@pytest.mark.slow
@pytest.mark.parametrize("name", COMPOSED)
def test_it_is_fetched_converted_and_calibrated(
    zoo: Zoo, eval_models: Path, installed: Path, photos: Path, name: str,
    monkeypatch: pytest.MonkeyPatch,
) -> None:  # fmt: skip
    source = published(eval_models, name)
    (zoo.folder / source.name).write_bytes(source.read_bytes())
    monkeypatch.setenv("LIKENESS_MODELS_DIR", str(installed))
    result = CliRunner().invoke(app, ["models", "pull", name, "--url", zoo.url])
    assert result.exit_code == 0, result.output
    assert [path.name for path in installed.iterdir()] == [name]
    pack = load_pack(name, installed)
    space = pack.embedding_space
    calibration = pack_calibration(pack.folder, space, PRECISION, pack.recogniser.dimension)
    assert calibration is not None
    assert similarity(pack, photos) > pack.decision.threshold
    assert {text.name for text in pack.folder.glob("LICENSE*")} > {"LICENSE.mobilefacenet"}


@pytest.mark.parametrize("name", ["default", *COMPOSED])
def test_the_calibration_was_fitted_to_groups(name: str) -> None:
    """So the threshold of two faces that are both typical of their group is raised."""
    found = read_calibration(BUILTIN_FOLDERS[0] / name / CALIBRATION_FILE)
    assert found.domain is not None
    typical = found.domain.verification.typical
    assert typical is not None
    assert typical.groups == (716, 2152)  # LFW's women and men
    assert 0 < typical.lift < MOST_LIFT


@pytest.mark.slow
def test_accurate_joins_both_recognisers(
    eval_models: Path, installed: Path, pack: ModelPack
) -> None:
    made = compose(ACCURATE, published(eval_models, "accurate").read_bytes(), installed)
    assert made.recogniser.dimension == 320
    assert made.recogniser.mirror
    assert made.landmarks == pack.landmarks
    assert made.detector == pack.detector  # in both forms
    # What its calibration is bound to: the same on every machine.
    assert made.embedding_space == "es-2ba9bd2efba7c47e"


@pytest.mark.slow
def test_embeddings_of_fast_and_default_can_be_compared(
    eval_models: Path, installed: Path, pack: ModelPack
) -> None:
    made = compose(FAST, published(eval_models, "fast").read_bytes(), installed)
    assert made.embedding_space == pack.embedding_space
    assert made.detector.score_threshold == 0.75
    assert made.detector.int8 is None
    assert not (made.folder / "detector.int8.onnx").exists()


@pytest.mark.slow
def test_two_at_once_make_one_pack(eval_models: Path, installed: Path) -> None:
    content = published(eval_models, "fast").read_bytes()
    with ThreadPoolExecutor(2) as threads:
        calls = [threads.submit(compose, FAST, content, installed) for _ in range(2)]
    failures = [error for call in calls if (error := call.exception()) is not None]
    assert [str(error) for error in failures] == [
        f"{installed / 'fast'} exists already. Remove it first, or choose another name."
    ]
    assert [path.name for path in installed.iterdir()] == ["fast"]


@pytest.mark.slow
def test_without_a_network(
    eval_models: Path, installed: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("LIKENESS_MODELS_DIR", str(installed))
    file = published(eval_models, "fast")
    result = CliRunner().invoke(app, ["models", "install", str(file)])
    assert result.exit_code == 0, result.output
    assert (installed / "fast" / "pack.toml").is_file()


def test_files_are_known_by_their_digest(eval_models: Path, tmp_path: Path) -> None:
    file = published(eval_models, "fast")
    assert composed_of(file) is FAST
    other = tmp_path / file.name
    other.write_bytes(file.read_bytes()[:-1] + b"!")
    assert composed_of(other) is None
    assert composed_of(tmp_path / "absent") is None


def test_unknown_packs_are_named(installed: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("LIKENESS_MODELS_DIR", str(installed))
    result = CliRunner().invoke(app, ["models", "pull", "huge"])
    assert result.exit_code != 0
    assert "accurate, fast, buffalo_l" in " ".join(result.output.split())


class Hostile:
    def __reduce__(self) -> tuple[Any, ...]:
        return os.mkdir, ("harm",)


def of(pack: ComposedPack, content: bytes) -> ComposedPack:
    """The pack, had that content been published for it."""
    digest = hashlib.sha256(content).hexdigest()
    return replace(pack, file=PublishedFile(pack.file.url, len(content), digest))


@pytest.mark.parametrize(
    ("pack", "content", "reason"),
    [
        (ACCURATE, pickle.dumps(Hostile(), 2), "cannot be converted.*refused"),
        (ACCURATE, b"<html>Sign in to this network</html>", "cannot be converted"),
        (FAST, b"<html>Sign in to this network</html>", "cannot be converted"),
    ],
)
def test_content_that_is_no_network_leaves_nothing(
    pack: ComposedPack,
    content: bytes,
    reason: str,
    installed: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.chdir(tmp_path)
    with pytest.raises(PackError, match=reason):
        compose(of(pack, content), content, installed)
    assert list(installed.iterdir()) == []
    assert not (tmp_path / "harm").exists()


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    """A file system of its own, too small for a pack."""
    (folder := tmp_path / "disk").mkdir()
    command = ["mount", "-t", "tmpfs", "-o", "size=4m", "tmpfs", folder]
    if subprocess.run(command, check=False, capture_output=True).returncode:
        pytest.skip("no right to mount a file system")
    yield folder
    subprocess.run(["umount", folder], check=True)


@pytest.mark.chaos
@pytest.mark.parametrize("name", COMPOSED)
def test_a_full_disk(eval_models: Path, small_disk: Path, name: str) -> None:
    with pytest.raises(PackError, match=r"No space left.*Nothing was kept"):
        compose(COMPOSED[name], published(eval_models, name).read_bytes(), small_disk)
    assert list(small_disk.iterdir()) == []


@pytest.mark.chaos
def test_a_kill_at_any_moment_leaves_no_pack(eval_models: Path, installed: Path, zoo: Zoo) -> None:
    """What is left is hidden, and the next call removes it."""
    source = published(eval_models, "accurate")
    (zoo.folder / source.name).write_bytes(source.read_bytes())
    environment = {**os.environ, "LIKENESS_MODELS_DIR": str(installed)}
    command = [sys.executable, "-c", "from app.cli import main; main()", "models", "pull",
               "accurate", "--url", zoo.url]  # fmt: skip
    for files in (0, 1, 3, 5):
        process = subprocess.Popen(command, env=environment, stderr=subprocess.DEVNULL)
        deadline = time.monotonic() + 120
        while len(list(installed.rglob("*.*"))) <= files and time.monotonic() < deadline:
            time.sleep(0.005)
        process.send_signal(signal.SIGKILL)
        process.wait(timeout=60)
        assert [one.name for one in known_packs(installed)] == ["default", "default-1.0"]
        assert all(path.name.startswith(".unfinished-") for path in installed.iterdir())
    subprocess.run(command, env=environment, check=True, capture_output=True, timeout=300)
    assert [path.name for path in installed.iterdir()] == ["accurate"]
    assert np.isfinite(load_pack("accurate", installed).decision.threshold)
