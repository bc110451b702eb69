"""Archives into the folder of installed packs, without a network."""

import os
import shutil
import zipfile
from pathlib import Path

import onnx
import pytest

from app.errors import PackError
from app.inference.pack_spec import ModelPack
from app.inference.packs import known_packs, load_pack
from app.lab.packing import install
from app.lab.packing.archive import MAXIMUM_BYTES
from app.lab.packing.install import install_archive
from app.lab.packing.published import LICENSE_TEXT, PublishedPack

pytestmark = pytest.mark.slow


@pytest.fixture
def installed(tmp_path: Path) -> Path:
    return tmp_path / "installed"


@pytest.fixture(scope="module")
def mine(tmp_path_factory: pytest.TempPathFactory, pack: ModelPack) -> Path:
    """The default pack, zipped with its folder, under another name."""
    made = tmp_path_factory.mktemp("mine")
    folder = Path(shutil.copytree(pack.folder, made / "folders" / "mine"))
    described = folder / "pack.toml"
    described.write_text(described.read_text().replace('name = "default"', 'name = "mine"'))
    return Path(shutil.make_archive(str(made / "mine"), "zip", folder.parent))


@pytest.fixture
def zipped(tmp_path: Path, mine: Path) -> Path:
    """A copy of that archive, to change."""
    return Path(shutil.copy(mine, tmp_path / "mine.zip"))


def test_a_pack_of_ours(zipped: Path, installed: Path, pack: ModelPack) -> None:
    made = install_archive(zipped, installed, accept_license=False)
    assert made.folder == installed / "mine"
    assert (made.folder / "calibration.json").is_file()
    assert load_pack("mine", installed).embedding_space == pack.embedding_space
    assert made.folder in known_packs(installed)


def test_other_users_can_read_it(zipped: Path, installed: Path) -> None:
    """Such as that of a container, where the folder of packs is mounted."""
    before = os.umask(0o077)
    try:
        made = install_archive(zipped, installed, accept_license=False)
    finally:
        os.umask(before)
    modes = [path.stat().st_mode & 0o777 for path in (installed, made.folder)]
    assert modes == [0o755, 0o755]
    assert {file.stat().st_mode & 0o777 for file in made.folder.iterdir()} == {0o644}


def test_the_name_of_a_pack_that_came_with_likeness(
    pack: ModelPack, installed: Path, tmp_path: Path
) -> None:
    """It would never be served: the other one is found by that name."""
    archive = Path(shutil.make_archive(str(tmp_path / "default"), "zip", pack.folder))
    with pytest.raises(PackError, match=r"is called default, as one that came with Likeness"):
        install_archive(archive, installed, accept_license=False)
    assert list(installed.iterdir()) == []


def test_what_is_there_already_stays(zipped: Path, installed: Path) -> None:
    install_archive(zipped, installed, accept_license=False)
    with pytest.raises(PackError, match=r"mine exists already"):
        install_archive(zipped, installed, accept_license=False)


def test_a_network_is_missing(zipped: Path, installed: Path, tmp_path: Path) -> None:
    less = tmp_path / "less.zip"
    with zipfile.ZipFile(zipped) as source, zipfile.ZipFile(less, "w") as target:
        for info in source.infolist():
            if not info.filename.endswith("detector.onnx"):
                target.writestr(info, source.read(info))
    with pytest.raises(PackError, match=r"lacks detector\.onnx"):
        install_archive(less, installed, accept_license=False)
    assert list(installed.iterdir()) == []


def test_paths_inside_an_archive_do_not_count(
    zipped: Path, installed: Path, tmp_path: Path
) -> None:
    with zipfile.ZipFile(zipped, "a") as content:
        content.writestr("../../LICENSE.escaped", "no")
        content.writestr("run.sh", "no")
    made = install_archive(zipped, installed, accept_license=False)
    assert (made.folder / "LICENSE.escaped").read_text() == "no"
    assert not (made.folder / "run.sh").exists()
    assert not list(tmp_path.glob("LICENSE.escaped"))


def test_an_archive_that_would_fill_the_disk(zipped: Path, installed: Path) -> None:
    with zipfile.ZipFile(zipped, "a") as content:
        for number in range(4):  # each alone is small enough
            content.writestr(f"README{number}", "")
            content.getinfo(f"README{number}").file_size = MAXIMUM_BYTES // 4
    with pytest.raises(PackError, match=r"would unpack to .* bytes: refused"):
        install_archive(zipped, installed, accept_license=False)
    assert not installed.exists()


