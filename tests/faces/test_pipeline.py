"""The whole way of a photo."""

import shutil
import threading
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pytest
from PIL import Image as PillowImage

from app.errors import PackError, UnreadableImage, WorkerDied
from app.faces.detect import Detector
from app.faces.embed import Recogniser
from app.faces.images import align_faces
from app.faces.loading import build_pipeline
from app.faces.looks import FaceSelector
from app.faces.orientation import OrientationLimits
from app.faces.pipeline import FacePipeline, run_to_completion
from app.imaging import ImageLimits
from app.inference.pack_spec import ModelPack
from app.inference.packs import load_pack
from app.inference.scheduler import CUDA_POLICY
from app.inference.session import OnnxModel
from app.settings import Device
from app.types import AnalysedImage, FloatArray, Image
from tests.waiting import until


def test_a_portrait(pipeline: FacePipeline, astronaut: bytes, pack: ModelPack) -> None:
    image = pipeline.analyse(astronaut, max_faces=10)
    assert (image.width, image.height) == (512, 512)
    (face,) = image.faces
    assert face.embedding is not None
    assert face.embedding.shape == (pack.recogniser.dimension,)
    assert np.linalg.norm(face.embedding) == pytest.approx(1, abs=1e-6)
    assert face.quality.embedding_norm is not None
    assert face.quality.detector_score == face.score
    assert face.quality.face_size_px == pytest.approx(min(face.box[2:] - face.box[:2]))
    assert set(image.timings_ms) == {
        "queue", "decode", "detect", "landmarks", "align", "embed", "quality"}  # fmt: skip
    assert all(spent >= 0 for spent in image.timings_ms.values())


def test_without_embedding(pipeline: FacePipeline, astronaut: bytes) -> None:
    image = pipeline.analyse(astronaut, max_faces=10, embed=False)
    assert image.faces[0].embedding is None
    assert image.faces[0].quality.embedding_norm is None
    assert "embed" not in image.timings_ms


def test_the_largest_faces_first_and_no_more_than_asked(
    pipeline: FacePipeline, group_photo: bytes
) -> None:
    image = pipeline.analyse(group_photo, max_faces=10)
    areas = [float(np.prod(face.box[2:] - face.box[:2])) for face in image.faces]
    assert len(areas) == 6
    assert areas == sorted(areas, reverse=True)
    two = pipeline.analyse(group_photo, max_faces=2).faces
    assert [f.box.tolist() for f in two] == [f.box.tolist() for f in image.faces[:2]]


def test_each_face_has_its_own_embedding(pipeline: FacePipeline, group_image: Image) -> None:
    """Cut out alone, the same person is found at the same place of the list."""
    image = pipeline.analyse_image(group_image, max_faces=10)
    vectors = np.stack([f.embedding for f in image.faces if f.embedding is not None])
    for number, face in enumerate(image.faces):
        x1, y1, x2, y2 = (int(v) for v in face.box + np.array([-60, -60, 60, 60]))
        alone = np.ascontiguousarray(group_image[max(y1, 0) : y2, max(x1, 0) : x2])
        nearest = pipeline.analyse_image(alone, max_faces=1).faces[0].embedding
        assert nearest is not None
        assert (vectors @ nearest).argmax() == number


def test_only_the_chosen_face_is_looked_at(pipeline: FacePipeline, group_photo: bytes) -> None:
    asked: list[tuple[int, int, int]] = []

    def third(boxes: FloatArray, width: int, height: int) -> int:
        asked.append((len(boxes), width, height))
        return 2

    everybody = pipeline.analyse(group_photo, max_faces=20)
    selector = FaceSelector(third, by_size=False)
    chosen = run_to_completion(pipeline.steps(group_photo, max_faces=20, selector=selector))
    assert asked[-1] == (len(everybody.faces), everybody.width, everybody.height)
    (face,) = chosen.faces
    assert np.array_equal(face.box, everybody.faces[2].box)
    assert np.array_equal(face.embedding, everybody.faces[2].embedding)
    assert face.quality == everybody.faces[2].quality


def test_nobody(pipeline: FacePipeline) -> None:
    image = pipeline.analyse_image(np.zeros((40, 70, 3), np.uint8), max_faces=10)
    assert (image.width, image.height, image.faces) == (70, 40, ())


# What was done to the upright picture when it was stored, by orientation.
TURNS = {
    2: PillowImage.Transpose.FLIP_LEFT_RIGHT,
    3: PillowImage.Transpose.ROTATE_180,
    4: PillowImage.Transpose.FLIP_TOP_BOTTOM,
    5: PillowImage.Transpose.TRANSPOSE,
    6: PillowImage.Transpose.ROTATE_90,
    7: PillowImage.Transpose.TRANSVERSE,
    8: PillowImage.Transpose.ROTATE_270,
}


