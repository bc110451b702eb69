"""What `pack.toml` says of a pack's networks: its schema, and a pack that was found."""

import hashlib
from collections.abc import Iterator
from functools import lru_cache
from pathlib import Path
from typing import Annotated, Literal, TypeAlias

from pydantic import AfterValidator, BaseModel, ConfigDict, Field

from app.types import MAX_DIMENSION, Channels

Sha256 = Annotated[str, Field(pattern=r"^[0-9a-f]{64}$")]
PackName = Annotated[str, Field(pattern=r"^[A-Za-z0-9][A-Za-z0-9._-]{0,63}$")]


# How a photo is laid out for the detector: at its own shape, or as InsightFace's SCRFD code does.
PackLayout = Literal["own", "insightface"]


class PackSection(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False)


class IntegerSpec(PackSection):
    """The detector in 8-bit integers. The ranges of its values were measured on `photos` photos by
    `onnxruntime`, a version; `photos_sha256` is the SHA-256 of their digests in hexadecimal, in
    order, with line feeds between them. `proof`: how it answered other photos."""

    file: str
    sha256: Sha256
    photos: Annotated[int, Field(gt=0)]
    photos_sha256: Sha256
    onnxruntime: str
    proof: str = "unknown"
    training_data: str = "unknown"


class DetectorSpec(PackSection):
    """How to run the detector; sizes in pixels. `int8`: another form of it, which finds the same
    faces and is used where the operator asks for it."""

    architecture: Literal["centerface", "scrfd", "yunet"]
    file: str
    sha256: Sha256
    input_size: Annotated[int, Field(ge=64, le=4096)] = 640
    # Photos smaller than this are enlarged to it, and no photo is enlarged beyond.
    enlarge_to: Annotated[int, Field(ge=32, le=4096)] = 320
    # Calls that need one face look at a copy of this size first; None: at `input_size` at once.
    first_look: Annotated[int, Field(ge=64, le=4096)] | None = None
    layout: PackLayout = "own"
    score_threshold: Annotated[float, Field(gt=0, lt=1)] = 0.5
    iou_threshold: Annotated[float, Field(gt=0, lt=1)] = 0.4
    licence: str = "unknown"
    source: str = "unknown"
    training_data: str = "unknown"
    int8: IntegerSpec | None = None


def _positive(values: Channels) -> Channels:
    if min(values if isinstance(values, tuple) else (values,)) <= 0:
        raise ValueError("must be greater than 0")
    return values


class RecogniserSpec(PackSection):
    """How to feed the recogniser: pixels become (value - mean) / std in `colour` order.

    `proven_equal_to` is the SHA-256 of the network that this one was exported from and proven to
    answer like: both make embeddings of one space. Of several recognisers joined into one network
    it is a digest of theirs, see `app.lab.export.fusion`. With `mirror` the embedding of a face is
    the mean of those of its crop and of the crop's mirror image, in twice the time.
    """

    architecture: str
    file: str
    sha256: Sha256
    input_size: Annotated[int, Field(ge=32, le=512)] = 112
    colour: Literal["rgb", "bgr"]
    mean: Channels
    std: Annotated[Channels, AfterValidator(_positive)]
    proven_equal_to: Sha256 | None = None
    dimension: Annotated[int, Field(gt=0, le=MAX_DIMENSION)]
    template: Literal["arcface_112"] = "arcface_112"
    mirror: bool = False
    licence: str = "unknown"
    source: str = "unknown"
    training_data: str = "unknown"


class LandmarkSpec(PackSection):
    """A network that corrects the detector's landmarks; see `app.faces.landmarks`.

    A landmark becomes `weight` times the network's answer and the rest of it the detector's.
    """

    architecture: Literal["onet"] = "onet"
    file: str
    sha256: Sha256
    weight: Annotated[float, Field(gt=0, le=1)] = 0.5
    licence: str = "unknown"
    source: str = "unknown"
    training_data: str = "unknown"


