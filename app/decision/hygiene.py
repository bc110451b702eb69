"""What is probably wrong in a gallery: one person under two ids, faces under the wrong id, faces
that resemble nobody, people with one weak face.

Every template is searched for in the collection's own index, as a probe would be; nothing is
compared with everything.
"""

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from app.decision.calibration import Calibration
from app.decision.calibrations import Calibrations, policy_of
from app.decision.gates import MILD_GATE, QualityGate, complaints
from app.decision.rules import ONE_COMPARISON, Ask, identification_rule, verification_rule
from app.gallery.gallery import Gallery
from app.gallery.ports import Templates
from app.types import FloatArray, Quality

PROBES_AT_ONCE = 1024
# A face that its own person's others reach less than one stranger in a hundred does.
OUTLIER_FMR = 1e-2
FACES_TO_BE_AN_OUTLIER = 3
# Of the gallery's faces, by the length of the raw embedding.
WEAK_SHARE = 0.05
ENOUGH_FACES = 1 / WEAK_SHARE

Progress = Callable[[int, int], None]


@dataclass(frozen=True, slots=True)
class Duplicate:
    """Two ids whose faces resemble one another as only one person's do, most similar first.
    `expected_by_chance`: pairs of different people this similar in the whole gallery. `fmr` is None
    where nothing is calibrated, or where it is rarer than the calibration can tell: then the upper
    end of its 95 % `fmr_interval` is all that is known. So with the other findings."""

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
    taken for one person."""

    persons: int
    faces: int
    threshold: float
    duplicates: tuple[Duplicate, ...]
    mislabels: tuple[Mislabel, ...]
    outliers: tuple[Outlier, ...]
    weak: tuple[Weak, ...]


@dataclass(frozen=True, slots=True)
class _Nearest:
    """Of each template (n,): the nearest template of another person that reaches the threshold (a
    row, -1 for none), its similarity, and that of the nearest other one of its own person (-inf for
    none)."""

    other: NDArray[np.int64]
    similarity: FloatArray
    own: FloatArray


def examine(gallery: Gallery, calibrations: Calibrations, name: str, progress: Progress) -> Hygiene:
    """Look through a collection. Raises CollectionNotFound or EmbeddingSpaceMismatch."""
    record = gallery.require(name)
    held = _all(gallery, name)
    size = gallery.size(name)
    policy, grounds = policy_of(record), calibrations.grounds(record)
    threshold = identification_rule(Ask(), policy, grounds, size).threshold
    low = verification_rule(
        Ask(target_fmr=OUTLIER_FMR), policy, grounds, ONE_COMPARISON, ONE_COMPARISON
    ).threshold
    calibration = next(iter(grounds.calibrations), None)
    if not len(held.keys):
        return Hygiene(0, 0, threshold, (), (), (), ())
    near = _search(gallery, name, held, threshold, progress)
    find = _Findings(gallery, held, near, calibration)
    return Hygiene(
        size.persons,
        len(held.keys),
        threshold,
        find.duplicates(threshold),
        find.mislabels(threshold),
        find.outliers(low),
        find.weak(),
    )


def _all(gallery: Gallery, name: str) -> Templates:
    pages = list(gallery.templates(name))
    if not pages:
        return Templates(np.empty(0, np.int64), np.empty(0, np.int64), np.empty((0, 0), np.float32))
    return Templates(
        np.concatenate([page.keys for page in pages]),
        np.concatenate([page.person_keys for page in pages]),
        np.concatenate([page.vectors for page in pages]),
    )


def _search(
    gallery: Gallery, name: str, held: Templates, threshold: float, progress: Progress
) -> _Nearest:
    """Only what reaches the threshold is looked for: everything below is of no interest."""
    count = len(held.keys)
    other = np.full(count, -1, np.int64)
    similarity = np.full(count, -np.inf, np.float32)
    for start in range(0, count, PROBES_AT_ONCE):
        some = slice(start, start + PROBES_AT_ONCE)
        found = gallery.nearest_others(name, held.vectors[some], held.person_keys[some], threshold)
        places = np.minimum(np.searchsorted(held.keys, found.keys), count - 1)
        # What was enrolled meanwhile is not looked at.
        known = held.keys[places] == found.keys
        other[some] = np.where(known, places, -1)
        similarity[some] = np.where(known, found.similarities, -np.inf)
        progress(min(start + PROBES_AT_ONCE, count), count)
    return _Nearest(other, similarity, _own(held))


def _own(held: Templates) -> FloatArray:
    """Of each template: the similarity of its person's nearest other one."""
    own = np.full(len(held.keys), -np.inf, np.float32)
    order = np.argsort(held.person_keys, kind="stable")
    edges = np.flatnonzero(np.diff(held.person_keys[order])) + 1
    for rows in np.split(order, edges):
        if len(rows) > 1:
            among = held.vectors[rows] @ held.vectors[rows].T
            np.fill_diagonal(among, -np.inf)
            own[rows] = among.max(axis=1)
    return own


