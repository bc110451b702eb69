"""Rows of half precision on a device, which the indexes of a process share, with one thread: the
port of what the GPU engine requires, and CUDA's, which cuVS searches by brute force through its C
interface.

FAISS's own call over raw memory takes half precision by its older kernels, ten times slower on an
H100 (docs/benchmarks/gpu.md), and ends the process where more than 2,048 rows are asked for. Its
flat index does use cuVS, and keeps its memory to itself: a deleted row could not be zeroed there.
cuVS reports what fails. All calls come from one thread.
"""

import ctypes
import time
from concurrent.futures import ThreadPoolExecutor
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

from app.errors import DeviceError
from app.index.certified.codes import RowNumbers
from app.inference.device_memory import (
    DeviceMemory,
    DeviceOutOfMemory,
    MemoryOfDevice,
    memory_of_device,
)
from app.types import FloatArray

Half = NDArray[np.float16]
_SUCCESS, _INNER_PRODUCT = 1, 6  # cuvsError_t, cuvsDistanceType
_CUDA = 2  # kDLCUDA
_SIGNED, _FLOAT = 0, 2  # DLDataTypeCode
# Of the device's memory, for what a search needs beside the rows.
FIRST_POOL_PERCENT, MOST_POOL_PERCENT = 1, 10


class _Tensor(ctypes.Structure):
    """DLManagedTensor of DLPack 0.x, without a deleter: cuVS does not free the memory."""

    _fields_ = (
        ("data", ctypes.c_void_p),
        ("device_type", ctypes.c_int32),
        ("device_id", ctypes.c_int32),
        ("dimensions", ctypes.c_int32),
        ("code", ctypes.c_uint8),
        ("bits", ctypes.c_uint8),
        ("lanes", ctypes.c_uint16),
        ("shape", ctypes.POINTER(ctypes.c_int64)),
        ("strides", ctypes.POINTER(ctypes.c_int64)),
        ("byte_offset", ctypes.c_uint64),
        ("context", ctypes.c_void_p),
        ("deleter", ctypes.c_void_p),
    )


class _Filter(ctypes.Structure):
    """cuvsFilter; zeros are none."""

    _fields_ = (("address", ctypes.c_size_t), ("kind", ctypes.c_int))


def _matrix(address: int, rows: int, columns: int, code: int, bits: int) -> _Tensor:
    shape = (ctypes.c_int64 * 2)(rows, columns)
    return _Tensor(address, _CUDA, 0, 2, code, bits, 1, shape, None, 0, None, None)


