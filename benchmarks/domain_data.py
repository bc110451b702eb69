"""What `degraded_faces.py` embedded, and what is fitted to the development half of the people.

The benchmarks `domain.py`, `domain_galleries.py` and `verification.py` read it.
"""

import argparse
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from degraded_faces import is_development
from numpy.typing import NDArray

from app.decision.calibration import Calibration
from app.decision.comparisons import LabelledEmbeddings
from app.decision.domain import Limits, SharedDirection
from app.decision.fitting import Labelled, calibrate
from app.decision.pair_lifts import GROUP_FMR, CoveredFaces, PairLift, PairLifts
from app.decision.rates import Rate
from app.decision.thresholds import ONE_COMPARISON
from app.index.comparator import COSINE, Comparator
from app.lab.evaluation.degrading import DEGRADATIONS, MILD_DEGRADATIONS
from app.lab.evaluation.labels import read_attributes, read_label_noise
from app.types import FloatArray

FMR = 1e-4

TITLES = {
    "sharp": "as it is",
    **{f"blur-{n}": f"blur sigma {n}" for n in range(1, 7)},
    **{f"dark-{n}": f"brightness × {n}" for n in (0.2, 0.1, 0.05)},
    **{f"bright-{n}": f"brightness × {n}" for n in (2, 3)},
    **{f"jpeg-{n}": f"JPEG quality {n}" for n in (30, 20, 10)},
    **{f"size-{n}": f"face {n} px wide" for n in (64, 32, 24, 16, 12)},
    "masked": "lower half covered, light blue",
    "masked-white": "white",
    "masked-black": "black",
    "masked-spots": "coloured spots",
    "grey": "greyscale",
    "noise-40": "noise sigma 40",
    "turned-90": "turned by 90°",
    "turned-180": "turned by 180°",
}
"""The strata by the names of their files, in the order of the tables."""


@dataclass(frozen=True, slots=True)
class Faces:
    """Embeddings (n, d), whose they are (n,), and how sharp, bright and wide the faces are (n,)."""

    vectors: FloatArray
    persons: NDArray[np.str_]
    sharpness: FloatArray
    brightness: FloatArray
    width: FloatArray

    def of(self, rows: NDArray[np.generic]) -> "Faces":
        columns = self.vectors, self.persons, self.sharpness, self.brightness, self.width
        return Faces(*(column[rows] for column in columns))

    def beyond(self, calibration: Calibration) -> NDArray[np.bool_]:
        """Which limits of a calibration each face is beyond (4, n)."""
        assert calibration.domain is not None, "only the score has limits"
        limits, degradation = (
            calibration.domain.limits,
            calibration.comparator.degradation(self.vectors),
        )
        return np.array([
            degradation > limits.max_degradation,
            self.sharpness < limits.min_sharpness,
            self.brightness < limits.min_brightness,
            self.width < limits.min_face_size_px,
        ])  # fmt: skip

    def first(self) -> "Faces":
        """One face per person."""
        return self.of(np.unique(self.persons, return_index=True)[1])

    def labelled(self, comparator: Comparator) -> LabelledEmbeddings:
        return LabelledEmbeddings.of(self.vectors, self.persons, comparator)


@dataclass(frozen=True, slots=True)
class Cache:
    """The photos of the held-out half, as they are and degraded, and both calibrations."""

    sharp: Faces
    kinds: dict[str, Faces]
    before: Calibration
    after: Calibration


