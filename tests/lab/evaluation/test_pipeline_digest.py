"""What the evaluation's cache answers with: only what would be computed in the same way again."""

import ast
import re
import sys
from collections.abc import Iterator
from dataclasses import replace
from importlib import metadata
from pathlib import Path

import pytest

import app
from app.cli.evaluate import open_analyser
from app.errors import ImageTooLarge
from app.faces.pipeline import FacePipeline
from app.imaging import ImageLimits
from app.inference.cuda import CPU_PROVIDER, CUDA_PROVIDER
from app.inference.packs import load_pack
from app.lab.evaluation.pipeline_digest import (
    ANSWER_SHAPING,
    LIBRARIES,
    LIBRARIES_ON_DEVICES,
    SHAPING_ON_DEVICES,
    pipeline_digest,
)
from tests.lab.evaluation.conftest import PHOTOS

LIMITS = ImageLimits()


@pytest.fixture
def installed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder of installed distributions before all others."""
    folder = tmp_path / "site-packages"
    folder.mkdir()
    monkeypatch.syspath_prepend(str(folder))
    return folder


def _install(folder: Path, name: str, version: str) -> None:
    described = folder / f"{name}-{version}.dist-info"
    described.mkdir()
    (described / "METADATA").write_text(
        f"Metadata-Version: 2.1\nName: {name}\nVersion: {version}\n"
    )


def test_it_follows_the_pack() -> None:
    pack = load_pack("default")
    detector = pack.detector.model_copy(update={"input_size": 320})
    changed = pack.model_copy(update={"detector": detector})
    assert pipeline_digest(pack, LIMITS) == pipeline_digest(load_pack("default"), LIMITS)
    assert pipeline_digest(changed, LIMITS) != pipeline_digest(pack, LIMITS)


def test_a_device_does_not_find_what_the_processor_computed(pipeline: FacePipeline) -> None:
    """Otherwise comparing the two compares nothing."""
    pack = load_pack("default")
    ours = pipeline_digest(pack, LIMITS)
    assert pipeline_digest(pack, LIMITS, None, pipeline.provider) == ours
    assert pipeline_digest(pack, LIMITS, None, CUDA_PROVIDER) != ours


@pytest.mark.parametrize(
    "name", ["onnxruntime", "onnxruntime-gpu", "opencv_python", "pillow", "pi-heif", "numpy"]
)
def test_it_follows_the_versions_of_libraries(installed: Path, name: str) -> None:
    """Or an attestation after an upgrade compares the earlier figures with themselves."""
    pack = load_pack("default")
    before = pipeline_digest(pack, LIMITS)
    _install(installed, "typer", "999.0")
    assert pipeline_digest(pack, LIMITS) == before, "it computes nothing of a photo"
    _install(installed, name, "999.0")
    after = pipeline_digest(pack, LIMITS)
    assert after != before
    assert pipeline_digest(pack, LIMITS) == after


def test_it_follows_the_libraries_of_a_device(installed: Path) -> None:
    pack = load_pack("default")
    before = [pipeline_digest(pack, LIMITS, None, name) for name in (CPU_PROVIDER, CUDA_PROVIDER)]
    _install(installed, "nvidia-cudnn-cu13", "999.0")
    after = [pipeline_digest(pack, LIMITS, None, name) for name in (CPU_PROVIDER, CUDA_PROVIDER)]
    assert after[0] == before[0]
    assert after[1] != before[1]


def _imported(file: Path) -> Iterator[str]:
    for node in ast.walk(ast.parse(file.read_bytes())):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom) and node.module:
            yield node.module


def test_every_library_that_the_pipeline_imports_is_in_it() -> None:
    root = Path(app.__file__).parent
    files = [file for pattern in ANSWER_SHAPING + SHAPING_ON_DEVICES for file in root.glob(pattern)]
    modules = {name.partition(".")[0] for file in files for name in _imported(file)}
    outside = modules - sys.stdlib_module_names - {"app"}
    assert {"cv2", "numpy", "onnxruntime", "PIL", "pi_heif"} <= outside
    distributions = metadata.packages_distributions()
    for module in outside:
        for name in distributions[module]:
            plain = name.lower().replace("_", "-")
            assert re.fullmatch(f"{LIBRARIES}|{LIBRARIES_ON_DEVICES}", plain), module


def test_it_follows_the_limits() -> None:
    pack = load_pack("default")
    for changed in (
        replace(LIMITS, max_bytes=1),
        replace(LIMITS, max_pixels=1),
        replace(LIMITS, max_side=1),
    ):
        assert pipeline_digest(pack, changed) != pipeline_digest(pack, LIMITS)


def test_a_photo_that_is_too_large_now_is_not_answered_from_the_cache(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("LIKENESS_PACK", raising=False)
    monkeypatch.setenv("LIKENESS_DATA_DIR", str(tmp_path / "data"))
    photo = (PHOTOS / "obama.jpg").read_bytes()
    for cached in (0, 1):
        with open_analyser(None, keep=True) as (_, analyser):
            analyser.analyse(photo)
        assert analyser.cached == cached
    monkeypatch.setenv("LIKENESS_MAX_IMAGE_BYTES", str(len(photo) - 1))
    with open_analyser(None, keep=True) as (_, analyser), pytest.raises(ImageTooLarge):
        analyser.analyse(photo)


def test_figures_of_other_libraries_are_computed_again(
    installed: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("LIKENESS_PACK", raising=False)
    monkeypatch.setenv("LIKENESS_DATA_DIR", str(tmp_path / "data"))
    photo = (PHOTOS / "obama.jpg").read_bytes()
    for _ in range(2):
        with open_analyser(None, keep=True) as (_, analyser):
            analyser.analyse(photo)
    assert analyser.cached == 1
    _install(installed, "onnxruntime", "999.0")
    with open_analyser(None, keep=True) as (_, analyser):
        analyser.analyse(photo)
    assert analyser.cached == 0
