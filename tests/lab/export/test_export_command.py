"""`scripts/export_onnx.py` as a person runs it."""

import os
import runpy
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import onnx
import pytest
from typer.testing import CliRunner, Result

ROOT = Path(__file__).resolve().parents[3]
SCRIPT = ROOT / "scripts" / "export_onnx.py"
ENVIRONMENT = {"COLUMNS": "200", "NO_COLOR": "1"}


def _run(*arguments: str | Path) -> Result:
    """The command within this process: starting Python and its libraries takes seconds."""
    app = runpy.run_path(str(SCRIPT))["app"]
    return CliRunner().invoke(app, [*map(str, arguments)], env=ENVIRONMENT)


def test_tflite(small_recogniser: Path, make_images: Callable[..., Path], tmp_path: Path) -> None:
    out = tmp_path / "out.onnx"
    done = _run("tflite", small_recogniser, out, "--faces", make_images())
    assert done.exit_code == 0, done.stderr
    assert "20 faces" in done.stdout
    onnx.checker.check_model(onnx.load(out), full_check=True)


def test_faces_are_required(small_recogniser: Path, tmp_path: Path) -> None:
    out = tmp_path / "out.onnx"
    done = _run("tflite", small_recogniser, out)
    assert done.exit_code != 0
    assert "--faces" in done.stderr
    assert not out.exists()


@pytest.mark.slow
def test_a_failed_export_says_why_and_leaves_nothing(tmp_path: Path) -> None:
    out = tmp_path / "out" / "detector.onnx"
    source = ROOT / "models" / "default" / "recogniser.onnx"
    done = subprocess.run(
        [sys.executable, SCRIPT, "detector", source, out],
        capture_output=True, text=True, timeout=120, check=False,
        env={**os.environ, "PYTHONPATH": str(ROOT), **ENVIRONMENT},
    )  # fmt: skip
    assert done.returncode == 1
    assert "neither the four maps" in done.stderr
    assert "Traceback" not in done.stderr
    assert not out.exists()


@pytest.mark.parametrize("kept", [True, False])
def test_a_failed_proof_exits_with_1(tmp_path: Path, kept: bool) -> None:
    """A detector whose heatmap depends on the whole batch."""
    model = onnx.load(ROOT / "models" / "default" / "detector.onnx")
    graph = model.graph
    heatmap = next(node for node in graph.node if "heatmap" in node.output)
    heatmap.output[0] = "own"
    mean = onnx.helper.make_node("ReduceMean", ["own"], ["mean"], axes=[0], keepdims=1)
    both = onnx.helper.make_node("Sub", ["own", "mean"], ["heatmap"])
    graph.node.extend([mean, both])
    source, out = tmp_path / "source.onnx", tmp_path / "out.onnx"
    onnx.save(model, source)
    if kept:
        out.write_bytes(b"proven before")
    done = _run("detector", source, out)
    assert done.exit_code == 1
    assert "outputs differ" in done.stderr
    names = {path.name for path in tmp_path.iterdir()}
    assert names == ({"source.onnx", "out.onnx"} if kept else {"source.onnx"})
    assert not kept or out.read_bytes() == b"proven before"


def test_a_recogniser(
    small_recogniser: Path, make_images: Callable[..., Path], tmp_path: Path
) -> None:
    whole, half = tmp_path / "whole.onnx", tmp_path / "half.onnx"
    faces = make_images()
    assert _run("tflite", small_recogniser, whole, "--faces", faces).exit_code == 0
    done = _run(
        "recogniser", whole, half, "--faces", faces, "--precision", "fp16", "--pixels",
        "--mean", "imagenet", "--std", "58,57,57", "--bgr",
    )  # fmt: skip
    assert done.exit_code == 0, done.stderr
    assert "20 faces, lowest cosine" in done.stdout
    assert half.stat().st_size < whole.stat().st_size
    wrong = _run("recogniser", whole, half, "--faces", faces, "--mean", "1,2")
    assert wrong.exit_code == 1
    assert "--mean is a number" in wrong.stderr


def test_a_file_that_is_no_checkpoint(make_images: Callable[..., Path], tmp_path: Path) -> None:
    source = tmp_path / "net.pt"
    source.write_bytes(b"nothing")
    done = _run("recogniser", source, tmp_path / "out.onnx", "--faces", make_images())
    assert done.exit_code == 1
    assert "make torch" in done.stderr or "is not a checkpoint" in done.stderr
    assert "Traceback" not in done.stderr


def test_a_detector_in_integers_needs_photos(
    make_images: Callable[..., Path], tmp_path: Path
) -> None:
    source, out = ROOT / "models" / "default" / "detector.onnx", tmp_path / "out.onnx"
    few, enough = make_images(count=19), make_images(count=20)
    done = _run("int8-detector", source, out, "--calibration", few, "--faces", enough)
    assert done.exit_code == 1
    assert "has 19 photos; at least 20 are needed" in done.stderr
    done = _run("int8-detector", source, out, "--calibration", enough, "--faces", enough, "--pack",
                tmp_path)  # fmt: skip
    assert done.exit_code == 1
    assert "There is no model pack" in done.stderr
    assert not out.exists()


@pytest.mark.parametrize("command", ["recogniser", "pixels"])
def test_a_network_with_unknown_operators_ends_with_an_error(tmp_path: Path, command: str) -> None:
    value = [onnx.helper.make_tensor_value_info(n, 1, ["n", 3, 8, 8]) for n in ("x", "y")]
    node = onnx.helper.make_node("Odd", ["x"], ["y"], domain="com.example")
    graph = onnx.helper.make_graph([node], "g", value[:1], value[1:])
    sets = [onnx.helper.make_opsetid(*one) for one in (("", 17), ("com.example", 1))]
    model = onnx.helper.make_model(graph, ir_version=8, opset_imports=sets)
    onnx.save(model, tmp_path / "a.onnx")
    rest = {"recogniser": ["--faces", tmp_path], "pixels": ["--mean", "0", "--std", "1"]}[command]
    done = _run(command, tmp_path / "a.onnx", tmp_path / "out.onnx", *rest)
    assert done.exit_code == 1
    assert "nothing was written" in done.stderr
    assert [path.name for path in tmp_path.iterdir()] == ["a.onnx"]
