"""Model packs: what is wrong with one is said by file, by key and with what to do."""

import hashlib
import os
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from app.decision.calibrations import pack_calibration, pack_orientation
from app.errors import PackError
from app.index.port import PRECISION
from app.inference.pack_spec import LandmarkSpec, ModelPack
from app.inference.packs import (
    MOST_BYTES,
    PACK_FILE,
    find_pack,
    known_packs,
    load_pack,
    read_pack,
    require_own_weights,
    verify_pack,
)

Edit = Callable[[str, str], Path]


@pytest.fixture
def folder(tmp_path: Path, pack: ModelPack) -> Path:
    """A copy of the default pack, to be spoilt."""
    return Path(shutil.copytree(pack.folder, tmp_path / "copy"))


@pytest.fixture
def edit(folder: Path) -> Edit:
    """Replace one piece of the copy's pack.toml."""

    def replace(old: str, new: str) -> Path:
        file = folder / PACK_FILE
        text = file.read_text(encoding="utf-8")
        assert text.count(old) >= 1, f"{old!r} is not in {PACK_FILE}"
        file.write_text(text.replace(old, new, 1), encoding="utf-8")
        return folder

    return replace


class TestLoading:
    def test_by_name_and_by_folder(self, pack: ModelPack, folder: Path) -> None:
        assert load_pack("default").folder == pack.folder
        assert load_pack(str(folder)).embedding_space == pack.embedding_space

    def test_the_networks_are_files_of_the_folder(self, pack: ModelPack) -> None:
        for path in (pack.detector_path, pack.recogniser_path):
            assert path.is_file()
            assert path.parent == pack.folder

    def test_built_in_packs_are_listed(self) -> None:
        assert [folder.name for folder in known_packs()] == ["default", "default-1.0"]

    def test_the_default_pack_corrects_landmarks_and_averages_mirror_images(
        self, pack: ModelPack
    ) -> None:
        assert pack.version == "2.0.0"
        assert pack.recogniser.mirror
        assert pack.landmarks is not None

    def test_version_1_has_the_networks_of_the_default_pack(self, pack: ModelPack) -> None:
        """Galleries that were made with it are bound to its space."""
        version_1 = load_pack("default-1.0")
        assert version_1.detector == pack.detector.model_copy(
            update={"first_look": None, "int8": None}
        )
        assert version_1.recogniser_path == pack.recogniser_path
        assert not version_1.recogniser.mirror
        assert version_1.landmarks is None
        assert version_1.embedding_space == "es-038d0789502f026c"
        assert version_1.embedding_space != pack.embedding_space

    @pytest.mark.parametrize("name", ["default", "default-1.0"])
    def test_each_has_its_own_calibration(self, name: str) -> None:
        found = load_pack(name)
        calibration = pack_calibration(
            found.folder, found.embedding_space, PRECISION, found.recogniser.dimension
        )
        assert calibration is not None
        assert calibration.domain is not None
        assert pack_orientation(found, PRECISION) is not None

    def test_an_unknown_name_lists_the_known(self) -> None:
        with pytest.raises(PackError, match=r"no model pack 'bufalo'.*default.*Name one"):
            find_pack("bufalo")

    @pytest.mark.skipif(os.geteuid() != 0, reason="only root can become another user")
    def test_a_working_folder_that_may_not_be_read_hides_no_pack(self, tmp_path: Path) -> None:
        """That is a container's data folder, if it belongs to another user."""
        code = (
            "import os\n"
            "from app.errors import PackError\n"
            "from app.inference.packs import find_pack\n"
            "os.setgid(65534); os.setuid(65534)\n"
            "print(find_pack('default').name)\n"
            "try:\n    find_pack('bufalo')\n"
            "except PackError as error:\n    print(error.detail)\n"
        )
        tmp_path.chmod(0o700)
        root = str(Path(__file__).parents[2])
        done = subprocess.run(
            [sys.executable, "-c", code], cwd=tmp_path, env={**os.environ, "PYTHONPATH": root},
            capture_output=True, text=True, check=False, timeout=60,
        )  # fmt: skip
        assert done.stdout.startswith("default\n"), done.stderr
        assert f"{tmp_path}/bufalo cannot be read: Permission denied." in done.stdout


