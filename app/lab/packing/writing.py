"""Writes networks and their description as a pack: a folder that `serve` can run."""

import errno
import os
import shutil
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import tomli_w

from app.decision.calibration_file import pack_calibration
from app.errors import PackError
from app.faces.loading import build_pipeline
from app.imaging import ImageLimits
from app.index.port import PRECISION
from app.inference.pack_spec import ModelPack
from app.inference.packs import PACK_FILE, digest, read_pack, verify_pack
from app.lab.packing.workspace import workspace
from app.settings import Device

# Of the image that shows that the networks run at all.
PROBE_SIDE = 320


def write_pack(content: Mapping[str, Any], files: Mapping[str, Path], out: Path) -> ModelPack:
    """Write the pack that `content` describes (the tables of pack.toml) to the new folder `out`.

    `files` are copied there under their names; the digests of the networks among them are filled
    in. The pack appears under its name only after its networks have run. Raises PackError.
    """
    with _appearing(out) as folder:
        for name, source in files.items():
            if not source.is_file():
                raise PackError(f"{source} is no file. Give the path of the pack's {name}.")
            shutil.copyfile(source, folder / name)
        described = {key: _with_digests(value, folder) for key, value in content.items()}
        (folder / PACK_FILE).write_bytes(tomli_w.dumps(described).encode())
        try_pack(folder)
    return read_pack(out)


def adopt_pack(source: Path, out: Path) -> ModelPack:
    """Copy a pack's folder to the new folder `out`, once its digests are right and it runs.

    Raises PackError.
    """
    with _appearing(out) as folder:
        for file in source.iterdir():
            if file.is_file():
                shutil.copyfile(file, folder / file.name)
        try_pack(folder)
    return read_pack(out)


def try_pack(folder: Path) -> ModelPack:
    """Check a pack's digests and calibration and run its networks once, on the CPU.

    Raises PackError.
    """
    pack = read_pack(folder)
    verify_pack(pack)
    pack_calibration(folder, pack.embedding_space, PRECISION, pack.recogniser.dimension)
    pipeline = build_pipeline(pack, Device.CPU, ImageLimits())
    try:
        pipeline.analyse_image(np.zeros((PROBE_SIDE, PROBE_SIDE, 3), np.uint8), max_faces=1)
    except Exception as error:  # ONNX Runtime raises its own types
        raise PackError(
            f"{pack.detector_path} does not run as a {pack.detector.architecture} detector: {error}"
        ) from error
    finally:
        pipeline.close()
    return pack


@contextmanager
def _appearing(out: Path) -> Iterator[Path]:
    """A folder to fill that becomes `out` when all went well, and vanishes otherwise."""
    if out.exists():
        raise _exists(out)
    with unwritable(out):
        out.parent.mkdir(parents=True, exist_ok=True)
    with workspace(out.parent) as parent, unwritable(out):
        folder = parent / out.name
        folder.mkdir(mode=0o755)
        folder.chmod(0o755)  # whatever the umask: a model is not a secret
        yield folder
        for file in folder.iterdir():
            _flush(file)
        try:
            folder.rename(out)
        except OSError as error:
            if error.errno in (errno.EEXIST, errno.ENOTEMPTY):  # another process was faster
                raise _exists(out) from error
            raise


def _exists(out: Path) -> PackError:
    return PackError(f"{out} exists already. Remove it first, or choose another name.")


@contextmanager
def unwritable(out: Path) -> Iterator[None]:
    """What the system says of a full or broken disk, as PackError."""
    try:
        yield
    except OSError as error:
        reason = error.strerror or error
        raise PackError(f"{out} cannot be written ({reason}). Nothing was kept.") from error


def _flush(file: Path) -> None:
    with file.open("rb") as opened:
        os.fsync(opened.fileno())


def _with_digests(value: Any, folder: Path) -> Any:
    """A table of pack.toml, or a list of them, with `sha256` where it names a file."""
    if isinstance(value, list):
        return [_with_digests(item, folder) for item in value]
    if isinstance(value, Mapping) and "file" in value:
        return {**value, "sha256": digest(folder / value["file"])}
    return value
