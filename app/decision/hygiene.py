"""What may be wrong in a gallery: one person under two ids, faces under the wrong id, faces that
resemble nobody, people with one weak face.

Every template is searched for in the collection's own index, as a probe would be; nothing is
compared with everything.
"""

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np

from app.decision.calibration import Calibration
from app.decision.calibrations import Calibrations, policy_of
from app.decision.chance import ChancePairs
from app.decision.gates import MILD_GATE, QualityGate, complaints
from app.decision.neighbours import Neighbours, Progress, Rows, find_neighbours
from app.decision.rules import ONE_COMPARISON, Ask, identification_rule
from app.gallery.gallery import Gallery
from app.gallery.ports import FaceRecord, GallerySize
from app.types import Quality

FACES_AT_ONCE = 10_000
# A face that its own person's others reach less than one stranger in a hundred does.
OUTLIER_FMR = 1e-2
FACES_TO_BE_AN_OUTLIER = 3
# Of the gallery's faces, by the length of the raw embedding.
WEAK_SHARE = 0.05
ENOUGH_FACES = 1 / WEAK_SHARE


@dataclass(frozen=True, slots=True)
class Duplicate:
    """Two ids whose faces resemble one another as one person's do, most similar first.
    `expected_by_chance`: pairs of different people at least this similar in the whole gallery, each
    by their most similar templates. `fmr` is that of one comparison; it is None where nothing is
    calibrated, or where it is rarer than the calibration can tell: then the upper end of its 95 %
    `fmr_interval` is all that is known. So with the other findings."""

    person_id_a: str
    person_id_b: str
    face_id_a: str
    face_id_b: str
    similarity: float
    fmr: float | None
    fmr_interval: tuple[float, float] | None
    expected_by_chance: float | None


@dataclass(frozen=True, slots=True)
class Mislabel:
    """A face that resembles another person, and none of its own person's other faces."""

    face_id: str
    person_id: str
    looks_like: str
    similarity: float
    own_similarity: float
    fmr: float | None
    fmr_interval: tuple[float, float] | None


@dataclass(frozen=True, slots=True)
class Outlier:
    """A face that does not resemble the other faces of its person, nor anybody else; `fmr` of
    strangers' faces would resemble them as much."""

    face_id: str
    person_id: str
    own_similarity: float
    fmr: float | None
    fmr_interval: tuple[float, float] | None


@dataclass(frozen=True, slots=True)
class Weak:
    """A person with one face, which is poor: with `reasons` (stable codes), and its `quality`."""

    face_id: str
    person_id: str
    reasons: tuple[str, ...]
    quality: Quality


@dataclass(frozen=True, slots=True)
class Hygiene:
    """What was found, the worst first; `threshold` is the similarity from which two faces were
    taken for one person.

    `duplicates_by_chance` and `mislabels_by_chance`: of those findings so many are expected of
    different people who look alike; None where nothing is calibrated. A threshold beyond what the
    calibration knows gives the number at its end, which is higher.
    """

    persons: int
    faces: int
    threshold: float
    duplicates_by_chance: float | None
    mislabels_by_chance: float | None
    duplicates: tuple[Duplicate, ...]
    mislabels: tuple[Mislabel, ...]
    outliers: tuple[Outlier, ...]
    weak: tuple[Weak, ...]


def examine(gallery: Gallery, calibrations: Calibrations, name: str, progress: Progress) -> Hygiene:
    """Look through a collection. Raises CollectionNotFound or EmbeddingSpaceMismatch."""
    record = gallery.require(name)
    size = gallery.size(name)
    policy, grounds = policy_of(record), calibrations.grounds(record)
    threshold = identification_rule(Ask(), policy, grounds, size).threshold
    calibration = next(iter(grounds.calibrations), None)
    # Without a calibration nothing tells how little strangers resemble one another.
    low = -1.0 if calibration is None else calibration.threshold_at(OUTLIER_FMR, ONE_COMPARISON)
    near = find_neighbours(gallery, name, threshold, max(threshold, low), progress)
    find = _Findings(gallery, near, calibration, threshold)
    return Hygiene(
        size.persons,
        len(near.keys),
        threshold,
        find.duplicates_by_chance(),
        find.mislabels_by_chance(size),
        find.duplicates(),
        find.mislabels(),
        find.outliers(low),
        find.weak(),
    )


