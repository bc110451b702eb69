"""A person's score by the best template, by the centroid, or by the mean of both: FNIR and FPIR.

    python benchmarks/person_scores.py ../shared/data/lfw/images --cache /tmp/embeddings.db \\
        --label-noise benchmarks/lfw_label_noise.csv

People are halved once: a score is chosen on the development half, and the held-out half says what
it is worth. All scores of a row have the same galleries and probes. First at thresholds of each
score's own, found with the strangers of the row; then at the thresholds that a calibration made on
the other half promises for FPIR 1 %, with the FPIR that they had. Differences to `best` are paired
by gallery, with twice their standard error: over repeats, and over people by the bootstrap.
"""

import argparse
import csv
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from embeddings import Vectors, embed_folder
from numpy.typing import NDArray

from app.decision.calibration import Calibration
from app.decision.calibrations import read_calibration
from app.decision.comparisons import LabelledEmbeddings
from app.decision.fitting import Labelled, calibrate
from app.index.comparator import COSINE, Comparator
from app.index.person_scores import PersonScore, effective_numbers
from app.index.port import GallerySize

REPEATS = 40
FPIR = 0.01

Rows = NDArray[np.intp]


def usable(path: Path, persons: NDArray[np.str_]) -> NDArray[np.bool_]:
    """Whether each photo is of a person whose labels are not in doubt."""
    with path.open(encoding="utf-8") as file:
        rows = list(csv.DictReader(file))
    doubtful = {row["person_a"] for row in rows} | {row["person_b"] for row in rows}
    doubtful |= {row["image"].split("/")[0] for row in rows}
    return ~np.isin(persons, sorted(doubtful))


def person_scores(
    comparator: Comparator, probes: Vectors, templates: Vectors
) -> dict[PersonScore, NDArray[np.float32]]:
    """The scores (n, P) of probes (n, d) with people of templates (P, m, d), by each rule."""
    people, m, d = templates.shape
    every = comparator.scores(probes, templates.reshape(-1, d)).reshape(len(probes), people, m)
    length = np.linalg.norm(templates.sum(axis=1), axis=1)
    best, total = every.max(axis=2), every.sum(axis=2)
    return {score: score.of(best, total, np.array(m), length) for score in PersonScore}


@dataclass(frozen=True, slots=True)
class Drawn:
    """One gallery: scores (n, P) of probes, of whom the first P are of its people in order and the
    others are strangers; and its size, with the effective numbers of templates."""

    scores: dict[PersonScore, NDArray[np.float32]]
    size: GallerySize


def misses(scores: NDArray[np.float32], threshold: float) -> NDArray[np.bool_]:
    """For each of the people enrolled, whether their probe does not find them."""
    mated = scores[: scores.shape[1]]
    first = mated.argmax(axis=1) == np.arange(len(mated))
    return np.asarray(~first | (mated.max(axis=1) < threshold))


def drawn(vectors: Vectors, photos: list[Rows], m: int, comparator: Comparator, seed: int) -> Drawn:
    """All who have m + 1 photos or more are enrolled with m of them at random, and looked for with
    one more; everybody else is a stranger with one photo."""
    generator = np.random.default_rng(seed)
    able = [i for i, rows in enumerate(photos) if len(rows) > m]
    chosen = [generator.permutation(photos[i])[: m + 1] for i in able]
    enrolled = np.array([rows[:m] for rows in chosen])
    strangers = [photos[i][0] for i in range(len(photos)) if i not in set(able)]
    probes = np.concatenate([np.array([rows[m] for rows in chosen]), np.array(strangers)])
    templates = vectors[enrolled]
    spread = tuple((n, 1) for n in effective_numbers(templates, m).tolist())
    scores = person_scores(comparator, vectors[probes], templates)
    return Drawn(scores, GallerySize(len(able), len(able) * m, spread))


def measure(
    vectors: Vectors,
    photos: list[Rows],
    calibration: Calibration,
    comparator: Comparator,
    half: str,
) -> None:
    """Print two lines for each number of templates: thresholds of its own, and promised ones."""
    for m in (1, 2, 4):
        galleries = [drawn(vectors, photos, m, comparator, seed) for seed in range(REPEATS)]
        people = galleries[0].size.persons
        for kind in ("own", "promised"):
            missed, wrong = {}, {}
            for score in PersonScore:
                tries = []
                for one in galleries:
                    highest = one.scores[score][people:].max(axis=1)
                    threshold = float(np.quantile(highest, 1 - FPIR))
                    if kind == "promised":
                        threshold = calibration.threshold_at(FPIR, one.size.scored_by(score))
                    tries.append((misses(one.scores[score], threshold), highest >= threshold))
                missed[score] = np.array([some for some, _ in tries])
                wrong[score] = 100 * float(np.mean([some.mean() for _, some in tries]))
            line = [f"{half:12} {m} templates, {people} people, {kind:8} threshold"]
            for score in PersonScore:
                gain = 100 * (missed[score].astype(float) - missed[PersonScore.BEST])
                spread = 2 * gain.mean(axis=1).std(ddof=1) / np.sqrt(REPEATS)
                line.append(
                    f"{score} FNIR {100 * missed[score].mean():.2f} ({gain.mean():+.2f} ± "
                    f"{spread:.2f}, people ± {over_people(gain.mean(axis=0)):.2f}) "
                    f"FPIR {wrong[score]:.2f}"
                )
            print("; ".join(line), flush=True)


def over_people(gains: NDArray[np.float64]) -> float:
    """Twice the standard error of the mean of one number per person, by the bootstrap."""
    generator = np.random.default_rng(0)
    some = generator.integers(0, len(gains), (2_000, len(gains)))
    return float(2 * gains[some].mean(axis=1).std())


def calibrated(
    vectors: Vectors, persons: NDArray[np.str_], some: NDArray[np.str_], comparator: Comparator
) -> Calibration:
    """A calibration made on some people."""
    mine = np.isin(persons, some)
    data = LabelledEmbeddings.of(vectors[mine], persons[mine], comparator)
    return calibrate(Labelled(data, "photos", "half"), "es", "float32")


def main() -> None:
    """Measure both halves."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("photos", type=Path)
    parser.add_argument("--pack", default="default")
    parser.add_argument("--calibration", type=Path, default=Path("models/default/calibration.json"))
    parser.add_argument("--label-noise", type=Path, required=True)
    parser.add_argument("--cache", type=Path, required=True)
    options = parser.parse_args()
    vectors, persons = embed_folder(options.photos, options.pack, options.cache)
    kept = usable(options.label_noise, persons)
    vectors, persons = vectors[kept], persons[kept]
    domain = read_calibration(options.calibration).domain
    comparator = COSINE if domain is None else domain.shared.comparator
    names = np.unique(persons)
    order = np.random.default_rng(0).permutation(len(names))
    halves = {"development": names[order[::2]], "held out": names[order[1::2]]}
    made = {half: calibrated(vectors, persons, some, comparator) for half, some in halves.items()}
    for (half, some), other in zip(halves.items(), reversed(made.values()), strict=True):
        print(half, "calibrated on the other:", other.template_exponent, other.score_exponents)
        photos = [np.flatnonzero(persons == name) for name in some]
        measure(vectors, photos, other, comparator, half)


if __name__ == "__main__":
    main()
