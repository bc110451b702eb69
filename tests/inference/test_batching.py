"""Batches made across threads: the same answers as alone, and failures that stay alone."""

import threading
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

from app.errors import WorkerDied
from app.faces.detect import Detector
from app.faces.embed import Recogniser
from app.inference.batching import BatchedModel
from app.inference.pack_spec import ModelPack
from app.inference.session import OnnxModel
from app.settings import Device
from app.types import FloatArray, Image
from tests.waiting import PATIENCE_S, until

SIZES = (1, 4, 8, 16, 32)


@pytest.fixture(scope="module")
def model(pack: ModelPack) -> OnnxModel:
    return OnnxModel(pack.recogniser_path, Device.CPU)


@pytest.fixture
def batched(model: OnnxModel) -> Iterator[BatchedModel]:
    batched = BatchedModel(model, SIZES, wait_s=0.02)
    yield batched
    batched.close()


@pytest.fixture(scope="module")
def crops(pack: ModelPack, group_image: Image) -> Image:
    """40 crops of real pixels, faces and what is between them."""
    corners = np.random.default_rng(5).integers(0, 700, (40, 2))
    return np.stack([group_image[y : y + 112, x : x + 112] for y, x in corners])


def cosines(a: FloatArray, b: FloatArray) -> FloatArray:
    return np.asarray((a * b).sum(axis=1), np.float32)


@pytest.mark.parametrize(
    "count",
    [1, 2, 5, 9, *(pytest.param(n, marks=pytest.mark.slow) for n in (4, 8, 16, 17, 32, 33, 40))],
)
def test_batched_equals_single(
    pack: ModelPack, model: OnnxModel, batched: BatchedModel, crops: Image, count: int
) -> None:
    alone = Recogniser(model, pack.recogniser)
    single = np.concatenate([alone.embed(crops[i : i + 1])[0] for i in range(count)])
    together = Recogniser(batched, pack.recogniser).embed(crops[:count])[0]
    assert cosines(single, together).min() >= 0.99999


def test_requests_share_batches_and_each_gets_its_own(
    pack: ModelPack, model: OnnxModel, batched: BatchedModel, crops: Image
) -> None:
    """Callers with one to five faces at once: any mix, any padding, the same vectors."""
    alone, recogniser = Recogniser(model, pack.recogniser), Recogniser(batched, pack.recogniser)
    cuts = [slice(n, n + 1 + n % 5) for n in range(24)]
    barrier = threading.Barrier(len(cuts))

    def ask(cut: slice) -> FloatArray:
        barrier.wait()
        return recogniser.embed(crops[cut])[0]

    before = dict(batched.batches)
    batched._wait_s = 0.5  # a busy machine starts threads late
    with ThreadPoolExecutor(len(cuts)) as threads:
        answers = list(threads.map(ask, cuts))
    for cut, answer in zip(cuts, answers, strict=True):
        assert cosines(answer, alone.embed(crops[cut])[0]).min() >= 0.99999
    ran = {size: batched.batches[size] - before[size] for size in SIZES}
    assert sum(ran.values()) < len(cuts)
    assert ran[16] + ran[32] > 0


def test_a_detector_s_photos_share_batches(
    pack: ModelPack, group_image: Image, astronaut_image: Image
) -> None:
    network = OnnxModel(pack.detector_path, Device.CPU)
    alone = Detector(network, pack.detector, whole_canvas=True)
    batched = BatchedModel(network, (1, 4), wait_s=0.2)
    together = Detector(batched, pack.detector, whole_canvas=True)
    before = batched.batches[4]
    batched._wait_s = PATIENCE_S  # as four fill it, nothing waits so long
    photos = [group_image, astronaut_image, np.ascontiguousarray(group_image[:, 300:700])]
    photos.append(np.ascontiguousarray(group_image[:, 500:]))
    with ThreadPoolExecutor(len(photos)) as threads:
        found = list(threads.map(together.detect, photos))
    assert batched.batches[4] > before
    for photo, mine in zip(photos, found, strict=True):
        expected = alone.detect(photo)
        assert len(mine) == len(expected) > 0
        assert np.abs(mine.boxes - expected.boxes).max() < 0.05
        assert mine.landmarks is not None
        assert expected.landmarks is not None
        assert np.abs(mine.landmarks - expected.landmarks).max() < 0.05
    batched.close()