class TestNetworksOfAnotherPack:
    """A version of a pack that differs in its description alone needs no second copy."""

    @pytest.fixture
    def version(self, folder: Path, pack: ModelPack) -> Path:
        """A pack beside the copy of the default pack that has its networks."""
        version = folder.parent / "version"
        version.mkdir()
        text = (folder / PACK_FILE).read_text(encoding="utf-8")
        named = text.replace('name = "default"', 'name = "version"\nnetworks_of = "copy"')
        (version / PACK_FILE).write_text(named, encoding="utf-8")
        return version

    def test_they_are_loaded_from_there(self, version: Path, folder: Path) -> None:
        loaded = load_pack(str(version))
        assert (loaded.name, loaded.folder) == ("version", version)
        assert loaded.recogniser_path == folder / "recogniser.onnx"
        assert loaded.embedding_space == read_pack(folder).embedding_space

    def test_their_digests_are_checked(self, version: Path, folder: Path) -> None:
        (folder / "recogniser.onnx").write_bytes(b"another")
        with pytest.raises(PackError, match=rf"{folder / 'recogniser.onnx'} is not the file"):
            load_pack(str(version))

    def test_the_other_pack_is_missing(self, version: Path, folder: Path) -> None:
        folder.rename(folder.parent / "moved")
        with pytest.raises(PackError, match=r"copy/detector.onnx cannot be read"):
            load_pack(str(version))

    @pytest.mark.parametrize("name", ["..", "../copy", "/etc", ""])
    def test_only_a_name_beside_it(self, version: Path, name: str) -> None:
        file = version / PACK_FILE
        file.write_text(file.read_text().replace('networks_of = "copy"', f'networks_of = "{name}"'))
        with pytest.raises(PackError, match="networks_of"):
            read_pack(version)


class TestDigests:
    @pytest.mark.parametrize("name", ["detector.onnx", "recogniser.onnx"])
    def test_a_changed_network(self, folder: Path, name: str) -> None:
        with (folder / name).open("ab") as file:
            file.write(b"\0")
        changed = hashlib.sha256((folder / name).read_bytes()).hexdigest()
        with pytest.raises(PackError) as caught:
            load_pack(str(folder))
        detail = caught.value.detail
        assert str(folder / name) in detail
        assert changed in detail
        assert "git checkout" in detail

    def test_weights_in_another_file(self, pack: ModelPack, edit: Edit) -> None:
        """Two networks that differ in their weights alone would have one digest."""
        onnx = pytest.importorskip("onnx", reason="onnx is not installed")
        model = onnx.load(pack.recogniser_path)
        folder = edit("", "")
        file = folder / "recogniser.onnx"
        file.unlink()
        onnx.save(model, file, save_as_external_data=True, location="recogniser.onnx.data")
        with pytest.raises(PackError, match="keeps its weights in another file"):
            load_pack(str(folder))

    def test_metadata_that_look_like_it(self, folder: Path, tmp_path: Path) -> None:
        onnx = pytest.importorskip("onnx", reason="onnx is not installed")
        model = onnx.load(folder / "recogniser.onnx")
        for owner in (model, model.graph.node[0], model.graph.initializer[0]):
            owner.metadata_props.add(key="location", value="Geneva")
        onnx.save(model, tmp_path / "named.onnx")
        require_own_weights(tmp_path / "named.onnx")

    @pytest.mark.parametrize("name", ["detector.onnx", "recogniser.onnx"])
    def test_a_missing_network(self, folder: Path, name: str) -> None:
        (folder / name).unlink()
        with pytest.raises(PackError, match=rf"{name} cannot be read .*Copy the whole pack"):
            load_pack(str(folder))

    @pytest.mark.parametrize("outside", ["../stray.onnx", "/etc/hostname", "sub/../../stray.onnx"])
    def test_a_network_outside_the_folder(self, edit: Edit, outside: str) -> None:
        folder = edit('file = "detector.onnx"', f'file = "{outside}"')
        shutil.copy(folder / "detector.onnx", folder.parent / "stray.onnx")
        with pytest.raises(PackError, match="lies outside its pack"):
            load_pack(str(folder))

    def test_a_name_that_no_file_has(self, edit: Edit) -> None:
        folder = edit('file = "detector.onnx"', 'file = "a\\u0000b"')
        with pytest.raises(PackError, match=r"a\\x00b' cannot be found: .*null"):
            load_pack(str(folder))

    def test_a_link_to_itself(self, folder: Path) -> None:
        (folder / "detector.onnx").unlink()
        (folder / "detector.onnx").symlink_to("detector.onnx")
        with pytest.raises(PackError, match=r"detector.onnx.* cannot be (found|read)"):
            load_pack(str(folder))

    def test_a_link_that_leads_outside(self, folder: Path) -> None:
        """Its digest would be right: what it points to may change all the same."""
        outside = folder.parent / "stray.onnx"
        (folder / "detector.onnx").rename(outside)
        (folder / "detector.onnx").symlink_to(outside)
        with pytest.raises(PackError, match="lies outside its pack"):
            load_pack(str(folder))


