"""PyTorch checkpoints without PyTorch: what is read, and what is refused without being run."""

import io
import os
import pickle
import sys
import types
from collections import OrderedDict
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from app.lab.export.parity import ExportError
from app.lab.export.saved_weights import MAGIC, VERSION, read_weights


class Storage:
    """Stands in a pickle for the numbers that follow later."""

    def __init__(self, key: str, numbers: np.ndarray[Any, Any]) -> None:
        self.key, self.numbers = key, numbers


class Tensor:
    def __init__(self, storage: Storage, shape: tuple[int, ...], strides: tuple[int, ...]) -> None:
        self.made_of = (storage, 0, shape, strides, False, OrderedDict())

    def __reduce__(self) -> tuple[Any, ...]:
        return sys.modules["torch._utils"]._rebuild_tensor_v2, self.made_of


class Pickler(pickle.Pickler):
    def persistent_id(self, value: object) -> object:
        if isinstance(value, Storage):
            kind = sys.modules["torch"].FloatStorage
            return "storage", kind, value.key, "cpu", value.numbers.size, None
        return None


@pytest.fixture(autouse=True)
def torch(monkeypatch: pytest.MonkeyPatch) -> None:
    """Names as PyTorch's, so that pickles refer to them."""

    def _rebuild_tensor_v2() -> None:
        raise AssertionError("nothing of a checkpoint is called")

    storage = type("FloatStorage", (), {"__module__": "torch"})
    _rebuild_tensor_v2.__module__, _rebuild_tensor_v2.__qualname__ = (
        "torch._utils",
        "_rebuild_tensor_v2",
    )
    for name, content in (
        ("torch", {"FloatStorage": storage}),
        ("torch._utils", {"_rebuild_tensor_v2": _rebuild_tensor_v2}),
    ):
        module = types.ModuleType(name)
        vars(module).update(content)
        monkeypatch.setitem(sys.modules, name, module)


def saved(weights: object, storages: tuple[Storage, ...] = (), keys: object = None) -> bytes:
    """As torch.save wrote it before PyTorch 1.6."""
    file = io.BytesIO()
    for value in (MAGIC, VERSION, {"little_endian": True}):
        pickle.dump(value, file, protocol=2)
    Pickler(file, protocol=2).dump(weights)
    pickle.dump([one.key for one in storages] if keys is None else keys, file, protocol=2)
    for one in storages:
        file.write(one.numbers.size.to_bytes(8, "little") + one.numbers.tobytes())
    return file.getvalue()


def one_tensor() -> tuple[OrderedDict[str, Tensor], Storage]:
    storage = Storage("7", np.arange(6, dtype=np.float32))
    return OrderedDict(conv=Tensor(storage, (2, 3), (3, 1))), storage


def test_weights_by_name() -> None:
    weights, storage = one_tensor()
    found = read_weights(saved(weights, (storage,)))
    assert list(found) == ["conv"]
    np.testing.assert_array_equal(found["conv"], [[0, 1, 2], [3, 4, 5]])


class Hostile:
    def __reduce__(self) -> tuple[Any, ...]:
        return os.mkdir, ("harm",)


@pytest.mark.parametrize("protocol", [0, 2, 4])
def test_a_checkpoint_that_would_run_code(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, protocol: int
) -> None:
    monkeypatch.chdir(tmp_path)
    file = io.BytesIO()
    for value in (MAGIC, VERSION, {"little_endian": True}):
        pickle.dump(value, file, protocol=2)
    file.write(pickle.dumps({"conv": Hostile()}, protocol))
    with pytest.raises(ExportError, match="this checkpoint is refused"):
        read_weights(file.getvalue())
    assert list(tmp_path.iterdir()) == []


def nested(depth: int) -> bytes:
    """A dictionary whose key is a tuple in a tuple in a tuple …: its hash would end the process."""
    return b"\x80\x02}" + b")" + b"\x85" * depth + b"K\x00s."


@pytest.mark.parametrize(
    ("weights", "reason"),
    [
        (nested(100_000), "a key that is not text"),
        (b"\x80\x02}X\xff\xff\xff\x7fabc", "no checkpoint of weights alone"),
        (b"\x80\x02" + b"(" * 10 + b"u.", "no checkpoint of weights alone"),
        (b"\x80\x02K\x01K\x02.", "no checkpoint of weights alone"),
        (b"", "no checkpoint of weights alone"),
        (b"\x80\x02\x8e\xff\xff\xff\xff\xff\xff\xff\x7f", "no checkpoint of weights alone"),
    ],
)
def test_bytes_that_are_no_weights(weights: bytes, reason: str) -> None:
    head = b"".join(pickle.dumps(one, 2) for one in (MAGIC, VERSION, {"little_endian": True}))
    with pytest.raises(ExportError, match=reason):
        read_weights(head + weights)


@pytest.mark.parametrize("left", [0, 10, 100, 150, 400])
def test_a_checkpoint_that_ends_early(left: int) -> None:
    weights, storage = one_tensor()
    whole = saved(weights, (storage,))
    with pytest.raises(ExportError, match="no checkpoint of weights alone"):
        read_weights(whole[: min(left, len(whole) - 1)])


def test_tensors_that_do_not_fit_their_storage() -> None:
    storage = Storage("7", np.arange(6, dtype=np.float32))
    for shape, strides, reason in (
        ((3, 3), (3, 1), "cannot reshape"),
        ((3, 2), (1, 3), "not contiguous"),
        ((-1, 3), (3, 1), "no valid shape"),
    ):
        with pytest.raises(ExportError, match=reason):
            read_weights(saved({"conv": Tensor(storage, shape, strides)}, (storage,)))


def test_storages_of_another_list() -> None:
    weights, storage = one_tensor()
    with pytest.raises(ExportError, match="not those of its tensors"):
        read_weights(saved(weights, (storage,), keys=["8"]))


def test_a_zip_as_newer_versions_write_it() -> None:
    with pytest.raises(ExportError, match="no checkpoint of weights alone"):
        read_weights(b"PK\x03\x04" + bytes(100))


@pytest.mark.parametrize(
    "keys", [b"]" * 100_001 + b"a" * 100_000, b"])" + b"\x85" * 100_000 + b"a"]
)
def test_keys_nested_without_end(keys: bytes) -> None:
    head = [pickle.dumps(one, 2) for one in (MAGIC, VERSION, {"little_endian": True}, {})]
    with pytest.raises(ExportError, match="its storages are not those of its tensors"):
        read_weights(b"".join([*head, b"\x80\x02", keys, b"."]))
