"""YuNet heads -> detections (Wu, Peng & Yu, "YuNet: A Tiny Millisecond-level Face Detector",
Machine Intelligence Research, 2023)."""

import numpy as np

from app.types import Detections, FloatArray

STRIDES = (8, 16, 32)


def decode(heads: list[FloatArray], score_threshold: float, size: tuple[int, int]) -> Detections:
    """Decode class, objectness, box and landmark heads (1, cells, 1|1|4|10), three strides each,
    of one image of `size` (height, width)."""
    if len(heads) != 4 * len(STRIDES):
        raise ValueError(f"{len(heads)} outputs, expected {4 * len(STRIDES)}")
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
    for stride in STRIDES:
        y, x = np.mgrid[: size[0] // stride, : size[1] // stride].astype(np.float32)
        cells.append(np.stack([x.ravel(), y.ravel()], axis=1))
        steps.append(np.full(x.size, stride, dtype=np.float32))
    return np.concatenate(cells), np.concatenate(steps)
