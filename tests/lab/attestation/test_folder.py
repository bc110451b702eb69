"""Searches of a folder: what the policy's gates and the calibration's limits take back."""

from dataclasses import replace
from pathlib import Path
from typing import cast

import numpy as np

from app.decision.domain import Limits
from app.decision.face_selection import FaceSelection
from app.decision.gates import OPEN_GATE
from app.decision.policy import CollectionPolicy
from app.index.comparator import COSINE, Comparator
from app.lab.attestation.cells import count_cells
from app.lab.attestation.folder import Measure, roles_of, search_unchanged
from app.lab.evaluation.labels import LabelledPeople, LabelNoise
from app.lab.evaluation.protocol import Analyser, EnrolledPhotos
from app.types import Face
from tests.decision.conftest import face

# Ann and Bob have two photos; Cy, a stranger, looks like Ann.
VECTORS = {
    "ann/1": (1.0, 0.0, 0.0), "ann/2": (1.0, 0.0, 0.0), "bob/1": (0.0, 1.0, 0.0),
    "bob/2": (0.0, 1.0, 0.0), "cy/1": (1.0, 0.0, 0.0),
}  # fmt: skip
PEOPLE = LabelledPeople(Path(), tuple(VECTORS), tuple(name.split("/")[0] for name in VECTORS))


# Weighs nothing: it only tells which faces look degraded.
COMPARATOR = Comparator(np.array([0, 0, 0, 1], np.float32), 0.0)


def counts(limits: Limits, policy: CollectionPolicy, bad: tuple[str, ...]) -> tuple[int, int]:
    """False positives and false negatives, where some faces are dark and lean by 0.4."""

    def one(name: str) -> Face:
        lean = 0.4 if name in bad else 0.0
        embedding = [*(np.sqrt(1 - lean**2) * np.array(VECTORS[name])), lean]
        seen = face(brightness=0.01 if name in bad else 0.5)
        return replace(seen, embedding=np.array(embedding, np.float32))

    photos = EnrolledPhotos({name: one(name) for name in VECTORS}, (), {})
    roles = roles_of(PEOPLE, photos, LabelNoise())
    # Nothing is analysed here.
    nothing = cast(Analyser, None)
    measure = Measure(nothing, PEOPLE, FaceSelection.CENTRE, COMPARATOR, policy, limits)
    (cell,) = count_cells(search_unchanged(measure, roles, photos), 0.9, {})
    return cell.fpir.errors, cell.fnir.errors


def test_two_faces_that_both_look_degraded_are_not_decided() -> None:
    limits, gates = Limits(max_degradation=0.3), CollectionPolicy(enroll_gate=OPEN_GATE)
    dark = Limits(min_brightness=0.05)  # a limit of verifications
    assert counts(Limits(), gates, ("ann/1", "ann/2", "cy/1")) == (1, 0)
    assert counts(limits, gates, ()) == counts(dark, gates, ("ann/1", "cy/1")) == (1, 0)
    assert counts(limits, gates, ("cy/1",)) == (1, 0)  # one side alone is decided
    assert counts(limits, gates, ("ann/1", "cy/1")) == (0, 0)
    assert counts(limits, gates, ("ann/1", "ann/2", "cy/1")) == (0, 1)  # Ann is missed


def test_a_photo_that_the_policy_would_not_enrol_is_not_in_the_gallery() -> None:
    assert counts(Limits(), CollectionPolicy(), ("ann/1",)) == (0, 1)


def test_the_likeness_is_that_of_the_gallery_that_is_searched() -> None:
    generator = np.random.default_rng(0)

    def likeness(people: int, common: float) -> float | None:
        """Of people whose embeddings have a part in common, who have two photos each."""
        vectors = generator.normal(size=(people, 8)) + common
        vectors /= np.linalg.norm(vectors, axis=1, keepdims=True)
        names = [f"{n}/{photo}" for n in range(people) for photo in (1, 2)]
        faces = {
            name: replace(face(), embedding=vectors[int(name.split("/")[0])].astype(np.float32))
            for name in names
        }
        owners = tuple(name.split("/")[0] for name in names)
        folder = LabelledPeople(Path(), tuple(names), owners)
        photos = EnrolledPhotos(faces, (), {})
        measure = Measure(
            cast(Analyser, None), folder, FaceSelection.CENTRE, COSINE, CollectionPolicy()
        )
        return search_unchanged(measure, roles_of(folder, photos, LabelNoise()), photos).likeness

    plain, alike = likeness(60, 0.0), likeness(60, 2.0)
    assert plain is not None
    assert alike is not None
    assert alike > plain + 0.05
    assert likeness(9, 0.0) is None  # too few to tell
