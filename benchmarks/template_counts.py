"""Do templates count as what they add? The growth of a person's false match rate, and FPIR.

    python benchmarks/template_counts.py ../shared/data/lfw/images --cache /tmp/embeddings.db \\
        --label-noise benchmarks/lfw_label_noise.csv

First, how much more often the first photos of all other people reach any of a person's templates
than one of them, at two FMR, beside the person's effective number n. Then FPIR of galleries of up
to 100 people of one half of LFW, by a calibration made on the other half: with the sum over people
of n ^ e, and with the mean number of templates as it was before.
"""

import argparse
import io
from collections.abc import Sequence
from pathlib import Path

import numpy as np
from embeddings import Vectors, embed_folder, unit
from numpy.typing import NDArray
from person_scores import usable
from PIL import Image, ImageEnhance, ImageFilter

from app.decision.calibration import Calibration
from app.decision.calibrations import read_calibration
from app.decision.comparisons import LabelledEmbeddings
from app.decision.face_selection import FaceSelection, select_face
from app.decision.fitting import Labelled, calibrate
from app.errors import FaceError
from app.faces.loading import build_pipeline
from app.folders import find_photos
from app.imaging import ImageLimits
from app.index.comparator import COSINE, Comparator
from app.index.person_scores import effective_templates
from app.index.port import GallerySize
from app.inference.packs import load_pack
from app.lab.evaluation.protocol import Analyser
from app.settings import Device

GROWTH_FMR = (1e-3, 1e-4)
TARGETS = (0.1, 0.03, 0.01)
HALVES = GALLERIES = 6
COPY_NOISE = 0.1  # length of what is added to a unit vector: copies are 0.99 similar to each other

Rows = NDArray[np.intp]


class People:
    """Embeddings by person: those of person i are `vectors[starts[i]:starts[i + 1]]`."""

    def __init__(self, vectors: Vectors, persons: NDArray[np.str_], comparator: Comparator) -> None:
        self.names, self.number, counts = np.unique(
            persons, return_inverse=True, return_counts=True
        )
        order = np.argsort(self.number, kind="stable")
        self.vectors, self.number = vectors[order], self.number[order]
        self.counts, self.starts = counts, np.concatenate([[0], np.cumsum(counts)])
        self.first = self.vectors[self.starts[:-1]]
        self.comparator = comparator

    def of(self, person: int, most: int) -> Vectors:
        """The first photos of a person."""
        return self.vectors[self.starts[person] : self.starts[person + 1]][:most]


def altered(photos: Path, pack_name: str, count: int, copies: int) -> dict[str, Vectors]:
    """Embeddings of one photo of some people, turned, scaled, lit, blurred and compressed a little,
    by the person's name."""
    pipeline = build_pipeline(load_pack(pack_name), Device.CPU, ImageLimits())
    analyser, generator = Analyser(pipeline), np.random.default_rng(0)
    first = {photo.person_id: photo.path for photo in reversed(list(find_photos(photos)))}
    found = {}
    for name in generator.permutation(sorted(first))[:count].tolist():
        with Image.open(first[name]) as opened:
            image = opened.convert("RGB")
        embeddings = []
        for _ in range(copies):
            try:
                answer = analyser.analyse(_alter(image, generator))
                embeddings.append(select_face(answer, FaceSelection.CENTRE).embedding)
            except FaceError:
                continue
        found[name] = unit(np.array(embeddings))
    return found


def _alter(image: Image.Image, generator: np.random.Generator) -> bytes:
    shift, scale = generator.uniform(-6, 6, 2), generator.uniform(0.96, 1.04)
    turned = image.rotate(
        generator.uniform(-4, 4), Image.Resampling.BICUBIC, translate=tuple(shift)
    )
    made = turned.resize((int(image.width * scale), int(image.height * scale)))
    made = ImageEnhance.Brightness(made).enhance(generator.uniform(0.85, 1.15))
    made = ImageEnhance.Contrast(made).enhance(generator.uniform(0.9, 1.1))
    made = made.filter(ImageFilter.GaussianBlur(generator.uniform(0, 1)))
    buffer = io.BytesIO()
    made.save(buffer, "JPEG", quality=int(generator.integers(60, 95)))
    return buffer.getvalue()


def near_copies(vector: Vectors, count: int, generator: np.random.Generator) -> Vectors:
    """Copies of a unit vector (d,) with a little noise."""
    noise = generator.standard_normal((count, len(vector))) * COPY_NOISE / np.sqrt(len(vector))
    return unit(vector + noise)


