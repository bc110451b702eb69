"""Quality of a face before it is compared: size, pose, sharpness, brightness. None of these is a
decision. They explain low similarities, and gates use them to refuse photos that would make poor
templates.
"""

from dataclasses import dataclass

import cv2
import numpy as np
from numpy.typing import NDArray

from app.errors import PackError
from app.faces.images import first_answer, run_on_crops
from app.inference.pack_spec import QualitySpec
from app.inference.session import Network
from app.types import Detections, FloatArray, Image, PixelScale, Quality

# Five points of an average head in units of half the distance between the eyes: x to the right of
# the picture, y down, z towards the camera. Proportions after L. G. Farkas, "Anthropometry of the
# Head and Face", 1994, rounded; enough for the few degrees a quality gate needs.
_HEAD = np.array(
    [
        [-1.0, -0.7, 0.0],
        [1.0, -0.7, 0.0],
        [0.0, 0.45, 0.9],
        [-0.8, 1.5, 0.05],
        [0.8, 1.5, 0.05],
    ]
)
_HEAD_CENTRED = _HEAD - _HEAD.mean(axis=0)
_HEAD_INVERSE: NDArray[np.float64] = np.linalg.pinv(_HEAD_CENTRED)


def pose_angles(landmarks: FloatArray) -> NDArray[np.float64]:
    """Yaw, pitch and roll in degrees, shape (n, 3), from (n, 5, 2) landmarks.

    A scaled orthographic camera is fitted to an average head (the first step of DeMenthon &
    Davis, "Model-based object pose in 25 lines of code", IJCV 1995). Positive yaw: the nose turns
    to the right of the picture; positive pitch: it turns down; positive roll: the head leans
    clockwise as the picture is seen. Good to about ten degrees, and blind to depth beyond profile.
    """
    points = np.asarray(landmarks, dtype=np.float64)
    centred = points - points.mean(axis=1, keepdims=True)
    axes = np.einsum("ij,njk->nki", _HEAD_INVERSE, centred)  # (n, 2, 3): rows of scale * rotation
    lengths = np.linalg.norm(axes, axis=2, keepdims=True)
    axes = axes / np.maximum(lengths, 1e-9)
    # Of the camera's axis as the head sees it, their cross product, only the depth is needed.
    forward = axes[:, 0, 0] * axes[:, 1, 1] - axes[:, 0, 1] * axes[:, 1, 0]
    yaw = np.arctan2(axes[:, 0, 2], np.maximum(forward, 1e-9))
    pitch = np.arctan2(axes[:, 1, 2], np.maximum(forward, 1e-9))
    eyes = points[:, 1] - points[:, 0]
    roll = np.arctan2(eyes[:, 1], eyes[:, 0])
    return np.asarray(np.degrees(np.stack([yaw, pitch, roll], axis=1)), dtype=np.float64)


def sharpness(crop: Image) -> float:
    """Variance of the Laplacian of the grey crop (Pech-Pacheco et al., ICPR 2000).

    Below about 20 an aligned face is visibly blurred or was enlarged from few pixels.
    """
    grey = cv2.cvtColor(crop, cv2.COLOR_BGR2GRAY)
    return float(cv2.Laplacian(grey, cv2.CV_64F).var())


def brightness(crop: Image) -> float:
    """Mean luma of the middle of the crop, 0 (black) to 1 (white)."""
    height, width = crop.shape[:2]
    middle = crop[height // 4 : -(height // 4), width // 4 : -(width // 4)]
    return float(cv2.cvtColor(middle, cv2.COLOR_BGR2GRAY).mean() / 255.0)


@dataclass(frozen=True, slots=True)
class NetworkScores:
    """The scores of auxiliary networks for the faces of one image, (n,) each; None where none
    ran."""

    norms: FloatArray | None = None
    liveness: FloatArray | None = None
    scores: FloatArray | None = None


def assess_faces(
    detections: Detections, crops: Image, network_scores: NetworkScores
) -> list[Quality]:
    """One Quality for each detection; `crops` are its aligned faces in the same order."""
    if len(detections) == 0:
        return []
    assert detections.landmarks is not None, "faces without landmarks are not assessed"
    angles = pose_angles(detections.landmarks)
    sides = detections.boxes[:, 2:] - detections.boxes[:, :2]
    return [
        Quality(
            face_size_px=float(sides[i].min()),
            yaw=float(angles[i, 0]),
            pitch=float(angles[i, 1]),
            roll=float(angles[i, 2]),
            sharpness=sharpness(crops[i]),
            brightness=brightness(crops[i]),
            detector_score=float(detections.scores[i]),
            embedding_norm=_of(network_scores.norms, i),
            liveness=_of(network_scores.liveness, i),
            quality_score=_of(network_scores.scores, i),
        )
        for i in range(len(detections))
    ]


def _of(values: FloatArray | None, index: int) -> float | None:
    return None if values is None else float(values[index])


class QualityNetwork:
    """Rates an aligned face, how well it will be recognised: one number, on the network's own
    scale."""

    def __init__(self, model: Network, spec: QualitySpec, crop_size: int) -> None:
        """Raises PackError when the network does not take crops of `crop_size` pixels or answers
        more than one number a face."""
        self._model = model
        self._spec = spec
        self._scale = PixelScale(spec.mean, spec.std, rgb=spec.colour == "rgb")
        if spec.input_size != crop_size:
            raise PackError(
                f"The quality network takes faces of {spec.input_size} pixels, the recogniser "
                f"{crop_size}; both see the same crops. Correct quality in pack.toml."
            )
        with first_answer(model, crop_size, "one number", "quality"):
            values = self.scores(np.zeros((1, crop_size, crop_size, 3), dtype=np.uint8))
        if values.shape != (1,):
            raise PackError(f"{model.path} answers {values.size} numbers a face, not one.")

    def scores(self, crops: Image) -> FloatArray:
        """(n,) scores of (n, size, size, 3) BGR crops."""
        if not len(crops):
            return np.empty(0, np.float32)
        return run_on_crops(self._model, crops, self._scale).reshape(-1)
