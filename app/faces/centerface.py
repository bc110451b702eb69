"""CenterFace heads -> detections (Xu et al., "CenterFace: Joint Face Detection and Alignment
Using Face as Point", 2019)."""

import numpy as np

from app.types import Detections, FloatArray

STRIDE = 4


def decode(heads: list[FloatArray], score_threshold: float, size: tuple[int, int]) -> Detections:
    """Decode heatmap (1, 1, h, w), log size (1, 2, h, w), offset (1, 2, h, w) and landmarks
    (1, 10, h, w) of one image; h and w are a quarter of `size`. The heads give y before x."""
    heatmap, log_size, offset, points = (head[0] for head in heads)
    expected = (size[0] // STRIDE, size[1] // STRIDE)
    if heatmap.shape[1:] != expected:
        raise ValueError(f"heatmap of {heatmap.shape[1:]}, expected {expected}")
    rows, columns = np.nonzero(heatmap[0] > score_threshold)
    scores = heatmap[0, rows, columns]
    extent = np.exp(log_size[:, rows, columns]) * STRIDE  # (2, n): height, width
    cells = np.stack([rows, columns]).astype(np.float32)
    centre = (cells + offset[:, rows, columns] + 0.5) * STRIDE
    top_left = centre - extent / 2
    boxes = np.stack([top_left[1], top_left[0], top_left[1] + extent[1], top_left[0] + extent[0]])
    relative = points[:, rows, columns].reshape(5, 2, -1)  # (5, yx, n), in units of the box
    landmarks = (relative * extent + top_left).transpose(2, 0, 1)[:, :, ::-1]
    return Detections(
        np.ascontiguousarray(boxes.T, dtype=np.float32),
        scores.astype(np.float32),
        np.ascontiguousarray(landmarks, dtype=np.float32),
    )
