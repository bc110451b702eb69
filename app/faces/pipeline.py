"""The way of one photo: bytes -> upright image -> faces -> aligned crops -> embeddings."""

import time
from collections.abc import Iterator
from contextlib import contextmanager

import numpy as np

from app.errors import PackError
from app.faces.align import align_faces
from app.faces.detect import Detector
from app.faces.embed import Recogniser
from app.faces.quality import assess_faces
from app.imaging import ImageLimits, decode_image
from app.inference.packs import ModelPack
from app.inference.session import OnnxModel
from app.settings import Device
from app.types import AnalysedImage, Detections, Face, FloatArray, Image


class StageClock:
    """Milliseconds spent in each stage of one image."""

    def __init__(self) -> None:
        self.timings_ms: dict[str, float] = {}

    @contextmanager
    def stage(self, name: str) -> Iterator[None]:
        start = time.perf_counter()
        try:
            yield
        finally:
            spent = (time.perf_counter() - start) * 1000
            self.timings_ms[name] = self.timings_ms.get(name, 0.0) + spent


class FacePipeline:
    """Detector and recogniser of one pack, joined. Safe to call from several threads."""

    def __init__(self, detector: Detector, recogniser: Recogniser, limits: ImageLimits) -> None:
        if not detector.has_landmarks:
            raise PackError(
                "The pack's detector finds no landmarks, and faces cannot be aligned without "
                "them; choose a detector with a landmark head."
            )
        self._detector = detector
        self._recogniser = recogniser
        self._limits = limits

    @property
    def provider(self) -> str:
        """ONNX Runtime's name of what the recogniser really runs on."""
        return self._recogniser.provider

    def analyse(self, data: bytes, *, max_faces: int, embed: bool = True) -> AnalysedImage:
        """Find the faces of one encoded photo, at most `max_faces`, the largest first.

        Raises the ImageError family for bytes that cannot be used.
        """
        clock = StageClock()
        with clock.stage("decode"):
            image = decode_image(data, self._limits)
        return self._analyse(image, max_faces, embed, clock)

    def analyse_image(self, image: Image, *, max_faces: int, embed: bool = True) -> AnalysedImage:
        """The same for a decoded BGR image (height, width, 3) uint8."""
        return self._analyse(image, max_faces, embed, StageClock())

    def _analyse(
        self, image: Image, max_faces: int, embed: bool, clock: StageClock
    ) -> AnalysedImage:
        with clock.stage("detect"):
            found = _largest_first(self._detector.detect(image), max_faces)
        assert found.landmarks is not None, "checked when the pipeline was built"
        with clock.stage("align"):
            crops = align_faces(image, found.landmarks, self._recogniser.input_size)
        embeddings: FloatArray | None = None
        norms: FloatArray | None = None
        if embed:
            with clock.stage("embed"):
                embeddings, norms = self._recogniser.embed(crops)
        with clock.stage("quality"):
            qualities = assess_faces(found, crops, norms)
        height, width = image.shape[:2]
        faces = tuple(
            Face(
                box=found.boxes[i],
                landmarks=found.landmarks[i],
                score=float(found.scores[i]),
                quality=quality,
                embedding=None if embeddings is None else embeddings[i],
            )
            for i, quality in enumerate(qualities)
        )
        return AnalysedImage(width, height, faces, clock.timings_ms)


def _largest_first(found: Detections, limit: int) -> Detections:
    areas = np.prod(found.boxes[:, 2:] - found.boxes[:, :2], axis=1)
    return found.take(np.argsort(-areas, kind="stable")[:limit])


def build_pipeline(pack: ModelPack, device: Device, limits: ImageLimits) -> FacePipeline:
    """Load a pack's networks. Raises PackError or DeviceError."""
    detector = Detector(OnnxModel(pack.detector_path, device), pack.detector)
    recogniser = Recogniser(OnnxModel(pack.recogniser_path, device), pack.recogniser)
    return FacePipeline(detector, recogniser, limits)
