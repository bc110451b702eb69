"""A file's bytes in memory without a descriptor that stays open: Python's mmap keeps one (until
3.13 always), and a service with many shards would run out of them."""

import ctypes
import mmap
import os
import weakref
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np

from app.index.certified.codes import Bytes

FAILED = ctypes.c_void_p(-1).value


def mapped(path: Path) -> Bytes:
    """The bytes of a file, read-only, mapped until the last array over them is gone. Raises
    OSError."""
    file = os.open(path, os.O_RDONLY)
    try:
        size = os.fstat(file).st_size
        if not size:
            return np.empty(0, np.uint8)
        address = _libc().mmap(None, size, mmap.PROT_READ, mmap.MAP_SHARED, file, 0)
    finally:
        os.close(file)
    if address == FAILED:
        error = ctypes.get_errno()
        raise OSError(error, os.strerror(error), str(path))
    memory = (ctypes.c_ubyte * size).from_address(address)
    # Not at exit: a thread may still be reading then, and the system takes the memory back anyway.
    weakref.finalize(memory, _libc().munmap, address, size).atexit = False
    content: Bytes = np.frombuffer(memoryview(memory), np.uint8)
    content.flags.writeable = False
    return content


@cache
def _libc() -> Any:
    """The C library's mmap(2) and munmap(2)."""
    library = ctypes.CDLL(None, use_errno=True)
    library.mmap.restype = ctypes.c_void_p
    library.mmap.argtypes = (
        ctypes.c_void_p, ctypes.c_size_t, ctypes.c_int, ctypes.c_int, ctypes.c_int, ctypes.c_long,
    )  # fmt: skip
    library.munmap.argtypes = (ctypes.c_void_p, ctypes.c_size_t)
    return library
