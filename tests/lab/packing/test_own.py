"""`likeness models pack`: networks of one's own in a pack that `serve` runs."""

import shutil
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper

from app.errors import PackError
from app.faces.loading import build_pipeline
from app.imaging import ImageLimits
from app.inference.cpu_engine import CpuOptions
from app.inference.pack_spec import ModelPack
from app.inference.packs import digest, load_pack
from app.lab.export.faces import Normalisation
from app.lab.export.recogniser import export_pixels
from app.lab.packing.joined import described
from app.lab.packing.own import OwnNetworks, make_pack
from app.settings import CpuPrecision, Device
from app.types import AnalysedImage

pytestmark = pytest.mark.slow


def test_a_copy_runs_and_keeps_space_and_calibration(pack: ModelPack, tmp_path: Path) -> None:
    made = make_pack(pack, OwnNetworks(threshold=0.6, threshold_basis="by hand"), tmp_path / "mine")
    assert made.name == "mine"
    assert made.embedding_space == pack.embedding_space
    assert made.decision.threshold == 0.6
    assert (made.folder / "calibration.json").is_file()
    assert load_pack(str(tmp_path / "mine")) == made


@pytest.mark.slow
def test_a_variant_shares_the_embedding_space(
    pack: ModelPack, tmp_path: Path, people: Path, photos: Path
) -> None:
    spec = pack.recogniser
    variant = tmp_path / "pixels.onnx"
    export_pixels(pack.recogniser_path, variant, Normalisation(spec.mean, spec.std, rgb=True))
    made = make_pack(
        pack, OwnNetworks(recognisers=described(pack, [variant]), variant=people), tmp_path / "mine"
    )
    assert made.recogniser.sha256 != spec.sha256
    assert made.recogniser.proven_equal_to == spec.proven_equal_to
    assert made.embedding_space == pack.embedding_space
    data = (photos / "obama.jpg").read_bytes()
    ours, theirs = (
        build_pipeline(one, Device.CPU, ImageLimits()).analyse(data, max_faces=1).faces[0]
        for one in (made, pack)
    )
    assert ours.embedding @ theirs.embedding > 0.99999


@pytest.mark.slow
def test_another_network_is_no_variant(pack: ModelPack, tmp_path: Path, people: Path) -> None:
    model = onnx.load(pack.recogniser_path)
    for weight in model.graph.initializer[:4]:
        if weight.raw_data:
            weight.raw_data = bytes(len(weight.raw_data))
    other = tmp_path / "other.onnx"
    onnx.save(model, other)
    with pytest.raises(PackError, match=r"not a variant of default's.*cosine"):
        make_pack(
            pack,
            OwnNetworks(recognisers=described(pack, [other]), variant=people),
            tmp_path / "mine",
        )
    assert not (tmp_path / "mine").exists()


def test_another_recogniser_has_a_space_and_a_threshold_of_its_own(
    pack: ModelPack, tmp_path: Path, eval_models: Path
) -> None:
    recogniser = eval_models / "insightface" / "w600k_mbf.onnx"
    given = described(pack, [recogniser], stds=["127.5"])
    own = OwnNetworks(recognisers=given)
    with pytest.raises(PackError, match="give --threshold"):
        make_pack(pack, own, tmp_path / "mine")
    made = make_pack(pack, OwnNetworks(recognisers=given, threshold=0.3), tmp_path / "mine")
    assert made.recogniser.dimension == 512
    assert made.embedding_space != pack.embedding_space
    assert not (made.folder / "calibration.json").exists()


def test_corrected_landmarks_and_mirror_images_make_another_space(
    pack: ModelPack, tmp_path: Path, photos: Path
) -> None:
    base = plain(pack)
    network = str(pack.folder / "landmarks.onnx")
    for own in (OwnNetworks(landmarks=network), OwnNetworks(mirror=True)):
        with pytest.raises(PackError, match="give --threshold"):
            make_pack(base, own, tmp_path / "mine")
    own = OwnNetworks(landmarks=network, mirror=True, threshold=0.5, licence="MIT")
    made = make_pack(base, own, tmp_path / "mine")
    assert made.landmarks is not None
    assert made.landmarks.licence == "MIT"
    assert made.recogniser.mirror
    assert made.embedding_space != base.embedding_space
    assert not (made.folder / "calibration.json").exists()
    before, after = (analysed(one, photos / "obama.jpg") for one in (base, made))
    assert "landmarks" in after.timings_ms
    assert "landmarks" not in before.timings_ms
    assert not np.array_equal(after.faces[0].landmarks, before.faces[0].landmarks)
    # And out of the pack again.
    out = OwnNetworks(landmarks="none", mirror=False, threshold=0.5)
    again = make_pack(made, out, tmp_path / "again")
    assert again.embedding_space == base.embedding_space
    assert not (again.folder / "landmarks.onnx").exists()
    # A pack that is made from it keeps both.
    assert make_pack(made, OwnNetworks(), tmp_path / "copy").embedding_space == made.embedding_space


