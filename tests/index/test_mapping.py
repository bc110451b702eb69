"""Files in memory that hold no descriptor."""

import gc
from pathlib import Path

import numpy as np
import pytest

from app.index.certified.snapshots.files import mapped
from tests.descriptors import open_under


def mappings_of(path: Path) -> int:
    return Path("/proc/self/maps").read_text().count(str(path))


def test_the_file_is_read_through_and_no_descriptor_stays(tmp_path: Path) -> None:
    path = tmp_path / "rows"
    path.write_bytes(b"abc" * 10_000)
    content = mapped(path)
    assert open_under(tmp_path) == []
    assert content.tobytes() == b"abc" * 10_000
    with path.open("r+b") as file:
        file.write(b"xyz")
    assert content[:3].tobytes() == b"xyz"
    with pytest.raises(ValueError, match="read-only"):
        content[0] = 1


def test_it_is_mapped_as_long_as_an_array_over_it_is_there(tmp_path: Path) -> None:
    path = tmp_path / "rows"
    path.write_bytes(np.arange(4096, dtype=np.float32).tobytes())
    view = mapped(path).view(np.float32)[1:].reshape(-1, 5)
    path.unlink()
    gc.collect()
    assert view[0].tolist() == [1, 2, 3, 4, 5]
    assert mappings_of(path) == 1
    del view
    gc.collect()
    assert mappings_of(path) == 0


def test_what_cannot_be_mapped(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError):
        mapped(tmp_path / "none")
    with pytest.raises(OSError, match=str(tmp_path)):
        mapped(tmp_path)
    (tmp_path / "empty").write_bytes(b"")
    assert len(mapped(tmp_path / "empty")) == 0
