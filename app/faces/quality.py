"""Quality of a face before it is compared: size, pose, sharpness, brightness. None of these is a
decision. They explain low similarities, and gates use them to refuse photos that would make poor
templates.
"""

import math
from dataclasses import dataclass
from operator import mul

import cv2
import numpy as np
from numpy.typing import NDArray

from app.errors import PackError
from app.faces.images import Points, centred, first_answer, run_on_crops
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
_HEAD_INVERSE: Points = np.linalg.pinv(_HEAD_CENTRED).tolist()


def pose_angles(landmarks: FloatArray) -> NDArray[np.float64]:
    """Yaw, pitch and roll in degrees, shape (n, 3), from (n, 5, 2) landmarks.

    A scaled orthographic camera is fitted to an average head (the first step of DeMenthon &
    Davis, "Model-based object pose in 25 lines of code", IJCV 1995). Positive yaw: the nose turns
    to the right of the picture; positive pitch: it turns down; positive roll: the head leans
    clockwise as the picture is seen. Good to about ten degrees, and blind to depth beyond profile.
    """
    angles = [_pose_of(points) for points in landmarks.tolist()]
    return np.degrees(np.array(angles, np.float64).reshape(-1, 3))


def _pose_of(points: Points) -> tuple[float, float, float]:
    """Yaw, pitch and roll of one face in radians."""
    _, relative = centred(points)
    # The rows of scale * rotation.
    right, down = (
        _unit([sum(map(mul, row, values)) for row in _HEAD_INVERSE])
        for values in zip(*relative, strict=True)
    )
    # Of the camera's axis as the head sees it, their cross product, only the depth is needed.
    forward = max(right[0] * down[1] - right[1] * down[0], 1e-9)
    (x, y), (to_x, to_y) = points[:2]
    return (
        math.atan2(right[2], forward),
        math.atan2(down[2], forward),
        math.atan2(to_y - y, to_x - x),
    )


def _unit(vector: list[float]) -> list[float]:
    length = max(math.hypot(*vector), 1e-9)
    return [value / length for value in vector]


def sharpness(grey: Image) -> float:
    """Variance of the Laplacian of a grey crop (Pech-Pacheco et al., ICPR 2000).

    Below about 20 an aligned face is visibly blurred or was enlarged from few pixels.
    """
    # In 16 bits, into which the Laplacian of bytes fits, so that its sums are exact.
    _, deviation = cv2.meanStdDev(cv2.Laplacian(grey, cv2.CV_16S))
    return float(deviation[0, 0] ** 2)


def brightness(grey: Image) -> float:
    """Mean luma of the middle of a grey crop, 0 (black) to 1 (white)."""
    height, width = grey.shape
    middle = grey[height // 4 : -(height // 4), width // 4 : -(width // 4)]
    return float(cv2.sumElems(middle)[0] / middle.size / 255.0)


def greyscale(crop: Image) -> Image:
    """The luma (size, size) of a BGR crop (size, size, 3)."""
    return np.asarray(cv2.cvtColor(crop, cv2.COLOR_BGR2GRAY), np.uint8)


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
    poses = pose_angles(detections.landmarks).tolist()
    sides = (detections.boxes[:, 2:] - detections.boxes[:, :2]).min(axis=1).tolist()
    greys = [greyscale(crop) for crop in crops]
    return [
        Quality(
            face_size_px=sides[i],
            yaw=yaw,
            pitch=pitch,
            roll=roll,
            sharpness=sharpness(greys[i]),
            brightness=brightness(greys[i]),
            detector_score=float(detections.scores[i]),
            embedding_norm=_of(network_scores.norms, i),
            liveness=_of(network_scores.liveness, i),
            quality_score=_of(network_scores.scores, i),
        )
        for i, (yaw, pitch, roll) in enumerate(poses)
    ]


def _of(values: FloatArray | None, index: int) -> float | None:
    return None if values is None else float(values[index])


class QualityNetwork:
    """Rates an aligned face, how well it will be recognised: one number, on the network's own
    scale."""

    def __init__(self, model: Network, spec: QualitySpec, crop_size: int) -> None:
        """Raises PackError when the network does not take crops of `crop_size` pixels or answers
        more than one number per face."""
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
            raise PackError(f"{model.path} answers {values.size} numbers per face, not one.")

    def scores(self, crops: Image) -> FloatArray:
        """(n,) scores of (n, size, size, 3) BGR crops."""
        if not len(crops):
            return np.empty(0, np.float32)
        return run_on_crops(self._model, crops, self._scale).reshape(-1)
