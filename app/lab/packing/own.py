"""Makes a pack of an operator's own networks; what is not given is taken from another pack."""

import math
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from pydantic import ValidationError

from app.decision.calibrations import CALIBRATION_FILE
from app.errors import PackError
from app.faces.detect import ARCHITECTURES, Detector
from app.faces.embed import Recogniser
from app.inference.pack_spec import DetectorSpec, ModelPack, RecogniserSpec
from app.inference.packs import digest
from app.inference.session import OnnxModel
from app.lab.export.faces import align_folder
from app.lab.export.integer_detector import (
    CalibrationPhotos,
    export_integer_detector,
    provenance,
)
from app.lab.export.parity import ExportError
from app.lab.export.recogniser import install_recogniser
from app.lab.packing.joined import RecogniserFile, member_of_file, write_joined
from app.lab.packing.writing import unwritable, workspace, write_pack
from app.settings import Device

# A variant that answers any face with less is another network, not another form of one.
MINIMUM_COSINE = 0.99
# In place of a file: the new pack has no such network although its base has one.
NO_LANDMARKS = "none"
LANDMARKS_FILE = "landmarks.onnx"
INTEGERS_FILE = "detector.int8.onnx"


@dataclass(frozen=True, slots=True, kw_only=True)
class OwnNetworks:
    """What a new pack has of its own; None, or no recogniser: as in the pack it is based on.
    `integers` is a folder of photos with which the detector in 8-bit integers is made.
    Several recognisers are joined into one. `variant` is a folder of photos that prove the
    recogniser to be another form of the base's. With `keep_prelu` the recogniser is not rewritten
    for ONNX Runtime's CPU kernels. `landmarks` is the file of a network that corrects the
    detector's landmarks, or NO_LANDMARKS."""

    detector: Path | None = None
    architecture: str | None = None
    integers: Path | None = None
    recognisers: tuple[RecogniserFile, ...] = ()
    variant: Path | None = None
    keep_prelu: bool = False
    landmarks: str | None = None
    mirror: bool | None = None
    liveness: tuple[str, ...] = ()
    threshold: float | None = None
    threshold_basis: str = ""
    calibration: Path | None = None
    licence: str | None = None
    source: str | None = None


def make_pack(base: ModelPack, own: OwnNetworks, folder: Path) -> ModelPack:
    """Write the pack to the new `folder`. Raises PackError."""
    with unwritable(folder):
        folder.parent.mkdir(parents=True, exist_ok=True)
    with workspace(folder.parent) as made:
        return _make_pack(base, own, folder, made)


def _make_pack(base: ModelPack, own: OwnNetworks, folder: Path, made: Path) -> ModelPack:
    if own.threshold is not None and not -1 <= own.threshold <= 1:
        raise PackError(f"--threshold is a similarity from -1 to 1; not {own.threshold:g}.")
    same_space = _same_space(base, own)
    if not same_space and own.threshold is None:
        raise PackError(
            "A threshold belongs to one embedding space, and another recogniser, other landmarks "
            "or mirror images make another one: give --threshold for it, or --variant PHOTOS "
            "where the recogniser is the base's in another form."
        )
    content = base.model_dump(
        mode="json", by_alias=True, exclude={"folder"}, exclude_none=True, exclude_defaults=True
    )
    content.update(schema=1, name=folder.name, description=f"Made from {base.name}.")
    content.pop("networks_of", None)  # all files are copied
    files = {network.file: base.path(network) for network in base.files}
    if own.detector is None or not own.recognisers:  # some network still comes under them
        texts = base.networks_folder.glob("LICEN*")
        files |= {beside.name: beside for beside in texts if beside.is_file()}
    _replace_networks(content, files, base, own, made)
    if own.threshold is not None:
        content["decision"] = {"threshold": own.threshold, "threshold_basis": own.threshold_basis}
    calibration = own.calibration or base.folder / CALIBRATION_FILE
    if own.calibration is not None or (same_space and calibration.is_file()):
        files[CALIBRATION_FILE] = calibration
    return write_pack(content, files, folder)