class _Findings:
    """Names for numbers."""

    def __init__(
        self,
        gallery: Gallery,
        near: Neighbours,
        calibration: Calibration | None,
        threshold: float,
    ) -> None:
        self._gallery = gallery
        self._near = near
        self._calibration = calibration
        self._threshold = threshold
        _, self._first, self._person, self._held = np.unique(
            near.person_keys, return_index=True, return_inverse=True, return_counts=True
        )
        # A face that resembles none of its own person's is out of place where another person's
        # resembles it.
        self._doubtful = (near.own < threshold) & np.isfinite(near.own)
        self._misplaced = self._doubtful & (near.other >= 0)
        self._by_chance = None if calibration is None else ChancePairs.of(calibration, self._held)

    def duplicates_by_chance(self) -> float | None:
        """How many of the duplicates are expected by chance. A doubtful face makes a mislabel."""
        if self._calibration is None:
            return None
        steady = np.bincount(self._person[~self._doubtful], minlength=len(self._held))
        return ChancePairs.of(self._calibration, steady).at_most(self._threshold)

    def mislabels_by_chance(self, size: GallerySize) -> float | None:
        """How many of the mislabels are expected by chance: a doubtful face meets a stranger."""
        if self._calibration is None:
            return None
        return int(self._doubtful.sum()) * self._calibration.fpir_at(self._threshold, size)

    def duplicates(self) -> tuple[Duplicate, ...]:
        """Pairs of people with faces beyond the threshold, unless a face only seems misplaced."""
        near, persons = self._near, self._near.person_keys
        best: dict[tuple[int, int], tuple[float, int]] = {}
        # A face under the wrong id resembles those under the right one: that is a mislabel.
        rows = np.flatnonzero((near.other >= 0) & ~self._misplaced & ~self._misplaced[near.other])
        for row in rows.tolist():
            pair = sorted((int(persons[row]), int(persons[near.other[row]])))
            key, similarity = (pair[0], pair[1]), float(near.similarity[row])
            if similarity > best.get(key, (-2.0, 0))[0]:
                best[key] = (similarity, row)
        ordered = sorted(best.values(), reverse=True)
        faces = self._faces([row for _, row in ordered], [near.other[r] for _, r in ordered])
        return tuple(
            Duplicate(
                a[1], b[1], a[0], b[0], similarity, *self._fmr(similarity),
                None if self._by_chance is None else self._by_chance.at(similarity),
            )
            for (similarity, _), a, b in zip(ordered, *faces, strict=True)
            if a is not None and b is not None and a[1] != b[1]
        )  # fmt: skip

    def mislabels(self) -> tuple[Mislabel, ...]:
        """Faces that another person resembles, and none of their own faces does."""
        near = self._near
        rows = np.flatnonzero(self._misplaced)
        rows = rows[np.argsort(-near.similarity[rows], kind="stable")]
        mine, others = self._faces(rows.tolist(), near.other[rows].tolist())
        return tuple(
            Mislabel(
                face[0], face[1], other[1], float(near.similarity[row]), float(near.own[row]),
                *self._fmr(float(near.similarity[row])),
            )
            for row, face, other in zip(rows.tolist(), mine, others, strict=True)
            if face is not None and other is not None and face[1] != other[1]
        )  # fmt: skip

    def outliers(self, low: float) -> tuple[Outlier, ...]:
        """Faces that neither their own people nor anybody else resembles."""
        near = self._near
        alone = (near.own < low) & (self._held[self._person] >= FACES_TO_BE_AN_OUTLIER)
        rows = np.flatnonzero(alone & (near.other < 0))
        rows = rows[np.argsort(near.own[rows], kind="stable")]
        (faces,) = self._faces(rows.tolist())
        return tuple(
            Outlier(face[0], face[1], float(near.own[row]), *self._fmr(float(near.own[row])))
            for row, face in zip(rows.tolist(), faces, strict=True)
            if face is not None
        )

    def weak(self) -> tuple[Weak, ...]:
        """People whose only face fails the mild gate, or is among the shortest embeddings."""
        rows = self._first[self._held == 1]
        norms = np.full(len(rows), np.nan)
        poor = np.zeros(len(rows), np.bool_)
        for start, records in self._records(rows):
            for place, record in enumerate(records, start):
                quality = None if record is None else Quality.read(record.quality)
                if quality is not None:
                    norms[place] = np.nan if (norm := quality.embedding_norm) is None else norm
                    poor[place] = bool(complaints(quality, MILD_GATE))
        known = norms[np.isfinite(norms)]
        limit = float(np.quantile(known, WEAK_SHARE)) if len(known) >= ENOUGH_FACES else None
        gate, found = _gate(limit), []
        for _, records in self._records(rows[poor | (norms < (limit or -np.inf))]):
            for record in records:
                quality = None if record is None else Quality.read(record.quality)
                if record is None or quality is None:
                    continue
                reasons = tuple(complaint.code for complaint in complaints(quality, gate))
                if reasons:
                    found.append(Weak(record.face_id, record.person_id, reasons, quality))
        return tuple(sorted(found, key=_how_weak))

    def _fmr(self, similarity: float) -> tuple[float | None, tuple[float, float] | None]:
        """How many comparisons of different people are as similar, and its 95 % interval."""
        if self._calibration is None:
            return None, None
        rate = self._calibration.fmr_at(similarity)
        if rate is None:
            return None, (0.0, float(self._calibration.fmr.high[-1]))
        return rate.value, (rate.low, rate.high)

    def _faces(self, *columns: list[int]) -> list[list[tuple[str, str] | None]]:
        """Face id and person id of rows; None for what was deleted meanwhile."""
        return [
            [
                None if record is None else (record.face_id, record.person_id)
                for _, records in self._records(np.array(rows, np.int64))
                for record in records
            ]
            for rows in columns
        ]

    def _records(self, rows: Rows) -> Iterator[tuple[int, list[FaceRecord | None]]]:
        """The faces of rows, some at a time, and where these start; None for deleted ones."""
        for start in range(0, len(rows), FACES_AT_ONCE):
            keys = self._near.keys[rows[start : start + FACES_AT_ONCE]].tolist()
            found = self._gallery.store.faces_by_key(keys)
            yield start, [found.get(key) for key in keys]


def _how_weak(one: Weak) -> tuple[int, float, str]:
    """The worst first."""
    return -len(one.reasons), one.quality.embedding_norm or 0.0, one.person_id


def _gate(norm: float | None) -> QualityGate:
    """The mild gate, and a least length of the raw embedding."""
    return MILD_GATE.model_copy(update={"min_embedding_norm": norm})