def read_cache(options: argparse.Namespace) -> Cache:
    """The held-out half, and what was fitted to the other one."""
    photos = np.array((options.cache / "photos.txt").read_text().split())
    persons = np.array([photo.split("/")[0] for photo in photos])
    noise = read_label_noise(options.label_noise)
    second_names = {other for _, other in noise.same_people}
    everyone = _faces(options.cache / "sharp.npz", persons)
    usable = ~np.isin(photos, list(noise.images)) & ~np.isin(persons, list(second_names))
    usable &= np.isfinite(everyone.sharpness)
    mine = np.array([is_development(person) for person in persons])
    sex = read_attributes(options.groups)["sex"]
    before, after = _calibrations(options.cache / "fit.npz", everyone.of(usable & mine), sex)
    kinds = {}
    for kind in TITLES:
        if kind != "sharp" and (options.cache / f"{kind}.npz").exists():
            rows = np.load(options.cache / f"{kind}.npz")["rows"]
            faces = _faces(options.cache / f"{kind}.npz", persons[rows])
            kinds[kind] = faces.of((usable & ~mine)[rows])
    return Cache(everyone.of(usable & ~mine), kinds, before, after)


def _faces(path: Path, persons: NDArray[np.str_]) -> Faces:
    stored = np.load(path)
    measures = (stored[name] for name in ("sharpness", "brightness", "width"))
    return Faces(stored["embedding"], persons, *measures)


def _calibrations(
    fit: Path, faces: Faces, group_of: dict[str, str]
) -> tuple[Calibration, Calibration]:
    """By the cosine, and by the score whose direction was fitted to the same half."""
    stored = np.load(fit)
    name = "development half"
    covered = CoveredFaces.fit(stored["plain"], stored["covered"], name)
    shared = SharedDirection.fit({kind: stored[kind] for kind in DEGRADATIONS}, name, covered)
    limits = Limits.fit(shared.comparator.degradation(faces.vectors))
    plain = Labelled(faces.labelled(COSINE), "photos", name)
    scored = Labelled(
        faces.labelled(shared.comparator), "photos", name, shared=shared, limits=limits
    )
    before, after = (calibrate(one, "es-benchmark", "float32") for one in (plain, scored))
    mild = np.stack([stored[kind] for kind in MILD_DEGRADATIONS], axis=1)
    one = faces.first()
    group = np.array([group_of.get(str(person), "") for person in one.persons])
    lifts = PairLifts(
        degraded=PairLift.of_degraded(stored["plain"], mild, name),
        typical=PairLift.of_typical(
            one.vectors[group != ""], group[group != ""], shared.comparator,
            after.threshold_at(GROUP_FMR, ONE_COMPARISON), name,
        ),
    )  # fmt: skip
    assert after.domain is not None, "the score has a direction"
    domain = after.domain.model_copy(update={"verification": lifts})
    return before, after.changed(domain=domain)


def refused(
    faces: Faces, others: Faces, calibration: Calibration, *, searching: bool = False
) -> NDArray[np.bool_]:
    """Whether both sides are beyond one limit (n, m): when searching, that of degradation."""
    mine, theirs = faces.beyond(calibration), others.beyond(calibration)
    if searching:
        mine, theirs = mine[:1], theirs[:1]
    return np.any([np.outer(a, b) for a, b in zip(mine, theirs, strict=True)], axis=0)


def threshold_of(calibration: Calibration) -> float:
    """Of one comparison, for FMR."""
    return calibration.threshold_at(FMR, ONE_COMPARISON)


def per_10_000(rate: Rate) -> str:
    """With its interval, as a cell of a table."""
    places = 0 if rate.value >= 1e-2 else 1
    value, low, high = (f"{1e4 * one:.{places}f}" for one in (rate.value, rate.low, rate.high))
    return f"{value} ({low}–{high})"


def row(*cells: str) -> None:
    """One row of a Markdown table."""
    print("| " + " | ".join(cells) + " |", flush=True)


def head(*cells: str) -> None:
    """The first rows of a Markdown table."""
    row(*cells)
    row(*["---"] * len(cells))


def arguments(description: str) -> argparse.Namespace:
    """CACHE and the tables of groups and of label noise."""
    parser = argparse.ArgumentParser(description=description.split("\n", maxsplit=1)[0])
    parser.add_argument("cache", type=Path)
    parser.add_argument("--groups", type=Path, required=True)
    parser.add_argument("--label-noise", type=Path, required=True)
    return parser.parse_args()
