"""Which way up a photo is, where its file does not say.

Most photos are upright, and the first detection shows it: a face with a high score and a small
roll. Only if the first detection is doubtful, the detector is run on the other three turns, and the
turn whose faces detector and recogniser rate highest is taken. All faces of a photo have the same
turn.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from app.faces.detect import Detector
from app.faces.embed import Recogniser
from app.faces.images import ROTATIONS, align_faces, inverse, turned_detections, turned_size
from app.faces.quality import pose_angles
from app.telemetry.metrics import StageClock
from app.types import CooperativeTask, Detections, Image

# Number of the largest faces that are embedded for each turn.
FACES_COMPARED = 3


@dataclass(frozen=True, slots=True)
class Look:
    """What a detector found in an image turned clockwise by `rotation` degrees, in the pixels of
    the turned image."""

    rotation: int
    found: Detections


@dataclass(frozen=True, slots=True)
class OrientationLimits:
    """A look is doubtful if it shows no face, or if the score of its best face is below
    `score_below` or that face leans by more than `roll_above` degrees."""

    score_below: float
    roll_above: float

    def doubt(self, found: Detections) -> bool:
        """Whether an image with these faces may not be upright."""
        if not self.sure(found):
            return True
        assert found.landmarks is not None, "checked when the pipeline was built"
        return bool(abs(pose_angles(found.landmarks[:1])[0, 2]) > self.roll_above)

    def sure(self, found: Detections) -> bool:
        """Whether the detector is sure of a face."""
        return len(found) > 0 and bool(found.scores[0] >= self.score_below)


class OrientationSearch:
    """Looks at an image from all four sides. Safe to call from several threads."""

    def __init__(self, detector: Detector, recogniser: Recogniser) -> None:
        self._detector = detector
        self._recogniser = recogniser

    def search(
        self, image: Image, first: Detections, limits: OrientationLimits, clock: StageClock
    ) -> CooperativeTask[Look]:
        """The best look at an image whose `first` look, as it came, was doubtful.

        Another turn is taken only if the detector is sure of a face there, or if it found no face
        at all in the image as it came. Each run of a network is a step; there are at most six
        detections and six batches of FACES_COMPARED embeddings.
        """
        turned = yield from self._turned_looks(image, clock, framed=False)
        sure = [look for look in turned if limits.sure(look.found)]
        if not sure and len(first) <= 1:
            # A face that fills the photo is found only within a frame.
            turned += yield from self._turned_looks(image, clock, framed=True)
            sure = [look for look in turned if limits.sure(look.found)]
        upright = Look(0, first)
        looks = [upright, *sure] if len(first) else sure or turned or [upright]
        if len(looks) == 1:
            return looks[0]
        return (yield from self._best(image, looks, clock))

    def _turned_looks(
        self, image: Image, clock: StageClock, *, framed: bool
    ) -> CooperativeTask[list[Look]]:
        """The looks from the other sides that show a face."""
        looks = []
        for rotation in ROTATIONS[1:]:
            yield
            with clock.stage("detect"):
                look = Look(rotation, self._detector.look(image, rotation, framed=framed))
            if len(look.found):
                looks.append(look)
        return looks

    def _best(
        self, image: Image, looks: Sequence[Look], clock: StageClock
    ) -> CooperativeTask[Look]:
        values = []
        for look in looks:
            yield
            with clock.stage("orient"):
                values.append(self._value(image, look))
        return looks[int(np.argmax(values))]

    def _value(self, image: Image, look: Look) -> float:
        """The rating of a detection: the sum over the largest of them of the length of the
        embedding times the detector's score, less what the face leans.

        The score alone would choose a wrong turn for one photo in five: detectors find faces that
        lie on their side. The recogniser, trained on upright faces, answers those with short
        embeddings. With a recogniser that answers unit vectors only score and roll matter.
        """
        areas = np.prod(look.found.boxes[:, 2:] - look.found.boxes[:, :2], axis=1)
        faces = look.found.take(np.argsort(-areas, kind="stable")[:FACES_COMPARED])
        size = turned_size(image.shape, look.rotation)
        sent = turned_detections(faces, inverse(look.rotation), *size)
        assert faces.landmarks is not None, "checked when the pipeline was built"
        assert sent.landmarks is not None, "turned with the faces"
        crops = align_faces(image, sent.landmarks, self._recogniser.input_size)
        norms = self._recogniser.lengths(crops)
        rolls = np.abs(pose_angles(faces.landmarks)[:, 2])
        return float(np.sum(norms * (faces.scores - rolls / 360)))
