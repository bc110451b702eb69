"""What a search of few people finds by mistake, by the likeness of the gallery, and by a
calibration of the collection on itself.

    python benchmarks/small_collections.py galleries --data ../shared/data/lfw --half held-out
    python benchmarks/small_collections.py calibrations --data ../shared/data/lfw --half held-out

Galleries of people of LFW are drawn, with one photo of each; the other people of the half are
searched. Printed is the share of them that is found, at thresholds for a promised share.
"""

import argparse
import csv
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from degraded_faces import is_development
from numpy.typing import NDArray

from app.decision.calibration import Calibration
from app.decision.calibrations import pack_calibration
from app.decision.comparisons import LabelledEmbeddings
from app.decision.fitting import Labelled, calibrate
from app.decision.gallery_issues import suspected_duplicates
from app.decision.policy import CollectionPolicy
from app.decision.thresholds import CalibrationChain, ThresholdRequest, identification_threshold
from app.errors import RateOutOfReach
from app.faces.loading import build_pipeline
from app.imaging import ImageLimits
from app.index.likeness import likeness_of
from app.index.port import PRECISION, GallerySize
from app.inference.packs import load_pack
from app.lab.evaluation.labels import read_label_noise
from app.settings import Device
from app.types import FloatArray

NOISE = Path(__file__).parent / "lfw_label_noise.csv"
TARGETS = (0.1, 0.03, 0.01)


@dataclass(frozen=True, slots=True)
class People:
    """The scores (n, n) of people with one another, of a second photo of those who have one (m, n)
    with everybody, and which person each of these is (m,)."""

    vectors: FloatArray
    scores: FloatArray
    seconds: FloatArray
    owners: NDArray[np.intp]


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("what", choices=("galleries", "calibrations"))
    parser.add_argument("--data", type=Path, required=True, help="folder with images, groups.csv")
    parser.add_argument("--half", choices=("developers", "held-out"), default="developers")
    parser.add_argument("--draws", type=int, default=100)
    options = parser.parse_args()
    pack = pack_calibration(load_pack("default").folder, load_pack("default").embedding_space,
                            PRECISION)  # fmt: skip
    assert pack is not None
    names, vectors = embedded(options.data / "images", options.half)
    with (options.data / "groups.csv").open() as file:
        sex = {row["person"]: row["sex"] for row in csv.DictReader(file)}
    for group in ("female", "male", "all"):
        chosen = np.array([group in ("all", sex.get(name)) for name in names])
        people = people_of(names[chosen], vectors[chosen], pack)
        for line in globals()[options.what](people, pack, options.draws):
            print(group, line, flush=True)


def galleries(people: People, pack: Calibration, draws: int) -> Iterator[str]:
    """FPIR and missed mates at a promised 1 %, without the lift and with it."""
    assert pack.domain is not None
    for count in (10, 20, 30, 39, 45, 60, 90):
        size = GallerySize(count, count)
        threshold = pack.threshold_at(0.01, size)
        rows = []
        for gallery, others in drawn(len(people.vectors), count, draws):
            likeness = likeness_of(people.vectors[gallery], pack.comparator)
            lift = pack.domain.lift_of(likeness, size)
            best = people.scores[np.ix_(others, gallery)].max(axis=1)
            mine = np.flatnonzero(np.isin(people.owners, gallery))
            own = people.seconds[mine, people.owners[mine]]
            at = threshold, threshold + lift
            rows.append([*((best >= one).mean() for one in at), *((own < one).sum() for one in at),
                         len(own), lift])  # fmt: skip
        found = np.array(rows)
        missed = found[:, 2:4].sum(axis=0) / found[:, 4].sum()
        yield (
            f"{count}: FPIR {found[:, 0].mean():.2%} without lift, {found[:, 1].mean():.2%} with "
            f"(lift {found[:, 5].mean():.3f}); missed {missed[0]:.1%}, {missed[1]:.1%}"
        )


