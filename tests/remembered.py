"""What a network answered is remembered: the same few photos are analyzed in hundreds of tests."""

import hashlib
import threading
from collections.abc import Iterator
from typing import Any, ClassVar

import numpy as np
import onnxruntime as ort
import pytest
from numpy.typing import NDArray

ANSWERS = 200  # of each network, some of which take a megabyte


class RememberingSession:
    """A session of ONNX Runtime that runs an input once; the same one again gets a copy of the
    answer. All else is the session's own."""

    enabled: ClassVar[bool] = True

    def __init__(self, session: ort.InferenceSession) -> None:
        self._session = session
        self._answers: dict[tuple[Any, ...], list[NDArray[np.float32]]] = {}
        self._lock = threading.Lock()

    def __getattr__(self, name: str) -> Any:
        return getattr(self._session, name)

    def run(
        self, outputs: list[str] | None, feed: dict[str, NDArray[Any]], *options: Any
    ) -> list[NDArray[np.float32]]:
        if not self.enabled or options or len(feed) != 1:
            return list(self._session.run(outputs, feed, *options))
        ((name, batch),) = feed.items()
        digest = hashlib.sha1(np.ascontiguousarray(batch), usedforsecurity=False).digest()
        key = (outputs and tuple(outputs), name, batch.shape, batch.dtype, digest)
        with self._lock:
            known = self._answers.get(key)
        if known is None:
            known = self._session.run(outputs, feed)
            with self._lock:
                if len(self._answers) >= ANSWERS:
                    del self._answers[next(iter(self._answers))]
                self._answers[key] = known
        return [answer.copy() for answer in known]


@pytest.fixture(scope="module", autouse=True)
def networks_run_each_time() -> Iterator[None]:
    """For folders whose tests are about the networks and how they are run."""
    RememberingSession.enabled = False
    yield
    RememberingSession.enabled = True
