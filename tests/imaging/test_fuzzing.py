"""Damaged files of every format: a picture or an image error, never another exception, a crash or
a leak.

`LIKENESS_FUZZ_COUNT=20000 python -m pytest -m chaos tests/imaging/test_fuzzing.py` runs 20,000 a
format. The inputs follow from `LIKENESS_FUZZ_SEED` (1).
"""

import os
import random
import warnings
from contextlib import suppress
from pathlib import Path
from resource import getpagesize

import numpy as np
import pytest

from app.errors import ImageError
from app.faces.pipeline import FacePipeline
from app.imaging import ImageLimits, PhotoDecoder
from tests.imaging.samples import damaged, seeds

pytestmark = pytest.mark.filterwarnings("ignore")

COUNT = int(os.environ.get("LIKENESS_FUZZ_COUNT", "2000"))
SEED = int(os.environ.get("LIKENESS_FUZZ_SEED", "1"))
# Of these sizes no damage makes a large picture by accident that would take memory for a reason.
LIMITS = ImageLimits(max_pixels=1_000_000, max_side=4_096, decode_seconds=10)
MIB = 1024 * 1024


def inputs(kind: str, count: int) -> list[bytes]:
    chance = random.Random(f"{SEED} {kind}")
    files = seeds()[kind]
    return [damaged(chance.choice(files), files, chance) for _ in range(count)]


def memory() -> int:
    return int(Path("/proc/self/statm").read_text().split()[1]) * getpagesize()


def decode_all(kind: str, count: int) -> tuple[int, int]:
    """How many of the inputs are pictures, and by how much the second half let memory grow."""
    decoder, pictures, half = PhotoDecoder(LIMITS), 0, 0
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        for number, data in enumerate(inputs(kind, count)):
            if number == count // 2:
                half = memory()
            try:
                photo = decoder.decode(data, 640 if number % 2 else None)
            except ImageError:
                continue
            assert photo.pixels.dtype == np.uint8
            assert photo.pixels.ndim == 3
            pictures += 1
    grown = memory() - half
    decoder.close()
    return pictures, grown


@pytest.mark.parametrize("kind", ["JPEG", "PNG", "WEBP"])
def test_a_few_damaged_files(kind: str) -> None:
    pictures, _ = decode_all(kind, 150)
    assert 0 < pictures < 150


@pytest.mark.chaos
@pytest.mark.parametrize("kind", ["JPEG", "PNG", "WEBP", "AVIF", "HEIC"])
def test_many_damaged_files(kind: str) -> None:
    pictures, grown = decode_all(kind, COUNT)
    assert 0 < pictures < COUNT
    assert grown < 32 * MIB


@pytest.mark.chaos
@pytest.mark.parametrize("kind", ["JPEG", "PNG", "WEBP", "AVIF", "HEIC"])
def test_damaged_files_through_the_pipeline(pipeline: FacePipeline, kind: str) -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        for data in inputs(kind, COUNT):
            with suppress(ImageError):
                pipeline.analyse(data, max_faces=10)
