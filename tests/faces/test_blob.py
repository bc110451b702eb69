"""Pixels -> what a network takes."""

import numpy as np

from app.faces.blob import to_blob

IMAGE = np.array([[[[10, 20, 30]]]], np.uint8)  # one BGR pixel


def test_one_mean_and_std_for_all() -> None:
    assert to_blob(IMAGE, 10.0, 10.0, rgb=False).ravel().tolist() == [0, 1, 2]


def test_a_mean_and_std_for_each_channel_in_the_network_s_order() -> None:
    blob = to_blob(IMAGE, (30.0, 0.0, 0.0), (1.0, 2.0, 5.0), rgb=True)
    assert blob.ravel().tolist() == [0, 10, 2]
    assert (blob.shape, blob.dtype) == ((1, 3, 1, 1), np.float32)
