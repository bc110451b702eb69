"""Building answers: the part that all share, and domain values in wire form."""

import asyncio
import time
from collections.abc import Callable, Mapping
from concurrent.futures import Executor
from dataclasses import asdict
from typing import Any

import orjson
from fastapi import Request, Response

from app.api.schemas.common import ImageInfo
from app.errors import LikenessError
from app.importing.jobs import ImportJobs
from app.index.comparator import Comparator
from app.recognition.analysis import PhotoOutcome
from app.recognition.stages import StageTimes
from app.services import Services
from app.telemetry.logs import request_id
from app.types import AnalysedImage, Face

# Writing the answer of one face takes about 20 us.
MANY_FACES = 64


def services_of(request: Request) -> Services:
    """The running parts of the app that serves this request."""
    services: Services = request.app.state.services
    return services


def jobs_of(request: Request) -> ImportJobs:
    """The imports of the app that serves this request."""
    jobs: ImportJobs = request.app.state.imports
    return jobs


class AnswerHead:
    """Starts a clock when the route is entered and writes the members every answer has."""

    def __init__(self, request: Request) -> None:
        self.services = services_of(request)
        self.times = StageTimes()
        self._start = time.perf_counter()

    def envelope(self) -> dict[str, Any]:
        """request_id, model and timings_ms; `total` is the time in the route."""
        pack = self.services.pack
        total = (time.perf_counter() - self._start) * 1000
        return {
            "request_id": request_id.get(),
            "model": {
                "pack": pack.name,
                "version": pack.version,
                "embedding_space": pack.embedding_space,
            },
            "timings_ms": {
                stage: round(spent, 2)
                for stage, spent in {**self.times.milliseconds, "total": total}.items()
            },
        }


def json_answer(members: Mapping[str, Any]) -> Response:
    """An answer written as it is, arrays of numbers included: embeddings are most of its length,
    and validating and writing them number by number took a third of the HTTP layer's time.

    Lists are written item by item, so that other threads have their turns between."""
    written = (_json(name) + b":" + _json_of(value) for name, value in members.items())
    return Response(b"{" + b",".join(written) + b"}", media_type="application/json")


def _json_of(value: Any) -> bytes:
    if isinstance(value, list):
        return b"[" + b",".join(map(_json, value)) + b"]"
    return _json(value)


def _json(value: Any) -> bytes:
    return orjson.dumps(value, option=orjson.OPT_SERIALIZE_NUMPY)


async def answer_of_faces(request: Request, faces: int, write: Callable[[], Response]) -> Response:
    """Write an answer; off the event loop if it has many faces."""
    if faces <= MANY_FACES:
        return write()
    threads: Executor = request.app.state.parsing
    return await asyncio.get_running_loop().run_in_executor(threads, write)


def image_info(index: int, outcome: PhotoOutcome) -> ImageInfo:
    """One image of the call, read or refused."""
    if isinstance(outcome, LikenessError):
        error = {"code": outcome.code, "detail": outcome.detail, **outcome.extra}
        return ImageInfo(index=index, error=error)
    return ImageInfo(
        index=index, width=outcome.width, height=outcome.height, faces=len(outcome.faces)
    )


def face_members(
    face: Face, image: AnalysedImage, index: int, comparator: Comparator
) -> dict[str, Any]:
    """The members of a `FaceInfo`."""
    lean = None if face.embedding is None else comparator.lean(face.embedding)
    x1, y1, x2, y2 = face.box.tolist()
    return {
        "image_index": index,
        "box": [round(value, 2) for value in (x1, y1, x2, y2)],
        "box_normalised": [
            round(x1 / image.width, 6),
            round(y1 / image.height, 6),
            round(x2 / image.width, 6),
            round(y2 / image.height, 6),
        ],
        "landmarks": [[round(x, 2), round(y, 2)] for x, y in face.landmarks.tolist()],
        "rotation": face.rotation,
        "score": round(face.score, 4),
        "quality": quality_members(asdict(face.quality)),
        "degradation": None if lean is None else round(lean, 4),
    }


def quality_members(quality: Mapping[str, Any]) -> dict[str, Any]:
    """Measures rounded to what they are worth."""
    return {
        name: round(value, 3) if isinstance(value, float) else value
        for name, value in quality.items()
    }
