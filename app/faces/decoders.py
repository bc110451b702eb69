"""The heads of a detector -> detections: one function for each architecture."""

from functools import lru_cache

import numpy as np
from numpy.typing import NDArray

from app.types import Detections, FloatArray

CENTERFACE_STRIDE = 4
SCRFD_STRIDES = {1: (8, 16, 32), 3: (8, 16, 32), 5: (8, 16, 32, 64, 128)}
YUNET_STRIDES = (8, 16, 32)


def decode_centerface(
    heads: list[FloatArray], score_threshold: float, size: tuple[int, int]
) -> Detections:
    """CenterFace (Xu et al., "CenterFace: Joint Face Detection and Alignment Using Face as Point",
    2019).

    Decode heatmap (1, 1, h, w), log size (1, 2, h, w), offset (1, 2, h, w) and landmarks
    (1, 10, h, w) of one image; h and w are a quarter of `size`. The heads give y before x."""
    heatmap, log_size, offset, points = (head[0] for head in heads)
    expected = (size[0] // CENTERFACE_STRIDE, size[1] // CENTERFACE_STRIDE)
    if heatmap.shape[1:] != expected:
        raise ValueError(f"heatmap of {heatmap.shape[1:]}, expected {expected}")
    scores = heatmap.reshape(-1)
    places = np.flatnonzero(scores > score_threshold)
    # Of the other heads nothing but these few cells is read.
    values = [head.reshape(len(head), -1)[:, places] for head in (log_size, offset, points)]
    cells = np.array(np.divmod(places, expected[1]))
    return _centerface(scores[places], cells, np.concatenate(values))


def _centerface(scores: FloatArray, cells: NDArray[np.intp], values: FloatArray) -> Detections:
    """Scores (n,) and the values (14, n) of the other heads at cells (2, n): row, column."""
    log_size, offset, points = values[:2], values[2:4], values[4:]
    extent = np.exp(log_size) * CENTERFACE_STRIDE  # (2, n): height, width
    centre = (cells.astype(np.float32) + offset + 0.5) * CENTERFACE_STRIDE
    top_left = centre - extent / 2
    boxes = np.stack([top_left[1], top_left[0], top_left[1] + extent[1], top_left[0] + extent[0]])
    relative = points.reshape(5, 2, -1)  # (5, yx, n), in units of the box
    landmarks = (relative * extent + top_left).transpose(2, 0, 1)[:, :, ::-1]
    return Detections(
        np.ascontiguousarray(boxes.T, dtype=np.float32),
        scores.astype(np.float32),
        np.ascontiguousarray(landmarks, dtype=np.float32),
    )


def decode_scrfd(
    heads: list[FloatArray], score_threshold: float, size: tuple[int, int]
) -> Detections:
    """SCRFD (Guo et al., "Sample and Computation Redistribution for Efficient Face Detection", ICLR
    2022).

    Decode the heads of one image of `size` (height, width).

    A head is recognised by its last axis: 1 = score, 4 = distances from the anchor to the box's
    sides, 10 = landmark offsets, all in strides. They come a stride each (3 or 5 of a kind, so 6,
    9, 10 or 15 outputs) or joined over the strides (2 or 3 outputs); with or without landmarks.
    """
    scores, distances, offsets = (_heads_of(heads, channels) for channels in (1, 4, 10))
    if len(scores) not in SCRFD_STRIDES or len(distances) != len(scores):
        raise ValueError(f"{len(scores)} score and {len(distances)} box outputs")
    strides = SCRFD_STRIDES[len(scores)]
    score = np.concatenate(scores)[:, 0]
    anchors, steps = _anchors(len(score), strides, size)
    kept = np.flatnonzero(score >= score_threshold)
    return _scrfd(
        score[kept],
        anchors[kept],
        steps[kept, np.newaxis],
        np.concatenate(distances)[kept],
        np.concatenate(offsets)[kept] if offsets else None,
    )


def _scrfd(
    scores: FloatArray,
    centre: FloatArray,
    step: FloatArray,
    distances: FloatArray,
    offsets: FloatArray | None,
) -> Detections:
    """Scores (n,) and heads (n, 4) and (n, 10) at anchors (n, 2) of strides (n, 1)."""
    distance = distances * step
    boxes = np.concatenate([centre - distance[:, :2], centre + distance[:, 2:]], axis=1)
    landmarks = None
    if offsets is not None:
        offset = offsets * step
        landmarks = (offset.reshape(-1, 5, 2) + centre[:, np.newaxis]).astype(np.float32)
    return Detections(boxes.astype(np.float32), scores.astype(np.float32), landmarks)


def _heads_of(heads: list[FloatArray], channels: int) -> list[FloatArray]:
    """The heads with that many channels as (n, channels), finest stride (most anchors) first."""
    chosen = [head.reshape(-1, channels) for head in heads if head.shape[-1] == channels]
    return sorted(chosen, key=len, reverse=True)


@lru_cache(maxsize=64)
def _anchors(
    count: int, strides: tuple[int, ...], size: tuple[int, int]
) -> tuple[FloatArray, FloatArray]:
    """Anchor centres (count, 2) as x, y in pixels and the stride of each (count,); not to be
    written to, for they are kept: photos come in few shapes."""
    # Rounded up, as strided convolutions do: a canvas need not be a multiple of 64 or 128.
    grids = [(-(-size[0] // stride), -(-size[1] // stride)) for stride in strides]
    cells = sum(rows * columns for rows, columns in grids)
    per_cell, rest = divmod(count, cells)
    if rest or per_cell == 0:
        raise ValueError(f"{count} anchors over {cells} cells")
    centres, steps = [], []
    for (rows, columns), stride in zip(grids, strides, strict=True):
        y, x = np.mgrid[:rows, :columns].astype(np.float32) * stride
        centre = np.stack([x.ravel(), y.ravel()], axis=1)
        centres.append(np.repeat(centre, per_cell, axis=0))
        steps.append(np.full(len(centre) * per_cell, stride, dtype=np.float32))
    return np.concatenate(centres), np.concatenate(steps)


# --- candidates --------------------------------------------------------------------------------

# Of each level the anchors with the highest scores (1, most, 16): score, place among the level's
# anchors, and the other heads' numbers. `app.inference.device_graph` adds them to a network.


def are_cut(candidates: list[FloatArray], levels: tuple[int, ...], score_threshold: float) -> bool:
    """Whether a level of so many anchors may have one above the threshold that is no candidate."""
    return any(
        level.shape[1] < anchors and level[0, -1, 0] >= score_threshold
        for level, anchors in zip(candidates, levels, strict=True)
    )


def _kept(level: FloatArray, kept: NDArray[np.bool_]) -> tuple[FloatArray, NDArray[np.intp]]:
    """Some of the candidates of a level and their places, in the order of the heads."""
    rows = level[0, kept]
    places = rows[:, 1].astype(np.intp)
    order = np.argsort(places)
    return rows[order], places[order]


def decode_centerface_candidates(
    candidates: list[FloatArray],
    levels: tuple[int, ...],  # noqa: ARG001 - as the others
    score_threshold: float,
    size: tuple[int, int],
) -> Detections:
    """As `decode_centerface` decodes the heads that these are the candidates of."""
    rows, places = _kept(candidates[0], candidates[0][0, :, 0] > score_threshold)
    cells = np.stack(np.divmod(places, size[1] // CENTERFACE_STRIDE))
    return _centerface(rows[:, 0], cells, np.ascontiguousarray(rows[:, 2:].T))


def decode_scrfd_candidates(
    candidates: list[FloatArray],
    levels: tuple[int, ...],
    score_threshold: float,
    size: tuple[int, int],
) -> Detections:
    """As `decode_scrfd` decodes the heads that these are the candidates of."""
    anchors, steps = _anchors(sum(levels), SCRFD_STRIDES[len(levels)], size)
    first = np.cumsum((0, *levels[:-1]))
    kept = [_kept(level, level[0, :, 0] >= score_threshold) for level in candidates]
    rows = np.concatenate([found for found, _ in kept])
    places = np.concatenate([at + start for (_, at), start in zip(kept, first, strict=True)])
    step = steps[places, np.newaxis]
    return _scrfd(rows[:, 0], anchors[places], step, rows[:, 2:6], rows[:, 6:])


# --- YuNet -------------------------------------------------------------------------------------


def decode_yunet(
    heads: list[FloatArray], score_threshold: float, size: tuple[int, int]
) -> Detections:
    """YuNet (Wu, Peng & Yu, "YuNet: A Tiny Millisecond-level Face Detector", Machine Intelligence
    Research, 2023).

    Decode class, objectness, box and landmark heads (1, cells, 1|1|4|10), three strides each,
    of one image of `size` (height, width)."""
    if len(heads) != 4 * len(YUNET_STRIDES):
        raise ValueError(f"{len(heads)} outputs, expected {4 * len(YUNET_STRIDES)}")
    class_, object_, box, points = (
        np.concatenate([head[0] for head in heads[i : i + 3]]) for i in range(0, 12, 3)
    )
    cells, steps = _cells(size)
    if len(cells) != len(box):
        raise ValueError(f"{len(box)} cells, expected {len(cells)}")
    score = np.sqrt(np.clip(class_[:, 0], 0, 1) * np.clip(object_[:, 0], 0, 1))
    kept = np.flatnonzero(score >= score_threshold)
    cell, step = cells[kept], steps[kept, np.newaxis]
    centre = (cell + box[kept, :2]) * step
    half = np.exp(box[kept, 2:]) * step / 2
    landmarks = (points[kept].reshape(-1, 5, 2) + cell[:, np.newaxis]) * step[:, np.newaxis]
    return Detections(
        np.concatenate([centre - half, centre + half], axis=1).astype(np.float32),
        score[kept].astype(np.float32),
        landmarks.astype(np.float32),
    )


def _cells(size: tuple[int, int]) -> tuple[FloatArray, FloatArray]:
    """Column and row of every cell (n, 2) and its stride (n,)."""
    cells, steps = [], []
    for stride in YUNET_STRIDES:
        y, x = np.mgrid[: size[0] // stride, : size[1] // stride].astype(np.float32)
        cells.append(np.stack([x.ravel(), y.ravel()], axis=1))
        steps.append(np.full(x.size, stride, dtype=np.float32))
    return np.concatenate(cells), np.concatenate(steps)
