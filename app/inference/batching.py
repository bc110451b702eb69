"""One network, one thread that owns it, and batches made of what several threads ask for.

A GPU answers 32 images in little more than the time of one. Requests do not come in such numbers,
so the owner waits a few milliseconds for company, and pads what has come to the next of a few
fixed sizes: each new shape would cost a GPU new kernels and new memory.
"""

import logging
import threading
import time
from collections import deque
from collections.abc import Sequence
from concurrent.futures import Future
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from app.errors import WorkerDied
from app.inference.session import Network
from app.locks import new_condition
from app.telemetry.logs import log
from app.types import FloatArray

Heads = list[FloatArray]
ANSWER_TIMEOUT_S = 60.0


class _PendingBatch:
    """Images that one thread waits for."""

    __slots__ = ("answer", "images")

    def __init__(self, images: NDArray[Any]) -> None:
        self.images = images
        self.answer: Future[Heads] = Future()


class BatchedModel:
    """A network that collects the images of several callers. Safe to call from any thread."""

    def __init__(self, model: Network, sizes: Sequence[int], wait_s: float) -> None:
        """`sizes` are the batches that are run, smallest first. The first image of a shape, which
        detector and recogniser send when they are built, has them all run once: no request is the
        first to need new kernels and memory."""
        self._model = model
        self._sizes = tuple(sizes)
        self._wait_s = wait_s
        self._pending: deque[_PendingBatch] = deque()
        self._changed = new_condition("batching.pending")
        self._closed = False
        self._warm: set[tuple[int, ...]] = set()
        # How often each size was run.
        self.batches: dict[int, int] = dict.fromkeys(self._sizes, 0)
        self._start()

    @property
    def path(self) -> Path:
        return self._model.path

    @property
    def provider(self) -> str:
        return self._model.provider

    @property
    def output_names(self) -> list[str]:
        return self._model.output_names

    @property
    def dynamic_batch(self) -> bool:
        return self._model.dynamic_batch

    @property
    def fixed_size(self) -> tuple[int, int] | None:
        return self._model.fixed_size

    @property
    def takes_pixels(self) -> bool:
        return self._model.takes_pixels

    def _warm_up(self, image: NDArray[Any]) -> None:
        for size in self._sizes[1:]:
            self._run_padded(np.repeat(image, size, axis=0))

    def run(self, batch: NDArray[Any]) -> Heads:
        """Outputs for (n, …) images, in their order; waits for the batches they go into.

        Raises what the network raises for these images alone, and WorkerDied.
        """
        largest = self._sizes[-1]
        pending = [_PendingBatch(batch[i : i + largest]) for i in range(0, len(batch), largest)]
        with self._changed:
            if self._closed:
                raise WorkerDied("The network was closed.")
            self._pending.extend(pending)
            self._changed.notify()
        try:
            answers = [one.answer.result(ANSWER_TIMEOUT_S) for one in pending]
        except TimeoutError as error:
            raise WorkerDied("The network did not answer in time.") from error
        return answers[0] if len(answers) == 1 else [np.concatenate(h) for h in zip(*answers)]  # noqa: B905

    def close(self) -> None:
        """End the thread; callers that still wait get WorkerDied."""
        with self._changed:
            self._closed = True
            self._changed.notify()
        self._thread.join()
        self._refuse(list(self._pending))

    def _start(self) -> None:
        self._thread = threading.Thread(target=self._own, name="network", daemon=True)
        self._thread.start()

    def _own(self) -> None:
        batch: list[_PendingBatch] = []
        try:
            while batch := self._collect():
                self._answer(batch)
        except BaseException as error:  # noqa: BLE001 - a thread that ends leaves nobody waiting
            log(logging.ERROR, "a network's thread died and is replaced", reason=repr(error))
            self._refuse(batch)
            self._start()

    def _collect(self) -> list[_PendingBatch]:
        """The next images of one shape that fit the largest size; empty when closed."""
        with self._changed:
            self._changed.wait_for(lambda: self._pending or self._closed)
            if self._closed:
                return []
            deadline = time.monotonic() + self._wait_s
            while True:
                fitting = self._fitting()
                full = sum(len(one.images) for one in fitting) == self._sizes[-1]
                left = deadline - time.monotonic()
                if full or left <= 0 or not self._changed.wait(left):
                    fitting = self._fitting()
                    for one in fitting:
                        self._pending.remove(one)
                    return fitting

    def _fitting(self) -> list[_PendingBatch]:
        chosen: list[_PendingBatch] = []
        rows, shape = 0, self._pending[0].images.shape[1:]
        for one in self._pending:
            if one.images.shape[1:] == shape and rows + len(one.images) <= self._sizes[-1]:
                chosen.append(one)
                rows += len(one.images)
        return chosen

    def _answer(self, batch: list[_PendingBatch]) -> None:
        image = batch[0].images[:1]
        try:
            if image.shape not in self._warm:
                self._warm_up(image)
                self._warm.add(image.shape)
            heads = self._run_padded(np.concatenate([one.images for one in batch]))
        except Exception as error:  # noqa: BLE001 - the callers get it
            if len(batch) == 1:
                batch[0].answer.set_exception(error)
                return
            for one in batch:  # one that cannot be run fails alone
                self._answer([one])
            return
        start = 0
        for one in batch:
            end = start + len(one.images)
            one.answer.set_result([head[start:end] for head in heads])
            start = end

    def _run_padded(self, images: NDArray[Any]) -> Heads:
        size = next(size for size in self._sizes if size >= len(images))
        self.batches[size] += 1
        if size > len(images):
            padding = np.zeros((size - len(images), *images.shape[1:]), images.dtype)
            images = np.concatenate([images, padding])
        return self._model.run(images)

    def _refuse(self, batch: Sequence[_PendingBatch]) -> None:
        for one in batch:
            if not one.answer.done():
                one.answer.set_exception(WorkerDied("The thread that ran the network ended."))