def growth(label: str, people: People, owners: Rows, sets: Sequence[Vectors]) -> None:
    """Print how much the false match rate of these people's templates grows with their number."""
    pairs = people.first @ people.first.T
    similarities = pairs[np.triu_indices(len(pairs), 1)]
    numbers = [effective_templates(templates) for templates in sets]
    line = [f"{label}: {len(sets)} people, n {np.mean(numbers):.1f}"]
    for fmr in GROWTH_FMR:
        threshold = np.quantile(similarities, 1 - fmr)
        reached = one = 0.0
        for owner, templates in zip(owners, sets, strict=True):
            matches = np.delete(people.first, owner, axis=0) @ templates.T >= threshold
            reached += matches.any(axis=1).sum()
            one += matches.mean(axis=1).sum()
        line.append(f"x {reached / one:.2f} at {fmr:g}")
    print(", ".join(line))


def fpir(people: People) -> None:
    """Print FPIR of galleries of different kinds, held out."""
    generator = np.random.default_rng(0)
    kinds = {str(most): (most, 0) for most in (1, 2, 4, 8)} | {
        "1 to 50": (50, 0),
        "1, and 1,000 near-copies of one": (1, 1_000),
        "50 near-copies each": (1, 50),
    }
    found: dict[str, list[list[float]]] = {kind: [] for kind in kinds}
    for _ in range(HALVES):
        order = generator.permutation(len(people.names))
        made_of, others = order[: len(order) // 2], order[len(order) // 2 :]
        mine = np.isin(people.number, made_of)
        data = LabelledEmbeddings.of(people.vectors[mine], people.number[mine], people.comparator)
        calibration = calibrate(Labelled(data, "photos", "half"), "es", "float32")
        for kind, (most, copies) in kinds.items():
            least = 1 if most == 50 else most
            able = others[people.counts[others] >= least]
            for _ in range(GALLERIES):
                enrolled = generator.permutation(able)[: min(100, len(able) * 2 // 3)]
                sets = [people.of(person, most) for person in enrolled]
                for place in range(len(sets) if copies == 50 else bool(copies)):
                    sets[place] = near_copies(sets[place][0], copies, generator)
                strangers = people.first[np.setdiff1d(others, enrolled)]
                found[kind].append(_rates(calibration, people.comparator, sets, strangers))
    for kind, rates in found.items():
        print(kind, " / ".join(f"{100 * rate:.2f} %" for rate in np.mean(rates, axis=0)))


def _rates(
    calibration: Calibration, comparator: Comparator, sets: Sequence[Vectors], strangers: Vectors
) -> list[float]:
    """FPIR at each target, with the mean number of templates, then as it is counted."""
    highest = comparator.scores(strangers, np.concatenate(sets)).max(axis=1)
    templates = sum(map(len, sets))
    spread = tuple((effective_templates(one), 1) for one in sets)
    sizes = (GallerySize(len(sets), templates), GallerySize(len(sets), templates, spread))
    return [
        float(np.mean(highest >= calibration.threshold_at(target, size)))
        for size in sizes
        for target in TARGETS
    ]


def main() -> None:
    """Measure all of it."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("photos", type=Path)
    parser.add_argument("--pack", default="default")
    parser.add_argument("--calibration", type=Path, default=Path("models/default/calibration.json"))
    parser.add_argument("--label-noise", type=Path, required=True)
    parser.add_argument("--cache", type=Path, required=True)
    parser.add_argument("--altered", type=int, default=100, help="people whose photo is altered")
    options = parser.parse_args()
    vectors, persons = embed_folder(options.photos, options.pack, options.cache)
    kept = usable(options.label_noise, persons)
    domain = read_calibration(options.calibration).domain
    comparator = COSINE if domain is None else domain.shared.comparator
    people = People(vectors[kept], persons[kept], comparator)
    for m in (2, 4, 8, 32, 236):
        owners = np.flatnonzero(people.counts >= m)
        growth(f"{m} photos", people, owners, [people.of(owner, m) for owner in owners])
    generator = np.random.default_rng(1)
    owners = np.flatnonzero(people.counts >= 4)
    sets = [people.of(owner, 4) for owner in owners]
    sets = [np.concatenate([one, near_copies(one[0], 100, generator)]) for one in sets]
    growth("4 photos and 100 near-copies of one", people, owners, sets)
    if options.altered:
        made = altered(options.photos, options.pack, options.altered, 16)
        names = np.intersect1d(people.names, list(made))
        owners = np.searchsorted(people.names, names)
        for m in (4, 16):
            growth(f"one photo {m} times, altered", people, owners, [made[n][:m] for n in names])
    fpir(people)


if __name__ == "__main__":
    main()
