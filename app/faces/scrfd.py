"""SCRFD heads -> detections (Guo et al., "Sample and Computation Redistribution for Efficient
Face Detection", ICLR 2022)."""

from functools import lru_cache

import numpy as np

from app.types import Detections, FloatArray

STRIDES = {1: (8, 16, 32), 3: (8, 16, 32), 5: (8, 16, 32, 64, 128)}


def decode(heads: list[FloatArray], score_threshold: float, size: tuple[int, int]) -> Detections:
    """Decode the heads of one image of `size` (height, width).

    A head is recognised by its last axis: 1 = score, 4 = distances from the anchor to the box's
    sides, 10 = landmark offsets, all in strides. They come a stride each (3 or 5 of a kind, so 6,
    9, 10 or 15 outputs) or joined over the strides (2 or 3 outputs); with or without landmarks.
    """
    scores, distances, offsets = (_heads_of(heads, channels) for channels in (1, 4, 10))
    if len(scores) not in STRIDES or len(distances) != len(scores):
        raise ValueError(f"{len(scores)} score and {len(distances)} box outputs")
    strides = STRIDES[len(scores)]
    score = np.concatenate(scores)[:, 0]
    anchors, steps = _anchors(len(score), strides, size)
    kept = np.flatnonzero(score >= score_threshold)
    centre, step = anchors[kept], steps[kept, np.newaxis]
    distance = np.concatenate(distances)[kept] * step
    boxes = np.concatenate([centre - distance[:, :2], centre + distance[:, 2:]], axis=1)
    landmarks = None
    if offsets:
        offset = np.concatenate(offsets)[kept] * step
        landmarks = (offset.reshape(-1, 5, 2) + centre[:, np.newaxis]).astype(np.float32)
    return Detections(boxes.astype(np.float32), score[kept].astype(np.float32), landmarks)


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