def test_networks_of_another_pack_are_copied(pack: ModelPack, tmp_path: Path) -> None:
    base = tmp_path / "base"
    shutil.copytree(pack.folder, base)
    version = tmp_path / "version"
    version.mkdir()
    text = (base / "pack.toml").read_text().replace('name = "default"', 'name = "version"')
    (version / "pack.toml").write_text('networks_of = "base"\n' + text)
    made = make_pack(load_pack(str(version)), OwnNetworks(), tmp_path / "elsewhere" / "mine")
    assert made.networks_of is None
    assert made.recogniser_path.parent == made.folder
    assert (made.folder / "LICENSE.mobilefacenet").is_file()


def plain(pack: ModelPack) -> ModelPack:
    """The pack without corrected landmarks and mirror images."""
    recogniser = pack.recogniser.model_copy(update={"mirror": False})
    return pack.model_copy(update={"landmarks": None, "recogniser": recogniser})


def analysed(pack: ModelPack, photo: Path) -> AnalysedImage:
    pipeline = build_pipeline(pack, Device.CPU, ImageLimits())
    found = pipeline.analyse(photo.read_bytes(), max_faces=1)
    pipeline.close()
    return found


def test_prelu_is_rewritten_within_the_embedding_space(pack: ModelPack, tmp_path: Path) -> None:
    recogniser = tmp_path / "own.onnx"
    onnx.save(with_prelu(), recogniser)
    packs = [
        make_pack(
            pack,
            OwnNetworks(
                recognisers=described(pack, [recogniser]), threshold=0.3, keep_prelu=keep_prelu
            ),
            tmp_path / f"mine{keep_prelu}",
        )
        for keep_prelu in (False, True)
    ]
    kinds = [{node.op_type for node in onnx.load(one.recogniser_path).graph.node} for one in packs]
    assert ["PRelu" in kind for kind in kinds] == [False, True]
    assert packs[1].recogniser.sha256 == digest(recogniser)
    assert packs[0].embedding_space == packs[1].embedding_space


def with_prelu() -> onnx.ModelProto:
    """A recogniser of one convolution, one PReLU and a mean."""
    kernel = np.random.default_rng(1).standard_normal((8, 3, 3, 3)).astype(np.float32)
    constants = {"kernel": kernel, "slope": np.full((8, 1, 1), 0.25, np.float32)}
    nodes = [
        helper.make_node("Conv", ["input", "kernel"], ["maps"], strides=[2, 2]),
        helper.make_node("PRelu", ["maps", "slope"], ["active"]),
        helper.make_node("ReduceMean", ["active"], ["embedding"], axes=[2, 3], keepdims=0),
    ]
    shapes = {"input": ["batch", 3, 112, 112], "embedding": ["batch", 8]}
    put, got = (helper.make_tensor_value_info(name, TensorProto.FLOAT, shape)
                for name, shape in shapes.items())  # fmt: skip
    weights = [numpy_helper.from_array(value, name) for name, value in constants.items()]
    graph = helper.make_graph(nodes, "recogniser", [put], [got], weights)
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)


def test_what_does_not_run_is_not_kept(pack: ModelPack, tmp_path: Path) -> None:
    for own, message in (
        (OwnNetworks(detector=pack.recogniser_path), "answers like none of the detectors"),
        (OwnNetworks(detector=pack.detector_path, architecture="yolo"), "--architecture is one of"),
        (
            OwnNetworks(recognisers=described(pack, [pack.detector_path]), threshold=0.5),
            "recogniser|takes no face",
        ),
        (OwnNetworks(recognisers=described(pack, [tmp_path / "absent"]), threshold=0.5), "absent"),
        (OwnNetworks(landmarks=str(tmp_path / "absent"), threshold=0.5), "absent"),
        (OwnNetworks(landmarks=str(pack.recogniser_path), threshold=0.5), "48 x 48 face"),
        (OwnNetworks(liveness=("two:FILE",)), "SCALE:FILE"),
        (OwnNetworks(liveness=(f"2.7:{pack.recogniser_path}",)), "liveness"),
        (OwnNetworks(calibration=pack.folder / "pack.toml"), "not a calibration"),
    ):
        with pytest.raises(PackError, match=message):
            make_pack(pack, own, tmp_path / "mine")
        assert not (tmp_path / "mine").exists()


def test_a_detector_of_another_architecture_is_named(
    pack: ModelPack, tmp_path: Path, eval_models: Path
) -> None:
    scrfd = eval_models / "insightface" / "det_500m.onnx"
    with pytest.raises(PackError, match="like scrfd: give --architecture scrfd"):
        make_pack(pack, OwnNetworks(detector=scrfd), tmp_path / "mine")
    made = make_pack(pack, OwnNetworks(detector=scrfd, architecture="scrfd"), tmp_path / "mine")
    assert made.detector.architecture == "scrfd"


