"""Model packs: one folder with a detector, a recogniser, their digests and their constants.

`pack.toml` beside the networks describes them. If the SHA-256 of a file differs from the one in
`pack.toml`, the service does not start.
"""

import mmap
import re
import tomllib
from contextlib import suppress
from pathlib import Path

from pydantic import ValidationError

from app.disk import sha256
from app.errors import PackError
from app.findings import findings
from app.inference.pack_spec import ModelPack

PACK_FILE = "pack.toml"
MOST_BYTES = 1 << 20  # of that file; an archive may bring any
# Where a tensor names the file that holds its values: in ONNX's protobuf the key "location" of an
# entry of TensorProto.external_data (field 13). Metadata may have such a key too, in other fields.
_ELSEWHERE = re.compile(rb"\x6a[\x00-\xff]{1,2}\x0a\x08location\x12")
_APP_FOLDER = Path(__file__).resolve().parent.parent
# A checkout keeps the packs beside `app/`; a wheel carries them inside it.
BUILTIN_FOLDERS = (_APP_FOLDER.parent / "models", _APP_FOLDER / "models")


def find_pack(name_or_folder: str, installed: Path | None = None) -> Path:
    """The folder of a pack given by name, built in or below `installed`, or by path.

    Raises PackError when there is none.
    """
    roots = [*BUILTIN_FOLDERS, *([installed] if installed else [])]
    unreadable = ""
    for folder in [Path(name_or_folder), *(root / name_or_folder for root in roots)]:
        try:
            if (folder / PACK_FILE).is_file():
                return folder.resolve()
        except PermissionError as error:  # another folder may have it
            unreadable = f" {folder.absolute()} cannot be read: {error.strerror}."
    known = ", ".join(folder.name for folder in known_packs(installed)) or "none"
    raise PackError(
        f"There is no model pack '{name_or_folder}': no folder of that path holds a "
        f"{PACK_FILE}, and no pack has that name (known packs: {known}). Name one "
        f"of these, or fetch one: likeness models pull --help.{unreadable}"
    )


def known_packs(installed: Path | None = None) -> list[Path]:
    """The folders of the packs that came with this installation or were installed, by name."""
    roots = [*([installed] if installed else []), *reversed(BUILTIN_FOLDERS)]
    found = {file.parent.name: file.parent for root in roots
             for file in root.glob(f"[!.]*/{PACK_FILE}")}  # fmt: skip
    return [found[name] for name in sorted(found)]


def builtin_names() -> set[str]:
    """The names of the packs that came with this installation: no other pack is found by them."""
    return {file.parent.name for root in BUILTIN_FOLDERS for file in root.glob(f"*/{PACK_FILE}")}


def packs_by_space(installed: Path | None = None) -> dict[str, str]:
    """By embedding space, the name of a known pack of it: the first one by name. A pack whose
    description cannot be read is left out."""
    names: dict[str, str] = {}
    for folder in known_packs(installed):
        with suppress(PackError):
            names.setdefault(read_pack(folder).embedding_space, folder.name)
    return names


def read_pack(folder: Path) -> ModelPack:
    """Read a pack's description without looking at its networks. Raises PackError."""
    path = folder / PACK_FILE
    try:
        with path.open("rb") as file:
            text = file.read(MOST_BYTES + 1)
        if len(text) > MOST_BYTES:
            raise ValueError(f"it has more than {MOST_BYTES:,} bytes")
        content = tomllib.loads(text.decode())
        return ModelPack.model_validate({**content, "folder": folder})
    except ValidationError as error:
        where, message = findings(error.errors())[0]
        raise PackError(f"{path}: {where}: {message}. Correct that line.") from error
    except (OSError, ValueError, RecursionError) as error:  # tables nested without end
        raise PackError(f"{path} cannot be read: {error}") from error


def load_pack(name_or_folder: str, installed: Path | None = None) -> ModelPack:
    """Find a pack, read it and verify the digest of each network. Raises PackError."""
    pack = read_pack(find_pack(name_or_folder, installed))
    verify_pack(pack)
    return pack


def verify_pack(pack: ModelPack) -> None:
    """Raise PackError unless every network is the one its SHA-256 in pack.toml names, and keeps its
    weights itself."""
    for network in pack.files:
        path, expected = pack.path(network), network.sha256
        folder = pack.networks_folder
        try:
            outside = path.resolve().parent != folder.resolve()
        except (ValueError, RuntimeError, OSError) as error:  # a zero byte, links in a circle
            raise PackError(f"{str(path)!r} cannot be found: {error}. Correct its name.") from error
        if outside:
            raise PackError(f"{path} lies outside its pack; name a file of {folder}.")
        require_own_weights(path)
        actual = digest(path)
        if actual != expected:
            raise PackError(
                f"{path} is not the file that {PACK_FILE} describes: its SHA-256 is {actual}, "
                f"expected {expected}. Restore the file (git checkout, or copy the pack again); "
                f"if you changed it on purpose, write the new digest into {PACK_FILE}."
            )


def digest(path: Path) -> str:
    """SHA-256 of a file in hexadecimal. Raises PackError where it cannot be read."""
    try:
        return sha256(path)
    except OSError as error:
        raise _unreadable(path, error) from error


def require_own_weights(path: Path) -> None:
    """Raise PackError if a network keeps weights in another file: its digest, by which it is known,
    would not cover them."""
    try:
        with path.open("rb") as file, mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as found:
            elsewhere = _ELSEWHERE.search(found) is not None
    except ValueError:  # an empty file
        return
    except OSError as error:
        raise _unreadable(path, error) from error
    if elsewhere:
        raise PackError(
            f"{path} keeps its weights in another file, which its digest does not cover. Save it "
            f"as one file: onnx.save(onnx.load('{path}'), '{path}')."
        )


def _unreadable(path: Path, error: OSError) -> PackError:
    return PackError(f"{path} cannot be read ({error.strerror}). Copy the whole pack folder again.")