# In the headers of a file (local, central): flags, way of compression.
@pytest.mark.parametrize(("places", "value"), [((6, 8), 1), ((8, 10), 99)])
def test_an_archive_that_cannot_be_unpacked(
    zipped: Path, installed: Path, places: tuple[int, int], value: int
) -> None:
    content = bytearray(zipped.read_bytes())
    for place, head in zip(places, (b"PK\3\4", b"PK\1\2"), strict=True):
        at = content.find(head)
        while at >= 0:
            content[at + place] = value
            at = content.find(head, at + 4)
    zipped.write_bytes(content)
    with pytest.raises(PackError, match=r"pack\.toml in .* cannot be unpacked"):
        install_archive(zipped, installed, accept_license=False)
    assert list(installed.iterdir()) == []


def test_an_archive_with_damaged_data(zipped: Path, installed: Path, tmp_path: Path) -> None:
    content = bytearray(zipped.read_bytes())
    start = content.find(b"pack.toml") + len("pack.toml")
    content[start : start + 40] = b"\xff" * 40
    zipped.write_bytes(content)
    with pytest.raises(PackError, match=r"pack\.toml in .* cannot be unpacked"):
        install_archive(zipped, installed, accept_license=False)


# Bytes of the central directory's first entry, at `place`: the version that is needed, the name,
# which has the flag of UTF-8 (and ends at a zero), and sizes.
@pytest.mark.parametrize(
    ("place", "value"), [(6, b"\x63\x00"), (46, b"\xff\xfe"), (46, b"\0"), (20, b"\xff" * 8)]
)
def test_an_archive_with_a_damaged_directory(
    place: int, value: bytes, tmp_path: Path, installed: Path
) -> None:
    archive = tmp_path / "mine.zip"
    with zipfile.ZipFile(archive, "w") as content:
        content.writestr("päck.toml", "name = 1")
    damaged = bytearray(archive.read_bytes())
    start = damaged.find(b"PK\1\2") + place
    damaged[start : start + len(value)] = value
    archive.write_bytes(damaged)
    with pytest.raises(PackError, match=r"mine\.zip"):
        install_archive(archive, installed, accept_license=False)
    assert not list(installed.glob("*"))


def test_a_description_nested_without_end(tmp_path: Path, installed: Path) -> None:
    archive = tmp_path / "deep.zip"
    with zipfile.ZipFile(archive, "w") as content:
        content.writestr("pack.toml", "a = " + "[" * 100_000)
    with pytest.raises(PackError, match=r"pack\.toml cannot be read"):
        install_archive(archive, installed, accept_license=False)


def test_what_is_no_archive(tmp_path: Path, installed: Path) -> None:
    text = tmp_path / "text.zip"
    text.write_text("no archive")
    with pytest.raises(PackError, match="not a complete zip file"):
        install_archive(text, installed, accept_license=False)
    with pytest.raises(PackError, match="cannot be installed: No such file"):
        install_archive(tmp_path / "absent.zip", installed, accept_license=False)
    with zipfile.ZipFile(text, "w") as content:
        content.writestr("photo.jpg", b"")
    with pytest.raises(PackError, match=r"holds neither pack.toml nor the networks"):
        install_archive(text, installed, accept_license=False)


def test_insightface_s_licence_is_shown_and_asked_for(
    archive: Path, published: PublishedPack, installed: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(install, "PUBLISHED", {published.name: published})
    with pytest.raises(PackError) as caught:
        install_archive(archive, installed, accept_license=False)
    assert LICENSE_TEXT in caught.value.detail
    assert "--accept-license" in caught.value.detail


@pytest.mark.slow
def test_insightface_s_zip(
    archive: Path, published: PublishedPack, installed: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(install, "PUBLISHED", {published.name: published})
    made = install_archive(archive, installed, accept_license=True)
    assert made.name == "buffalo_sc"
    assert made.recogniser.dimension == 512
    kinds = {node.op_type for node in onnx.load(made.recogniser_path).graph.node}
    assert "PRelu" not in kinds
    assert made.recogniser.proven_equal_to == published.recogniser.sha256
    assert "non-commercial" in (made.folder / install.LICENCE_FILE).read_text()
