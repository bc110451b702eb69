"""What a calibration promises, in strata of degraded photos and in galleries of one group.

    python benchmarks/domain.py CACHE --groups ../shared/data/lfw/groups.csv \
        --label-noise benchmarks/lfw_label_noise.csv

CACHE is what `degraded_faces.py` wrote. Calibrations and the direction are made of the development
half of the people; every figure is of the other half. Before: cosines; after: the score, and where
a gallery is searched the threshold raised by its likeness. Prints Markdown tables.
"""

import argparse
from collections.abc import Iterator
from dataclasses import dataclass
from itertools import combinations
from pathlib import Path

import numpy as np
from degraded_faces import KINDS, is_development
from numpy.typing import NDArray

from app.decision.calibration import Calibration
from app.decision.comparisons import LabelledEmbeddings, compare_mated, rates_at
from app.decision.covered import CoveredFaces
from app.decision.domain import SharedDirection
from app.decision.fitting import Labelled, calibrate
from app.decision.limits import Limits
from app.decision.pair_lifts import GROUP_FMR, PairLift, PairLifts
from app.decision.rates import Rate, clopper_pearson
from app.decision.thresholds import ONE_COMPARISON
from app.index.comparator import COSINE, Comparator
from app.index.likeness import LEAST_PERSONS, PERSONS, QUANTILE
from app.index.port import GallerySize
from app.lab.evaluation.degrading import DEGRADATIONS, MILD_DEGRADATIONS
from app.lab.evaluation.identification import by_person
from app.lab.evaluation.labels import read_attributes, read_label_noise
from app.types import FloatArray

CHOICES = 20
TARGETS = (0.1, 0.03, 0.01, 0.001)
FMR = 1e-4

Rows = NDArray[np.intp]


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
        """One face a person."""
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


def main() -> None:
    options = _arguments()
    cache = _read(options)
    print(f"{len(cache.sharp.vectors)} photos of {len(set(cache.sharp.persons))} people held out\n")
    _strata(cache)
    _degraded_galleries(cache)
    _groups(cache, read_attributes(options.groups)["sex"])
    _press(cache)


# --- strata ----------------------------------------------------------------------------------


def _strata(cache: Cache) -> None:
    print("FMR at the threshold for 1e-4, per 10,000 (95 % interval)\n")
    _row(
        "stratum", "faces", "both, before", "both, score", "refused, %", "both, decided",
        "one, before", "one, after", "median x.d", "a(x) = 1, %",
    )  # fmt: skip
    _row(*["---"] * 10)
    for kind, faces in {"sharp": cache.sharp, **cache.kinds}.items():
        some = faces.first()
        cells = [_both(some, one) for one in (cache.before, cache.after)]
        one_side = [_one(some, cache.sharp.first(), one) for one in (cache.before, cache.after)]
        refused, decided = _decided(some, cache.after)
        degradation = cache.after.comparator.degradation(some.vectors)
        assert degradation is not None, "the calibration has a domain"
        covering = cache.after.comparator.coverings(some.vectors)
        _row(
            kind, str(len(some.vectors)), *map(_per_10_000, cells), f"{100 * refused:.1f}",
            f"{1e4 * decided:.2f}", *(f"{1e4 * one.value:.2f}" for one in one_side),
            f"{np.median(degradation):.2f}",
            "" if covering is None else f"{100 * (covering == 1).mean():.1f}",
        )  # fmt: skip
    print("\nTwo different degradations, the worst pairs after\n")
    found = []
    for a, b in combinations(cache.kinds, 2):
        one, other = cache.kinds[a].first(), cache.kinds[b].first()
        found.append(
            (_one(one, other, cache.after).value, _one(one, other, cache.before).value, a, b)
        )
    for after, before, a, b in sorted(found, reverse=True)[:8]:
        _row(a, b, f"{before:.1e}", f"{after:.1e}")
    print()


def _decided(faces: Faces, calibration: Calibration) -> tuple[float, float]:
    """The share of comparisons refused, and of all those that match and are not refused."""
    pairs = np.triu_indices(len(faces.vectors), 1)
    refused = _refused(faces, faces, calibration)[pairs]
    scores = calibration.comparator.scores(faces.vectors, faces.vectors)[pairs]
    matched = scores >= _threshold(calibration)
    return float(refused.mean()), float((matched & ~refused).mean())


def _refused(
    faces: Faces, others: Faces, calibration: Calibration, *, searching: bool = False
) -> NDArray[np.bool_]:
    """Whether both sides are beyond one limit (n, m): when searching, that of degradation."""
    mine, theirs = faces.beyond(calibration), others.beyond(calibration)
    if searching:
        mine, theirs = mine[:1], theirs[:1]
    return np.any([np.outer(a, b) for a, b in zip(mine, theirs, strict=True)], axis=0)


