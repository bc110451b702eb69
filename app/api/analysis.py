"""Running the photos of one call through the pipeline, side by side."""

import asyncio
from collections.abc import Callable, Sequence
from typing import TypeVar

from app.api.responses import AnswerHead, PhotoOutcome
from app.errors import FaceError, ImageError, LikenessError
from app.imaging import read_header
from app.types import AnalysedImage, CooperativeTask

T = TypeVar("T")


async def analyse_images(
    head: AnswerHead,
    images: Sequence[bytes],
    max_faces: int | None,
    *,
    embed: bool = True,
    liveness: bool = False,
) -> list[PhotoOutcome]:
    """Analyse each photo; one that cannot be used is answered with its error, in its place.

    When none can be used the first error is raised.
    """
    services = head.services
    limit = min(max_faces or services.settings.max_faces, services.settings.max_faces)

    def work(data: bytes) -> CooperativeTask[AnalysedImage]:
        return services.pipeline.steps(data, max_faces=limit, embed=embed, liveness=liveness)

    outcomes: list[PhotoOutcome] = list(await each_photo(head, images, work))
    errors = []
    for outcome in outcomes:
        if isinstance(outcome, AnalysedImage):
            record(head, outcome)
        else:
            errors.append(outcome)
    if len(errors) == len(outcomes):
        raise errors[0]
    return outcomes


async def each_photo(
    head: AnswerHead, images: Sequence[bytes], work: Callable[[bytes], CooperativeTask[T]]
) -> list[T | LikenessError]:
    """Take the steps of each photo on the inference threads; a bad photo fails alone."""
    return list(await asyncio.gather(*(_one(head, data, work) for data in images)))


async def _one(
    head: AnswerHead, data: bytes, work: Callable[[bytes], CooperativeTask[T]]
) -> T | LikenessError:
    try:
        return await head.services.scheduler.infer(work(data), _memory(head, data))
    except (ImageError, FaceError) as error:
        return error


def _memory(head: AnswerHead, data: bytes) -> int:
    """Bytes of memory that decoding a photo takes; 0 if it is too large to be decoded."""
    header = read_header(data)
    if header is None or header.pixels > head.services.settings.max_image_pixels:
        return 0
    return header.memory


def record(head: AnswerHead, image: AnalysedImage) -> None:
    """Count an analysed image in the answer's timings and in the metrics."""
    head.add_all(image.timings_ms)
    head.services.metrics.observe_image(image.timings_ms, len(image.faces))
