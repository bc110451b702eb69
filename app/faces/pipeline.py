"""The pipeline of one photo: bytes -> upright image -> faces -> aligned crops -> embeddings. It is
a cooperative task: between two steps the thread may work on another photo, so that a photo with
hundreds of faces does not delay the next ones.
"""

import time
from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np

from app.errors import LivenessUnavailable, PackError
from app.faces.detect import Detector
from app.faces.embed import Recogniser
from app.faces.images import align_faces, enlargement, turned_detections, turned_image
from app.faces.landmarks import LandmarkRefiner
from app.faces.liveness import LivenessCheck
from app.faces.looks import FaceSelector, in_the_photo, largest_first, shows_enough
from app.faces.orientation import Look, OrientationLimits, OrientationSearch
from app.faces.quality import NetworkScores, QualityNetwork, assess_faces
from app.imaging import ImageLimits, PhotoDecoder
from app.inference.batching import BatchedModel
from app.inference.remote.client import NetworkClient
from app.inference.scheduler import CPU_POLICY, SchedulePolicy
from app.telemetry.metrics import StageClock
from app.types import (
    AnalysedImage,
    CooperativeTask,
    DecodedImage,
    Detections,
    Face,
    FloatArray,
    Image,
    T,
)


@dataclass(frozen=True, slots=True)
class AuxiliaryNetworks:
    """What a pack may have beside detector and recogniser: a network that corrects landmarks, and
    those that rate a face."""

    landmarks: LandmarkRefiner | None = None
    liveness: LivenessCheck | None = None
    quality: QualityNetwork | None = None


@dataclass(frozen=True, slots=True)
class AnalysisOptions:
    """What an analysis finds in a photo."""

    max_faces: int
    embed: bool = True
    liveness: bool = False
    crops: bool = False
    selector: FaceSelector | None = None
    orientation: OrientationLimits | None = None


