"""Running the photos of one request through the pipeline, side by side, and the time it takes."""

import asyncio
import time
from collections.abc import Callable, Coroutine, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from functools import partial
from typing import Any, TypeVar

from app.errors import FaceError, ImageError, LikenessError
from app.faces.looks import FaceSelector
from app.imaging import read_header
from app.services import Services
from app.types import AnalysedImage, CooperativeTask, Face, FloatArray

A = TypeVar("A")
T = TypeVar("T")

PhotoOutcome = AnalysedImage | LikenessError
# The number of a photo in the request, the photo, and one of its faces.
FoundFace = tuple[int, AnalysedImage, Face]


class StageTimes:
    """Milliseconds by stage, added up over the photos of a request. For one thread at a time."""

    def __init__(self) -> None:
        self.milliseconds: dict[str, float] = {}

    def add(self, timings: Mapping[str, float]) -> None:
        """Add the stages of one image."""
        for stage, spent in timings.items():
            self.milliseconds[stage] = self.milliseconds.get(stage, 0.0) + spent

    @contextmanager
    def stage(self, name: str) -> Iterator[None]:
        """Add the time within the context to a stage, unless an error ends it."""
        start = time.perf_counter()
        yield
        self.add({name: (time.perf_counter() - start) * 1000})


async def analyse_images(
    services: Services,
    times: StageTimes,
    images: Sequence[bytes],
    max_faces: int | None,
    *,
    embed: bool = True,
    liveness: bool = False,
) -> list[PhotoOutcome]:
    """Analyse each photo; the outcome of one that cannot be used is its error, in its place.

    When none can be used the first error is raised.
    """
    limit = _limit(services, max_faces)

    def work(data: bytes) -> CooperativeTask[AnalysedImage]:
        image = yield from services.pipeline.steps(
            data, max_faces=limit, embed=embed, liveness=liveness
        )
        services.metrics.observe_image(image.timings_ms, len(image.faces))
        return image

    outcomes: list[PhotoOutcome] = list(await each_photo(services, images, work))
    errors = []
    for outcome in outcomes:
        if isinstance(outcome, AnalysedImage):
            times.add(outcome.timings_ms)
        else:
            errors.append(outcome)
    if len(errors) == len(outcomes):
        try:
            raise errors[0]
        finally:
            del errors, outcomes, outcome  # the error holds this frame
    return outcomes


async def analyse_one(
    services: Services,
    times: StageTimes,
    data: bytes,
    max_faces: int | None,
    make: Callable[[AnalysedImage], T],
    *,
    embed: bool = True,
    liveness: bool = False,
) -> T:
    """Analyse a photo, and make something of it on the same thread, so that the event loop does not
    make it. Raises the ImageError and FaceError families."""

    def work() -> CooperativeTask[T]:
        image = yield from image_task(
            services, times, data, max_faces, embed=embed, liveness=liveness
        )
        return make(image)

    return await infer_photo(services, data, work())


def image_task(
    services: Services,
    times: StageTimes,
    data: bytes,
    max_faces: int | None,
    *,
    embed: bool = True,
    liveness: bool = False,
    selector: FaceSelector | None = None,
) -> CooperativeTask[AnalysedImage]:
    """Analyse the one photo of a request, in steps. Raises the ImageError and FaceError
    families."""
    image = yield from services.pipeline.steps(
        data,
        max_faces=_limit(services, max_faces),
        embed=embed,
        liveness=liveness,
        selector=selector,
    )
    count_image(services, times, image)
    return image


def fits_one_thread(services: Services, photos: Sequence[bytes]) -> bool:
    """Whether a call with these photos can be answered on the thread of its photo: there is one,
    and no read waits for a database on the network."""
    return len(photos) == 1 and services.gallery.store.database.in_process


async def infer_photo(services: Services, data: bytes, task: CooperativeTask[T]) -> T:
    """Take the steps of a task that analyses a photo on the inference threads."""
    return await services.scheduler.infer(task, partial(_memory, services, data))


def _limit(services: Services, max_faces: int | None) -> int:
    most = services.settings.max_faces
    return most if max_faces is None else min(max_faces, most)


async def each_photo(
    services: Services, images: Sequence[bytes], work: Callable[[bytes], CooperativeTask[T]]
) -> list[T | LikenessError]:
    """Run a task for each photo on the inference threads; a bad photo fails alone."""
    if len(images) == 1:  # most calls: without a task of its own
        return [await _one(services, images[0], work)]
    return await side_by_side(_one(services, data, work) for data in images)


async def side_by_side(parts: Iterable[Coroutine[Any, Any, T]]) -> list[T]:
    """The results of the parts of a request, in their order. The first error is raised once the
    other parts have ended, which are cancelled: photos that nobody waits for leave the queue."""
    tasks = [asyncio.create_task(part) for part in parts]
    try:
        return list(await asyncio.gather(*tasks))
    finally:
        await _end(tasks)
        tasks.clear()  # the error holds this frame, and its task the error


async def _end(tasks: Iterable[asyncio.Task[T]]) -> None:
    for task in tasks:
        task.cancel()
    await asyncio.gather(*tasks, return_exceptions=True)


async def _one(
    services: Services, data: bytes, work: Callable[[bytes], CooperativeTask[T]]
) -> T | LikenessError:
    try:
        return await infer_photo(services, data, work(data))
    except (ImageError, FaceError) as error:
        return error


async def infer_and_write(
    services: Services,
    data: bytes,
    steps: CooperativeTask[A],
    key: str,
    work: Callable[[Sequence[A]], Sequence[T | Exception]],
) -> T:
    """Take the steps of one photo, and write what they result in: `Scheduler.infer_and_write`."""
    measure = partial(_memory, services, data)
    return await services.scheduler.infer_and_write(steps, key, work, measure)


def _memory(services: Services, data: bytes) -> int:
    """Bytes of memory that decoding a photo takes; 0 if it is too large to be decoded. For an
    inference thread: reading a header takes milliseconds where its file has thousands of parts."""
    header = read_header(data)
    if header is None or header.pixels > services.settings.max_image_pixels:
        return 0
    return header.memory


def count_image(services: Services, times: StageTimes, image: AnalysedImage) -> None:
    """Count an analysed image in the request's times and in the metrics."""
    times.add(image.timings_ms)
    services.metrics.observe_image(image.timings_ms, len(image.faces))


def faces_of(outcomes: Sequence[PhotoOutcome]) -> list[FoundFace]:
    """Every face with its image and that image's number."""
    return [
        (index, outcome, face)
        for index, outcome in enumerate(outcomes)
        if isinstance(outcome, AnalysedImage)
        for face in outcome.faces
    ]


def embedding_of(face: Face) -> FloatArray:
    """The embedding (d,) of a face that was analysed with `embed`."""
    assert face.embedding is not None, "the pipeline was asked to embed"
    return face.embedding
