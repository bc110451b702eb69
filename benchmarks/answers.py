"""What an answer of detect, embed and identify costs: from domain objects to the bytes of JSON.

    python benchmarks/answers.py

Needs nothing that runs. Medians of rounds in turn, in microseconds of CPU time, so that other
processes matter little; and the part that orjson alone takes for the finished model.
"""

import statistics
import time
import uuid
from collections.abc import Callable
from datetime import UTC, datetime
from typing import Any

import numpy as np

from app.api.analysed_face import FaceInfo, ImageInfo
from app.api.endpoints.detection import DetectAnswer, EmbedAnswer, EmbeddedFace
from app.api.endpoints.recognition import IdentifyAnswer
from app.api.responses import Answer, ModelInfo, json_answer
from app.decision.calibrations import pack_calibration
from app.decision.thresholds import ThresholdDecision, ThresholdSource
from app.decision.verdicts import Status, Verdict
from app.gallery.candidates import Candidate
from app.index.port import PRECISION, GallerySize
from app.inference.packs import load_pack
from app.recognition.identify import FaceIdentification, Identification
from app.settings import Settings
from app.store.records import FaceRecord
from app.types import AnalysedImage, Face, Quality

ROUNDS, CALLS, TOP_K = 30, 30, 5
TIMES = {"decode": 11.81, "detect": 50.91, "align": 0.41, "embed": 12.61, "total": 77.9}

SETTINGS = Settings()
PACK = load_pack(SETTINGS.pack, SETTINGS.installed_packs)
DIMENSION = PACK.recogniser.dimension
CALIBRATION = pack_calibration(PACK.folder, PACK.embedding_space, PRECISION, DIMENSION)
GENERATOR = np.random.default_rng(0)


def face() -> Face:
    embedding = GENERATOR.standard_normal(DIMENSION).astype(np.float32)
    embedding /= np.linalg.norm(embedding)
    box = (GENERATOR.random(4) * 900).astype(np.float32)
    landmarks = (GENERATOR.random((5, 2)) * 900).astype(np.float32)
    quality = Quality(251.123, 4.612, -1.9, -2.4, 1993.312, 0.612, 0.92, 75.123)
    return Face(box, landmarks, 0.9213, quality, embedding)


def candidate(place: int) -> Candidate:
    record = FaceRecord(place, str(uuid.uuid4()), f"p{place}", {}, datetime.now(UTC))
    return Candidate(record, 0.5 - 0.01 * place, 0.05)


def envelope() -> dict[str, Any]:
    model = ModelInfo(pack=PACK.name, version=PACK.version, embedding_space=PACK.embedding_space)
    return {"request_id": "0" * 32, "model": model, "timings_ms": TIMES}


def answers(count: int) -> dict[str, Callable[[], Answer]]:
    """Builders of answers about `count` faces."""
    assert CALIBRATION is not None, "the default pack is calibrated"
    comparator = CALIBRATION.comparator
    decision = ThresholdDecision(0.4, ThresholdSource.DEFAULT, 0.01, CALIBRATION)
    image = AnalysedImage(910, 1137, tuple(face() for _ in range(count)), TIMES, count)
    found = [(0, image, one) for one in image.faces]
    rows = [[candidate(place) for place in range(TOP_K)] for _ in found]
    identified = [
        FaceIdentification(0, image, one, Verdict(Status.IDENTIFIED, row[0]), row)
        for one, row in zip(image.faces, rows, strict=True)
    ]
    outcome = Identification([image], decision, GallerySize(1000, 2000), identified)

    def detect() -> Answer:
        faces = [FaceInfo.of(one, comparator) for one in found]
        return DetectAnswer(images=[ImageInfo.of(0, image)], faces=faces, **envelope())

    def embed() -> Answer:
        faces = [EmbeddedFace.of(one, comparator, embedding=one[2].embedding) for one in found]
        return EmbedAnswer(images=[ImageInfo.of(0, image)], faces=faces, **envelope())

    def identify() -> Answer:
        return IdentifyAnswer.of(outcome, "default", comparator, **envelope())

    return {"detect": detect, "embed": embed, f"identify, top_k={TOP_K}": identify}


def microseconds(work: Callable[[], object]) -> float:
    start = time.process_time()
    for _ in range(CALLS):
        work()
    return (time.process_time() - start) / CALLS * 1e6


def main() -> None:
    for count in (1, 10, 64):
        builders = answers(count)
        built = {name: build() for name, build in builders.items()}
        whole: dict[str, list[float]] = {name: [] for name in builders}
        written: dict[str, list[float]] = {name: [] for name in builders}
        for _ in range(ROUNDS):
            for name, build in builders.items():
                whole[name].append(microseconds(lambda build=build: json_answer(build())))  # type: ignore[misc]
                one = built[name]
                written[name].append(microseconds(lambda one=one: json_answer(one)))  # type: ignore[misc]
        for name in builders:
            both = statistics.median(whole[name]), statistics.median(written[name])
            print(f"{count:3} faces, {name:18} {both[0]:8.1f} us, of it writing {both[1]:7.1f} us")


if __name__ == "__main__":
    main()
