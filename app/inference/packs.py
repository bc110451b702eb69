"""Model packs: one folder with a detector, a recogniser, their digests and their constants.

`pack.toml` beside the networks says everything that code needs to know of them. A file whose
SHA-256 differs from the one written there stops the start.
"""

import hashlib
import tomllib
from functools import lru_cache
from pathlib import Path
from typing import Annotated, Literal

from pydantic import AfterValidator, BaseModel, ConfigDict, Field, ValidationError

from app.errors import PackError
from app.types import Channels

PACK_FILE = "pack.toml"
_APP_FOLDER = Path(__file__).resolve().parent.parent
# A checkout keeps the packs beside `app/`; a wheel carries them inside it.
BUILTIN_FOLDERS = (_APP_FOLDER.parent / "models", _APP_FOLDER / "models")

Sha256 = Annotated[str, Field(pattern=r"^[0-9a-f]{64}$")]


# How a photo is laid out for the detector: at its own shape, or as InsightFace's SCRFD code does.
Layout = Literal["own", "insightface"]


class _Section(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid")


class DetectorSpec(_Section):
    """How to run the detector; sizes in pixels."""

    architecture: Literal["centerface", "scrfd", "yunet"]
    file: str
    sha256: Sha256
    input_size: Annotated[int, Field(ge=64, le=4096)] = 640
    # Photos smaller than this are enlarged to it, and no photo is enlarged beyond.
    enlarge_to: Annotated[int, Field(ge=32, le=4096)] = 320
    layout: Layout = "own"
    score_threshold: Annotated[float, Field(gt=0, lt=1)] = 0.5
    iou_threshold: Annotated[float, Field(gt=0, lt=1)] = 0.4
    licence: str = "unknown"
    source: str = "unknown"
    training_data: str = "unknown"


def _positive(values: Channels) -> Channels:
    if min(values if isinstance(values, tuple) else (values,)) <= 0:
        raise ValueError("must be greater than 0")
    return values


class RecogniserSpec(_Section):
    """How to feed the recogniser: pixels become (value - mean) / std in `colour` order.

    `proven_equal_to` is the SHA-256 of the network that this one was exported from and proven to
    answer like: both make embeddings of one space.
    """

    architecture: str
    file: str
    sha256: Sha256
    input_size: Annotated[int, Field(ge=32, le=512)] = 112
    colour: Literal["rgb", "bgr"]
    mean: Channels
    std: Annotated[Channels, AfterValidator(_positive)]
    proven_equal_to: Sha256 | None = None
    dimension: Annotated[int, Field(gt=0, le=8192)]
    template: Literal["arcface_112"] = "arcface_112"
    licence: str = "unknown"
    source: str = "unknown"
    training_data: str = "unknown"


class DecisionSpec(_Section):
    """The similarity from which two faces count as one person, until a calibration says more."""

    threshold: Annotated[float, Field(ge=-1, le=1)]
    threshold_basis: str


class _PackFile(_Section):
    """The schema of pack.toml."""

    schema_version: Annotated[Literal[1], Field(alias="schema")]
    name: Annotated[str, Field(pattern=r"^[A-Za-z0-9][A-Za-z0-9._-]{0,63}$")]
    version: str
    description: str = ""
    detector: DetectorSpec
    recogniser: RecogniserSpec
    decision: DecisionSpec


class ModelPack(_PackFile):
    """A pack found on disk. Load with `load_pack`, which checks the digests."""

    folder: Path

    @property
    def detector_path(self) -> Path:
        return self.folder / self.detector.file

    @property
    def recogniser_path(self) -> Path:
        return self.folder / self.recogniser.file

    @property
    def embedding_space(self) -> str:
        """Digest of the recogniser and all that shapes its input: equal means comparable.

        The detector is left out: landmarks of another detector move an embedding a little, they
        do not make it another space.
        """
        spec = self.recogniser
        network = spec.proven_equal_to or spec.sha256
        return _space(network, spec.input_size, spec.colour, spec.mean, spec.std,
                      spec.dimension, spec.template)  # fmt: skip


@lru_cache
def _space(*parts: object) -> str:
    digest = hashlib.sha256("|".join(map(str, parts)).encode()).hexdigest()
    return f"es-{digest[:16]}"


def find_pack(name_or_folder: str) -> Path:
    """The folder of a pack given by name (in `models/`) or by path.

    Raises PackError when there is none.
    """
    candidates = [Path(name_or_folder)] + [root / name_or_folder for root in BUILTIN_FOLDERS]
    for folder in candidates:
        if (folder / PACK_FILE).is_file():
            return folder.resolve()
    known = ", ".join(folder.name for folder in builtin_packs()) or "none"
    raise PackError(
        f"There is no model pack '{name_or_folder}': no folder of that path holds a {PACK_FILE}, "
        f"and no built-in pack has that name (there: {known}). Set LIKENESS_PACK to either."
    )


def builtin_packs() -> list[Path]:
    """The folders of the packs that came with this installation, by name."""
    found = {file.parent.name: file.parent for root in reversed(BUILTIN_FOLDERS)
             for file in root.glob(f"*/{PACK_FILE}")}  # fmt: skip
    return [found[name] for name in sorted(found)]


def read_pack(folder: Path) -> ModelPack:
    """Read a pack's description without looking at its networks. Raises PackError."""
    path = folder / PACK_FILE
    try:
        content = tomllib.loads(path.read_text(encoding="utf-8"))
        return ModelPack.model_validate({**content, "folder": folder})
    except ValidationError as error:
        first = error.errors()[0]
        where = ".".join(str(part) for part in first["loc"])
        raise PackError(f"{path}: {where}: {first['msg']}. Correct that line.") from error
    except (OSError, ValueError) as error:
        raise PackError(f"{path} cannot be read: {error}") from error


def load_pack(name_or_folder: str) -> ModelPack:
    """Find a pack, read it and verify the digest of each network. Raises PackError."""
    pack = read_pack(find_pack(name_or_folder))
    verify_pack(pack)
    return pack


def verify_pack(pack: ModelPack) -> None:
    """Raise PackError unless every network is the one its SHA-256 in pack.toml names."""
    for path, expected in (
        (pack.detector_path, pack.detector.sha256),
        (pack.recogniser_path, pack.recogniser.sha256),
    ):
        if path.resolve().parent != pack.folder.resolve():
            raise PackError(f"{path} lies outside its pack; name a file of {pack.folder}.")
        actual = _digest(path)
        if actual != expected:
            raise PackError(
                f"{path} is not the file that {PACK_FILE} describes: its SHA-256 is {actual}, "
                f"expected {expected}. Restore the file (git checkout, or copy the pack again); "
                f"if you changed it on purpose, write the new digest into {PACK_FILE}."
            )


def _digest(path: Path) -> str:
    try:
        with path.open("rb") as file:
            return hashlib.file_digest(file, "sha256").hexdigest()
    except OSError as error:
        raise PackError(
            f"{path} cannot be read ({error.strerror}). Copy the whole pack folder again."
        ) from error
