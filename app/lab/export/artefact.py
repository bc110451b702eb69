"""The written file: it gets its name only after it was checked and compared with its source."""

import hashlib
import os
import tempfile
from collections.abc import Callable
from pathlib import Path

import onnx


class ExportError(Exception):
    """The source cannot be exported, or what is needed to prove the export is missing."""


Proof = Callable[[Path], None]


def publish(model: onnx.ModelProto, out: Path, prove: Proof) -> str:
    """Write `model` to `out` if it is valid and `prove` accepts the written file.

    Check, proof and rename happen on a temporary file in the same folder, so that a failure,
    a full disk or a kill never leaves an unproven file under `out`; one that stood there before
    stays as it was. Returns the SHA-256 of the file. Raises whatever the check or `prove` raise.
    """
    out.parent.mkdir(parents=True, exist_ok=True)
    handle, name = tempfile.mkstemp(dir=out.parent, prefix=f".{out.stem}-", suffix=".onnx")
    temporary = Path(name)
    try:
        with os.fdopen(handle, "wb") as file:
            file.write(serialise(model))
            file.flush()
            os.fsync(file.fileno())
        check(temporary)
        prove(temporary)
        temporary.chmod(0o644)  # mkstemp makes private files; a model is not a secret
        digest = sha256(temporary)
        temporary.replace(out)
    finally:
        temporary.unlink(missing_ok=True)
    return digest


def serialise(model: onnx.ModelProto) -> bytes:
    """The bytes of a model, the same for the same model: a digest can name them."""
    content: bytes = model.SerializeToString(deterministic=True)
    return content


def check(path: Path) -> None:
    """Raise ExportError unless the file is valid ONNX whose shapes all follow from its input."""
    try:
        onnx.checker.check_model(str(path), full_check=True)
        model = onnx.load(path)
        onnx.shape_inference.infer_shapes(model, check_type=True, strict_mode=True, data_prop=True)
    except (onnx.checker.ValidationError, onnx.shape_inference.InferenceError) as error:
        raise ExportError(f"the exported graph is not valid ONNX: {error}") from error


def sha256(path: Path) -> str:
    """Hexadecimal SHA-256 of a file."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