class TestDescription:
    @pytest.mark.parametrize(
        ("old", "new", "key"),
        [
            ("score_threshold = 0.5", "score_treshold = 0.5", "detector.score_treshold"),
            ("score_threshold = 0.5", "score_threshold = 1.5", "detector.score_threshold"),
            ('colour = "rgb"', 'colour = "grb"', "recogniser.colour"),
            ('colour = "rgb"', "", "recogniser.colour"),
            ("std = 128.0", "std = 0.0", "recogniser.std"),
            ("std = 128.0", "std = inf", "recogniser.std"),
            ("mean = 127.5", "mean = nan", "recogniser.mean"),
            ("dimension = 192", 'dimension = "many"', "recogniser.dimension"),
            ('architecture = "centerface"', 'architecture = "yolo"', "detector.architecture"),
            ('sha256 = "', 'sha256 = "x', "detector.sha256"),
            ("schema = 1", "schema = 2", "schema"),
            ("schema = 1", "schema = 1\nlicense = true", "license"),
            ("[decision]", "[decison]", "decision"),
        ],
    )
    def test_a_mistake_is_named_by_its_key(self, edit: Edit, old: str, new: str, key: str) -> None:
        folder = edit(old, new)
        with pytest.raises(PackError) as caught:
            read_pack(folder)
        assert f"{PACK_FILE}: {key}: " in caught.value.detail
        assert caught.value.detail.endswith("Correct that line.")

    @pytest.mark.parametrize(
        "content",
        [b"schema = ", b"\xff\xfe\0", b"schema = 1\nschema = 1", b"#" * (MOST_BYTES + 1)],
    )
    def test_no_toml(self, folder: Path, content: bytes) -> None:
        (folder / PACK_FILE).write_bytes(content)
        with pytest.raises(PackError, match=rf"{PACK_FILE} cannot be read"):
            read_pack(folder)

    def test_the_detector_in_integers_is_checked_and_leaves_the_space(
        self, pack: ModelPack, folder: Path
    ) -> None:
        """Whether or not it is asked for."""
        assert pack.detector.int8 is not None
        assert set(pack.files) - set(pack.networks) == {pack.detector.int8}
        with (folder / pack.detector.int8.file).open("ab") as file:
            file.write(b"\0")
        with pytest.raises(
            PackError, match=r"detector\.int8\.onnx is not the file that pack\.toml"
        ):
            load_pack(str(folder))
        plain = pack.detector.model_copy(update={"int8": None})
        alone = pack.model_copy(update={"detector": plain})
        assert alone.embedding_space == pack.embedding_space

    def test_reading_does_not_look_at_the_networks(self, folder: Path) -> None:
        (folder / "detector.onnx").unlink()
        described = read_pack(folder)
        assert described.name == "default"
        with pytest.raises(PackError):
            verify_pack(described)


