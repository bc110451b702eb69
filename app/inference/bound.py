"""Runs of a network with buffers at fixed addresses, which is what a CUDA graph can replay.

One session records one shape, before others run: ADR 37 says why.
"""

from dataclasses import dataclass
from typing import Any

import numpy as np
import onnxruntime as ort
from numpy.typing import NDArray

from app.locks import new_lock
from app.types import FloatArray

# Runs under this number are not recorded; others are recorded under theirs.
NOT_RECORDED = "-1"


@dataclass(frozen=True, slots=True)
class _Buffers:
    """Where one shape of input goes in and comes out."""

    number: str
    given: Any
    answers: tuple[Any, ...]
    binding: Any


class BoundSession:
    """One session with buffers for each shape it has met. One run at a time."""

    def __init__(self, session: ort.InferenceSession, device: str) -> None:
        """`device` is ONNX Runtime's name of where buffers lie: cuda or cpu."""
        self._session = session
        self._device = device
        self._input = session.get_inputs()[0].name
        self._outputs = [output.name for output in session.get_outputs()]
        self._buffers: dict[tuple[int, ...], _Buffers] = {}
        self._lock = new_lock("network.buffers")

    def run(self, batch: NDArray[Any]) -> list[FloatArray]:
        """All outputs for one batch."""
        batch = np.ascontiguousarray(batch)
        with self._lock:
            buffers = self._buffers.get(batch.shape) or self._bind(batch)
            buffers.given.update_inplace(batch)
            options = ort.RunOptions()
            if self._device == "cuda":
                options.add_run_config_entry("gpu_graph_id", buffers.number)
            self._session.run_with_iobinding(buffers.binding, options)
            return [answer.numpy().copy() for answer in buffers.answers]

    def _bind(self, batch: NDArray[Any]) -> _Buffers:
        """Buffers of the sizes that a first, unrecorded run answers with."""
        options = ort.RunOptions()
        if self._device == "cuda":
            options.add_run_config_entry("gpu_graph_id", NOT_RECORDED)
        shapes = self._session.run(self._outputs, {self._input: batch}, options)
        given = ort.OrtValue.ortvalue_from_numpy(batch, self._device, 0)
        binding = self._session.io_binding()
        binding.bind_ortvalue_input(self._input, given)
        answers = []
        for name, shape in zip(self._outputs, shapes, strict=True):
            value = ort.OrtValue.ortvalue_from_shape_and_type(
                shape.shape, shape.dtype, self._device, 0
            )
            binding.bind_ortvalue_output(name, value)
            answers.append(value)
        made = _Buffers(str(len(self._buffers)), given, tuple(answers), binding)
        self._buffers[batch.shape] = made
        return made
