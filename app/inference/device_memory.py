"""The few calls of the CUDA runtime that neither ONNX Runtime nor FAISS offers to Python: memory on
a device, and page-locked memory that a device copies from without help of a core.

They are called through `ctypes`: nine functions whose interface NVIDIA keeps for a major version,
of the library that both are linked against. All memory is on the first device.
"""

import ctypes
import logging
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from app.errors import DeviceError
from app.telemetry.logs import log

RUNTIME = "libcudart.so.13"
OUT_OF_MEMORY = 2  # cudaErrorMemoryAllocation
_TO_DEVICE, _TO_HOST, _ON_DEVICE = 1, 2, 3  # cudaMemcpyKind


class DeviceOutOfMemory(DeviceError):
    """The device has too little free memory."""


@cache
def _runtime() -> ctypes.CDLL:
    """The runtime of the wheels, or the system's. Raises DeviceError without one."""
    installed = [str(Path(folder, "nvidia", "cu13", "lib", RUNTIME)) for folder in sys.path]
    for library in (*filter(lambda file: Path(file).is_file(), installed), RUNTIME):
        try:
            loaded = ctypes.CDLL(library)
        except OSError:
            continue
        loaded.cudaGetErrorString.restype = ctypes.c_char_p
        return loaded
    raise DeviceError(f"{RUNTIME} is missing. Install the 'gpu' extra again, which contains it.")


def _call(name: str, *arguments: Any) -> None:
    runtime = _runtime()
    if not (code := getattr(runtime, name)(*arguments)):
        return
    runtime.cudaGetLastError()  # or the next call would report this failure again
    reason = runtime.cudaGetErrorString(code).decode()
    kind = DeviceOutOfMemory if code == OUT_OF_MEMORY else DeviceError
    raise kind(f"CUDA failure {code} of {name}: {reason}.")


class DeviceMemory:
    """A block of bytes on the device. Offsets and lengths are in bytes. Every method raises
    DeviceError where CUDA fails; copies have ended when they return."""

    def __init__(self, size: int) -> None:
        """Raises DeviceOutOfMemory."""
        self.size = size
        pointer = ctypes.c_void_p()
        _call("cudaMalloc", ctypes.byref(pointer), ctypes.c_size_t(size))
        self.address = int(pointer.value or 0)

    def write(self, offset: int, values: NDArray[Any]) -> None:
        """Copy an array, which must be contiguous, to the device."""
        self._copy(self.address + offset, values.ctypes.data, values.nbytes, _TO_DEVICE)

    def read(self, offset: int, shape: tuple[int, ...], dtype: Any) -> NDArray[Any]:
        """A copy of a part as an array."""
        values = np.empty(shape, dtype)
        self._copy(values.ctypes.data, self.address + offset, values.nbytes, _TO_HOST)
        return values

    def copy(self, offset: int, source: "DeviceMemory", start: int, size: int) -> None:
        """Copy a part of another block, on the device."""
        self._copy(self.address + offset, source.address + start, size, _ON_DEVICE)

    def zero(self, offset: int, size: int) -> None:
        """Set a part to zero."""
        _call("cudaMemset", ctypes.c_void_p(self.address + offset), 0, ctypes.c_size_t(size))
        _call("cudaStreamSynchronize", None)

    def free(self) -> None:
        """Give the memory back, zeroed: others may be given it."""
        if self.address:
            self.zero(0, self.size)
            _call("cudaFree", ctypes.c_void_p(self.address))
            self.address = 0

    @staticmethod
    def _copy(target: int, source: int, size: int, kind: int) -> None:
        if size:
            into, out_of = ctypes.c_void_p(target), ctypes.c_void_p(source)
            _call("cudaMemcpy", into, out_of, ctypes.c_size_t(size), ctypes.c_int(kind))
            # From pageable memory the call returns before the last bytes have arrived.
            _call("cudaStreamSynchronize", None)


@dataclass(frozen=True, slots=True)
class MemoryOfDevice:
    """Memory of the first device, in bytes."""

    free: int
    total: int


def memory_of_device() -> MemoryOfDevice:
    """What the device has now. Raises DeviceError."""
    free, total = ctypes.c_size_t(), ctypes.c_size_t()
    _call("cudaMemGetInfo", ctypes.byref(free), ctypes.byref(total))
    return MemoryOfDevice(free.value, total.value)


class HostBuffer:
    """An array of bytes at a fixed address; page-locked where it is for a CUDA device, so that
    copies to the device take no core and no second copy."""

    def __init__(self, shape: Sequence[int], *, page_locked: bool) -> None:
        self.pixels = np.zeros(shape, np.uint8)
        self._locked = False
        if page_locked:
            try:
                address = ctypes.c_void_p(self.pixels.ctypes.data)
                _call("cudaHostRegister", address, ctypes.c_size_t(self.pixels.nbytes), 0)
                self._locked = True
            except DeviceError as error:  # slower, and as right
                log(logging.WARNING, "a buffer is not page-locked", reason=error.detail)

    def close(self) -> None:
        """Unlock the pages."""
        if self._locked:
            _call("cudaHostUnregister", ctypes.c_void_p(self.pixels.ctypes.data))
            self._locked = False