@pytest.mark.parametrize("orientation", TURNS)
def test_a_turned_photo_gives_the_same_face(
    pipeline: FacePipeline, portraits: dict[str, Image], encode: Any, orientation: int
) -> None:
    upright = portraits["biden"][::3, ::3]
    stored = PillowImage.fromarray(upright).transpose(TURNS[orientation])
    tags = PillowImage.Exif()
    tags[0x0112] = orientation
    data = encode(np.asarray(stored), "PNG", compress_level=1, exif=tags.tobytes())
    (face,) = pipeline.analyse(data, max_faces=3).faces
    (reference,) = pipeline.analyse_image(np.ascontiguousarray(upright), max_faces=3).faces
    assert np.array_equal(face.box, reference.box)
    assert face.embedding is not None
    assert reference.embedding is not None
    assert face.embedding @ reference.embedding > 0.99999


def test_limits_and_damage_reach_the_caller(pipeline: FacePipeline, astronaut: bytes) -> None:
    with pytest.raises(UnreadableImage):
        pipeline.analyse(astronaut[: len(astronaut) // 2], max_faces=10)


def test_threads_share_a_pipeline(pipeline: FacePipeline, group_photo: bytes) -> None:
    with ThreadPoolExecutor(4) as threads:
        jobs = [threads.submit(pipeline.analyse, group_photo, max_faces=10) for _ in range(6)]
        images = [job.result(timeout=60) for job in jobs]
    for image in images:
        for face, first in zip(image.faces, images[0].faces, strict=True):
            assert face.embedding is not None
            assert first.embedding is not None
            assert np.allclose(face.embedding, first.embedding, atol=1e-5)


def test_a_detector_without_landmarks_is_refused(
    tmp_path: Path, scrfd_file: Path, pack: ModelPack, load_detector: Any
) -> None:
    onnx = pytest.importorskip("onnx", reason="onnx is not installed")
    network = onnx.load(str(scrfd_file))
    del network.graph.output[6:]
    onnx.save(network, str(tmp_path / "blind.onnx"))
    blind: Detector = load_detector(tmp_path / "blind.onnx", "scrfd")
    recogniser = Recogniser(OnnxModel(pack.recogniser_path, Device.CPU), pack.recogniser)
    with pytest.raises(PackError, match="choose a detector with a landmark head"):
        FacePipeline(blind, recogniser, ImageLimits())


def test_building_from_a_pack(pack: ModelPack, astronaut: bytes) -> None:
    built = build_pipeline(pack, Device.AUTO, ImageLimits())
    assert built.provider.endswith("ExecutionProvider")
    assert len(built.analyse(astronaut, max_faces=1, embed=False).faces) == 1


def test_a_crowd_is_embedded_in_steps(pipeline: FacePipeline, group_photo: bytes) -> None:
    steps = pipeline.steps(group_photo, max_faces=6)
    next(steps)  # decoded, detected, and the landmarks of the first faces corrected
    next(steps)  # those of the others, and the first faces embedded
    with pytest.raises(StopIteration) as end:
        next(steps)
    image: AnalysedImage = end.value.value
    assert len(image.faces) == 6
    for face, other in zip(
        image.faces, pipeline.analyse(group_photo, max_faces=6).faces, strict=True
    ):
        assert face.embedding is not None
        assert face.embedding @ other.embedding > 0.99999


@pytest.fixture(scope="module")
def version_1() -> Iterator[FacePipeline]:
    """The detector's landmarks as they are, no mirror images."""
    pipeline = build_pipeline(load_pack("default-1.0"), Device.CPU, ImageLimits())
    yield pipeline
    pipeline.close()


class TestCorrectedLandmarks:
    def test_faces_are_aligned_by_them(
        self, pipeline: FacePipeline, version_1: FacePipeline, group_photo: bytes
    ) -> None:
        found = pipeline.analyse(group_photo, max_faces=10)
        before = version_1.analyse(group_photo, max_faces=10)
        assert set(found.timings_ms) - set(before.timings_ms) == {"landmarks"}
        for face, other in zip(found.faces, before.faces, strict=True):
            width = float(other.box[2] - other.box[0])
            assert np.array_equal(face.box, other.box)
            assert 0 < np.abs(face.landmarks - other.landmarks).max() < 0.1 * width
            assert face.embedding is not None
            assert 0.9 < face.embedding @ other.embedding < 0.9999

    def test_the_crop_lies_at_the_landmarks_that_are_answered(
        self, pipeline: FacePipeline, group_image: Image, encode: Any
    ) -> None:
        data = encode(group_image, "PNG")
        faces = run_to_completion(pipeline.steps(data, max_faces=3, crops=True)).faces
        points = np.stack([face.landmarks for face in faces])
        np.testing.assert_array_equal(
            align_faces(group_image, points), np.stack([face.crop for face in faces])
        )

    def test_in_a_reduced_copy_of_the_photo(
        self, pipeline: FacePipeline, enlarged: Image, encode: Any
    ) -> None:
        (face,) = pipeline.analyse(encode(enlarged, quality=95), max_faces=3).faces
        small = cv2.resize(enlarged, (640, 640), interpolation=cv2.INTER_AREA)
        (other,) = pipeline.analyse_image(np.asarray(small, np.uint8), max_faces=3).faces
        # Pixel centres: of the photo at (x + 0.5) * 4 - 0.5.
        assert np.abs(face.landmarks - (other.landmarks * 4 + 1.5)).max() < 2

    def test_in_a_turned_photo(self, pipeline: FacePipeline, astronaut_image: Image) -> None:
        limits = OrientationLimits(score_below=0.75, roll_above=30.0)
        (upright,) = pipeline.analyse_image(astronaut_image, max_faces=3).faces
        turned = np.ascontiguousarray(np.rot90(astronaut_image))
        found = pipeline.analyse_image(turned, max_faces=3, orientation=limits)
        (face,) = found.faces
        assert face.rotation == 90
        assert face.embedding is not None
        assert face.embedding @ upright.embedding > 0.99
        # rot90 turns counter-clockwise: (x, y) comes to (y, width - 1 - x).
        x, y = upright.landmarks.T
        expected = np.stack([y, astronaut_image.shape[1] - 1 - x], axis=1)
        assert np.abs(face.landmarks - expected).max() < 2

    def test_nobody(self, pipeline: FacePipeline) -> None:
        assert pipeline.analyse_image(np.zeros((40, 70, 3), np.uint8), max_faces=10).faces == ()


@pytest.mark.slow
@pytest.mark.parametrize(
    ("name", "networks"),
    [
        ("default-1.0", {"detector", "recogniser"}),
        ("default", {"detector", "landmarks", "recogniser"}),
    ],
)
def test_the_policy_of_a_gpu_gives_the_same_faces(
    name: str,
    networks: set[str],
    group_photo: bytes,
    astronaut: bytes,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Batches across photos and one canvas for all, on CPU sessions as the stand-in."""
    pack = load_pack(name)
    pipeline = build_pipeline(pack, Device.CPU, ImageLimits())
    # Smaller batches: 32 photos at a time take gigabytes of a CPU's memory.
    policy = replace(CUDA_POLICY, batch_sizes=(1, 4))
    monkeypatch.setattr("app.faces.loading.POLICIES", {"CPUExecutionProvider": policy})
    batched = build_pipeline(pack, Device.CPU, ImageLimits())
    # Until the larger size is ready, each image runs alone.
    until(lambda: all(ran[4] == policy.owners for ran in batched.batches.values()))
    with ThreadPoolExecutor(8) as threads:
        photos = [group_photo, astronaut] * 4
        found = list(threads.map(lambda photo: batched.analyse(photo, max_faces=10), photos))
    for photo, image in zip(photos, found, strict=True):
        expected = pipeline.analyse(photo, max_faces=10).faces
        assert len(image.faces) == len(expected)
        for face, other in zip(image.faces, expected, strict=True):
            assert face.embedding is not None
            assert face.embedding @ other.embedding > 0.99
    ran = batched.batches
    assert set(ran) == networks
    warm = policy.owners * len(policy.batch_sizes)
    assert warm < sum(ran["detector"].values()) <= warm + len(photos)
    batched.close()
    with pytest.raises(WorkerDied):
        batched.analyse(astronaut, max_faces=1)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("line", "wrong", "said"),
    [
        ('architecture = "centerface"', 'architecture = "scrfd"', "not answer like a scrfd"),
        ("input_size = 112", "input_size = 100", "takes 112 where 100 are to go in"),
        ("dimension = 192", "dimension = 100", "answers 192 numbers per face"),
    ],
)
def test_what_is_wrong_with_a_pack_is_said_on_a_device_too(
    pack: ModelPack,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    line: str,
    wrong: str,
    said: str,
) -> None:
    """And no thread is left."""
    small = replace(CUDA_POLICY, batch_sizes=(1, 2), owners=1)
    monkeypatch.setattr("app.faces.loading.POLICIES", {"CPUExecutionProvider": small})
    shutil.copytree(pack.folder, tmp_path / "wrong")
    file = tmp_path / "wrong" / "pack.toml"
    text = file.read_text()
    assert line in text
    file.write_text(text.replace(line, wrong, 1))
    before = {thread for thread in threading.enumerate() if thread.name == "network"}
    with pytest.raises(PackError, match=said):
        build_pipeline(load_pack(str(file.parent)), Device.CPU, ImageLimits())
    assert {one for one in threading.enumerate() if one.name == "network"} <= before
