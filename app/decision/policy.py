"""Policies: which face of a photo counts, which may be enrolled, and when two are one person."""

from collections.abc import Sequence
from dataclasses import dataclass
from enum import StrEnum

import numpy as np

from app.errors import FaceTooSmall, LowQuality, NoFace, SeveralFaces
from app.gallery.gallery import Candidate
from app.types import AnalysedImage, Face, Quality

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
    """The answer of an identification for one face."""

    IDENTIFIED = "identified"
    UNKNOWN = "unknown"
    REJECTED = "rejected"


@dataclass(frozen=True, slots=True)
class EnrolmentGate:
    """What a face must be to become a template. Mild: it stops faces that no network can use.

    Set below everything that occurs in 6,410 press photos (LFW), of which it refuses none; see
    docs/http.md for the meaning of each measure.
    """

    min_face_size_px: float = 32.0
    min_sharpness: float = 5.0
    min_brightness: float = 0.05
    max_brightness: float = 0.97
    max_yaw: float = 75.0


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


def check_enrolable(face: Face, gate: EnrolmentGate) -> None:
    """Raise FaceTooSmall or LowQuality unless the face may become a template."""
    quality = face.quality
    if quality.face_size_px < gate.min_face_size_px:
        raise FaceTooSmall(
            f"The face is {quality.face_size_px:.0f} pixels wide; a template needs at least "
            f"{gate.min_face_size_px:.0f}. Send a photo taken closer or with more pixels."
        )
    if complaint := _complaint(quality, gate):
        raise LowQuality(f"{complaint}; send a clearer photo.")


def _complaint(quality: Quality, gate: EnrolmentGate) -> str | None:
    if quality.sharpness < gate.min_sharpness:
        return "The face is blurred"
    if quality.brightness < gate.min_brightness:
        return "The face is too dark"
    if quality.brightness > gate.max_brightness:
        return "The face is too bright"
    if abs(quality.yaw) > gate.max_yaw:
        return "The face is turned away"
    return None


def usable_face(image: AnalysedImage, selection: FaceSelection, gate: EnrolmentGate) -> Face:
    """The one face of a photo that may be enrolled. Raises the FaceError family."""
    face = select_face(image, selection)
    check_enrolable(face, gate)
    return face


def is_match(similarity: float, threshold: float) -> bool:
    """Whether a similarity counts as the same person: the threshold itself does."""
    return similarity >= threshold


def verdict(candidates: Sequence[Candidate], threshold: float) -> Status:
    """Identified when the nearest person reaches the threshold, unknown otherwise."""
    if candidates and is_match(candidates[0].similarity, threshold):
        return Status.IDENTIFIED
    return Status.UNKNOWN