def _same_space(base: ModelPack, own: OwnNetworks) -> bool:
    """Whether embeddings of the new pack can be compared with the base's."""
    recogniser = not own.recognisers or own.variant is not None
    mirror = own.mirror in (None, base.recogniser.mirror)
    landmarks = own.landmarks in (None, NO_LANDMARKS if base.landmarks is None else None)
    return recogniser and mirror and landmarks


def _replace_networks(
    content: dict[str, Any], files: dict[str, Path], base: ModelPack, own: OwnNetworks, made: Path
) -> None:
    """Put the networks that are given into `content` and `files`, in place of the base's."""
    if own.detector is not None:
        files[base.detector.file] = own.detector
        # Sizes and thresholds belong to an architecture: the new one starts with the usual ones.
        architecture = own.architecture or base.detector.architecture
        _check_detector(own.detector, architecture)
        content["detector"] = _given(own, file=base.detector.file, architecture=architecture)
        if base.detector.int8 is not None:
            del files[base.detector.int8.file]
    if own.integers is not None:
        table = content["detector"]
        table["int8"] = _integers(files[base.detector.file], table, own.integers, made)
        files[INTEGERS_FILE] = made / INTEGERS_FILE
    if len(own.recognisers) > 1:
        content["recogniser"] = _joined(base, own, made)
        files[base.recogniser.file] = made / base.recogniser.file
    elif own.recognisers:
        (given,) = own.recognisers
        content["recogniser"] = _recogniser(base, own, given)
        files[base.recogniser.file] = (
            given.file
            if own.keep_prelu
            else _without_prelu(given.file, content["recogniser"], made)
        )
    if own.mirror is not None:
        content["recogniser"]["mirror"] = own.mirror
    if own.landmarks is not None and base.landmarks is not None:
        del content["landmarks"], files[base.landmarks.file]
    if own.landmarks not in (None, NO_LANDMARKS):
        files[LANDMARKS_FILE] = Path(own.landmarks)
        content["landmarks"] = _given(own, file=LANDMARKS_FILE)
    if own.liveness:
        content["liveness"] = [_liveness(text, files, own) for text in own.liveness]


def _check_detector(path: Path, architecture: str) -> None:
    """Raise PackError unless the network answers like a detector of that architecture."""
    if _answers_like(path, architecture):
        return
    for other in ARCHITECTURES:
        if other != architecture and _answers_like(path, other):
            raise PackError(
                f"{path} does not answer like a {architecture} detector, but like {other}: give "
                f"--architecture {other}."
            )
    raise PackError(
        f"{path} answers like none of the detectors that Likeness can run: "
        f"{', '.join(ARCHITECTURES)}."
    )


def _answers_like(path: Path, architecture: str) -> bool:
    model = OnnxModel(path, Device.CPU)
    content = {"architecture": architecture, "file": path.name, "sha256": digest(path)}
    try:
        Detector(model, DetectorSpec.model_validate(content))
    except ValidationError as error:
        raise PackError(
            f"--architecture is one of {', '.join(ARCHITECTURES)}; not {architecture}."
        ) from error
    except PackError:
        return False
    return True


def _integers(detector: Path, table: dict[str, Any], folder: Path, made: Path) -> dict[str, Any]:
    """Write the detector that `table` describes in 8-bit integers."""
    spec = DetectorSpec.model_validate({**table, "sha256": digest(detector), "int8": None})
    try:
        photos = CalibrationPhotos.of_folder(folder)
        with unwritable(made / INTEGERS_FILE):
            found = export_integer_detector(detector, spec, photos, made / INTEGERS_FILE)
    except ExportError as error:
        raise PackError(f"--int8: {error}.") from error
    return {"file": INTEGERS_FILE, **provenance(found)}


def _given(own: OwnNetworks, **values: Any) -> dict[str, Any]:
    """What was given of a network, with its license and source."""
    named = {
        "licence": own.licence or "unknown",
        "source": own.source or "unknown",
        "training_data": "unknown",
        **values,
    }
    return {key: value for key, value in named.items() if value is not None}