def calibrations(people: People, pack: Calibration, draws: int) -> Iterator[str]:
    """FPIR at thresholds of the pack's calibration, of the collection's own where it reaches the
    target, and of the one that decides; and in how many collections that is the own one."""
    for count in (100, 120, 200, 300, 500):
        if count > len(people.vectors) // 2:
            return
        size = GallerySize(count, count)
        rows: dict[float, list[list[float]]] = {target: [] for target in TARGETS}
        for gallery, others in drawn(len(people.vectors), count, draws):
            own = own_calibration(people.vectors[gallery], pack)
            likeness = likeness_of(people.vectors[gallery], pack.comparator)
            best = people.scores[np.ix_(others, gallery)].max(axis=1)
            for target in TARGETS:
                found = [
                    share(best, target, chain, size, likeness)
                    for chain in ([pack], [own], [own, pack])
                ]
                rows[target].append([*(one for one, _ in found), found[2][1] is own])
        for target in TARGETS:
            by = np.array(rows[target])
            yield (
                f"{count}, {target:.0%}: pack {by[:, 0].mean():.2%}, own {np.nanmean(by[:, 1]):.2%}"
                f" (reached {np.isfinite(by[:, 1]).mean():.0%}), decides {by[:, 2].mean():.2%} "
                f"(own {by[:, 3].mean():.0%})"
            )


def share(
    best: FloatArray,
    target: float,
    chain: list[Calibration],
    size: GallerySize,
    likeness: float | None,
) -> tuple[float, Calibration | None]:
    """The share of searches that find somebody, and the calibration that decides."""
    try:
        decision = identification_threshold(
            ThresholdRequest(target_fpir=target), CollectionPolicy(),
            CalibrationChain(chain, 1.0), size, likeness=likeness,
        )  # fmt: skip
    except RateOutOfReach:
        return np.nan, None
    return float((best >= decision.threshold).mean()), decision.calibration


def own_calibration(vectors: FloatArray, pack: Calibration) -> Calibration:
    assert pack.domain is not None
    data = LabelledEmbeddings.of(vectors, np.arange(len(vectors)), pack.comparator)
    suspects = frozenset((pair.person_a, pair.person_b) for pair in suspected_duplicates(data))
    faces = Labelled(data, "collection", "drawn", suspects, pack.domain.shared, pack.domain.limits)
    return calibrate(faces, pack.embedding_space, pack.precision)


def drawn(
    people: int, count: int, draws: int
) -> Iterator[tuple[NDArray[np.intp], NDArray[np.intp]]]:
    """Who is enrolled and who is searched, several times."""
    generator = np.random.default_rng(5)
    for _ in range(draws):
        order = generator.permutation(people)
        yield order[:count], order[count:]


def people_of(names: NDArray[np.str_], vectors: FloatArray, pack: Calibration) -> People:
    """`names` (k,) are of photos, one or two of each person, in order."""
    compare: Callable[..., FloatArray] = pack.comparator.scores
    _, first, counts = np.unique(names, return_index=True, return_counts=True)
    owners = np.flatnonzero(counts > 1)
    one, two = vectors[first], vectors[first[owners] + 1]
    return People(one, compare(one, one), compare(two, one), owners)


def embedded(folder: Path, half: str) -> tuple[NDArray[np.str_], FloatArray]:
    """The embeddings of the first two photos of each person of a half, and whose they are."""
    pipeline = build_pipeline(load_pack("default"), Device.CPU, ImageLimits())
    noise = read_label_noise(NOISE)
    wrong = {Path(image).parent.name for image in noise.images} | {b for _, b in noise.same_people}
    photos = [
        photo
        for person in sorted(folder.iterdir())
        if is_development(person.name) is (half == "developers") and person.name not in wrong
        for photo in sorted(person.iterdir())[:2]
    ]

    def embed(photo: Path) -> FloatArray | None:
        faces = pipeline.analyse(photo.read_bytes(), max_faces=1).faces
        return faces[0].embedding if faces else None

    with ThreadPoolExecutor(2) as threads:
        made = list(threads.map(embed, photos))
    kept = [place for place, one in enumerate(made) if one is not None]
    names = np.array([photos[place].parent.name for place in kept])
    return names, np.stack([one for one in made if one is not None])


if __name__ == "__main__":
    main()
