"""Rows of half precision on a device: the port of what the GPU engine requires, and CUDA's."""

from typing import Protocol

import numpy as np
from numpy.typing import NDArray

from app.errors import DeviceError
from app.index.certified.codes import RowNumbers
from app.index.cuvs import BruteForce, Half
from app.inference.device_memory import DeviceMemory, free_memory
from app.types import FloatArray

# Sums of 512 products that are exact in float32, in whatever order: 512 * 2^-22.
SUMMING = 1.25e-4
# Of the memory that is free when the index begins.
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


class Device(Protocol):
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


class CudaDevice:
    """`Device` on the first CUDA device, proven by a search."""

    def __init__(self, max_bytes: int | None = None) -> None:
        """Raises DeviceError."""
        try:
            self._library = BruteForce()
            self.max_bytes = max_bytes or int(SHARE * free_memory())
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
