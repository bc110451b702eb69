"""The calibration beside a pack's networks, as a file."""

from pathlib import Path

from pydantic import ValidationError

from app.decision.calibration import Calibration
from app.errors import CalibrationMismatch, PackError
from app.faces.orientation import OrientationLimits
from app.inference.pack_spec import ModelPack

CALIBRATION_FILE = "calibration.json"


def read_calibration(path: Path) -> Calibration:
    """Read a calibration file. Raises PackError."""
    try:
        return Calibration.model_validate_json(path.read_bytes())
    except ValidationError as error:
        first = error.errors()[0]
        place = ".".join(map(str, first["loc"])) or "content"
        raise _broken(path, f"{place}: {first['msg']}") from error
    except OSError as error:
        raise _broken(path, str(error)) from error


def _broken(path: Path, reason: str) -> PackError:
    return PackError(
        f"{path} is not a calibration: {reason}. Restore it, or make it again with likeness "
        "evaluate --calibration."
    )


def pack_calibration(
    folder: Path, embedding_space: str, precision: str, dimension: int | None = None
) -> Calibration | None:
    """The calibration beside a pack's networks; None where there is none.

    Raises PackError for a broken file, one of another recogniser, or one whose direction has not
    the `dimension` of the pack's embeddings.
    """
    path = folder / CALIBRATION_FILE
    if not path.exists():
        return None
    try:
        found = read_calibration(path).require(embedding_space, precision)
    except CalibrationMismatch as error:
        raise PackError(f"{path}: {error.detail}") from error
    numbers = None if found.domain is None else len(found.domain.shared.direction)
    if dimension is not None and numbers not in (None, dimension):
        raise PackError(
            f"{path}: the direction of its domain has {numbers} numbers, the pack's embeddings "
            f"have {dimension}. Restore it, or make it again with likeness evaluate "
            "--calibration."
        )
    return found


def pack_orientation(pack: ModelPack, precision: str) -> OrientationLimits | None:
    """When a pack's pipeline also analyses a photo turned; None: never. Raises PackError for a
    broken calibration.
    """
    found = pack_calibration(pack.folder, pack.embedding_space, precision)
    if found is None or found.orientation is None:
        return None
    return found.orientation.limits_for(pack)
