"""Which face of a photo counts, and when two are one person."""

from collections.abc import Sequence
from enum import StrEnum

import numpy as np

from app.decision.gates import QualityGate, check_quality
from app.errors import NoFace, SeveralFaces
from app.types import AnalysedImage, Face

# A face less than half as large as the largest is a bystander: nobody means that one.
BYSTANDER_SIZE = 0.5


class FaceSelection(StrEnum):
    """Which face of a photo speaks for a call that needs one.

    `only`: the one that is there, bystanders aside; a photo of several people is refused.
    `largest`: the one with the largest box. `centre`: the one nearest the middle of the photo.
    """

    ONLY = "only"
    LARGEST = "largest"
    CENTRE = "centre"


class Status(StrEnum):
    """The answer of an identification for one face.

    `rejected`: the probe was not good enough to decide, whatever it resembles.
    """

    IDENTIFIED = "identified"
    UNKNOWN = "unknown"
    REJECTED = "rejected"


def select_face(image: AnalysedImage, selection: FaceSelection) -> Face:
    """The face that speaks for the photo. Raises NoFace or SeveralFaces."""
    faces = image.faces
    if not faces:
        raise NoFace(
            "No face was found in the photo; send one where the face is at least 32 pixels wide, "
            "upright and not covered."
        )
    if selection is FaceSelection.ONLY and len(faces) > 1:
        _refuse_rivals(faces)
    if selection is FaceSelection.CENTRE:
        return min(faces, key=lambda face: _off_centre(face, image))
    return faces[0]  # the pipeline answers the largest first


def _refuse_rivals(faces: Sequence[Face]) -> None:
    least = BYSTANDER_SIZE * faces[0].quality.face_size_px
    rivals = sum(face.quality.face_size_px >= least for face in faces)
    if rivals > 1:
        raise SeveralFaces(
            f"{rivals} faces of similar size were found; send a photo of one person, crop it, or "
            "choose with face_selection=largest or centre.",
            {"faces_found": len(faces)},
        )


def _off_centre(face: Face, image: AnalysedImage) -> float:
    centre = (face.box[:2] + face.box[2:]) / 2
    return float(np.hypot(centre[0] - image.width / 2, centre[1] - image.height / 2))


def usable_face(image: AnalysedImage, selection: FaceSelection, gate: QualityGate) -> Face:
    """The one face of a photo that may be enrolled. Raises the FaceError family."""
    face = select_face(image, selection)
    check_quality(face, gate)
    return face


def is_match(similarity: float, threshold: float) -> bool:
    """Whether a similarity counts as the same person: the threshold itself does."""
    return similarity >= threshold
