"""What ids of one person do to the likeness of a gallery, and so to its threshold.

    python benchmarks/second_ids.py --data ../shared/data/lfw --half developers

Galleries of people of LFW are drawn, some of whom have a second id with another photo. Printed is
by how much their lift differs from that of the same gallery without the second ids: with the 99th
percentile of all pairs, and with `app.index.likeness`, which counts ids of one person once.
"""

import argparse
import csv
import random
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
from degraded_faces import is_development

from app.decision.calibrations import pack_calibration
from app.faces.loading import build_pipeline
from app.imaging import ImageLimits
from app.index.likeness import LEAST_PERSONS, likeness_of, likeness_of_scores
from app.index.port import PRECISION, GallerySize
from app.inference.packs import load_pack
from app.lab.evaluation.labels import read_label_noise
from app.settings import Device
from app.types import FloatArray

NOISE = Path(__file__).parent / "lfw_label_noise.csv"
DRAWN = 40
# People, and how many of them have a second id.
GALLERIES = ((60, 0), (100, 0), (200, 0), (45, 10), (35, 35), (60, 30), (60, 60), (100, 100))


def embedded(folder: Path, half: str) -> dict[str, list[FloatArray]]:
    """The embeddings of two photos of each person of a half who has two."""
    pipeline = build_pipeline(load_pack("default"), Device.CPU, ImageLimits())
    noise = read_label_noise(NOISE)
    wrong = {Path(image).parent.name for image in noise.images} | {b for _, b in noise.same_people}
    photos = {
        person.name: sorted(person.iterdir())[:2]
        for person in sorted(folder.iterdir())
        if is_development(person.name) is (half == "developers") and person.name not in wrong
    }

    def embed(photo: Path) -> FloatArray | None:
        faces = pipeline.analyse(photo.read_bytes(), max_faces=1).faces
        return faces[0].embedding if faces else None

    with ThreadPoolExecutor(2) as threads:
        found = {
            person: list(threads.map(embed, two)) for person, two in photos.items() if len(two) == 2
        }
    return {
        person: [one for one in two if one is not None]
        for person, two in found.items()
        if all(one is not None for one in two)
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--data", type=Path, required=True)
    parser.add_argument("--half", choices=("developers", "held-out"), default="developers")
    options = parser.parse_args()
    pack = load_pack("default")
    calibration = pack_calibration(pack.folder, pack.embedding_space, PRECISION)
    assert calibration is not None
    assert calibration.domain is not None
    domain, comparator = calibration.domain, calibration.domain.shared.comparator
    faces = embedded(options.data / "images", options.half)
    with (options.data / "groups.csv").open() as file:
        sex = {row["person"]: row["sex"] for row in csv.DictReader(file)}

    def all_pairs(vectors: FloatArray) -> float | None:
        scores = comparator.scores(vectors, vectors)[np.triu_indices(len(vectors), 1)]
        return likeness_of_scores(scores) if len(vectors) >= LEAST_PERSONS else None

    print(
        "group, people, second ids: true lift; error by all pairs (largest), by app.index.likeness"
    )
    for group in ("all", "female", "male"):
        people = [name for name in faces if group in ("all", sex.get(name))]
        for count, second in GALLERIES:
            if count > len(people):
                continue
            drawing = random.Random(1)
            rows = []
            for _ in range(DRAWN):
                some = drawing.sample(people, count)
                once = np.stack([faces[name][0] for name in some])
                both = np.stack(
                    [faces[name][0] for name in some] + [faces[name][1] for name in some[:second]]
                )
                both = both[drawing.sample(range(len(both)), len(both))]
                size = GallerySize(len(both), len(both), ((1.0, len(both)),))
                lifts = all_pairs(once), all_pairs(both), likeness_of(both, comparator)
                rows.append([domain.lift_of(likeness, size) for likeness in lifts])
            true, before, now = np.array(rows).T
            print(
                f"{group:7} {count:4} {second:4}: {true.mean():.3f}; "
                f"{(before - true).mean():+.3f} ({abs(before - true).max():.3f}), "
                f"{(now - true).mean():+.3f} ({abs(now - true).max():.3f})"
            )


if __name__ == "__main__":
    main()