class LivenessSpec(PackSection):
    """A network that distinguishes a live face from a photo of one (Minivision's Silent-Face).

    It sees `scale` times the face's box, squeezed to `input_size` pixels a side, and answers one
    number a class; their softmax at `live_class` is the chance that the face is live.
    """

    file: str
    sha256: Sha256
    input_size: Annotated[int, Field(ge=16, le=512)] = 80
    scale: Annotated[float, Field(ge=1, le=8)]
    colour: Literal["rgb", "bgr"] = "bgr"
    mean: Channels = 0.0
    std: Annotated[Channels, AfterValidator(_positive)] = 1.0
    live_class: Annotated[int, Field(ge=0, le=15)] = 1
    licence: str = "unknown"
    source: str = "unknown"
    training_data: str = "unknown"


class QualitySpec(PackSection):
    """A network from an aligned face to one number: the higher, the better to recognise."""

    file: str
    sha256: Sha256
    input_size: Annotated[int, Field(ge=32, le=512)] = 112
    colour: Literal["rgb", "bgr"]
    mean: Channels
    std: Annotated[Channels, AfterValidator(_positive)]
    licence: str = "unknown"
    source: str = "unknown"
    training_data: str = "unknown"


NetworkSpec: TypeAlias = DetectorSpec | LandmarkSpec | RecogniserSpec | LivenessSpec | QualitySpec


class DecisionSpec(PackSection):
    """The similarity from which two faces count as one person, until a calibration says more."""

    threshold: Annotated[float, Field(ge=-1, le=1)]
    threshold_basis: str


class PackFile(PackSection):
    """The schema of pack.toml.

    `networks_of`: the pack in the folder beside this one whose files the networks are, such as
    another version of it; None: the files lie in the pack's own folder.
    """

    schema_version: Annotated[Literal[1], Field(alias="schema")]
    name: PackName
    version: str
    description: str = ""
    networks_of: PackName | None = None
    detector: DetectorSpec
    recogniser: RecogniserSpec
    decision: DecisionSpec
    landmarks: LandmarkSpec | None = None
    liveness: tuple[LivenessSpec, ...] = ()
    quality: QualitySpec | None = None

    @property
    def networks(self) -> Iterator[NetworkSpec]:
        """Every network of the pack, in float32 where there are several forms of it."""
        yield self.detector
        yield self.recogniser
        if self.landmarks is not None:
            yield self.landmarks
        yield from self.liveness
        if self.quality is not None:
            yield self.quality

    @property
    def files(self) -> Iterator[NetworkSpec | IntegerSpec]:
        """Every file of a network: `networks`, and other forms of them."""
        yield from self.networks
        if self.detector.int8 is not None:
            yield self.detector.int8


class ModelPack(PackFile):
    """A pack found on disk. Load with `load_pack`, which checks the digests."""

    folder: Path

    def path(self, network: NetworkSpec | IntegerSpec) -> Path:
        """Where one of its networks lies."""
        return self.networks_folder / network.file

    @property
    def networks_folder(self) -> Path:
        """Where all of its networks lie."""
        return self.folder if self.networks_of is None else self.folder.parent / self.networks_of

    @property
    def detector_path(self) -> Path:
        return self.path(self.detector)

    @property
    def recogniser_path(self) -> Path:
        return self.path(self.recogniser)

    @property
    def embedding_space(self) -> str:
        """Digest of the recogniser and all that shapes its input: equal means comparable.

        The detector is left out: landmarks of another detector move an embedding a little, they
        do not make it another space. Corrected landmarks and mirror images are not: a calibration
        counted with them does not hold without.
        """
        spec, landmarks = self.recogniser, self.landmarks
        network = spec.proven_equal_to or spec.sha256
        # Packs without them keep the space that they had before these could be chosen.
        chosen: list[object] = ["mirror"] if spec.mirror else []
        if landmarks is not None:
            chosen += [landmarks.architecture, landmarks.sha256, landmarks.weight]
        return _space(network, spec.input_size, spec.colour, spec.mean, spec.std,
                      spec.dimension, spec.template, *chosen)  # fmt: skip


@lru_cache
def _space(*parts: object) -> str:
    digest = hashlib.sha256("|".join(map(str, parts)).encode()).hexdigest()
    return f"es-{digest[:16]}"