def _recogniser(base: ModelPack, own: OwnNetworks, given: RecogniserFile) -> dict[str, Any]:
    spec = base.recogniser
    table = spec.model_dump(mode="json", exclude_none=True, exclude={"sha256", "proven_equal_to"})
    table |= {"mean": given.mean, "std": given.std, "colour": given.colour}
    if own.variant is None:
        table |= _given(own, architecture="unknown")
    model = OnnxModel(given.file, Device.CPU)
    table["dimension"] = _dimension(model, table["input_size"], takes_pixels=model.takes_pixels)
    if own.variant is not None:
        described = RecogniserSpec.model_validate({**table, "sha256": digest(given.file)})
        _prove_variant(base, Recogniser(model, described), own.variant)
        table["proven_equal_to"] = spec.proven_equal_to or spec.sha256
    return table


def _joined(base: ModelPack, own: OwnNetworks, made: Path) -> dict[str, Any]:
    """Write the fusion of the recognisers that are given."""
    if own.variant is not None:
        raise PackError(
            "--variant proves one recogniser to be another form of the base's: several that are "
            "joined make an embedding space of their own. Leave it out, and give --threshold."
        )
    members = [member_of_file(one, base) for one in own.recognisers]
    out = made / base.recogniser.file
    with unwritable(out):
        table = write_joined(members, out, keep_prelu=own.keep_prelu)
    spec = base.recogniser
    kept = {"template": spec.template, "mirror": spec.mirror}
    return table | kept | _given(own, file=spec.file, architecture=f"fusion of {len(members)}")


def _without_prelu(recogniser: Path, table: dict[str, Any], made: Path) -> Path:
    """The recogniser rewritten for ONNX Runtime's CPU kernels, of the same embedding space; itself
    where that cannot be proven to answer the same."""
    rewritten = made / recogniser.name
    try:
        install_recogniser(recogniser, rewritten)
    except ExportError:
        return recogniser
    table.setdefault("proven_equal_to", digest(recogniser))
    return rewritten


def _dimension(model: OnnxModel, size: int, *, takes_pixels: bool) -> int:
    blank = (
        np.zeros((1, size, size, 3), np.uint8)
        if takes_pixels
        else np.zeros((1, 3, size, size), np.float32)
    )
    try:
        return int(model.run(blank)[0].shape[1])
    except Exception as error:  # ONNX Runtime raises its own types
        raise PackError(f"{model.path} takes no face of {size} x {size} pixels: {error}") from error


def _prove_variant(base: ModelPack, candidate: Recogniser, photos: Path) -> None:
    """Raise PackError unless `candidate` answers the faces of the photos like the base does."""
    try:
        faces = align_folder(photos, base.recogniser.input_size)
    except ExportError as error:
        raise PackError(f"--variant: {error}.") from error
    crops = np.ascontiguousarray(faces[..., ::-1])
    if candidate.dimension != base.recogniser.dimension:
        raise PackError(
            f"The recogniser is not a variant of {base.name}'s: it answers {candidate.dimension} "
            f"numbers per face, not {base.recogniser.dimension}. Leave --variant out."
        )
    original = Recogniser(OnnxModel(base.recogniser_path, Device.CPU), base.recogniser)
    cosines = np.einsum("nd,nd->n", original.embed(crops)[0], candidate.embed(crops)[0])
    if not cosines.min() >= MINIMUM_COSINE:
        raise PackError(
            f"The recogniser is not a variant of {base.name}'s: on one of {len(crops)} faces the "
            "two "
            f"answers have a cosine of {cosines.min():.4f}, {MINIMUM_COSINE} is required. Without "
            "--variant it becomes a pack with an embedding space of its own."
        )


def _liveness(text: str, files: dict[str, Path], own: OwnNetworks) -> dict[str, Any]:
    scale, _, name = text.partition(":")
    try:
        times = float(scale)
    except ValueError:
        times = math.nan
    if not name or not 1 <= times <= 8:
        raise PackError(
            "--liveness is SCALE:FILE.onnx with a scale from 1 to 8, as 2.7:MiniFASNetV2.onnx; not "
            f"{text}."
        )
    source = Path(name)
    target = f"liveness-{source.stem}.onnx"
    files[target] = source
    return {"file": target, "scale": times} | _given(own)
