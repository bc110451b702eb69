"""Which faces are outside of what a calibration was measured on, and what is not decided then."""

from collections.abc import Iterator
from dataclasses import asdict, replace
from pathlib import Path

import numpy as np
import pytest

from app.decision.domain import NO_LIMITS, Limits
from app.decision.verdicts import OUTSIDE_CALIBRATION, Rejections, Status, Verdict
from app.gallery.candidates import Candidate
from app.gallery.gallery import Gallery
from app.index.comparator import Comparator
from app.index.factory import IndexFactory
from app.store.backends import create_engine
from app.store.records import NewTemplate
from app.store.schema import migrate
from app.store.store import Store
from app.types import Face, FloatArray
from tests.decision.conftest import GOOD, face
from tests.writing import enroll_person

D = 8
LEAN, AWAY = np.eye(D, dtype=np.float32)[:2]
LIMITS = Limits(max_degradation=0.3, min_sharpness=30, min_brightness=0.05, min_face_size_px=20)


@pytest.fixture
def gallery(tmp_path: Path) -> Iterator[Gallery]:
    engine = create_engine(f"sqlite:///{tmp_path / 'likeness.db'}")
    migrate(engine)
    opened = Gallery(Store(engine), IndexFactory(1), "es-test", D, Comparator(LEAN, 0.1))
    yield opened
    opened.close()


def leaning(by: float) -> FloatArray:
    return (by * LEAN + np.sqrt(1 - by * by) * AWAY).astype(np.float32)


def of(vector: FloatArray, **quality: float) -> Face:
    return replace(face(**quality), embedding=vector)


def test_a_face_is_beyond_each_limit_that_it_exceeds() -> None:
    assert LIMITS.beyond(GOOD, 0.1) == ()
    assert LIMITS.beyond(replace(GOOD, sharpness=29), 0.31) == ("degraded", "blurred")
    assert LIMITS.beyond(replace(GOOD, brightness=0.04), None) == ("too_dark",)
    assert LIMITS.beyond(replace(GOOD, face_size_px=19), 0.1) == ("face_too_small",)
    assert LIMITS.beyond(None, None) == ()
    assert NO_LIMITS.beyond(replace(GOOD, sharpness=0, brightness=0), 1.0) == ()


def test_limits_leave_most_good_faces_within() -> None:
    generator = np.random.default_rng(0)
    leans = generator.normal(0, 0.1, 10_000).astype(np.float32)
    found = Limits.fit(leans)
    assert found.max_degradation is not None
    assert np.mean(leans > found.max_degradation) == pytest.approx(0.01, abs=0.002)
    assert found.min_brightness == 0.05
    assert Limits.fit(None).max_degradation is None


@pytest.mark.parametrize(
    ("probe", "stored", "rejected"),
    [
        (of(leaning(0.5)), of(leaning(0.5)), True),
        (of(leaning(0.5)), of(leaning(0.0)), False),
        (of(leaning(0.0)), of(leaning(0.5)), False),
        (of(leaning(0.0), sharpness=5), of(leaning(0.0), sharpness=5), True),
        (of(leaning(0.0), sharpness=5), of(leaning(0.5)), False),  # degraded in different ways
        (of(leaning(0.0), brightness=0.01), of(leaning(0.0), brightness=0.01), True),
        (of(leaning(0.0), size=16), of(leaning(0.0), size=18), True),
        (of(leaning(0.0), size=16), of(leaning(0.0)), False),
    ],
)
def test_a_comparison_is_rejected_where_both_sides_are_beyond_one_limit(
    gallery: Gallery, probe: Face, stored: Face, rejected: bool
) -> None:
    assert stored.embedding is not None
    assert probe.embedding is not None
    template = NewTemplate(stored.embedding, "x", asdict(stored.quality))
    (kept,) = enroll_person(gallery, "default", "ada", None, [template])
    rejections = Rejections(gallery, "default", LIMITS)
    assert rejections.rejects(probe, stored) is rejected
    claimed = gallery.compare("default", "ada", probe.embedding)
    assert claimed is not None
    assert rejections.rejects(probe, claimed) is rejected
    identified = Verdict(Status.IDENTIFIED, Candidate(kept.face, 0.9, None))
    (verdict,) = rejections.applied([identified], [probe])
    # A search follows the gallery's likeness, which covers what is merely blurred or dark.
    degraded = rejected and float(probe.embedding[0]) > 0.3
    assert (verdict.status is Status.REJECTED) is degraded
    assert verdict.reasons == ((OUTSIDE_CALIBRATION,) if degraded else ())
    unknown = Verdict(Status.UNKNOWN)
    assert rejections.applied([unknown], [probe]) == [unknown]


def test_the_embedding_limits_a_template_without_a_photo(gallery: Gallery) -> None:
    enroll_person(gallery, "default", "ada", None, [NewTemplate(leaning(0.6), "x")])
    probe = of(leaning(0.6), sharpness=5)
    claimed = gallery.compare("default", "ada", leaning(0.6))
    assert claimed is not None
    assert Rejections(gallery, "default", LIMITS).rejects(probe, claimed)
    by_photo = LIMITS.model_copy(update={"max_degradation": None})
    assert not Rejections(gallery, "default", by_photo).rejects(probe, claimed)
