"""Error rates of a recogniser before and after its export, on labelled pairs."""

import tempfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from app.decision.face_selection import FaceSelection
from app.disk import sha256
from app.errors import LikenessError
from app.faces.loading import build_pipeline
from app.imaging import ImageLimits
from app.inference.pack_spec import ModelPack
from app.inference.packs import load_pack
from app.lab.evaluation.labels import LabelNoise, read_pairs
from app.lab.evaluation.protocol import Analyser, EvaluationPlan, PairsSource
from app.lab.evaluation.run import evaluate
from app.lab.export.faces import Normalisation
from app.lab.export.parity import ExportError, open_session, serialise
from app.lab.export.recogniser import SourceRecogniser
from app.settings import Device


@dataclass(frozen=True, slots=True)
class Accuracy:
    """10-fold accuracy and equal error rate over so many pairs, 0…1."""

    pairs: int
    accuracy: float
    equal_error_rate: float


def compare(source: SourceRecogniser, out: Path, pairs: Path) -> Iterator[tuple[str, Accuracy]]:
    """The source's accuracy, then that of its export at `out`. Raises ExportError."""
    with tempfile.TemporaryDirectory() as folder:
        before = Path(folder) / "source.onnx"
        before.write_bytes(serialise(source.model))
        yield "before", measure(before, source.normalisation, pairs)
    yield "after", measure(out, source.normalisation, pairs)


def measure(recogniser: Path, normalisation: Normalisation, pairs: Path) -> Accuracy:
    """Verify the pairs of a CSV (`image_a,image_b,same`, photos in `images/` beside it) with the
    default pack's detector and this recogniser. Raises ExportError."""
    try:
        source = PairsSource(pairs, pairs.parent / "images", read_pairs(pairs))
        plan = EvaluationPlan(None, source, None, LabelNoise(), {}, FaceSelection.CENTRE, 0)
        pack = pack_of(recogniser, normalisation)
        pipeline = build_pipeline(pack, Device.CPU, ImageLimits())
        with tempfile.TemporaryDirectory() as empty:
            # The default pack's calibration, which lies beside it, is of its own recogniser.
            alone = pack.model_copy(update={"folder": Path(empty)})
            found = evaluate(plan, alone, Analyser(pipeline), _silently).evaluation.pairs
    except LikenessError as error:
        raise ExportError(error.detail) from error
    if found is None:
        raise ExportError(f"{pairs} holds too few pairs to measure an accuracy")
    return Accuracy(found.pairs, found.accuracy.mean, found.eer.rate)


@contextmanager
def _silently(_what: str, _total: int) -> Iterator[Callable[[], None]]:
    yield lambda: None


def pack_of(recogniser: Path, normalisation: Normalisation) -> ModelPack:
    """The default pack with another recogniser."""
    default = load_pack("default")
    update = {
        "file": str(recogniser.resolve()),
        "sha256": sha256(recogniser),
        "colour": "rgb" if normalisation.rgb else "bgr",
        "mean": normalisation.mean,
        "std": normalisation.std,
        "dimension": int(open_session(recogniser).get_outputs()[0].shape[1]),
    }
    return default.model_copy(update={"recogniser": default.recogniser.model_copy(update=update)})