class _Findings:
    """Names for numbers."""

    def __init__(
        self, gallery: Gallery, held: Templates, near: _Nearest, calibration: Calibration | None
    ) -> None:
        self._gallery = gallery
        self._held = held
        self._near = near
        self._calibration = calibration
        people = len(np.unique(held.person_keys))
        self._pairs = people * (people - 1) / 2

    def duplicates(self, threshold: float) -> tuple[Duplicate, ...]:
        """Pairs of people with faces beyond the threshold, unless a face only seems misplaced."""
        near, held = self._near, self._held
        best: dict[tuple[int, int], tuple[float, int]] = {}
        # A face under the wrong id resembles those under the right one: that is told as such.
        misplaced = self._misplaced(threshold)
        rows = np.flatnonzero((near.other >= 0) & ~misplaced & ~misplaced[near.other])
        for row in rows.tolist():
            pair = sorted((int(held.person_keys[row]), int(held.person_keys[near.other[row]])))
            key, similarity = (pair[0], pair[1]), float(near.similarity[row])
            if similarity > best.get(key, (-2.0, 0))[0]:
                best[key] = (similarity, row)
        ordered = sorted(best.values(), reverse=True)
        faces = self._faces([row for _, row in ordered], [near.other[r] for _, r in ordered])
        return tuple(
            Duplicate(
                a[1], b[1], a[0], b[0], similarity, *self._fmr(similarity),
                self._expected(similarity),
            )
            for (similarity, _), a, b in zip(ordered, *faces, strict=True)
            if a is not None and b is not None
        )  # fmt: skip

    def mislabels(self, threshold: float) -> tuple[Mislabel, ...]:
        """Faces that another person resembles, and none of their own faces does."""
        near = self._near
        rows = np.flatnonzero(self._misplaced(threshold))
        rows = rows[np.argsort(-near.similarity[rows], kind="stable")]
        mine, others = self._faces(rows.tolist(), near.other[rows].tolist())
        return tuple(
            Mislabel(
                face[0], face[1], other[1], float(near.similarity[row]), float(near.own[row]),
                *self._fmr(float(near.similarity[row])),
            )
            for row, face, other in zip(rows.tolist(), mine, others, strict=True)
            if face is not None and other is not None
        )  # fmt: skip

    def _misplaced(self, threshold: float) -> NDArray[np.bool_]:
        near = self._near
        return np.asarray((near.other >= 0) & (near.own < threshold) & np.isfinite(near.own))

    def outliers(self, low: float) -> tuple[Outlier, ...]:
        """Faces that neither their own people nor anybody else resembles."""
        near, held = self._near, self._held
        _, number, counts = np.unique(held.person_keys, return_inverse=True, return_counts=True)
        alone = (near.own < low) & (counts[number] >= FACES_TO_BE_AN_OUTLIER)
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
        _, first, counts = np.unique(self._held.person_keys, return_index=True, return_counts=True)
        rows = first[counts == 1]
        records = self._gallery.store.faces_by_key(self._held.keys[rows].tolist())
        norms = [
            float(record.quality["embedding_norm"])
            for record in records.values()
            if record.quality.get("embedding_norm") is not None
        ]
        limit = float(np.quantile(norms, WEAK_SHARE)) if len(norms) >= ENOUGH_FACES else None
        gate = _gate(limit)
        found = []
        for record in records.values():
            try:
                quality = Quality(**record.quality)
            except TypeError:  # enrolled as an embedding: nothing is known of the photo
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

    def _expected(self, similarity: float) -> float | None:
        value, _ = self._fmr(similarity)
        return None if value is None else value * self._pairs

    def _faces(self, *columns: list[int]) -> list[list[tuple[str, str] | None]]:
        """Face id and person id of rows; None for what was deleted meanwhile."""
        keys = self._held.keys[np.array([row for rows in columns for row in rows], np.int64)]
        records = self._gallery.store.faces_by_key(keys.tolist())
        named = []
        for rows in columns:
            here = [records.get(int(self._held.keys[row])) for row in rows]
            named.append([None if one is None else (one.face_id, one.person_id) for one in here])
        return named


def _how_weak(one: Weak) -> tuple[int, float, str]:
    """The worst first."""
    return -len(one.reasons), one.quality.embedding_norm or 0.0, one.person_id


def _gate(norm: float | None) -> QualityGate:
    """The mild gate, and a least length of the raw embedding."""
    return MILD_GATE.model_copy(update={"min_embedding_norm": norm})
