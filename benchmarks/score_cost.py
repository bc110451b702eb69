"""What a search by centroid, or by centroid and best template, costs beside the best template.

    python benchmarks/score_cost.py ../shared/data/lfw/images --cache /tmp/embeddings.db

A gallery of made-up persons (`embeddings.real_gallery`), each with templates that are 0.55 to 0.9
similar to the person. Every probe is searched by each score in turn; the answer is the median of
the times and of the ratios to `best`, and how many rows were scored exactly.
"""

import argparse
import time
from pathlib import Path

import numpy as np
from embeddings import Vectors, embed_folder, real_gallery, unit

from app.index.certified.index import CertifiedIndex
from app.index.factory import IndexFactory
from app.index.person_scores import PersonScore
from app.index.port import Templates
from app.inference.machine import usable_cores

TOP_K = 6  # of an identification with the default top_k of 5


def photos_of(people: Vectors, generator: np.random.Generator) -> Vectors:
    """One more photo of each of these people (n, d)."""
    noise = unit(generator.standard_normal(people.shape))
    return unit(people + generator.uniform(0.45, 1.5, (len(people), 1)) * noise)


def measure(people: Vectors, probes: dict[str, Vectors], m: int) -> None:
    """Print a line for each kind of probe and each score."""
    generator = np.random.default_rng(m)
    count = len(people) // m
    everybody = np.repeat(people[:count], m, axis=0)
    index = CertifiedIndex(people.shape[1], IndexFactory(usable_cores())._threads)
    keys, owners = np.arange(1, count * m + 1), np.repeat(np.arange(count), m)
    vectors = photos_of(everybody, generator)
    for start in range(0, count * m, index.shape.large):
        part = slice(start, start + index.shape.large)
        index.add(Templates(keys[part], owners[part], vectors[part]))
        while index.maintain():
            pass
    mated = photos_of(people[: len(probes["strangers"])], generator)
    for kind, some in {**probes, "mated": mated}.items():
        times: dict[PersonScore, list[float]] = {score: [] for score in PersonScore}
        scored = dict.fromkeys(PersonScore, 0)
        for probe in some:
            for score in PersonScore:
                before, start_s = index.costs.scored, time.perf_counter()
                index.search_persons(probe[np.newaxis], TOP_K, score=score)
                times[score].append(time.perf_counter() - start_s)
                scored[score] += index.costs.scored - before
        best = np.array(times[PersonScore.BEST])
        for score in PersonScore:
            mine = np.array(times[score])
            print(
                f"{count * m:,} templates, {m} a person, {kind:9} {score:8} "
                f"{1e3 * np.median(mine):.2f} ms, x {np.median(mine / best):.2f}, "
                f"{scored[score] // len(some)} rows scored"
            )


def main() -> None:
    """Measure with 1, 2 and 4 templates per person."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("photos", type=Path)
    parser.add_argument("--pack", default="default")
    parser.add_argument("--cache", type=Path, required=True)
    parser.add_argument("--count", type=int, default=100_000)
    parser.add_argument("--probes", type=int, default=200)
    options = parser.parse_args()
    gallery = real_gallery(
        *embed_folder(options.photos, options.pack, options.cache), options.count
    )
    strangers = {"strangers": gallery.probes["strangers"][: options.probes]}
    for m in (1, 2, 4):
        measure(gallery.templates, strangers, m)


if __name__ == "__main__":
    main()