def test_a_copy_keeps_the_detector_in_integers_and_another_detector_loses_it(
    pack: ModelPack, tmp_path: Path, eval_models: Path
) -> None:
    made = make_pack(pack, OwnNetworks(), tmp_path / "copy")
    assert made.detector.int8 == pack.detector.int8
    scrfd = eval_models / "insightface" / "det_500m.onnx"
    made = make_pack(pack, OwnNetworks(detector=scrfd, architecture="scrfd"), tmp_path / "mine")
    assert made.detector.int8 is None
    assert not (made.folder / "detector.int8.onnx").exists()


@pytest.mark.slow
def test_a_detector_in_integers_is_made(
    pack: ModelPack, tmp_path: Path, eval_data: Path, photos: Path
) -> None:
    people = tmp_path / "people"
    people.mkdir()
    for photo in sorted((eval_data / "lfw" / "images").glob("*/*_0001.jpg"))[::70][:40]:
        shutil.copy(photo, people)
    detector = pack.detector.model_copy(update={"int8": None})
    base = pack.model_copy(update={"detector": detector})
    made = make_pack(base, OwnNetworks(integers=people), tmp_path / "mine")
    assert made.detector.int8 is not None
    assert made.detector.int8.photos == 20
    assert made.detector.int8.proof.startswith("20 photos: ")
    assert made.embedding_space == pack.embedding_space
    data = (photos / "obama.jpg").read_bytes()
    options = CpuOptions(precision=CpuPrecision.INT8)
    found = build_pipeline(made, Device.CPU, ImageLimits(), cpu=options)
    assert len(found.analyse(data, max_faces=1).faces) == 1


def test_photos_for_a_detector_in_integers_are_needed(pack: ModelPack, tmp_path: Path) -> None:
    people = tmp_path / "people"
    with pytest.raises(PackError, match=r"--int8: .*people is not a folder of photos"):
        make_pack(pack, OwnNetworks(integers=people), tmp_path / "mine")
    people.mkdir()
    with pytest.raises(PackError, match=r"--int8: .*has 0 photos; at least 40 are needed"):
        make_pack(pack, OwnNetworks(integers=people), tmp_path / "mine")
    assert not (tmp_path / "mine").exists()


def test_recognisers_are_joined(pack: ModelPack, tmp_path: Path) -> None:
    spec = pack.recogniser
    onnx.save(with_prelu(), tmp_path / "own.onnx")
    given = described(
        pack,
        [pack.recogniser_path, tmp_path / "own.onnx"],
        weights=[2, 1],
        means=["127.5", "imagenet"],
        stds=["128", "imagenet"],
        colours=["rgb", "bgr"],
    )
    with pytest.raises(PackError, match="give --threshold"):
        make_pack(pack, OwnNetworks(recognisers=given), tmp_path / "mine")
    made = make_pack(pack, OwnNetworks(recognisers=given, threshold=0.5), tmp_path / "mine")
    assert made.recogniser.dimension > spec.dimension
    assert (made.recogniser.mean, made.recogniser.std) == (127.5, 128.0)
    assert made.recogniser.mirror
    assert made.embedding_space != pack.embedding_space
    assert sorted(path.name for path in tmp_path.iterdir()) == ["mine", "own.onnx"]


@pytest.mark.parametrize(
    ("options", "reason"),
    [
        ({"weights": [1]}, "--weight was given 1 times for 2 recognisers"),
        ({"weights": [1, 0]}, r"the weight of other.onnx is 0: a weight is from 0.001 to 1000"),
        ({"means": ["1", "2", "3"]}, "--mean was given 3 times for 2"),
        ({"means": ["black"]}, "--mean is a number, three numbers .* or imagenet; not black"),
        ({"means": ["nan"]}, "not nan"),
        ({"stds": ["0"]}, "--std is above 0; not 0"),
        ({"colours": ["grey"]}, "--colour is rgb or bgr; not grey"),
    ],
)
def test_recognisers_that_cannot_be_joined(
    pack: ModelPack, tmp_path: Path, options: dict[str, list[Any]], reason: str
) -> None:
    onnx.save(with_prelu(), tmp_path / "other.onnx")
    files = [tmp_path / "other.onnx", tmp_path / "other.onnx"]
    with pytest.raises(PackError, match=reason):
        make_pack(
            pack,
            OwnNetworks(recognisers=described(pack, files, **options), threshold=0.5),
            tmp_path / "mine",
        )
    assert not (tmp_path / "mine").exists()


def test_a_variant_is_one_recogniser(pack: ModelPack, tmp_path: Path) -> None:
    given = described(pack, [pack.recogniser_path] * 2)
    with pytest.raises(PackError, match="--variant proves one recogniser"):
        make_pack(pack, OwnNetworks(recognisers=given, variant=tmp_path), tmp_path / "mine")
    with pytest.raises(PackError, match="--weight is for several"):
        described(pack, [pack.recogniser_path], weights=[1])
