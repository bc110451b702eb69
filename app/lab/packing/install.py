"""Installs an archive (InsightFace's, or a Likeness pack) into the folder of installed packs."""

import shutil
from collections.abc import Collection, Iterator
from pathlib import Path

from app.errors import PackError
from app.inference.pack_spec import ModelPack
from app.inference.packs import PACK_FILE, builtin_names, digest, read_pack
from app.lab.export.detector import export_detector
from app.lab.export.parity import ExportError, open_session
from app.lab.export.recogniser import install_recogniser
from app.lab.packing.archive import PackArchive, opened
from app.lab.packing.published import (
    LICENSE_TEXT,
    PUBLISHED,
    PublishedNetwork,
    PublishedPack,
    description,
)
from app.lab.packing.writing import adopt_pack, workspace, write_pack

LICENCE_FILE = "LICENCE.insightface"
# Files beside the networks of a Likeness pack that belong to it.
_BESIDE = (PACK_FILE, "calibration.json", "LICEN", "README", "NOTICE")


def install_archive(archive: Path, installed: Path, *, accept_license: bool) -> ModelPack:
    """Unpack a zip into `installed` under the pack's own name.

    It holds a Likeness pack (pack.toml and what it names) or the networks of one that InsightFace
    publishes, which is known by their digests. Raises PackError; nothing is left then.
    """
    with opened(archive) as content, workspace(installed) as folder:
        if PACK_FILE in content.files:
            for file in _ours(content, folder):
                content.unpack(file, folder / file)
            pack = read_pack(folder)
            if pack.name in builtin_names():
                raise PackError(
                    f"The pack in {archive} is called {pack.name}, as one that came with Likeness, "
                    "which is served under that name. Pack it again in a folder of another name, "
                    "or unpack the zip into a folder and give LIKENESS_PACK the path."
                )
            return adopt_pack(folder, installed / pack.name)
        published = _recognise(archive, content.files.keys())
        for file in (published.detector.file, published.recogniser.file):
            content.unpack(file, folder / file)
        return install_published(published, folder, installed, accept_license=accept_license)


def install_published(
    published: PublishedPack, networks: Path, installed: Path, *, accept_license: bool
) -> ModelPack:
    """Make a pack of the two networks of a published one that lie in the folder `networks`.

    The detector is freed in batch and size; the recogniser in its batch, and of PReLU, where each
    face of a batch is then proven to be answered as the published network does. Raises PackError,
    also when the license was not accepted or a file is not the published one.
    """
    if not accept_license:
        raise PackError(
            f"{LICENSE_TEXT} To accept that, call the command again with --accept-license."
        )
    detector, recogniser = (
        _verified(networks, network) for network in (published.detector, published.recogniser)
    )
    with workspace(installed) as folder:
        files = {
            "detector.onnx": folder / "detector.onnx",
            "recogniser.onnx": folder / "recogniser.onnx",
            LICENCE_FILE: folder / LICENCE_FILE,
        }
        try:
            export_detector(detector, files["detector.onnx"])
        except ExportError as error:
            raise PackError(f"{detector.name} cannot be converted: {error}") from error
        try:
            install_recogniser(recogniser, files["recogniser.onnx"])
        except ExportError:  # then it stays as it was published, a face at a time
            shutil.copyfile(recogniser, files["recogniser.onnx"])
        files[LICENCE_FILE].write_text(LICENSE_TEXT + "\n", encoding="utf-8")
        dimension = open_session(files["recogniser.onnx"]).get_outputs()[0].shape[1]
        return write_pack(description(published, dimension), files, installed / published.name)


def _verified(networks: Path, network: PublishedNetwork) -> Path:
    path = networks / network.file
    found = digest(path)
    if found != network.sha256:
        raise PackError(
            f"{network.file} is not the file that InsightFace published: its SHA-256 is {found}, "
            f"expected {network.sha256}. Fetch the archive again, from a source you trust."
        )
    return path


def _ours(content: PackArchive, folder: Path) -> Iterator[str]:
    """The files of a Likeness pack: pack.toml says which networks there are."""
    content.unpack(PACK_FILE, folder / PACK_FILE)
    networks = {network.file for network in read_pack(folder).files}
    if missing := networks - content.files.keys():
        raise PackError(f"{content.name} lacks {', '.join(sorted(missing))}. Pack it again.")
    yield from (name for name in content.files if name in networks or name.startswith(_BESIDE))


def _recognise(archive: Path, files: Collection[str]) -> PublishedPack:
    """The published pack whose networks the archive holds; its name decides between several."""
    fitting = [
        pack
        for pack in PUBLISHED.values()
        if {pack.detector.file, pack.recogniser.file} <= set(files)
    ]
    if not fitting:
        raise PackError(
            f"{archive} holds neither {PACK_FILE} nor the networks of one of "
            f"{', '.join(PUBLISHED)}."
        )
    return next((pack for pack in fitting if pack.name == archive.stem), fitting[0])
