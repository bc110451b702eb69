"""PyTorch checkpoints of before PyTorch 1.6, read without PyTorch and without unpickling.

Such a file holds five pickles (a magic number, a version, the machine's sizes, the weights by name,
the keys of the storages) and then the numbers of each storage. The pickles are interpreted by the
few opcodes that a dictionary of tensors takes: nothing in the file can name code to be called.
"""

import math
import pickletools
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from io import BytesIO
from typing import Any

import numpy as np
from numpy.typing import NDArray

from app.lab.export.parity import ExportError

MAGIC, VERSION = 0x1950A86A20F9469CFC6C, 1001
# Far above any network's: products of such shapes are still small numbers.
MOST_AXES, MOST_NUMBERS = 8, 2**40
STORAGES = {
    "torch FloatStorage": "<f4",
    "torch DoubleStorage": "<f8",
    "torch HalfStorage": "<f2",
    "torch LongStorage": "<i8",
    "torch IntStorage": "<i4",
}
DICTIONARY, TENSOR = "collections OrderedDict", "torch._utils _rebuild_tensor_v2"
_MARK = object()
Weights = Mapping[str, NDArray[Any]]


@dataclass(frozen=True, slots=True)
class _Named:
    """A name in a pickle that is known here; nothing of that name is ever imported."""

    name: str


@dataclass(frozen=True, slots=True)
class _Storage:
    """Numbers that follow later in the file: under that key, so many of that type."""

    key: str
    kind: str
    count: int


@dataclass(frozen=True, slots=True)
class _Tensor:
    """A contiguous part of a storage."""

    storage: _Storage
    offset: int
    shape: tuple[int, ...]


def read_weights(content: bytes) -> Weights:
    """The weights by the names they were saved under. Raises ExportError for anything else than a
    dictionary of contiguous tensors."""
    file = BytesIO(content)
    try:
        if (_unpickled(file), _unpickled(file)) != (MAGIC, VERSION):
            raise ValueError("it does not begin as torch.save began its files before PyTorch 1.6")
        if _unpickled(file).get("little_endian") is not True:
            raise ValueError("its numbers are not little-endian")
        tensors, keys = _unpickled(file), _unpickled(file)
        storages = _storages(file, tensors, keys)
        return {name: _array(tensor, storages) for name, tensor in tensors.items()}
    except ExportError:
        raise
    # A file may break any of the assumptions above.
    except (ValueError, TypeError, LookupError, AttributeError, OverflowError) as error:
        raise ExportError(f"this is no checkpoint of weights alone: {error}") from error


def _unpickled(file: BytesIO) -> Any:
    """The value of the next pickle. It calls nothing and imports nothing."""
    stack: list[Any] = []
    memo: dict[Any, Any] = {}
    for opcode, argument, _ in pickletools.genops(file):
        name = opcode.name
        if name == "STOP":
            break
        if name in _PUT:
            memo[argument] = stack[-1]
        elif name in _GET:
            stack.append(memo[argument])
        elif name in _LITERAL:
            stack.append(_LITERAL[name](argument))
        elif name in _OPERATION:
            _OPERATION[name](stack)
        elif name != "PROTO":
            raise ExportError(
                f"this checkpoint is refused: its pickle has the opcode {name}, which no "
                "dictionary of weights has"
            )
    (value,) = stack
    return value


def _known(name: str) -> _Named:
    if name not in (DICTIONARY, TENSOR, *STORAGES):
        raise ExportError(
            f"this checkpoint is refused: it names {name.replace(' ', '.')}, which no dictionary "
            "of weights has"
        )
    return _Named(name)


def _since_mark(stack: list[Any]) -> list[Any]:
    at = len(stack) - 1
    while stack[at] is not _MARK:
        at -= 1  # the IndexError of a stack without a mark ends it
    items = stack[at + 1 :]
    del stack[at:]
    return items


def _tuple(stack: list[Any], count: int | None = None) -> None:
    if count is None:
        stack.append(tuple(_since_mark(stack)))
        return
    items = tuple(stack[-count:])
    del stack[-count:]
    stack.append(items)


def _set_items(stack: list[Any], items: list[Any]) -> None:
    keys = items[::2]
    # Text alone: to hash a tuple nested a million times would end the process.
    if not all(isinstance(key, str) for key in keys):
        raise ValueError("a dictionary has a key that is not text")
    stack[-1].update(zip(keys, items[1::2], strict=True))


