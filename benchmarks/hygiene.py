"""Memory that hygiene takes beyond the index, and its time.

    python benchmarks/hygiene.py fill --count 300000 --folder FOLDER
    python benchmarks/hygiene.py look --folder FOLDER [--seconds 60]

`fill` makes a gallery of random directions in FOLDER: two templates per person, and one person with
20,000. `look` brings its index into memory, examines it (for so many seconds of its search; 0: all
of it), and compares persons' own templates, with how much private memory each step takes at the
most. To compare with an older version, run `look` from its tree on the same folder.
"""

import argparse
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import numpy as np
from embeddings import random_directions

from app.decision import hygiene
from app.decision.calibrations import Calibrations, read_calibration
from app.gallery.gallery import Gallery
from app.index.factory import IndexFactory
from app.inference.machine import usable_cores
from app.store.backends import create_engine
from app.store.records import NewTemplate, PersonTemplate
from app.store.schema import migrate
from app.store.store import Store

try:
    from app.decision import neighbours
except ImportError:  # an older version
    neighbours = None  # type: ignore[assignment]

SPACE = "es-benchmark"
CALIBRATION = Path(__file__).parents[1] / "models" / "default" / "calibration.json"
LARGE, AT_ONCE, MIB = 20_000, 2_000, 2**20


class Enough(Exception):
    """The search was looked at for long enough."""


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("step", choices=["fill", "look"])
    parser.add_argument("--folder", type=Path, required=True)
    parser.add_argument("--count", type=int, default=300_000)
    parser.add_argument("--dimension", type=int, default=512)
    parser.add_argument("--seconds", type=float, default=60, help="of the search; 0: all of it")
    options = parser.parse_args()
    gallery = open_gallery(options.folder, options.dimension)
    if options.step == "fill":
        fill(gallery, options.count, options.dimension)
    else:
        look(gallery, options.seconds)
    gallery.close()


def open_gallery(folder: Path, dimension: int) -> Gallery:
    folder.mkdir(exist_ok=True)
    engine = create_engine(f"sqlite:///{folder / 'likeness.db'}")
    migrate(engine)
    return Gallery(Store(engine), IndexFactory(usable_cores(), folder / "index"), SPACE, dimension)


def fill(gallery: Gallery, count: int, dimension: int) -> None:
    for start in range(0, count, AT_ONCE):
        vectors = random_directions(min(AT_ONCE, count - start), dimension, start)
        rows = [
            PersonTemplate(person_of(start + i), None, NewTemplate(vector, str(start + i)))
            for i, vector in enumerate(vectors)
        ]
        gallery.enroll_many("default", rows)


def person_of(number: int) -> str:
    """The last template of every ten is of one person, until they have LARGE."""
    return "large" if number % 10 == 9 and number < 10 * LARGE else f"p{number // 2}"


def look(gallery: Gallery, seconds: float) -> None:
    with measured("index"):
        gallery.prepare()
    content = read_calibration(CALIBRATION)
    calibration = content.model_copy(update={"embedding_space": SPACE})
    calibrations = Calibrations(
        gallery.store.calibrations,
        calibration,
        0.5,
        embedding_space=SPACE,
        precision=gallery.precision,
    )
    until = time.monotonic() + seconds if seconds else float("inf")

    def go_on(done: int, total: int) -> None:
        if time.monotonic() > until:
            raise Enough(f"{done:,} of {total:,} templates were searched for")

    with measured("examine"):
        try:
            found = hygiene.find_gallery_issues(gallery, calibrations, "default", go_on)
            print(f"{len(found.duplicates)} duplicates, {len(found.mislabels)} mislabels")
        except Enough as enough:
            print(enough)
    if seconds:
        with measured("own templates"):
            compare_own(gallery)


def compare_own(gallery: Gallery) -> None:
    """The part of an examination that follows its search."""
    if neighbours is None:
        hygiene._own(hygiene._all(gallery, "default"))
        return
    pages = [(page.keys, page.person_keys) for page in gallery.templates("default")]
    keys, persons = (np.concatenate(column) for column in zip(*pages, strict=True))
    some = neighbours.OWN_AT_ONCE
    own = neighbours._Own(gallery, "default", keys, persons, at_once=some, go_on=lambda: None)
    own.similarities(2.0)


@contextmanager
def measured(what: str) -> Iterator[None]:
    """Print the private memory before a step, the most during it, and its time."""
    before, highest, done = private(), 0, threading.Event()

    def watch() -> None:
        nonlocal highest
        while not done.wait(0.02):
            highest = max(highest, private())

    watcher = threading.Thread(target=watch)
    watcher.start()
    start = time.monotonic()
    try:
        yield
    finally:
        taken = time.monotonic() - start
        done.set()
        watcher.join()
        print(
            f"{what}: {taken:.1f} s, private memory {before / MIB:,.0f} MiB, then at most "
            f"{(highest - before) / MIB:,.0f} MiB more"
        )


def private() -> int:
    """Anonymous memory of this process, bytes."""
    lines = Path("/proc/self/status").read_text().splitlines()
    (value,) = (line.split()[1] for line in lines if line.startswith("RssAnon"))
    return int(value) * 1024


if __name__ == "__main__":
    main()
