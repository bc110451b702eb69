"""Detection: one interface over CenterFace, SCRFD and YuNet networks.

A detector letterboxes the image, runs its network and hands the raw heads to a decoder: a pure
function from heads to `Detections` in the letterbox's pixels. Suppression and the way back to the
image's own pixels are the same for all.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from functools import partial

import cv2
import numpy as np

from app.errors import LikenessError, PackError
from app.faces.decoders import (
    are_cut,
    decode_centerface,
    decode_centerface_candidates,
    decode_scrfd,
    decode_scrfd_candidates,
    decode_yunet,
)
from app.faces.images import network_input, turned_image, turned_size
from app.inference.pack_spec import DetectorSpec
from app.inference.session import Network, PlacingNetwork
from app.types import Detections, FloatArray, Image, PixelScale

STRIDE = 32
# Height and width of the image that a network is tried with: not a square, as few photos are one.
TRIAL = (2 * STRIDE, 3 * STRIDE)
# Share of each side added around an image when the first pass finds nothing: a face that fills
# the frame is then half as large and has the surroundings that detectors are trained with.
FRAME_PADDING = 0.5

Decoder = Callable[[list[FloatArray], float, tuple[int, int]], Detections]
CandidateDecoder = Callable[[list[FloatArray], tuple[int, ...], float, tuple[int, int]], Detections]


@dataclass(frozen=True, slots=True)
class Architecture:
    """What is particular to a family of detectors: its input, and its decoders of heads and, where
    a device finds them, of candidates."""

    decode: Decoder
    scale: PixelScale
    decode_candidates: CandidateDecoder | None = None


ARCHITECTURES: Mapping[str, Architecture] = {
    "centerface": Architecture(
        decode_centerface, PixelScale(0.0, 1.0, rgb=True), decode_centerface_candidates
    ),
    "scrfd": Architecture(
        decode_scrfd, PixelScale(127.5, 128.0, rgb=True), decode_scrfd_candidates
    ),
    "yunet": Architecture(decode_yunet, PixelScale(0.0, 1.0, rgb=False)),
}


@dataclass(frozen=True, slots=True)
class CandidateNetwork:
    """A detector that answers the candidates of levels of so many anchors instead of its heads."""

    network: Network
    levels: tuple[int, ...]


@dataclass(frozen=True, slots=True)
class Framing:
    """How photos are laid out: to fit a frame (height, width), those smaller than `enlarge_to` no
    further than to that, on a canvas that is the `whole` frame or ends at the next multiple of the
    stride, with `one_scale` or an exact one an axis.

    `one_scale` is how InsightFace's SCRFD code does it, with the height's scale for both axes
    although the shorter side was cut to whole pixels: up to two pixels at the far side of a photo,
    without which the embeddings are not those of an InsightFace gallery (cosines down to 0.955).
    """

    height: int
    width: int
    enlarge_to: int
    whole: bool
    one_scale: bool

    def frame_of(self, height: int, width: int) -> tuple[int, int]:
        """Height and width of the frame that a photo of that size has to fit."""
        bound = max(height, width, self.enlarge_to)
        return min(self.height, bound), min(self.width, bound)


@dataclass(frozen=True, slots=True)
class Letterbox:
    """Where an image lies, turned and scaled, on a black canvas of `size` (height, width): `rows`
    and `columns` from `top` and `left`. `scale` and `origin` are (2,) x and y."""

    size: tuple[int, int]
    rows: int
    columns: int
    top: int
    left: int
    rotation: int
    scale: FloatArray

    @property
    def origin(self) -> FloatArray:
        """The canvas's pixel with the image's first one."""
        return np.array([self.left, self.top], dtype=np.float32)

    def draw(self, image: Image, canvas: Image) -> None:
        """Fill a canvas (height, width, 3), which may hold anything, with the image and black."""
        bottom, right = self.top + self.rows, self.left + self.columns
        canvas[: self.top] = 0
        canvas[bottom:] = 0
        canvas[self.top : bottom, : self.left] = 0
        canvas[self.top : bottom, right:] = 0
        inside = canvas[self.top : bottom, self.left : right]
        if self.rotation == 0 and image.shape[:2] != (self.rows, self.columns):
            cv2.resize(image, (self.columns, self.rows), dst=inside)
            return
        # Scaled before it is turned: a copy of the whole photo is never made.
        size = turned_size((self.rows, self.columns), self.rotation)
        inside[:] = turned_image(_scaled(image, *size), self.rotation)

    def drawn(self, image: Image) -> Image:
        """A canvas of its own with the image."""
        canvas = np.empty((*self.size, 3), np.uint8)
        self.draw(image, canvas)
        return canvas

    def restore(self, found: Detections) -> Detections:
        """Detections of the canvas in the pixels of the turned image."""
        origin, scale, landmarks = self.origin, self.scale, found.landmarks
        corners = (found.boxes.reshape(-1, 2, 2) - origin) / scale
        if landmarks is not None:
            landmarks = np.asarray((landmarks - origin) / scale, np.float32)
        return Detections(np.asarray(corners.reshape(-1, 4), np.float32), found.scores, landmarks)


def letterbox(
    shape: tuple[int, ...], framing: Framing, margin: float = 0.0, rotation: int = 0
) -> Letterbox:
    """An image of that shape turned clockwise by `rotation` degrees and scaled so that it just
    fits, with `margin` of each of its sides added all around."""
    height, width = turned_size(shape, rotation)
    rows, columns = _fit(height / width, *framing.frame_of(height, width))
    rows, columns = max(1, int(rows / (1 + 2 * margin))), max(1, int(columns / (1 + 2 * margin)))
    top, left = int(rows * margin), int(columns * margin)
    scale_y = rows / height
    scale_x = scale_y if framing.one_scale else columns / width
    return Letterbox(
        _canvas_size(rows + 2 * top, columns + 2 * left, framing),
        rows,
        columns,
        top,
        left,
        rotation,
        np.array([scale_x, scale_y], dtype=np.float32),
    )


def _scaled(image: Image, rows: int, columns: int) -> Image:
    if image.shape[:2] == (rows, columns):
        return image
    return np.asarray(cv2.resize(image, (columns, rows)), np.uint8)


def _fit(ratio: float, height: int, width: int) -> tuple[int, int]:
    """Rows and columns of the largest image of that height by width inside a frame."""
    if ratio > height / width:
        return height, max(1, int(height / ratio))
    return max(1, int(width * ratio)), width


def _canvas_size(rows: int, columns: int, framing: Framing) -> tuple[int, int]:
    if framing.whole:
        return framing.height, framing.width
    return _to_stride(rows), _to_stride(columns)


def _to_stride(length: int) -> int:
    return -(-length // STRIDE) * STRIDE


LetterboxRun = Callable[[Letterbox, Image], list[FloatArray]]


class Detector:
    """Finds faces in one image at a time; safe to call from several threads."""

    def __init__(
        self,
        model: Network,
        spec: DetectorSpec,
        *,
        whole_canvas: bool = False,
        candidates: CandidateNetwork | None = None,
    ) -> None:
        """`whole_canvas` lays every photo on a canvas of one size, so that they can be batched.
        `candidates` is run in place of `model`, except where it does not answer all candidates.

        Raises PackError when the network does not answer like its architecture.
        """
        self._spec = spec
        self._model = model
        self._architecture = kind = ARCHITECTURES[spec.architecture]
        self._run_for_heads = letterbox_run(model, kind.scale)
        self._candidates = candidates
        if candidates is not None:
            self._run_for_candidates = letterbox_run(candidates.network, kind.scale)
        self._framing = framing_of(model, spec, whole_canvas=whole_canvas)
        self._first_framing = first_framing_of(self._framing, spec)
        try:
            probe = self._try_out()
        except LikenessError:  # of the device
            raise
        except Exception as error:  # ONNX Runtime raises its own types, decoders ValueError
            raise PackError(
                f"{model.path} does not answer like a {spec.architecture} detector: {error}. "
                "Correct detector.architecture in pack.toml."
            ) from error
        self.has_landmarks = probe.landmarks is not None

    def _try_out(self) -> Detections:
        """The answer to a black image: a small one where the network takes any size, because a
        whole frame would be half of the time that the networks take to load."""
        framing = replace(self._framing, enlarge_to=0)
        size = (framing.height, framing.width) if framing.whole else TRIAL
        blank = np.zeros((*size, 3), dtype=np.uint8)
        return self._run(letterbox(blank.shape, framing), blank)

    @property
    def input_size(self) -> int:
        """Pixels on the longer side of the frame: a photo with more is reduced to them."""
        return max(self._framing.height, self._framing.width)

    def detect(self, image: Image) -> Detections:
        """The faces of a BGR image in its own pixels, best score first, boxes inside the image."""
        found = self.look(image)
        return found if len(found) else self.look(image, framed=True)

    @property
    def first_look_side(self) -> int:
        """Pixels on the longer side of the copy that `first_look` sees."""
        return max(self._first_framing.height, self._first_framing.width)

    def looks_first(self, shape: tuple[int, ...]) -> bool:
        """Whether `first_look` sees less of an image of that shape than `detect`."""
        return max(shape[:2]) > self.first_look_side < self.input_size

    def first_look(self, image: Image) -> Detections:
        """As `detect`, in a small copy of the image."""
        return self._look_at(image, letterbox(image.shape, self._first_framing), 0)

    def look(self, image: Image, rotation: int = 0, *, framed: bool = False) -> Detections:
        """One run of the network on an image turned clockwise by `rotation` degrees (0, 90, 180 or
        270), within a wide black frame where `framed`. As `detect`, in pixels of the turned image.
        """
        margin = FRAME_PADDING if framed else 0.0
        return self._look_at(
            image, letterbox(image.shape, self._framing, margin, rotation), rotation
        )

    def _look_at(self, image: Image, boxed: Letterbox, rotation: int) -> Detections:
        found = boxed.restore(suppress(self._run(boxed, image), self._spec.iou_threshold))
        return _clip(found, *turned_size(image.shape, rotation))

    def _run(self, boxed: Letterbox, image: Image) -> Detections:
        kind = self._architecture
        threshold, size = self._spec.score_threshold, boxed.size
        if self._candidates is not None and kind.decode_candidates is not None:
            levels, found = self._candidates.levels, self._run_for_candidates(boxed, image)
            if not are_cut(found, levels, threshold):
                return kind.decode_candidates(found, levels, threshold, size)
        return kind.decode(self._run_for_heads(boxed, image), threshold, size)


def letterbox_run(network: Network, scale: PixelScale) -> LetterboxRun:
    """Runs a network on an image in its letterbox, which is drawn where the network reads it if
    there is a place for that."""
    if isinstance(network, PlacingNetwork):
        placing: PlacingNetwork = network
        return lambda boxed, image: placing.run_placed(partial(boxed.draw, image))
    return lambda boxed, image: network.run(
        network_input(network, boxed.drawn(image)[np.newaxis], scale)
    )


def framing_of(model: Network, spec: DetectorSpec, *, whole_canvas: bool) -> Framing:
    """The frame a network demands, or else a square of `input_size` rounded up to the stride."""
    side = _to_stride(spec.input_size)
    height, width = model.fixed_size or (side, side)
    as_insightface = spec.layout == "insightface"
    whole = whole_canvas or as_insightface or model.fixed_size is not None
    enlarge_to = max(height, width) if as_insightface else spec.enlarge_to
    return Framing(height, width, enlarge_to, whole=whole, one_scale=as_insightface)


def first_framing_of(framing: Framing, spec: DetectorSpec) -> Framing:
    """The frame of a first look; where the pack has none, or a network that takes one size of
    image, the frame of every look."""
    if spec.first_look is None or framing.whole:
        return framing
    side = _to_stride(spec.first_look)
    return replace(framing, height=min(side, framing.height), width=min(side, framing.width))


def suppress(found: Detections, iou_threshold: float) -> Detections:
    """Greedy non-maximum suppression; best score first."""
    if len(found) == 0:
        return found
    rectangles = found.boxes.astype(np.float64)
    rectangles[:, 2:] -= rectangles[:, :2]
    kept = cv2.dnn.NMSBoxes(rectangles.tolist(), found.scores.tolist(), 0.0, iou_threshold)
    return found.take(np.asarray(kept, dtype=np.intp))


def _clip(found: Detections, height: int, width: int) -> Detections:
    """Boxes end at the image's edge, and those wholly outside it go; landmarks may lie outside."""
    limit = np.array([width, height, width, height], dtype=np.float32)
    boxes = np.minimum(np.maximum(found.boxes, np.float32(0)), limit)
    inside = (boxes[:, 2:] - boxes[:, :2] >= 1).all(axis=1)
    return Detections(boxes, found.scores, found.landmarks).take(np.flatnonzero(inside))