def _threshold(calibration: Calibration) -> float:
    return calibration.threshold_at(FMR, ONE_COMPARISON)


def _both(faces: Faces, calibration: Calibration) -> Rate:
    at = np.array([_threshold(calibration)])
    curve = rates_at(faces.labelled(calibration.comparator), at)
    return Rate(float(curve.rates[0]), float(curve.low[0]), float(curve.high[0]))


def _one(faces: Faces, others: Faces, calibration: Calibration) -> Rate:
    """Faces against others' faces; the interval counts a face's comparisons as one cluster."""
    scores = calibration.comparator.scores(faces.vectors, others.vectors)
    different = faces.persons[:, np.newaxis] != others.persons
    matched = (scores >= _threshold(calibration))[different]
    return by_person(matched, np.nonzero(different)[0])


# --- galleries -------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class Searched:
    """What the searches of one gallery found: by stranger the highest score, by mated probe its
    own person's score, whether that was first, and whose probe it is; searches whose nearest
    comparison is refused find nobody."""

    strangers: NDArray[np.float64]
    own: NDArray[np.float64]
    first: NDArray[np.bool_]
    persons: NDArray[np.str_]
    likeness: float | None


def _search(
    gallery: Faces, mated: Faces, strangers: Faces, calibration: Calibration, *, limited: bool
) -> Searched:
    comparator = calibration.comparator
    scores = comparator.scores(mated.vectors, gallery.vectors)
    place = np.searchsorted(gallery.persons, mated.persons)
    own = scores[np.arange(len(scores)), place].astype(np.float64)
    theirs = comparator.scores(strangers.vectors, gallery.vectors)
    others, first = theirs.max(axis=1).astype(np.float64), own >= scores.max(axis=1)
    if limited:
        nearest = theirs.argmax(axis=1)
        refused = _refused(strangers, gallery, calibration, searching=True)
        others[refused[np.arange(len(nearest)), nearest]] = -1
        lost = _refused(mated, gallery, calibration, searching=True)
        first &= ~lost[np.arange(len(scores)), place]
    return Searched(
        others, own, first, mated.persons,
        _likeness(gallery, comparator),
    )  # fmt: skip


def _likeness(gallery: Faces, comparator: Comparator) -> float | None:
    some = gallery.vectors[:PERSONS]
    if len(some) < LEAST_PERSONS:
        return None
    pairs = np.triu_indices(len(some), 1)
    return float(np.quantile(comparator.scores(some, some)[pairs], QUANTILE))


def _gallery_row(
    name: str,
    draws: list[tuple[Faces, Faces, Faces]],
    calibration: Calibration,
    *,
    lifted: bool,
    limited: bool = False,
    targets: tuple[float, ...] = TARGETS,
) -> None:
    """FPIR with its interval at each target, and TPIR at 1 %, over several draws of a gallery."""
    found = [_search(*draw, calibration, limited=limited) for draw in draws]
    size = GallerySize(len(draws[0][0].vectors), len(draws[0][0].vectors))
    cells, lift = [], 0.0
    for target in targets:
        wrong, right = [], []
        try:
            threshold = calibration.threshold_at(target, size)
        except Exception as error:  # noqa: BLE001
            cells.append(type(error).__name__)
            continue
        for one in found:
            if lifted and calibration.domain is not None:
                lift = calibration.domain.lift_of(one.likeness, size)
            wrong.append((one.strangers >= threshold + lift).mean())
            right.append((one.first & (one.own >= threshold + lift)).mean())
        strangers = float(len(found[0].strangers))
        mean = float(np.mean(wrong))
        low, high = clopper_pearson(np.array([mean * strangers]), np.array([strangers]))
        cells.append(f"{100 * mean:.2f} ({100 * low[0]:.2f}-{100 * high[0]:.2f})")
        if target == 0.01:
            tpir = f"{100 * np.mean(right):.1f}"
    _row(name, *cells, tpir, f"{lift:.3f}")


def _degraded_galleries(cache: Cache) -> None:
    print("Galleries degraded like their probes: FPIR in % at promised 1 %, TPIR in %\n")
    _row("stratum", "FPIR", "TPIR", "lift")
    _row(*["---"] * 4)
    for kind, faces in cache.kinds.items():
        draws = [_parted(faces)]
        _gallery_row(f"{kind}, before", draws, cache.before, lifted=False, targets=(0.01,))
        _gallery_row(f"{kind}, score", draws, cache.after, lifted=True, targets=(0.01,))
        _gallery_row(
            f"{kind}, decided", draws, cache.after, lifted=True, limited=True, targets=(0.01,)
        )
    print()