def _set_item(stack: list[Any]) -> None:
    value, key = stack.pop(), stack.pop()
    _set_items(stack, [key, value])


def _append(stack: list[Any], items: list[Any]) -> None:
    stack[-1].extend(items)


def _reduce(stack: list[Any]) -> None:
    """What `called(*arguments)` would make, for the two names that may stand there."""
    arguments, called = stack.pop(), stack.pop()
    if called == _Named(DICTIONARY) and arguments == ():
        stack.append({})
    elif called == _Named(TENSOR):
        storage, offset, shape, strides = arguments[:4]
        stack.append(_tensor(storage, offset, shape, strides))
    else:
        raise ValueError("its pickle calls what makes no weights")


def _tensor(storage: Any, offset: Any, shape: Any, strides: Any) -> _Tensor:
    whole = all(isinstance(one, int) and 0 <= one < MOST_NUMBERS for one in (offset, *shape))
    if not whole or len(shape) > MOST_AXES or not isinstance(storage, _Storage):
        raise ValueError("a tensor has no valid shape")
    expected = tuple(math.prod(shape[axis + 1 :]) for axis in range(len(shape)))
    if any(a != b for a, b, size in zip(strides, expected, shape, strict=True) if size > 1):
        raise ValueError("a tensor is not contiguous")
    return _Tensor(storage, offset, tuple(shape))


def _persistent(stack: list[Any]) -> None:
    kind, storage, key, _, count, _ = stack.pop()
    if kind != "storage" or not isinstance(storage, _Named) or not isinstance(key, str):
        raise ValueError("a tensor refers to something that is no storage")
    stack.append(_Storage(key, STORAGES[storage.name], count))


def _forget_state(stack: list[Any]) -> None:
    """`state_dict` notes versions of modules beside the weights: they are of no use here."""
    stack.pop()


_PUT, _GET = ("BINPUT", "LONG_BINPUT"), ("BINGET", "LONG_BINGET")
_LITERAL: Mapping[str, Callable[[Any], Any]] = {
    **dict.fromkeys(("BININT", "BININT1", "BININT2", "LONG1", "BINUNICODE"), lambda value: value),
    "NONE": lambda _: None,
    "NEWTRUE": lambda _: True,
    "NEWFALSE": lambda _: False,
    "EMPTY_DICT": lambda _: {},
    "EMPTY_LIST": lambda _: [],
    "EMPTY_TUPLE": lambda _: (),
    "MARK": lambda _: _MARK,
    "GLOBAL": _known,
}
_OPERATION: Mapping[str, Callable[[list[Any]], None]] = {
    "TUPLE": _tuple,
    "TUPLE1": lambda stack: _tuple(stack, 1),
    "TUPLE2": lambda stack: _tuple(stack, 2),
    "TUPLE3": lambda stack: _tuple(stack, 3),
    "SETITEM": _set_item,
    "SETITEMS": lambda stack: _set_items(stack, _since_mark(stack)),
    "APPEND": lambda stack: _append(stack, [stack.pop()]),
    "APPENDS": lambda stack: _append(stack, _since_mark(stack)),
    "REDUCE": _reduce,
    "BINPERSID": _persistent,
    "BUILD": _forget_state,
}


def _storages(
    file: BytesIO, tensors: Mapping[str, _Tensor], keys: list[str]
) -> dict[str, NDArray[Any]]:
    kinds = {one.storage.key: one.storage for one in tensors.values()}
    if not all(isinstance(key, str) for key in keys) or set(keys) != kinds.keys():
        raise ValueError("its storages are not those of its tensors")
    return {key: _numbers(file, kinds[key]) for key in keys}


def _numbers(file: BytesIO, storage: _Storage) -> NDArray[Any]:
    """The next storage of the file: how many numbers it has, and they themselves."""
    count = int.from_bytes(file.read(8), "little")
    kind = np.dtype(storage.kind)
    if count != storage.count:
        raise ValueError(f"storage {storage.key} has {count} numbers instead of {storage.count}")
    content = file.read(count * kind.itemsize)
    if len(content) < count * kind.itemsize:
        raise ValueError("it ends within its numbers")
    return np.frombuffer(content, kind)


def _array(tensor: _Tensor, storages: Mapping[str, NDArray[Any]]) -> NDArray[Any]:
    count = math.prod(tensor.shape)
    numbers = storages[tensor.storage.key][tensor.offset : tensor.offset + count]
    return numbers.reshape(tensor.shape)
