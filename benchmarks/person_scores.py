"""A person's score by the best template, by the centroid, or by the mean of both: FNIR at FPIR 1 %.

    python benchmarks/person_scores.py ../shared/data/lfw/images --cache /tmp/embeddings.db \\
        --label-noise benchmarks/lfw_label_noise.csv

People are halved once: a score is chosen on the development half, and the held-out half says what
it is worth. All scores of a row have the same galleries and probes; differences to `best` are
paired by gallery, with twice their standard error over repeats (which share people).
"""

import argparse
import csv
from pathlib import Path

import numpy as np
from embeddings import Vectors, embed_folder
from numpy.typing import NDArray

from app.decision.calibration import read_calibration
from app.index.comparator import COSINE, Comparator

REPEATS = 40
SCORES = ("best", "centroid", "fused")
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
) -> dict[str, NDArray[np.float32]]:
    """The scores (n, P) of probes (n, d) with people of templates (P, m, d), by each rule."""
    people, m, d = templates.shape
    every = comparator.scores(probes, templates.reshape(-1, d)).reshape(len(probes), people, m)
    centroids = templates.sum(axis=1)
    centroids /= np.linalg.norm(centroids, axis=1, keepdims=True)
    best, centroid = every.max(axis=2), comparator.scores(probes, centroids)
    return {"best": best, "centroid": centroid, "fused": (best + centroid) / 2}


def fnir(scores: NDArray[np.float32], owner: Rows, mated: int) -> float:
    """The share of the first `mated` probes whose person is not first, or not above the threshold
    that FPIR of the others, who are strangers, reach."""
    highest = scores.max(axis=1)
    threshold = np.quantile(highest[mated:], 1 - FPIR)
    right = scores[:mated].argmax(axis=1) == owner
    return float(1 - np.mean(right & (highest[:mated] >= threshold)))


def one_gallery(
    vectors: Vectors,
    photos: list[Rows],
    m: int,
    comparator: Comparator,
    generator: np.random.Generator,
) -> dict[str, float]:
    """FNIR of each rule: all who have m + 1 photos or more are enrolled with m of them at random,
    and looked for with one more; everybody else is a stranger with one photo."""
    able = [i for i, rows in enumerate(photos) if len(rows) > m]
    drawn = [generator.permutation(photos[i])[: m + 1] for i in able]
    enrolled = np.array([rows[:m] for rows in drawn])
    strangers = [photos[i][0] for i in range(len(photos)) if i not in set(able)]
    probes = np.concatenate([np.array([rows[m] for rows in drawn]), np.array(strangers)])
    scores = person_scores(comparator, vectors[probes], vectors[enrolled])
    return {name: fnir(scores[name], np.arange(len(able)), len(able)) for name in SCORES}


def measure(vectors: Vectors, photos: list[Rows], comparator: Comparator, half: str) -> None:
    """Print a line for each number of templates."""
    for m in (1, 2, 4):
        generator = np.random.default_rng(m)
        found = [one_gallery(vectors, photos, m, comparator, generator) for _ in range(REPEATS)]
        line = [f"{half:12} {m} templates, {sum(len(rows) > m for rows in photos)} people"]
        best = np.array([one["best"] for one in found])
        for name in SCORES:
            values = np.array([one[name] for one in found])
            gain = values - best
            spread = 200 * gain.std(ddof=1) / np.sqrt(REPEATS)
            line.append(
                f"{name} {100 * values.mean():.2f} ({100 * gain.mean():+.2f} ± {spread:.2f})"
            )
        print("; ".join(line))


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
    for half, some in (("development", order[::2]), ("held out", order[1::2])):
        photos = [np.flatnonzero(persons == name) for name in names[some]]
        measure(vectors, photos, comparator, half)


if __name__ == "__main__":
    main()