class BruteForce:
    """The library with its resources on the first device. Every method raises DeviceError."""

    def __init__(self, processes: int = 1) -> None:
        """`processes` use the device at a time."""
        try:
            import libcuvs  # noqa: PLC0415 - of the extra gpu

            self._library: Any = libcuvs.load_library()[-1]
            self._library.cuvsGetLastErrorText.restype = ctypes.c_char_p
        except (ImportError, OSError, IndexError, AttributeError) as error:
            raise DeviceError(
                f"cuVS cannot be loaded ({error}). Install the 'gpu' extra again, which "
                "contains it."
            ) from error
        self._scratch: DeviceMemory | None = None
        # Without a pool each search asks the driver for memory.
        most = max(FIRST_POOL_PERCENT, MOST_POOL_PERCENT // processes)
        self._call("cuvsRMMPoolMemoryResourceEnable", FIRST_POOL_PERCENT, most,
                   ctypes.c_bool(False))  # fmt: skip
        self._resources = ctypes.c_size_t()
        self._call("cuvsResourcesCreate", ctypes.byref(self._resources))

    def _call(self, name: str, *arguments: Any) -> None:
        if getattr(self._library, name)(*arguments) == _SUCCESS:
            return
        text = (self._library.cuvsGetLastErrorText() or b"").decode(errors="replace")
        reason = " ".join(text.split())[:300]
        full = "out of memory" in reason or "out_of_memory" in reason or "bad_alloc" in reason
        raise (DeviceOutOfMemory if full else DeviceError)(f"{name} failed: {reason}.")

    def search(
        self, rows: DeviceMemory, count: int, probes: Half, most: int
    ) -> tuple[FloatArray, NDArray[np.int64]]:
        """The estimates (n, most) and numbers of the rows, of the first `count`, with the greatest
        inner products with (n, d) probes, greatest first."""
        probes = np.ascontiguousarray(probes)
        number, dimension = probes.shape
        estimates_at = -(-probes.nbytes // 256) * 256
        numbers_at = estimates_at + -(-number * most * 4 // 256) * 256
        scratch = self._room(numbers_at + number * most * 8)
        scratch.write(0, probes)
        index = ctypes.c_void_p()
        self._call("cuvsBruteForceIndexCreate", ctypes.byref(index))
        try:
            given = _matrix(rows.address, count, dimension, _FLOAT, 16)
            self._call("cuvsBruteForceBuild", self._resources, ctypes.byref(given),
                       _INNER_PRODUCT, ctypes.c_float(0.0), index)  # fmt: skip
            queries = _matrix(scratch.address, number, dimension, _FLOAT, 16)
            numbers = _matrix(scratch.address + numbers_at, number, most, _SIGNED, 64)
            estimates = _matrix(scratch.address + estimates_at, number, most, _FLOAT, 32)
            self._call("cuvsBruteForceSearch", self._resources, index, ctypes.byref(queries),
                       ctypes.byref(numbers), ctypes.byref(estimates), _Filter())  # fmt: skip
            self._call("cuvsStreamSync", self._resources)
        finally:
            self._library.cuvsBruteForceIndexDestroy(index)
        return (
            scratch.read(estimates_at, (number, most), np.float32),
            scratch.read(numbers_at, (number, most), np.int64),
        )

    def _room(self, size: int) -> DeviceMemory:
        if self._scratch is None or self._scratch.size < size:
            if self._scratch is not None:
                self._scratch.free()
                self._scratch = None
            self._scratch = DeviceMemory(2 * size)
        return self._scratch

    def close(self) -> None:
        """Give the device's memory back."""
        if self._scratch is not None:
            self._scratch.free()
            self._scratch = None
        self._library.cuvsResourcesDestroy(self._resources)
        self._library.cuvsRMMMemoryResourceReset()


# Sums of 512 products that are exact in float32, in whatever order: 512 * 2^-22.
SUMMING = 1.25e-4
# Of the device's memory, for the rows of all processes.
SHARE = 0.8
PROOF_ROWS, PROOF_DIMENSION = 4_096, 512


class DeviceRows(Protocol):
    """Room for `capacity` rows. Every method raises DeviceError."""

    @property
    def capacity(self) -> int: ...
    def write(self, first: int, rows: Half) -> None:
        """Put rows (n, d) from number `first` on."""
        ...

    def zero(self, numbers: RowNumbers) -> None:
        """Set rows to zero; they are when this returns."""
        ...

    def copy(self, source: "DeviceRows", start: int, count: int, first: int) -> None:
        """Copy `count` rows of another from `start` on, to `first` here, on the device."""
        ...

    def search(self, probes: Half, count: int, most: int) -> tuple[FloatArray, RowNumbers]:
        """The estimates (n, most) and numbers of the nearest of the first `count` rows to probes
        (n, d), best first."""
        ...

    def free(self) -> None:
        """Give the memory back, zeroed."""
        ...


class RowDevice(Protocol):
    """Where rows can lie."""

    @property
    def max_bytes(self) -> int:
        """What all rows may take together."""
        ...

    def new_rows(self, capacity: int, dimension: int) -> DeviceRows:
        """Room for rows, all zero. Raises DeviceOutOfMemory."""
        ...

    def close(self) -> None:
        """Give everything back."""
        ...


class CudaRows:
    """`DeviceRows` in a block of CUDA memory."""

    def __init__(self, library: BruteForce, capacity: int, dimension: int) -> None:
        self.capacity = capacity
        self._library = library
        self._width = 2 * dimension
        self._memory = DeviceMemory(capacity * self._width)
        self._memory.zero(0, self._memory.size)

    def write(self, first: int, rows: Half) -> None:
        self._memory.write(first * self._width, np.ascontiguousarray(rows))

    def zero(self, numbers: RowNumbers) -> None:
        ends = np.flatnonzero(np.diff(numbers) != 1) + 1
        for run in np.split(numbers, ends):
            if len(run):
                self._memory.zero(int(run[0]) * self._width, len(run) * self._width)

    def copy(self, source: DeviceRows, start: int, count: int, first: int) -> None:
        assert isinstance(source, CudaRows), "of the same device"
        width = self._width
        self._memory.copy(first * width, source._memory, start * width, count * width)

    def search(self, probes: Half, count: int, most: int) -> tuple[FloatArray, RowNumbers]:
        return self._library.search(self._memory, count, probes, most)

    def free(self) -> None:
        self._memory.free()


def bytes_of_a_process(memory: MemoryOfDevice, processes: int) -> int:
    """What the rows of one of several processes may take, each of which has a copy of the gallery:
    an equal part, and one part more for the process that takes the place of another. A single one
    takes of what is free."""
    if processes == 1:
        return int(SHARE * memory.free)
    return int(SHARE * memory.total) // (processes + 1)


class CudaDevice:
    """`RowDevice` on the first CUDA device, proven by a search."""

    def __init__(self, max_bytes: int | None = None, processes: int = 1) -> None:
        """`processes` have one each. Raises DeviceError."""
        try:
            self._library = BruteForce(processes)
            self.max_bytes = max_bytes or bytes_of_a_process(memory_of_device(), processes)
            self._prove()
        except DeviceError as error:
            raise DeviceError(
                f"LIKENESS_INDEX_DEVICE=cuda asks for a CUDA device and the extra gpu: "
                f"{error.detail} Unset it to search on the CPU."
            ) from error

    def _prove(self) -> None:
        random = np.random.default_rng(1).standard_normal((PROOF_ROWS, PROOF_DIMENSION))
        vectors = (random / np.linalg.norm(random, axis=1, keepdims=True)).astype(np.float16)
        rows = self.new_rows(PROOF_ROWS, PROOF_DIMENSION)
        rows.write(0, vectors)
        estimates, numbers = rows.search(vectors[:8], PROOF_ROWS, 64)
        rows.free()
        exact: NDArray[np.float64] = vectors[:8].astype(np.float64) @ vectors.T.astype(np.float64)
        found = np.take_along_axis(exact, numbers, axis=1)
        best = -np.sort(-exact, axis=1)[:, :64]
        if np.abs(found - estimates).max() > SUMMING or np.abs(found - best).max() > 2 * SUMMING:
            raise DeviceError("cuVS's search on the device gives wrong answers.")

    def new_rows(self, capacity: int, dimension: int) -> CudaRows:
        return CudaRows(self._library, capacity, dimension)

    def close(self) -> None:
        self._library.close()


SCAN_TIMEOUT_S = 60.0
# An index that was searched so recently is not evicted for another: they would take turns in being
# copied to the device.
IDLE_S = 60.0


class DeviceHolder(Protocol):
    """An index that may have rows on the device."""

    @property
    def used_at(self) -> float:
        """When it was last searched, by the monotonic clock."""
        ...

    @property
    def bytes(self) -> int:
        """Bytes of the device that its rows take."""
        ...

    def release(self) -> None:
        """Free them. On the owner's thread."""
        ...


class DeviceGalleries:
    """The indexes of a process on one device. A thread of its own scans and copies."""

    def __init__(self, device: RowDevice) -> None:
        self.device = device
        self.owner = ThreadPoolExecutor(1, "gpu-index")
        # Those with rows on the device; changed on the owner's thread.
        self.holding: set[DeviceHolder] = set()

    def new_rows(self, capacity: int, dimension: int, wanted_by: DeviceHolder) -> DeviceRows:
        """Memory for rows; that of idle indexes is freed where it is needed. On the
        owner's thread. Raises DeviceOutOfMemory."""
        size = 2 * capacity * dimension
        while True:
            try:
                together = size + sum(one.bytes for one in self.holding)
                if together > self.device.max_bytes:
                    raise DeviceOutOfMemory(
                        f"{together} bytes of rows; {self.device.max_bytes} are allowed."
                    )
                return self.device.new_rows(capacity, dimension)
            except DeviceOutOfMemory:
                since = time.monotonic() - IDLE_S
                idle = [one for one in self.holding
                        if one is not wanted_by and one.used_at < since]  # fmt: skip
                if not idle:
                    raise
                min(idle, key=lambda one: one.used_at).release()

    def close(self) -> None:
        """Free the device."""
        self.owner.submit(self._release_all).result(SCAN_TIMEOUT_S)
        self.owner.shutdown()
        self.device.close()

    def _release_all(self) -> None:
        for one in list(self.holding):
            one.release()
