"""Writes networks and their description as a pack: a folder that `serve` can run. It is made in a
hidden folder beside the finished ones."""

import errno
import fcntl
import os
import shutil
import tempfile
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

import numpy as np
import tomli_w

from app.decision.calibrations import pack_calibration
from app.disk import private_folder, publish, sync
from app.errors import PackError
from app.faces.loading import build_pipeline
from app.imaging import ImageLimits
from app.index.port import PRECISION
from app.inference.pack_spec import ModelPack
from app.inference.packs import PACK_FILE, digest, read_pack, require_own_weights, verify_pack
from app.settings import Device

PREFIX = ".unfinished-"
ATTEMPTS = 10


def packs_folder(path: Path) -> None:
    """Make a folder for packs, if it is missing, that others may read whatever the umask: a model
    is not a secret, and a service in a container runs as another user. Raises OSError."""
    if not path.is_dir():
        private_folder(path.parent)
        path.mkdir(exist_ok=True)
        path.chmod(0o755)


@contextmanager
def workspace(parent: Path) -> Iterator[Path]:
    """A new folder in `parent`, which is made if it is missing; gone after the `with`.

    A process that was killed leaves its folder behind: the next one removes it. Each holds a lock
    on its own, so that those of live processes stay. Raises PackError where `parent` cannot be
    written.
    """
    try:
        packs_folder(parent)
        _remove_abandoned(parent)
        folder, lock = _made(parent)
    except OSError as error:
        raise PackError(
            f"{parent} cannot be written ({error.strerror}). Set LIKENESS_MODELS_DIR to a folder "
            "that can."
        ) from error
    try:
        yield folder
    finally:
        shutil.rmtree(folder, ignore_errors=True)
        os.close(lock)


def _made(parent: Path) -> tuple[Path, int]:
    for _ in range(ATTEMPTS):
        folder = Path(tempfile.mkdtemp(dir=parent, prefix=PREFIX))
        # Before it is locked, another process may take it for an abandoned one.
        with suppress(FileNotFoundError):
            lock = os.open(folder, os.O_RDONLY)
            fcntl.flock(lock, fcntl.LOCK_EX)
            if folder.exists():
                return folder, lock
            os.close(lock)
    raise PackError(f"Other processes remove new folders in {parent}. Try again.")


def _remove_abandoned(parent: Path) -> None:
    for folder in parent.glob(f"{PREFIX}*"):
        with suppress(FileNotFoundError, NotADirectoryError):
            lock = os.open(folder, os.O_RDONLY | os.O_DIRECTORY)
            try:
                fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
                shutil.rmtree(folder, ignore_errors=True)
            except BlockingIOError:  # its process lives
                pass
            finally:
                os.close(lock)


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
            require_own_weights(source)  # the error names the file that was given, not its copy
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


def write_zip(folder: Path, archive: Path) -> None:
    """Write a pack's folder into a zip, which appears when it is whole. Raises PackError."""
    with workspace(archive.parent) as parent, unwritable(archive):
        made = Path(shutil.make_archive(str(parent / "pack"), "zip", folder))
        publish(made, archive)


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
    require_new(out)
    with workspace(out.parent) as parent, unwritable(out):
        folder = parent / out.name
        folder.mkdir(mode=0o755)
        folder.chmod(0o755)  # whatever the umask: a model is not a secret
        yield folder
        for file in folder.iterdir():
            file.chmod(0o644)
            sync(file)
        try:
            publish(folder, out)
        except OSError as error:
            if error.errno in (errno.EEXIST, errno.ENOTEMPTY):  # another process was faster
                raise _exists(out) from error
            raise


def require_new(*paths: Path) -> None:
    """Raise PackError if one of the paths exists; for use before the work, too."""
    for path in paths:
        if path.exists():
            raise _exists(path)


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


def _with_digests(value: Any, folder: Path) -> Any:
    """A table of pack.toml, or a list of them, with `sha256` where it or a table in it names a
    file."""
    if isinstance(value, list):
        return [_with_digests(item, folder) for item in value]
    if not isinstance(value, Mapping):
        return value
    filled = {key: _with_digests(item, folder) for key, item in value.items()}
    return filled | ({"sha256": digest(folder / value["file"])} if "file" in value else {})
