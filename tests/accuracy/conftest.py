"""Evaluation data beside the checkout, packs made of its networks, and photos analysed once.

Embedding takes minutes, so every pack's photos are analysed once a session and shared.
"""

import hashlib
import os
import shutil
from dataclasses import dataclass
from pathlib import Path

import pytest

from app.decision.calibrations import pack_orientation
from app.faces.loading import build_pipeline
from app.faces.pipeline import FacePipeline
from app.imaging import ImageLimits
from app.index.port import PRECISION
from app.inference.cpu_engine import CpuOptions
from app.inference.pack_spec import ModelPack
from app.inference.packs import load_pack
from app.lab.evaluation.figures import DetectionFigures, PairsFigures
from app.lab.evaluation.labels import LabelledPairs, read_faces, read_pairs
from app.lab.evaluation.protocol import (
    Analyser,
    EnrolledPhotos,
    detect_photos,
    enrol_photos,
    pair_similarities,
)
from app.lab.evaluation.run import detection_figures, verify_pairs
from app.settings import CpuPrecision, Device

ROOT = Path(__file__).resolve().parents[2]

PACK_TOML = """\
schema = 1
name = "{name}"
version = "0"

[detector]
architecture = "scrfd"
file = "detector.onnx"
sha256 = "{detector}"
input_size = 640
score_threshold = 0.5
iou_threshold = 0.4

[recogniser]
architecture = "mobilefacenet"
file = "recogniser.onnx"
sha256 = "{recogniser}"
input_size = 112
colour = "rgb"
mean = 127.5
std = 127.5
dimension = 512

[decision]
threshold = 0.3
threshold_basis = "set by hand for these tests"
"""


def _evaluation_folder(variable: str, default: str) -> Path:
    folder = Path(os.environ.get(variable, ROOT / ".." / "shared" / default)).resolve()
    if not folder.is_dir():
        pytest.skip(f"there is no {folder}; set {variable}")
    return folder


@pytest.fixture(scope="session")
def evaluation_data() -> Path:
    return _evaluation_folder("LIKENESS_EVAL_DATA", "data")


@pytest.fixture(scope="session")
def evaluation_models() -> Path:
    return _evaluation_folder("LIKENESS_EVAL_MODELS", "models")


@pytest.fixture(scope="session")
def pairs(evaluation_data: Path) -> LabelledPairs:
    return read_pairs(evaluation_data / "lfw" / "pairs.csv")


@dataclass(frozen=True, slots=True)
class RunningPack:
    """A pack and the pipeline that runs it."""

    pack: ModelPack
    pipeline: FacePipeline


def _run_pack(name_or_folder: str, cpu: CpuOptions | None = None) -> RunningPack:
    pack = load_pack(name_or_folder)
    orientation = pack_orientation(pack, PRECISION)
    return RunningPack(
        pack, build_pipeline(pack, Device.CPU, ImageLimits(), orientation=orientation, cpu=cpu)
    )


@pytest.fixture(scope="session")
def default_pack() -> RunningPack:
    return _run_pack("default")


@pytest.fixture(scope="session")
def int8_pack() -> RunningPack:
    """The default pack with its detector in 8-bit integers."""
    return _run_pack("default", CpuOptions(precision=CpuPrecision.INT8))


@pytest.fixture(scope="session")
def version_1_pack() -> RunningPack:
    return _run_pack("default-1.0")


@pytest.fixture(scope="session")
def scrfd_pack(evaluation_models: Path, tmp_path_factory: pytest.TempPathFactory) -> RunningPack:
    """The networks of InsightFace's buffalo_sc, in a Likeness pack."""
    source = evaluation_models / "insightface"
    folder = tmp_path_factory.mktemp("packs") / "scrfd"
    folder.mkdir()
    digests = {}
    for role, network in (("detector", "det_500m.onnx"), ("recogniser", "w600k_mbf.onnx")):
        copy = Path(shutil.copyfile(source / network, folder / f"{role}.onnx"))
        digests[role] = hashlib.sha256(copy.read_bytes()).hexdigest()
    (folder / "pack.toml").write_text(PACK_TOML.format(name=folder.name, **digests))
    return _run_pack(str(folder))


@pytest.fixture(scope="session")
def default_photos(
    default_pack: RunningPack, evaluation_data: Path, pairs: LabelledPairs
) -> EnrolledPhotos:
    return _enrol(default_pack, evaluation_data, pairs)


@pytest.fixture(scope="session")
def int8_photos(
    int8_pack: RunningPack, evaluation_data: Path, pairs: LabelledPairs
) -> EnrolledPhotos:
    return _enrol(int8_pack, evaluation_data, pairs)


@pytest.fixture(scope="session")
def version_1_photos(
    version_1_pack: RunningPack, evaluation_data: Path, pairs: LabelledPairs
) -> EnrolledPhotos:
    return _enrol(version_1_pack, evaluation_data, pairs)


@pytest.fixture(scope="session")
def scrfd_photos(
    scrfd_pack: RunningPack, evaluation_data: Path, pairs: LabelledPairs
) -> EnrolledPhotos:
    return _enrol(scrfd_pack, evaluation_data, pairs)


def _enrol(running: RunningPack, data: Path, pairs: LabelledPairs) -> EnrolledPhotos:
    return enrol_photos(Analyser(running.pipeline), data / "lfw" / "images", pairs.photos)


@pytest.fixture(scope="session")
def default_verification(
    default_pack: RunningPack, default_photos: EnrolledPhotos, pairs: LabelledPairs
) -> PairsFigures:
    return _verify(default_pack, default_photos, pairs)


@pytest.fixture(scope="session")
def int8_verification(
    int8_pack: RunningPack, int8_photos: EnrolledPhotos, pairs: LabelledPairs
) -> PairsFigures:
    return _verify(int8_pack, int8_photos, pairs)


@pytest.fixture(scope="session")
def version_1_verification(
    version_1_pack: RunningPack, version_1_photos: EnrolledPhotos, pairs: LabelledPairs
) -> PairsFigures:
    return _verify(version_1_pack, version_1_photos, pairs)


@pytest.fixture(scope="session")
def scrfd_verification(
    scrfd_pack: RunningPack, scrfd_photos: EnrolledPhotos, pairs: LabelledPairs
) -> PairsFigures:
    return _verify(scrfd_pack, scrfd_photos, pairs)


def _verify(running: RunningPack, photos: EnrolledPhotos, pairs: LabelledPairs) -> PairsFigures:
    similarities = pair_similarities(pairs, photos)
    threshold = running.pack.decision.threshold
    return verify_pairs("pairs.csv", pairs, similarities, len(photos.failures), threshold)


@pytest.fixture(scope="session")
def default_detection(default_pack: RunningPack, evaluation_data: Path) -> DetectionFigures:
    return _detect(default_pack, evaluation_data / "wider")


@pytest.fixture(scope="session")
def int8_detection(int8_pack: RunningPack, evaluation_data: Path) -> DetectionFigures:
    return _detect(int8_pack, evaluation_data / "wider")


@pytest.fixture(scope="session")
def scrfd_detection(scrfd_pack: RunningPack, evaluation_data: Path) -> DetectionFigures:
    return _detect(scrfd_pack, evaluation_data / "wider")


def _detect(running: RunningPack, wider: Path) -> DetectionFigures:
    labelled = read_faces(wider / "faces.csv")
    detected = detect_photos(Analyser(running.pipeline), wider / "images", labelled)
    return detection_figures("faces.csv", detected)