class TestEmbeddingSpace:
    @pytest.mark.parametrize(
        ("field", "value"),
        [
            ("proven_equal_to", "0" * 64),
            ("input_size", 128),
            ("colour", "bgr"),
            ("mean", 0.0),
            ("std", 127.5),
            ("dimension", 128),
        ],
    )
    def test_every_constant_of_the_recogniser_makes_another(
        self, pack: ModelPack, field: str, value: object
    ) -> None:
        recogniser = pack.recogniser.model_copy(update={field: value})
        assert getattr(pack.recogniser, field) != value
        other = pack.model_copy(update={"recogniser": recogniser})
        assert other.embedding_space != pack.embedding_space

    def test_neither_detector_nor_names_do(self, pack: ModelPack, edit: Edit) -> None:
        edit("iou_threshold = 0.3", "iou_threshold = 0.5")
        edit("input_size = 640", "input_size = 1280")
        edit('name = "default"', 'name = "other"')
        folder = edit("std = 128.0", "std = 128")
        assert read_pack(folder).embedding_space == pack.embedding_space

    @pytest.mark.parametrize("update", [{"mirror": True}, {"mirror": False}])
    def test_mirror_images_make_another(self, pack: ModelPack, update: dict[str, bool]) -> None:
        recogniser = pack.recogniser.model_copy(update=update)
        other = pack.model_copy(update={"recogniser": recogniser})
        same = update["mirror"] == pack.recogniser.mirror
        assert (other.embedding_space == pack.embedding_space) is same

    def test_corrected_landmarks_make_another(self, pack: ModelPack) -> None:
        half = LandmarkSpec(file="landmarks.onnx", sha256="0" * 64)
        whole = half.model_copy(update={"weight": 1.0})
        other = half.model_copy(update={"sha256": "1" * 64})
        spaces = {
            pack.model_copy(update={"landmarks": landmarks}).embedding_space
            for landmarks in (None, half, whole, other)
        }
        assert len(spaces) == 4

    def test_a_pack_without_either_keeps_its_space(self, pack: ModelPack) -> None:
        """That of the default pack before it had them: galleries are bound to it."""
        recogniser = pack.recogniser.model_copy(update={"mirror": False})
        first = pack.model_copy(update={"recogniser": recogniser, "landmarks": None})
        assert first.embedding_space == "es-038d0789502f026c"

    def test_its_look(self, pack: ModelPack) -> None:
        assert pack.embedding_space.startswith("es-")
        assert len(pack.embedding_space) == 19


class TestVariants:
    def test_a_proven_variant_shares_it(self, edit: Edit, pack: ModelPack) -> None:
        """What counts is the network that the file was proven equal to."""
        folder = edit(f'sha256 = "{pack.recogniser.sha256}"', f'sha256 = "{"0" * 64}"')
        assert read_pack(folder).embedding_space == pack.embedding_space

    def test_another_file_has_its_own(self, edit: Edit, pack: ModelPack) -> None:
        folder = edit(f'proven_equal_to = "{pack.recogniser.proven_equal_to}"', "")
        assert read_pack(folder).embedding_space != pack.embedding_space

    def test_what_shapes_the_input_counts(self, edit: Edit, pack: ModelPack) -> None:
        folder = edit("std = 128.0", "std = [128.0, 128.0, 127.5]")
        assert read_pack(folder).embedding_space != pack.embedding_space

    def test_no_std_of_zero(self, edit: Edit) -> None:
        with pytest.raises(PackError, match="greater than 0"):
            read_pack(edit("std = 128.0", "std = [128.0, 0, 127.5]"))


def test_an_installed_pack_is_found_by_name(folder: Path, tmp_path: Path) -> None:
    folder.rename(tmp_path / "packs-of-mine")
    installed = tmp_path / "installed"
    installed.mkdir()
    (tmp_path / "packs-of-mine").rename(installed / "mine")
    assert find_pack("mine", installed) == installed / "mine"
    assert [one.name for one in known_packs(installed)] == ["default", "default-1.0", "mine"]
    with pytest.raises(PackError, match=r"known packs: default, default-1.0, mine"):
        find_pack("yours", installed)