class FacePipeline:
    """Detector and recogniser of one pack, joined. Safe to call from several threads."""

    def __init__(
        self,
        detector: Detector,
        recogniser: Recogniser,
        limits: ImageLimits,
        policy: SchedulePolicy = CPU_POLICY,
        *,
        batched: Mapping[str, BatchedModel] | None = None,
        cpu_nodes: Mapping[str, tuple[str, ...]] | None = None,
        auxiliary: AuxiliaryNetworks | None = None,
        orientation: OrientationLimits | None = None,
        remote: NetworkClient | None = None,
        provider: str | None = None,
    ) -> None:
        """`orientation`: when a photo is also analysed turned; None: never. `remote`: the process
        that runs the networks, if another one does. `provider`: what the networks run on; None:
        what the recogniser says.

        Raises PackError.
        """
        if not detector.has_landmarks:
            raise PackError(
                "The pack's detector finds no landmarks, and faces cannot be aligned without "
                "them; choose a detector with a landmark head."
            )
        self._detector = detector
        self._recogniser = recogniser
        self._photos = PhotoDecoder(limits)
        self._turns = OrientationSearch(detector, recogniser)
        self.orientation = orientation
        self.policy = policy
        self._batched = dict(batched or {})
        self._cpu_nodes = dict(cpu_nodes or {})
        self._auxiliary = auxiliary or AuxiliaryNetworks()
        self._remote = remote
        self._provider = provider

    @property
    def provider(self) -> str:
        """What the recogniser really runs on (a provider of ONNX Runtime, or OpenVINO and its
        precision), and whether the detector runs in other numbers."""
        return self._provider or self._recogniser.provider

    @property
    def has_liveness(self) -> bool:
        """Whether the pack has liveness networks."""
        return self._auxiliary.liveness is not None

    @property
    def batches(self) -> Mapping[str, Mapping[int, int]]:
        """How often each batch size was run, by network; empty where nothing is batched."""
        return {name: model.batches for name, model in self._batched.items()}

    @property
    def cpu_nodes(self) -> Mapping[str, tuple[str, ...]]:
        """The nodes that networks on a device leave to the CPU, by network; none of most."""
        return self._cpu_nodes

    def close(self) -> None:
        """End the threads that own networks, and the decoder's processes."""
        self._photos.close()
        for model in self._batched.values():
            model.close()
        if self._remote is not None:
            self._remote.close()

    def check_networks(self) -> None:
        """Raise WorkerDied if another process runs the networks and cannot be asked now."""
        if self._remote is not None:
            self._remote.check()

    def analyse(
        self, data: bytes, *, max_faces: int, embed: bool = True, liveness: bool = False
    ) -> AnalysedImage:
        """Find the faces of one encoded photo, at most `max_faces`, the largest first.

        Raises the ImageError family for bytes that cannot be used, and LivenessUnavailable where
        it is asked for and the pack has no network for it.
        """
        return run_to_completion(
            self.steps(data, max_faces=max_faces, embed=embed, liveness=liveness)
        )

    def analyse_image(
        self,
        image: Image,
        *,
        max_faces: int,
        embed: bool = True,
        orientation: OrientationLimits | None = None,
    ) -> AnalysedImage:
        """The same for a decoded BGR image (height, width, 3) uint8; with `orientation` by other
        limits than the pipeline's own."""
        decoded = DecodedImage(image, image.shape[1], image.shape[0])
        options = AnalysisOptions(max_faces, embed, orientation=orientation or self.orientation)
        return run_to_completion(self._steps(decoded, None, options, StageClock()))

    def steps(
        self,
        data: bytes,
        *,
        max_faces: int,
        embed: bool = True,
        liveness: bool = False,
        crops: bool = False,
        selector: FaceSelector | None = None,
    ) -> CooperativeTask[AnalysedImage]:
        """`analyse` in steps. Nothing is done before the first; the time until then is the stage
        "queue". With `selector` only the face that it chooses is looked at any further, and what it
        raises is raised."""
        made = time.perf_counter()
        if liveness and not self.has_liveness:
            raise LivenessUnavailable(
                "The running model pack has no liveness networks. Serve a pack that has (likeness "
                "models pack --liveness), or do not ask for liveness."
            )
        options = AnalysisOptions(max_faces, embed, liveness, crops, selector, self.orientation)
        return self._steps_of_photo(data, options, made)

    def _steps_of_photo(
        self, data: bytes, options: AnalysisOptions, made: float
    ) -> CooperativeTask[AnalysedImage]:
        clock = StageClock()
        clock.timings_ms["queue"] = (time.perf_counter() - made) * 1000
        with clock.stage("decode"):
            decoded = self._photos.decode(data, self._detector.input_size)
        return (yield from self._steps(decoded, data, options, clock))

    def _steps(
        self,
        decoded: DecodedImage,
        data: bytes | None,
        options: AnalysisOptions,
        clock: StageClock,
    ) -> CooperativeTask[AnalysedImage]:
        look = yield from self._look(decoded, options, clock)
        found = largest_first(in_the_photo(look, decoded), options.max_faces)
        if options.selector is not None:
            chosen = options.selector.choose(found.boxes, decoded.width, decoded.height)
            found = found.take(np.array([chosen]))
        assert found.landmarks is not None, "checked when the pipeline was built"
        landmarks, crops = yield from self._crops(decoded, data, found.landmarks, clock)
        found = Detections(found.boxes, found.scores, landmarks)
        upright = turned_detections(found, look.rotation, decoded.height, decoded.width)
        embeddings: FloatArray | None = None
        norms: FloatArray | None = None
        if options.embed:
            embeddings, norms = yield from self._embed(crops, clock)
        live = None
        if options.liveness:
            live = self._liveness(decoded, data, Look(look.rotation, upright), clock)
        with clock.stage("quality"):
            scores = self._auxiliary.quality.scores(crops) if self._auxiliary.quality else None
            qualities = assess_faces(upright, crops, NetworkScores(norms, live, scores))
        faces = tuple(
            Face(
                box=found.boxes[i],
                landmarks=landmarks[i],
                score=float(found.scores[i]),
                quality=quality,
                embedding=None if embeddings is None else embeddings[i],
                crop=crops[i] if options.crops else None,
                rotation=look.rotation,
            )
            for i, quality in enumerate(qualities)
        )
        return AnalysedImage(
            decoded.width, decoded.height, faces, clock.timings_ms, len(look.found)
        )

    def _look(
        self, decoded: DecodedImage, options: AnalysisOptions, clock: StageClock
    ) -> CooperativeTask[Look]:
        """The faces of the photo, or of a reduced copy, in the turn that the networks rate
        highest."""
        image, limits = decoded.pixels, options.orientation
        selector = options.selector
        if selector is not None and selector.by_size and self._detector.looks_first(image.shape):
            with clock.stage("detect"):
                small = Look(0, self._detector.first_look(image))
            side = self._detector.first_look_side
            if shows_enough(small, decoded, selector, limits, side):
                return small
            yield
        with clock.stage("detect"):
            first = Look(0, self._detector.detect(image))
        if limits is None or not limits.doubt(first.found):
            return first
        return (yield from self._turns.search(image, first.found, limits, clock))

    def _crops(
        self, decoded: DecodedImage, data: bytes | None, landmarks: FloatArray, clock: StageClock
    ) -> CooperativeTask[tuple[FloatArray, Image]]:
        """The final landmarks in the photo's pixels and the aligned faces: out of the reduced copy
        where it has pixels enough, or else all of them out of the photo, decoded again."""
        size = self._recogniser.input_size
        image, ratio = decoded.pixels, decoded.reduction
        if ratio > 1 and (enlargement(landmarks, size) * ratio > 1).any():
            assert data is not None, "only encoded photos come reduced"
            with clock.stage("decode"):
                image, ratio = self._photos.decode(data).pixels, 1
        # The middle of the photo's first pixel is not that of the copy's first.
        points = ((landmarks + 0.5) / ratio - 0.5).astype(np.float32) if ratio > 1 else landmarks
        if self._auxiliary.landmarks is not None:
            points = yield from self._refine(image, points, clock)
            landmarks = ((points + 0.5) * ratio - 0.5).astype(np.float32) if ratio > 1 else points
        with clock.stage("align"):
            return landmarks, align_faces(image, points, size)

    def _refine(
        self, image: Image, landmarks: FloatArray, clock: StageClock
    ) -> CooperativeTask[FloatArray]:
        assert self._auxiliary.landmarks is not None, "asked only where there is a network"
        turn, parts = self.policy.faces_a_turn, [landmarks[:0]]
        for start in range(0, len(landmarks), turn):
            if start:
                yield
            with clock.stage("landmarks"):
                part = landmarks[start : start + turn]
                parts.append(self._auxiliary.landmarks.refine(image, part))
        return np.concatenate(parts)

    def embed_aligned(self, crops: Image) -> FloatArray:
        """The embeddings (n, d) of aligned faces (n, size, size, 3), as `steps` gives them with
        `crops`."""
        return self._recogniser.embed(crops)[0]

    def _liveness(
        self, decoded: DecodedImage, data: bytes | None, look: Look, clock: StageClock
    ) -> FloatArray:
        """Of faces of the upright photo, computed from its own pixels: a copy smooths away what
        shows that a face is not live."""
        assert self._auxiliary.liveness is not None, "checked before the first step"
        image = decoded.pixels
        if decoded.reduction > 1:
            assert data is not None, "only encoded photos come reduced"
            with clock.stage("decode"):
                image = self._photos.decode(data).pixels
        with clock.stage("liveness"):
            upright = turned_image(image, look.rotation)
            return self._auxiliary.liveness.scores(upright, look.found.boxes)

    def _embed(
        self, crops: Image, clock: StageClock
    ) -> CooperativeTask[tuple[FloatArray, FloatArray]]:
        turn = self.policy.faces_a_turn
        parts = []
        for start in range(0, max(len(crops), 1), turn):
            if start:
                yield
            with clock.stage("embed"):
                parts.append(self._recogniser.embed(crops[start : start + turn]))
        embeddings, norms = zip(*parts, strict=True)
        return np.concatenate(embeddings), np.concatenate(norms)


def run_to_completion(steps: CooperativeTask[T]) -> T:
    """Take all steps one after the other."""
    while True:
        try:
            next(steps)
        except StopIteration as end:
            result: T = end.value
            return result
