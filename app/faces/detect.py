"""Detection: one interface over CenterFace, SCRFD and YuNet networks.

A detector letterboxes the image, runs its network and hands the raw heads to a decoder: a pure
function from heads to `Detections` in the letterbox's pixels. Suppression and the way back to the
image's own pixels are the same for all.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass

import cv2
import numpy as np

from app.errors import PackError
from app.faces import centerface, scrfd, yunet
from app.inference.packs import DetectorSpec
from app.inference.session import OnnxModel
from app.types import Detections, FloatArray, Image

STRIDE = 32
# Share of each side added around an image when the first pass finds nothing: a face that fills
# the frame is then half as large and has the surroundings that detectors are trained with.
FRAME_PADDING = 0.5

Decoder = Callable[[list[FloatArray], float, tuple[int, int]], Detections]


@dataclass(frozen=True, slots=True)
class Architecture:
    """What is particular to a family of detectors: its input and its decoder.

    `as_insightface` lays images out exactly as InsightFace's SCRFD code does: on a square canvas,
    and with the height's scale for both axes although the shorter side was cut to whole pixels. It
    costs time, and up to two pixels at the far side of a photo; without it the embeddings of one
    photo are not those of an existing InsightFace gallery (cosines down to 0.955 were seen).
    """

    decode: Decoder
    rgb: bool
    mean: float
    std: float
    as_insightface: bool


ARCHITECTURES: Mapping[str, Architecture] = {
    "centerface": Architecture(centerface.decode, True, 0.0, 1.0, as_insightface=False),
    "scrfd": Architecture(scrfd.decode, True, 127.5, 128.0, as_insightface=True),
    "yunet": Architecture(yunet.decode, False, 0.0, 1.0, as_insightface=False),
}


@dataclass(frozen=True, slots=True)
class Framing:
    """How images are laid out: to fit a frame (height, width), on a canvas that is the `whole`
    frame or ends at the next multiple of the stride, with one scale or an exact one an axis."""

    height: int
    width: int
    whole: bool
    one_scale: bool


@dataclass(frozen=True, slots=True)
class Letterbox:
    """An image scaled to fit a black canvas; `scale` and `origin` are (2,) x and y."""

    canvas: Image
    scale: FloatArray
    origin: FloatArray

    def restore(self, found: Detections) -> Detections:
        """Detections of the canvas in the pixels of the image."""
        boxes = (found.boxes - np.tile(self.origin, 2)) / np.tile(self.scale, 2)
        landmarks = found.landmarks
        if landmarks is not None:
            landmarks = ((landmarks - self.origin) / self.scale).astype(np.float32)
        return Detections(boxes.astype(np.float32), found.scores, landmarks)


def letterbox(image: Image, framing: Framing, margin: float = 0.0) -> Letterbox:
    """Scale an image so that it just fits, with `margin` of each of its sides added all around."""
    height, width = image.shape[:2]
    rows, columns = _fit(height / width, framing)
    rows, columns = max(1, int(rows / (1 + 2 * margin))), max(1, int(columns / (1 + 2 * margin)))
    top, left = int(rows * margin), int(columns * margin)
    canvas = np.zeros((*_canvas_size(rows + 2 * top, columns + 2 * left, framing), 3), np.uint8)
    canvas[top : top + rows, left : left + columns] = cv2.resize(image, (columns, rows))
    scale_y = rows / height
    scale_x = scale_y if framing.one_scale else columns / width
    return Letterbox(
        canvas,
        np.array([scale_x, scale_y], dtype=np.float32),
        np.array([left, top], dtype=np.float32),
    )


def _fit(ratio: float, framing: Framing) -> tuple[int, int]:
    """Rows and columns of the largest image of that height by width inside the frame."""
    if ratio > framing.height / framing.width:
        return framing.height, max(1, int(framing.height / ratio))
    return max(1, int(framing.width * ratio)), framing.width


def _canvas_size(rows: int, columns: int, framing: Framing) -> tuple[int, int]:
    if framing.whole:
        return framing.height, framing.width
    return _to_stride(rows), _to_stride(columns)


def _to_stride(length: int) -> int:
    return -(-length // STRIDE) * STRIDE


class Detector:
    """Finds faces in one image at a time; safe to call from several threads."""

    def __init__(self, model: OnnxModel, spec: DetectorSpec) -> None:
        """Raises PackError when the network does not answer like its architecture."""
        self._model = model
        self._spec = spec
        self._architecture = ARCHITECTURES[spec.architecture]
        self._framing = _framing(model, spec.input_size, self._architecture.as_insightface)
        try:
            probe = self._run(
                np.zeros((self._framing.height, self._framing.width, 3), dtype=np.uint8)
            )
        except Exception as error:  # ONNX Runtime raises its own types, decoders ValueError
            raise PackError(
                f"{model.path} does not answer like a {spec.architecture} detector: {error}. "
                "Correct detector.architecture in pack.toml."
            ) from error
        self.has_landmarks = probe.landmarks is not None

    def detect(self, image: Image) -> Detections:
        """The faces of a BGR image in its own pixels, best score first, boxes inside the image."""
        found = self._detect(image, margin=0.0)
        if len(found) == 0:
            found = self._detect(image, margin=FRAME_PADDING)
        return _clip(found, image)

    def _detect(self, image: Image, margin: float) -> Detections:
        boxed = letterbox(image, self._framing, margin)
        return boxed.restore(suppress(self._run(boxed.canvas), self._spec.iou_threshold))

    def _run(self, canvas: Image) -> Detections:
        kind = self._architecture
        blob = cv2.dnn.blobFromImage(
            canvas, scalefactor=1.0 / kind.std, mean=(kind.mean,) * 3, swapRB=kind.rgb
        )
        heads = self._model.run(np.asarray(blob, dtype=np.float32))
        return kind.decode(heads, self._spec.score_threshold, canvas.shape[:2])


def _framing(model: OnnxModel, input_size: int, as_insightface: bool) -> Framing:
    """The frame a network demands, or else a square of `input_size` rounded up to the stride."""
    side = _to_stride(input_size)
    height, width = model.fixed_size or (side, side)
    whole = as_insightface or model.fixed_size is not None
    return Framing(height, width, whole=whole, one_scale=as_insightface)


def suppress(found: Detections, iou_threshold: float) -> Detections:
    """Greedy non-maximum suppression; best score first."""
    if len(found) == 0:
        return found
    corners = found.boxes.astype(np.float64)
    rectangles = np.concatenate([corners[:, :2], corners[:, 2:] - corners[:, :2]], axis=1)
    kept = cv2.dnn.NMSBoxes(rectangles.tolist(), found.scores.tolist(), 0.0, iou_threshold)
    return found.take(np.asarray(kept, dtype=np.intp))


def _clip(found: Detections, image: Image) -> Detections:
    """Boxes end at the image's edge, and those wholly outside it go; landmarks may lie outside."""
    height, width = image.shape[:2]
    limit = np.array([width, height, width, height], dtype=np.float32)
    boxes = np.clip(found.boxes, 0, limit)
    inside = np.flatnonzero((boxes[:, 2] - boxes[:, 0] >= 1) & (boxes[:, 3] - boxes[:, 1] >= 1))
    return Detections(boxes, found.scores, found.landmarks).take(inside)