def test_every_size_is_warm_before_the_first_request(
    pack: ModelPack, batched: BatchedModel
) -> None:
    Recogniser(batched, pack.recogniser)
    assert batched.batches == dict.fromkeys(SIZES, 1)


def test_images_of_another_shape_fail_alone(batched: BatchedModel, crops: Image) -> None:
    good = np.zeros((2, 3, 112, 112), np.float32)
    with ThreadPoolExecutor(3) as threads:
        one = threads.submit(batched.run, good)
        bad = threads.submit(batched.run, np.zeros((1, 3, 50, 50), np.float32))
        other = threads.submit(batched.run, good)
        assert one.result(PATIENCE_S)[0].shape == other.result(PATIENCE_S)[0].shape == (2, 192)
        with pytest.raises(Exception, match="Got invalid dimensions"):
            bad.result(PATIENCE_S)


class Fragile:
    """A network with injected faults: it fails on 13 and kills its thread on 666."""

    path, provider, output_names = Path("fragile.onnx"), "CPUExecutionProvider", ["out"]
    dynamic_batch, fixed_size, takes_pixels = True, None, False

    def __init__(self) -> None:
        self.may_run = threading.Event()
        self.may_run.set()

    def run(self, batch: NDArray[Any]) -> list[FloatArray]:
        assert self.may_run.wait(PATIENCE_S)
        if (batch == 666).any():
            raise SystemExit
        if (batch == 13).any():
            raise ValueError("unlucky")
        return [np.asarray(batch * 2, np.float32)]


@pytest.fixture
def network() -> Fragile:
    return Fragile()


@pytest.fixture
def fragile(network: Fragile) -> Iterator[BatchedModel]:
    batched = BatchedModel(network, SIZES, wait_s=0.1)
    batched.run(images(0))
    yield batched
    batched.close()


def images(value: float) -> NDArray[Any]:
    return np.full((1, 1), value, np.float32)


def test_one_bad_image_fails_alone_in_its_batch(fragile: BatchedModel, network: Fragile) -> None:
    network.may_run.clear()
    with ThreadPoolExecutor(4) as threads:
        threads.submit(fragile.run, images(0))
        until(lambda: len(fragile._pending) == 1)
        until(lambda: len(fragile._pending) == 0)  # it is run alone, and lasts
        one, bad, other = (threads.submit(fragile.run, images(v)) for v in (1, 13, 2))
        until(lambda: len(fragile._pending) == 3)
        network.may_run.set()
        assert one.result(PATIENCE_S)[0].tolist() == [[2.0]]
        assert other.result(PATIENCE_S)[0].tolist() == [[4.0]]
        with pytest.raises(ValueError, match="unlucky"):
            bad.result(PATIENCE_S)
    assert fragile.batches[4] > 1  # they had been together


def test_a_dead_owner_fails_its_waiters_at_once_and_is_replaced(fragile: BatchedModel) -> None:
    with ThreadPoolExecutor(2) as threads:
        waiters = [threads.submit(fragile.run, images(v)) for v in (666, 1)]
        failures = [waiter.exception(PATIENCE_S) for waiter in waiters]
    assert isinstance(failures[0], WorkerDied)
    assert fragile.run(images(3))[0].tolist() == [[6.0]]


def test_nobody_waits_for_a_closed_network() -> None:
    batched = BatchedModel(Fragile(), SIZES, wait_s=0)
    batched.close()
    with pytest.raises(WorkerDied):
        batched.run(images(1))