def _parted(faces: Faces) -> tuple[Faces, Faces, Faces]:
    """The first photo of people with two, their second ones, and people with one."""
    names, first, counts = np.unique(faces.persons, return_index=True, return_counts=True)
    several = np.isin(faces.persons, names[counts > 1])
    enrolled = np.zeros(len(several), np.bool_)
    enrolled[first] = True
    return faces.of(several & enrolled), faces.of(several & ~enrolled), faces.of(~several)


def _draws(faces: Faces, size: int | None = None) -> Iterator[tuple[Faces, Faces, Faces]]:
    """Random choices of the photo that is enrolled of each person who has several."""
    names, counts = np.unique(faces.persons, return_counts=True)
    for seed in range(CHOICES):
        generator = np.random.default_rng(seed)
        several = generator.permutation(names[counts > 1])[:size]
        order = generator.permutation(len(faces.persons))
        _, place = np.unique(faces.persons[order], return_index=True)
        picked = np.zeros(len(order), np.bool_)
        picked[order[place]] = True
        known = np.isin(faces.persons, several)
        strangers = np.isin(faces.persons, names[counts == 1])
        gallery = faces.of(known & picked)
        gallery = gallery.of(np.argsort(gallery.persons))
        yield gallery, faces.of(known & ~picked), faces.of(strangers)


def _groups(cache: Cache, group_of: dict[str, str]) -> None:
    faces = cache.sharp
    group = np.array([group_of.get(person, "") for person in faces.persons])
    galleries = {"mixed": np.ones(len(group), np.bool_)}
    galleries |= {name: group == name for name in sorted(set(group) - {""})}
    for size in (None, 50):
        print(f"Galleries of {size or 'all'}: FPIR in % at promised 10 / 3 / 1 / 0.1 %\n")
        _row("gallery", *(f"{100 * target:g} %" for target in TARGETS), "TPIR at 1 %", "lift")
        _row(*["---"] * 7)
        for name, rows in galleries.items():
            draws = list(_draws(faces.of(rows), size))
            people = len(draws[0][0].persons)
            _gallery_row(f"{people} {name}, before", draws, cache.before, lifted=False)
            _gallery_row(f"{people} {name}, score", draws, cache.after, lifted=False)
            _gallery_row(f"{people} {name}, score and lift", draws, cache.after, lifted=True)
        print()
    print("One comparison within a group: FMR per 10,000 at the threshold for 1e-4, and at 0.568\n")
    for name, rows in galleries.items():
        some = faces.of(rows).labelled(cache.after.comparator)
        at = np.array([_threshold(cache.after), 0.568])
        curve = rates_at(some, at)
        _row(name, *(
            _per_10_000(Rate(float(curve.rates[i]), float(curve.low[i]), float(curve.high[i])))
            for i in range(2)
        ))  # fmt: skip
    print()


# --- press photos ----------------------------------------------------------------------------


def _press(cache: Cache) -> None:
    print("Press photos: what the score and a bound on both sides' degradation cost\n")
    for name, one in (("before", cache.before), ("after", cache.after)):
        missed = one.fnmr_at(_threshold(one))
        assert missed is not None, "people have several photos"
        held_out = compare_mated(
            cache.sharp.labelled(one.comparator), np.array([_threshold(one), 1.0])
        )
        assert held_out is not None, "people have several photos"
        print(
            f"- {name}: threshold {_threshold(one):.4f}, FNMR of the development half "
            f"{missed.value:.4f}, of the other {held_out[0].rates[0]:.4f}"
        )
    assert cache.after.domain is not None, "the score has a domain"
    print(f"- limits {cache.after.domain.limits}, likeness {cache.after.domain.likeness}")
    same = cache.sharp.persons[:, np.newaxis] == cache.sharp.persons
    refused = _refused(cache.sharp, cache.sharp, cache.after)
    upper = np.triu(np.ones_like(same), 1)
    for name, mask in (("mated", same), ("non-mated", ~same)):
        print(f"- {100 * refused[upper & mask].mean():.3f} % of the {name} comparisons refused")


# --- inside ----------------------------------------------------------------------------------


def _read(options: argparse.Namespace) -> Cache:
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
    for kind in KINDS:
        if (options.cache / f"{kind}.npz").exists():
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
    return before, Calibration(**dict(after) | {"domain": domain})


def _per_10_000(rate: Rate) -> str:
    return f"{1e4 * rate.value:.2f} ({1e4 * rate.low:.2f}-{1e4 * rate.high:.2f})"


def _row(*cells: str) -> None:
    print("| " + " | ".join(cells) + " |")


def _arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("cache", type=Path)
    parser.add_argument("--groups", type=Path, required=True)
    parser.add_argument("--label-noise", type=Path, required=True)
    return parser.parse_args()


if __name__ == "__main__":
    main()
