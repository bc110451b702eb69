"""Faces covered on purpose."""

from pathlib import Path

import numpy as np

from app.decision.face_selection import FaceSelection
from app.faces.pipeline import FacePipeline
from app.lab.evaluation.degrading import COVERS, cover, embed_covered
from app.lab.evaluation.protocol import Analyser


def test_the_lower_half_is_covered_and_the_eyes_are_not() -> None:
    face = np.random.default_rng(0).integers(0, 255, (112, 112, 3), np.uint8)
    made = [cover(face, np.random.default_rng(seed)) for seed in range(20)]
    for one in made:
        changed = (one != face).any(axis=2)
        assert changed[85:95, 45:68].mean() > 0.9
        assert not changed[:52].any()
    assert len({one[90, 56].tobytes() for one in made}) > 15, "surfaces differ"
    again = cover(face, np.random.default_rng(3))
    np.testing.assert_array_equal(again, made[3])
    large = cover(np.zeros((224, 224, 3), np.uint8), np.random.default_rng(0))
    assert large[180, 112].any()
    assert not large[:104].any()


def test_each_face_is_embedded_as_it_is_and_covered(
    pipeline: FacePipeline, labelled_folder: Path
) -> None:
    """Photos without a face are left out."""
    analyser, images = Analyser(pipeline), labelled_folder / "images"
    names = ["obama.jpg", "nobody.png", "broken.jpg", "biden.jpg"]
    plain, covered = embed_covered(analyser, images, names, FaceSelection.LARGEST)
    assert (plain.shape, covered.shape) == ((2, 192), (2, COVERS, 192))
    similar = np.einsum("nd,nmd->nm", plain, covered)
    assert (similar < 0.99).all()
    assert similar.mean() > 0.4
    again, _ = embed_covered(analyser, images, names, FaceSelection.LARGEST)
    np.testing.assert_array_equal(again, plain)
