"""One network on a device, the threads that run it (its owners), and batches of the images of
several callers. A device runs 32 images in little more than the time of one. While the owners run
batches, the next one gathers in a buffer of its own; no image waits for a batch to fill. A batch is
run at one of a few sizes, and each size has a session of its own: a session that is run at several
sizes plans its convolutions again at each change (microsoft/onnxruntime#23006).
"""

import logging
import threading
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import Future
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from app.errors import WorkerDied
from app.inference.cuda import CPU_PROVIDER
from app.inference.gathering_batch import Batch, Heads, Share, runs_of
from app.inference.session import OnnxModel
from app.locks import new_lock
from app.telemetry.logs import log
from app.types import Image

ANSWER_TIMEOUT_S = 60.0
# A network that is run with so many images, always.
OpenNetwork = Callable[[int], OnnxModel]


class BatchedModel:
    """A network that collects the images of several callers. Safe to call from any thread."""

    takes_pixels, dynamic_batch, batches_itself = True, True, True

    def __init__(
        self,
        open_network: OpenNetwork,
        shape: tuple[int, int, int],
        sizes: Sequence[int],
        owners: int = 1,
        *,
        all_at_start: bool = True,
    ) -> None:
        """Images are uint8 of that `shape` (height, width, 3). Each of `owners` threads has a
        session for each of `sizes`, smallest first, and a session is run once before a request
        uses it: none is the first to need kernels and memory, and no deadline ends what may take
        minutes at a first start. Unless `all_at_start`, that is done here for the smallest size of
        one owner alone, with which requests are answered while a thread does it for the rest.

        Raises DeviceError, or what ONNX Runtime raises where the CPU cannot run the network either.
        """
        self._open = open_network
        self._shape = shape
        self._sizes = tuple(sizes)
        self._lock = new_lock("batching.pending")
        # For owners: images have come. For callers: there is room. One lock, so that a caller
        # wakes the owners alone.
        self._arrived = threading.Condition(self._lock)  # type: ignore[arg-type]
        self._emptied = threading.Condition(self._lock)  # type: ignore[arg-type]
        self._closed = False
        # How often each size was run.
        self.batches: dict[int, int] = dict.fromkeys(self._sizes, 0)
        # Of each owner: its session for each size.
        self._sessions: list[dict[int, OnnxModel]] = []
        self._threads: set[threading.Thread] = set()
        self._buffers: list[Batch] = []
        try:
            self._sessions = [self._open_sessions() for _ in range(owners)]
            self._model = self._sessions[0][self._sizes[0]]
            locked = self._model.provider != CPU_PROVIDER
            # One that gathers beside those that are run.
            self._buffers = [
                Batch(self._sizes[-1], shape, page_locked=locked) for _ in range(owners + 1)
            ]
            self._gathering: Batch | None = self._buffers[0]
            self._free = self._buffers[1:]
            if all_at_start:
                for sessions in self._sessions:
                    self._warm_up(sessions)
            else:
                self._warm_up_late()
        except BaseException:
            self.close()
            raise

    def _open_sessions(self) -> dict[int, OnnxModel]:
        return {size: self._open(size) for size in self._sizes}

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
    def fixed_size(self) -> tuple[int, int] | None:
        return self._shape[0], self._shape[1]

    @property
    def cpu_nodes(self) -> tuple[str, ...]:
        """The nodes of the network that run on the CPU although it is on a device."""
        return self._model.cpu_nodes

    def run(self, images: Image) -> Heads:
        """Outputs for (n, height, width, 3) BGR images, n > 0, in their order; waits for the
        batches they go into.

        Raises ValueError for images of another shape, what the network raises for these images
        alone, and WorkerDied.
        """
        deadline = time.monotonic() + ANSWER_TIMEOUT_S
        answers = [self._await(one, deadline) for one in self._put(images, deadline)]
        return answers[0] if len(answers) == 1 else [np.concatenate(h) for h in zip(*answers)]  # noqa: B905

    def submit(self, images: Image) -> list[Future[Heads]]:
        """As `run`, but waits only for room in batches: the answers to come, each to some of the
        images, in their order."""
        return self._put(images, time.monotonic() + ANSWER_TIMEOUT_S)

    def _put(self, images: Image, deadline: float) -> list[Future[Heads]]:
        if images.shape[1:] != self._shape or images.dtype != np.uint8:
            raise ValueError(
                f"images of {images.shape[1:]} {images.dtype}; {self.path.name} takes "
                f"{self._shape} uint8"
            )
        answers: list[Future[Heads]] = []
        start = 0
        while start < len(images):
            with self._place(len(images) - start, deadline) as (share, places):
                places[:] = images[start : start + share.count]
            answers.append(share.answer)
            start += share.count
        return answers

    def run_placed(self, write: Callable[[Image], None]) -> Heads:
        """Outputs for one image that `write` puts into the buffer of its batch: it gets
        (height, width, 3) BGR pixels, which may hold another image, and has to set all of them.

        Raises what `write` and the network raise, and WorkerDied.
        """
        deadline = time.monotonic() + ANSWER_TIMEOUT_S
        with self._place(1, deadline) as (share, places):
            write(places[0])
        return self._await(share.answer, deadline)

    @staticmethod
    def _await(answer: Future[Heads], deadline: float) -> Heads:
        try:
            return answer.result(deadline - time.monotonic())
        except TimeoutError as error:
            raise WorkerDied("The network did not answer in time.") from error

    @contextmanager
    def _place(self, count: int, deadline: float) -> Iterator[tuple[Share, Image]]:
        """Places for so many images, or for as many as have room, in the batch that gathers: to be
        filled now, beside other callers, who fill others. What is in a place whose caller failed is
        run too, and answered to nobody."""
        with self._lock:
            batch = self._await_room(deadline)
            start = batch.taken
            share = Share(start, min(count, self._sizes[-1] - start))
            batch.shares.append(share)
            batch.writing += 1
        try:
            yield share, batch.buffer.pixels[start : start + share.count]
        finally:
            with self._lock:
                batch.writing -= 1
                if batch.refused and not batch.writing:
                    self._give_back(batch)
                self._arrived.notify_all()

    def _await_room(self, deadline: float) -> Batch:
        """The batch that gathers, with room. Under the lock."""
        while True:
            if self._closed:
                raise WorkerDied("The network was closed.")
            batch = self._gathering
            if batch is not None and batch.taken < self._sizes[-1]:
                return batch
            left = deadline - time.monotonic()
            if left <= 0:
                raise WorkerDied("The network took no more images in time.")
            self._emptied.wait(left)

    def close(self) -> None:
        """End the threads; callers that still wait get WorkerDied."""
        with self._lock:
            self._closed = True
            self._arrived.notify_all()
            self._emptied.notify_all()
            threads = list(self._threads)
        for thread in threads:
            thread.join()
        for batch in self._buffers:
            self._refuse(batch.shares)
            batch.buffer.close()

    # --- owners ------------------------------------------------------------------------------

    def _warm_up(self, sessions: Mapping[int, OnnxModel]) -> None:
        """Start an owner and wait until it has run every size: CUDA keeps what it recorded for each
        thread. One owner after the other: all at once take as long (cuDNN compiles one plan at a
        time), and nothing else may ask CUDA for memory while a run is recorded."""
        ready: Future[None] = Future()
        self._start(sessions, ready)
        ready.result()

    def _warm_up_late(self) -> None:
        """Start one owner with the smallest size alone; the rest follows on a thread of its own."""
        opened, smallest = self._sessions, self._sizes[0]
        self._sessions = [{smallest: sessions[smallest]} for sessions in opened]
        self._warm_up(self._sessions[0])
        work = partial(self._add_sizes, opened)
        thread = threading.Thread(target=work, name="network-warm-up", daemon=True)
        self._threads.add(thread)
        thread.start()

    def _add_sizes(self, opened: Sequence[Mapping[int, OnnxModel]]) -> None:
        """The smallest size of the other owners first, then size by size."""
        steps = [(number, size) for size in self._sizes for number in range(len(opened))]
        for number, size in steps[1:]:
            try:
                opened[number][size].try_out(np.zeros((size, *self._shape), np.uint8))
            except Exception as error:  # noqa: BLE001 - the sizes that are ready continue to serve
                log(logging.ERROR, "a network does not run at a batch size; smaller ones are used",
                    error, network=self.path.name, size=size)  # fmt: skip
                return
            self.batches[size] += 1
            sessions = self._sessions[number]
            with self._lock:
                if self._closed:
                    return
                if size == self._sizes[0]:
                    self._start(sessions)
                else:
                    sessions[size] = opened[number][size]

    def _start(self, sessions: Mapping[int, OnnxModel], ready: Future[None] | None = None) -> None:
        thread = threading.Thread(
            target=self._own, args=(sessions, ready), name="network", daemon=True
        )
        self._threads.add(thread)
        thread.start()

    def _own(self, sessions: Mapping[int, OnnxModel], ready: Future[None] | None) -> None:
        if ready is not None:
            try:
                for size, network in sessions.items():
                    network.try_out(np.zeros((size, *self._shape), np.uint8))
                    self.batches[size] += 1
            except BaseException as error:  # noqa: BLE001 - raised where the network is opened
                ready.set_exception(error)
                return
            ready.set_result(None)
        batch: Batch | None = None
        try:
            while True:
                batch = None  # the last one has others' images by now
                batch = self._collect()
                if batch is None:
                    return
                self._answer(sessions, batch)
                self._recycle(batch)
        except BaseException as error:  # noqa: BLE001 - a thread that ends leaves nobody waiting
            log(logging.ERROR, "a network's thread died and is replaced", reason=repr(error))
            if batch is not None:
                self._refuse(batch.shares)
                self._recycle(batch)
            with self._lock:
                self._threads.discard(threading.current_thread())
                if not self._closed:
                    self._start(sessions)

    def _collect(self) -> Batch | None:
        """The batch that has gathered, once its places are filled; None when closed."""
        with self._lock:
            self._arrived.wait_for(
                lambda: self._closed or (self._gathering is not None and self._gathering.shares)
            )
            if self._closed:
                return None
            batch = self._gathering
            assert batch is not None, "waited for"
            self._gathering = self._free.pop() if self._free else None
            self._emptied.notify_all()
            if not self._arrived.wait_for(lambda: not batch.writing, ANSWER_TIMEOUT_S):
                self._refuse(batch.shares)
                batch.refused = True
                raise WorkerDied("An image did not come into its batch in time.")
            return batch

    def _recycle(self, batch: Batch) -> None:
        with self._lock:
            self._give_back(batch)

    def _give_back(self, batch: Batch) -> None:
        """Let a batch gather images again. Under the lock."""
        batch.clear()
        if self._gathering is None:
            self._gathering = batch
            self._emptied.notify_all()
        else:
            self._free.append(batch)

    def _answer(self, sessions: Mapping[int, OnnxModel], batch: Batch) -> None:
        try:
            heads = self._run(sessions, batch.buffer.pixels, 0, batch.taken)
        except Exception:  # noqa: BLE001 - the callers get it, each alone
            for share in batch.shares:
                self._answer_alone(sessions, batch, share)
            return
        for share in batch.shares:
            end = share.start + share.count
            share.answer.set_result([head[share.start : end] for head in heads])

    def _answer_alone(self, sessions: Mapping[int, OnnxModel], batch: Batch, share: Share) -> None:
        try:
            share.answer.set_result(
                self._run(sessions, batch.buffer.pixels, share.start, share.count)
            )
        except Exception as error:  # noqa: BLE001 - the caller gets it
            share.answer.set_exception(error)

    def _run(
        self, sessions: Mapping[int, OnnxModel], pixels: NDArray[Any], start: int, count: int
    ) -> Heads:
        """Heads for some images of a buffer, which may be run with what else lies there."""
        parts: list[Heads] = []
        for run in runs_of(start, count, tuple(sessions), len(pixels)):
            heads = sessions[run.size].run(pixels[run.first : run.first + run.size])
            self.batches[run.size] += 1
            parts.append([head[run.skipped : run.skipped + run.count] for head in heads])
        return parts[0] if len(parts) == 1 else [np.concatenate(h) for h in zip(*parts)]  # noqa: B905

    @staticmethod
    def _refuse(shares: Sequence[Share]) -> None:
        for share in shares:
            if not share.answer.done():
                share.answer.set_exception(WorkerDied("The thread that ran the network ended."))
