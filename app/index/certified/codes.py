"""Two bits per coordinate: what a compressed scan reads instead of the vectors, and how far its
estimate of a similarity can be from the similarity itself.

The scan itself is FAISS's 4-bit product quantiser in fast-scan form: a table of sixteen entries
for each pair of coordinates is looked up in SIMD registers. Its centroids are not learnt; they are
the sixteen points that two coordinates of two bits each can take.

A stored unit vector v is turned by a random rotation and rounded to a code r. With r = a·v + b·u,
u a unit vector at right angles to v, the estimate of a probe q is <q, r> = a·s + b·√(1−s²)·<w, u>,
where s is the exact similarity and w the unit vector that q adds to s·v. The rotation is drawn
from all rotations alike, so u lies anywhere on the sphere around v with the same probability, and
<w, u> is one coordinate of a random point on a sphere of d − 1 dimensions: its square is Beta(1/2,
(d − 2)/2). That holds for every v and q, whatever the data look like; it is the theorem of RaBitQ
(Gao & Long, SIGMOD 2024), which rounds to one bit, and holds for two in the same way.

An answer could be wrong only if one of its true members had such an estimate, so the chance of a
wrong answer is at most FAILURE times the length of the answer, however many vectors there are.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cache, cached_property
from typing import Any, TypeVar

import faiss
import numpy as np
from numpy.typing import NDArray

from app.types import FloatArray

FAILURE = 1e-9
_SLACK = 1e-5  # float32 sums of some hundred terms

Number = TypeVar("Number", float, NDArray[np.floating[Any]])


class ErrorBound:
    """The lowest estimate that a vector of a given similarity can have, but for a chance of
    `failure`: half of it for each of two bounds.

    `reach` bounds |<w, u>|. `rounding` bounds, in steps of the scan's table, the sum of the
    roundings of `tables` entries: each is off by half a step at most, and their signs are those
    of a random rotation (Hoeffding).
    """

    def __init__(self, dimension: int, tables: int, failure: float = FAILURE) -> None:
        self._dimension = dimension
        self._each = failure / 2
        self.rounding = math.sqrt(tables * math.log(1 / self._each) / 2)

    @cached_property
    def reach(self) -> float:
        """Calculated when it is first used: only an encoded shard needs it, and it needs SciPy."""
        from scipy.special import betainccinv  # noqa: PLC0415 (see `services.import_scipy`)

        return math.sqrt(betainccinv(0.5, (self._dimension - 2) / 2, 2 * self._each))

    def lowest_estimate(
        self, similarity: float, projection: Number, residual: Number, step: float
    ) -> Number:
        """The estimate below which no vector of at least `similarity` (> 0) lies.

        `projection` and `residual` are a and b of the code, or of many; it rises with a and falls
        with b, so the least a and the greatest b of some codes give a bound for all of them.
        """
        spread = self.reach * math.sqrt(max(0.0, 1.0 - similarity * similarity))
        return projection * similarity - residual * spread - (self.rounding * step + _SLACK)


@cache
def bound_of(dimension: int) -> ErrorBound:
    """The bound of codes of that dimension, with a table for each pair of coordinates."""
    return ErrorBound(dimension, dimension // 2)


Bytes = NDArray[np.uint8]
RowNumbers = NDArray[np.int64]

# The best four values for a standard normal, and where they part (Max, 1960, table I).
INNER, OUTER = 0.4528, 1.510
PART = (INNER + OUTER) / 2
CHUNK = 16_384  # rows encoded at a time
BLOCK = 32  # rows that the scan keeps together
# FAISS counts a radius in steps, of up to 65,535, in float32: it may leave out estimates that are
# above the radius by less than this many steps.
ROUNDED_BY = 1 / 64


@dataclass(frozen=True, slots=True, eq=False)
class RotatedProbe:
    """A probe (1, d) in the codes' coordinates; `step` is one step of its 8-bit lookup tables and
    `lowest` an estimate that hardly a code stays below."""

    vector: FloatArray
    step: float
    lowest: float


class Quantiser:
    """Rotates and rounds unit vectors; `rotation` is (d, d) orthogonal, drawn at random."""

    def __init__(self, rotation: FloatArray) -> None:
        self.rotation = np.ascontiguousarray(rotation, np.float32)
        self.dimension = len(rotation)
        self.tables = self.dimension // 2
        scale = 1 / np.sqrt(self.dimension)
        self._levels = (np.array([-OUTER, -INNER, INNER, OUTER]) * scale).astype(np.float32)
        self._part = np.float32(PART * scale)

    @classmethod
    def random(cls, dimension: int, generator: "np.random.Generator") -> "Quantiser":
        """One with a rotation drawn uniformly from all of them (Stewart, 1980)."""
        factor, triangle = np.linalg.qr(generator.standard_normal((dimension, dimension)))
        return cls((factor * np.sign(np.diag(triangle))).astype(np.float32))

    @staticmethod
    def fits(dimension: int) -> bool:
        """Whether vectors of that dimension can be coded: whole bytes of two 4-bit codes each."""
        return dimension % 4 == 0 and dimension >= 16

    def encode(self, vectors: FloatArray) -> "CodedRows":
        """The codes of (n, d) unit vectors."""
        scan = CodeScan(self)
        projection = np.empty(len(vectors), np.float32)
        residual = np.empty(len(vectors), np.float32)
        for start in range(0, len(vectors), CHUNK):
            part = slice(start, start + CHUNK)
            rotated = vectors[part] @ self.rotation.T
            rounded = self._round(rotated)
            a = np.einsum("ij,ij->i", rounded, rotated)
            projection[part] = a
            residual[part] = np.sqrt(
                np.maximum(np.einsum("ij,ij->i", rounded, rounded) - a * a, 0.0)
            )
            scan.add(rounded)
        return CodedRows(scan, projection, residual)

    def _round(self, rotated: FloatArray) -> FloatArray:
        number = (rotated > -self._part).view(np.uint8)
        number = number + (rotated > 0).view(np.uint8) + (rotated > self._part).view(np.uint8)
        rounded: FloatArray = self._levels[number]
        return rounded

    def rotate(self, probe: FloatArray) -> RotatedProbe:
        """One probe (d,) made ready for scans."""
        # Not by BLAS: its threads would keep spinning on the cores that the scans need.
        vector = np.empty((1, self.dimension), np.float32)
        faiss.fvec_inner_products_ny(
            faiss.swig_ptr(vector), faiss.swig_ptr(np.ascontiguousarray(probe, np.float32)),
            faiss.swig_ptr(self.rotation), self.dimension, self.dimension,
        )  # fmt: skip
        # FAISS rounds all tables to bytes in one step: the widest table has 255 of them, and the
        # sum over all tables must fit 16 bits.
        widths = 2 * self._levels[3] * np.abs(vector).reshape(-1, 2).sum(axis=1)
        step = float(max(widths.max() / 255, widths.sum() / 65_000))
        return RotatedProbe(vector, step, 2 * step - float(widths.sum()) / 2)

    def points(self) -> FloatArray:
        """The sixteen points (16, 2) of a pair of coordinates, in the order of their codes."""
        grid = np.meshgrid(self._levels, self._levels, indexing="ij")
        return np.stack(grid, axis=-1).reshape(16, 2).astype(np.float32)


class CodeScan:
    """The codes of some rows, ready to be scanned. Safe to scan from several threads."""

    def __init__(self, quantiser: Quantiser) -> None:
        dimension = quantiser.dimension
        self._only_list = faiss.IndexFlatIP(dimension)
        self._only_list.add(np.zeros((1, dimension), np.float32))
        self._index = faiss.IndexIVFPQFastScan(
            self._only_list, dimension, 1, quantiser.tables, 4, faiss.METRIC_INNER_PRODUCT, BLOCK
        )
        self._index.by_residual = False
        centroids = np.tile(quantiser.points().ravel(), quantiser.tables)
        faiss.copy_array_to_vector(centroids, self._index.pq.centroids)
        self._index.is_trained = True

    @classmethod
    def of_packed(cls, quantiser: Quantiser, packed: Bytes, count: int) -> "CodeScan":
        """A scan over bytes that `packed` gave of `count` rows."""
        scan = cls(quantiser)
        ids = np.arange(count, dtype=np.int64)
        contiguous = np.ascontiguousarray(packed)
        lists = scan._index.invlists
        lists.add_entries(0, count, faiss.swig_ptr(ids), faiss.swig_ptr(contiguous))
        scan._index.ntotal = count
        return scan

    def __len__(self) -> int:
        return int(self._index.ntotal)

    @property
    def memory(self) -> int:
        """Bytes of memory that the codes take, with FAISS's row numbers."""
        return packed_bytes(len(self), self._index.d) + 8 * len(self)

    def add(self, rounded: FloatArray) -> None:
        """Append rows (n, d) that are rounded already."""
        self._index.add(np.ascontiguousarray(rounded, np.float32))

    def packed(self, without: RowNumbers | None = None) -> Bytes:
        """A copy of the codes as the scan reads them, whole blocks of 32 rows; those of some rows
        are blank in it."""
        codes = self._codes().copy()
        if without is not None:
            self._blank(codes, without)
        return codes

    def forget(self, rows: RowNumbers) -> None:
        """Overwrite the codes of rows that count no more. Scans may run meanwhile: what they say of
        these rows means nothing, and the others' bits stay as they are."""
        self._blank(self._codes(), rows)

    def _codes(self) -> Bytes:
        """The codes themselves, as the scan reads them."""
        count = packed_bytes(len(self), self._index.d)
        codes: Bytes = faiss.rev_swig_ptr(self._index.invlists.get_codes(0), count)
        return codes

    def _blank(self, codes: Bytes, rows: RowNumbers) -> None:
        blocks = codes.reshape(-1, packed_bytes(BLOCK, self._index.d))
        for row in rows.tolist():
            self.blank(blocks[row // BLOCK], row % BLOCK)

    def blank(self, block: Bytes, place: int) -> None:
        """Overwrite one row's code in a packed block of 32."""
        packer = self._index.get_CodePacker()
        nothing = np.zeros(packer.code_size, np.uint8)
        packer.pack_1(nothing, place, block[np.newaxis])

    def within(self, probe: RotatedProbe, radius: float) -> tuple[RowNumbers, FloatArray]:
        """Every row whose estimate is at least `radius`, and the estimates, in no order. All rows
        with infinite estimates if the radius is below what an estimate can be."""
        if radius <= probe.lowest:  # FAISS counts the radius in steps from the lowest, unsigned
            return np.arange(len(self)), np.full(len(self), np.inf, np.float32)
        least = max(radius - ROUNDED_BY * probe.step, probe.lowest)
        _, estimates, rows = self._index.range_search(probe.vector, least)
        enough = estimates >= radius
        return rows[enough], estimates[enough]

    def within_all(
        self, probes: Sequence[RotatedProbe], radius: float
    ) -> tuple[RowNumbers, RowNumbers, FloatArray]:
        """`within` for several probes, whose `lowest` are below `radius`: those of the i-th are
        the rows and estimates from limits[i] to limits[i + 1]; (limits, rows, estimates)."""
        vectors = np.concatenate([probe.vector for probe in probes])
        margin = ROUNDED_BY * max(probe.step for probe in probes)
        least = max(radius - margin, *(probe.lowest for probe in probes))
        limits, estimates, rows = self._index.range_search(vectors, least)
        enough = estimates >= radius
        before = np.concatenate([[0], np.cumsum(enough)])  # rows that stay, before each
        return before[limits.astype(np.int64)], rows[enough], estimates[enough]


@dataclass(frozen=True, slots=True, eq=False)
class CodedRows:
    """Codes and the values that bound their error: `projection` and `residual` (n,) are a and b of
    `bound`."""

    scan: CodeScan
    projection: FloatArray
    residual: FloatArray

    @property
    def memory(self) -> int:
        """Bytes of memory that they take."""
        return self.scan.memory + self.projection.nbytes + self.residual.nbytes


def packed_bytes(rows: int, dimension: int) -> int:
    """Size of the packed codes of some rows: two bits per coordinate, whole blocks."""
    return -(-rows // BLOCK) * BLOCK * dimension // 4
