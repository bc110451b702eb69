"""Packs that are made of the default pack and one published file: `accurate` and `fast`."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from app.decision.calibrations import CALIBRATION_FILE
from app.errors import PackError
from app.inference.pack_spec import ModelPack
from app.inference.packs import BUILTIN_FOLDERS, PACK_FILE, digest, read_pack, verify_pack
from app.lab.export.foamliu import NORMALISATION, to_onnx
from app.lab.export.fusion import Member
from app.lab.export.graph import read_model
from app.lab.export.parity import ExportError
from app.lab.export.saved_weights import read_weights
from app.lab.packing.joined import member_of_pack, write_joined
from app.lab.packing.published import PublishedFile
from app.lab.packing.writing import unwritable, workspace, write_pack

BASE = "default"
Tables = dict[str, Any]
# (content of the file, its path for networks of its own, the base, its tables) -> the new tables.
Maker = Callable[[bytes, Path, ModelPack], Tables]


@dataclass(frozen=True, slots=True)
class ComposedPack:
    """The default pack with one network replaced. `network` is the one that `make` writes, and
    `make` returns what pack.toml says of it. `notice` is shown before the file is fetched."""

    name: str
    version: str
    description: str
    file: PublishedFile
    network: str
    make: Maker
    threshold: float
    threshold_basis: str
    notice: str


def compose(pack: ComposedPack, content: bytes, installed: Path) -> ModelPack:
    """Make the pack of the published file's content in the folder of installed packs.

    Raises PackError; nothing is left then.
    """
    base, own = _builtin(BASE), _builtin_folder(pack.name, CALIBRATION_FILE)
    out = installed / pack.name
    with workspace(installed) as folder, unwritable(out):
        made = folder / f"{pack.network}.onnx"
        try:
            table = pack.make(content, made, base)
        except ExportError as error:
            raise PackError(f"{pack.file.name} cannot be converted: {error}.") from error
        tables = base.model_dump(mode="json", by_alias=True, exclude={"folder"}, exclude_none=True)
        tables |= {
            "name": pack.name,
            "version": pack.version,
            "description": pack.description,
            pack.network: table,
            "decision": {
                "threshold": pack.threshold,
                "threshold_basis": pack.threshold_basis,
            },
        }
        files = {network.file: base.path(network) for network in base.files}
        files |= {made.name: made}
        if pack.network == "detector" and base.detector.int8 is not None:
            del files[base.detector.int8.file]  # of the detector that is replaced
        for texts in (base.folder, own):
            files |= {text.name: text for text in texts.glob("LICENSE*")}
        files[CALIBRATION_FILE] = own / CALIBRATION_FILE
        return write_pack(tables, files, out)


def composed_of(file: Path) -> ComposedPack | None:
    """The pack that a file on this machine is the published file of, by its SHA-256."""
    try:
        size = file.stat().st_size
    except OSError:
        return None  # the caller reads it again and names the error
    for pack in COMPOSED.values():
        if size == pack.file.size and digest(file) == pack.file.sha256:
            return pack
    return None


def _builtin(name: str) -> ModelPack:
    """The pack that came with this installation, never one of that name elsewhere."""
    pack = read_pack(_builtin_folder(name, PACK_FILE))
    verify_pack(pack)
    return pack


def _builtin_folder(name: str, file: str) -> Path:
    for root in BUILTIN_FOLDERS:
        if (root / name / file).is_file():
            return root / name
    raise PackError(f"models/{name}/{file} of this installation is missing. Install it again.")


# --- accurate ----------------------------------------------------------------------------------


def _accurate(content: bytes, out: Path, base: ModelPack) -> Tables:
    file = ACCURATE.file
    second = Member(file.name, to_onnx(read_weights(content)), NORMALISATION, 1.0, file.sha256)
    spec = base.recogniser
    return {
        **write_joined([member_of_pack(base), second], out),
        "architecture": "mobilefacenet, joined with foamliu's mobilefacenet",
        "file": out.name,
        "template": spec.template,
        "mirror": spec.mirror,
        "licence": "Apache-2.0",
        "source": f"{spec.source}; {file.url}",
        "training_data": f"{spec.training_data} (both networks)",
    }


ACCURATE = ComposedPack(
    name="accurate",
    version="1.1.0",
    description="The default pack with a second recogniser, foamliu's MobileFaceNet, joined into "
    "one embedding of 320 numbers: fewer errors, for 1.1 to 1.3 times the time of a photo.",
    file=PublishedFile(
        "https://raw.githubusercontent.com/foamliu/MobileFaceNet/"
        "408e13c0bcd1c10b666f00b07efcc2eab3c5d195/weights/mobilefacenet.pt",
        4_135_271,
        "90a00ba1d8b0b688af3deb731ed53dca582e6106805d1bc3cfdef55f570493f4",
    ),
    network="recogniser",
    make=_accurate,
    threshold=0.446,
    threshold_basis="False match rate 1e-4 over 20,448,119 comparisons of different people among "
    "6,405 LFW photos, each of 4,142,874 pairs of people counting once, known label noise left "
    "out; there it misses 2.6 % of the mated comparisons, each of 860 people counting once.",
    notice="MobileFaceNet by foamliu is under the Apache License 2.0. It was trained on MS1M, "
    "photos of celebrities from the web (MS-Celeb-1M), as the default pack's recogniser was.",
)

# --- fast --------------------------------------------------------------------------------------


def _fast(content: bytes, out: Path, _base: ModelPack) -> Tables:
    out.write_bytes(content)
    read_model(out)  # what is no network is refused here, by its name
    return {
        "architecture": "yunet",
        "file": out.name,
        "input_size": 640,
        "score_threshold": 0.75,
        "iou_threshold": 0.3,
        "licence": "Apache-2.0",
        "source": FAST.file.url,
        "training_data": "WIDER FACE (training split), with the landmark labels of SCRFD",
    }


FAST = ComposedPack(
    name="fast",
    version="1.1.0",
    description="The default pack with the detector YuNet-n, which takes about a third of the "
    "time; embeddings can be compared with the default pack's.",
    file=PublishedFile(
        "https://raw.githubusercontent.com/ShiqiYu/libfacedetection.train/"
        "02246e79b1e976c83d1e135a85e0628120c93769/onnx/yunet_n_dynamic.onnx",
        322_906,
        "104ee26c71d5c270ce79a6b3dced91c91013260d29a6bf18f9296c5b8c4c2b12",
    ),
    network="detector",
    make=_fast,
    threshold=0.524,
    threshold_basis="False match rate 1e-4 over 20,448,119 comparisons of different people among "
    "6,405 LFW photos, each of 4,142,874 pairs of people counting once, known label noise left "
    "out; there it misses 4.2 % of the mated comparisons, each of 860 people counting once.",
    notice="YuNet by Wu, Peng and Yu (libfacedetection.train) is under the Apache License 2.0. It "
    "was trained on WIDER FACE, photos of people from the web.",
)
COMPOSED: Mapping[str, ComposedPack] = {pack.name: pack for pack in (ACCURATE, FAST)}
