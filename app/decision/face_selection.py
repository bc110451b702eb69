"""Which face of a photo is used by a call that needs one."""

from enum import StrEnum
from functools import partial

import numpy as np

from app.decision.gates import QualityGate, check_quality
from app.errors import NoFace, SeveralFaces
from app.faces.looks import FaceSelector
from app.types import AnalysedImage, Face, FloatArray

# A face less than half as large as the largest is a bystander.
BYSTANDER_SIZE = 0.5


class FaceSelection(StrEnum):
    """Which face of a photo is used by a call that needs one.

    `only`: the only face, where faces less than half as large as the largest are ignored; a photo
    of several people is refused. `largest`: the one with the largest box. `centre`: the one nearest
    the middle of the photo.
    """

    ONLY = "only"
    LARGEST = "largest"
    CENTRE = "centre"


def select_face(image: AnalysedImage, selection: FaceSelection) -> Face:
    """The selected face of a photo. Raises NoFace or SeveralFaces."""
    boxes = np.array([face.box for face in image.faces], np.float32).reshape(-1, 4)
    return image.faces[select_box(boxes, image.width, image.height, selection)]


def selector_of(selection: FaceSelection) -> FaceSelector:
    """What chooses the face while a photo is analysed."""
    return FaceSelector(
        partial(select_box, selection=selection), by_size=selection is not FaceSelection.CENTRE
    )


def select_box(boxes: FloatArray, width: int, height: int, selection: FaceSelection) -> int:
    """Which of the boxes (n, 4), the largest first, is the selected face of a photo of that size.
    Raises NoFace or SeveralFaces."""
    if not len(boxes):
        raise NoFace(
            "No face was found in the photo; send one where the face is at least 32 pixels wide, "
            "upright and not covered."
        )
    if selection is FaceSelection.ONLY and len(boxes) > 1:
        _refuse_rivals(boxes)
    if selection is FaceSelection.CENTRE:
        offset = (boxes[:, :2] + boxes[:, 2:]) / 2 - np.array([width / 2, height / 2], np.float32)
        return int(np.argmin(np.hypot(offset[:, 0], offset[:, 1])))
    return 0


def _refuse_rivals(boxes: FloatArray) -> None:
    sides = (boxes[:, 2:] - boxes[:, :2]).min(axis=1)
    rivals = int(np.sum(sides >= BYSTANDER_SIZE * sides[0]))
    if rivals > 1:
        raise SeveralFaces(
            f"{rivals} faces of similar size were found; send a photo of one person, crop it, or "
            "choose with face_selection=largest or centre.",
            {"faces_found": len(boxes)},
        )


def usable_face(image: AnalysedImage, selection: FaceSelection, gate: QualityGate) -> Face:
    """The face of a photo that is compared, if it passes the gate. Raises the FaceError family."""
    face = select_face(image, selection)
    check_quality(face, gate)
    return face
