"""A photo's way into the buffer of a batch: drawn there, or on a canvas of its own and then copied.

    python benchmarks/letterboxing.py [--rounds 40]

Both ways take the same photos in turn, on one thread; one network of 640 x 640, batches of 32. The
canvas that is copied is made as it was before: zeroed, the scaled photo copied into it, the canvas
copied into the batch. Prints the processor's time per photo and the bytes that are written, both
with what scaling itself writes.
"""

import argparse
import time
from collections.abc import Callable

import cv2
import numpy as np

from app.faces.detect import Framing, letterbox
from app.types import Image

SIDE, BATCH = 640, 32
FRAMING = Framing(SIDE, SIDE, SIDE, whole=True, one_scale=False)
SHAPES = {"640 x 640": (640, 640), "photo of 1,024 x 683": (683, 1024), "250 x 250": (250, 250)}


def copied(image: Image, place: Image) -> int:
    """The way of earlier versions; returns the bytes written."""
    boxed = letterbox(image.shape, FRAMING)
    canvas = np.zeros((*boxed.size, 3), np.uint8)
    inside = canvas[boxed.top :][: boxed.rows, boxed.left :][:, : boxed.columns]
    scaled = image
    if image.shape[:2] != inside.shape[:2]:
        scaled = np.asarray(cv2.resize(image, (boxed.columns, boxed.rows)), np.uint8)
    inside[:] = scaled
    place[:] = canvas
    return canvas.nbytes + inside.nbytes + place.nbytes + (scaled.nbytes * (scaled is not image))


def drawn(image: Image, place: Image) -> int:
    """The way into the place; returns the bytes written."""
    letterbox(image.shape, FRAMING).draw(image, place)
    return place.nbytes


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--rounds", type=int, default=40)
    rounds = parser.parse_args().rounds
    cv2.setNumThreads(1)
    batch = np.zeros((BATCH, SIDE, SIDE, 3), np.uint8)
    ways: dict[str, Callable[[Image, Image], int]] = {"copied": copied, "drawn": drawn}
    for name, shape in SHAPES.items():
        image = np.random.default_rng(1).integers(0, 256, (*shape, 3), dtype=np.uint8)
        spent: dict[str, list[float]] = {way: [] for way in ways}
        written = {}
        for _ in range(rounds):
            for way, put in ways.items():
                began = time.thread_time()
                for place in batch:
                    written[way] = put(image, place)
                spent[way].append((time.thread_time() - began) / BATCH)
        ms = {way: float(np.median(times)) * 1000 for way, times in spent.items()}
        print(f"{name}: copied {ms['copied']:.3f} ms, {written['copied'] / 1e6:.2f} MB; drawn "
              f"{ms['drawn']:.3f} ms, {written['drawn'] / 1e6:.2f} MB; "
              f"{ms['copied'] / ms['drawn']:.2f} x the time, "
              f"{written['copied'] / written['drawn']:.2f} x the bytes")  # fmt: skip


if __name__ == "__main__":
    main()
