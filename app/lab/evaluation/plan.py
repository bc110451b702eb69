"""What an evaluation measures, and with what."""

from collections.abc import Callable
from contextlib import AbstractContextManager
from dataclasses import dataclass, field
from datetime import datetime
from pathlib import Path

from app.decision.calibration import Calibration
from app.decision.domain import SharedDirection
from app.decision.pair_lifts import PairLift
from app.decision.policy import FaceSelection
from app.decision.thresholds import CollectionPolicy
from app.index.comparator import COSINE, Comparator
from app.inference.pack_spec import ModelPack
from app.lab.evaluation.labels import LabelledPairs, LabelledPeople, LabelNoise
from app.lab.evaluation.protocol import (
    Analyser,
    Tick,
)
from app.types import FloatArray

DEFAULT_POLICY = CollectionPolicy()

Progress = Callable[[str, int], AbstractContextManager[Tick]]


@dataclass(frozen=True, slots=True)
class PairsSource:
    """Labelled pairs and the folder their photos are below."""

    path: Path
    folder: Path
    pairs: LabelledPairs


@dataclass(frozen=True, slots=True)
class BoxesSource:
    """Photos with labelled boxes (n, 4), and the folder they are below."""

    path: Path
    folder: Path
    boxes: dict[str, FloatArray]


@dataclass(frozen=True, slots=True)
class EvaluationPlan:
    """What to measure, on what, and how. `attributes`: group of each person, by attribute.
    `fit_direction`: find again the direction that degraded faces share, and compare by it;
    otherwise faces are compared as the pack's calibration says. `policy`: the setting of the
    collections that the figures are wanted for. `fit_orientation`: whether the calibration gets
    limits for turned photos, which takes time."""

    people: LabelledPeople | None = None
    pairs: PairsSource | None = None
    boxes: BoxesSource | None = None
    noise: LabelNoise = field(default_factory=LabelNoise)
    attributes: dict[str, dict[str, str]] = field(default_factory=dict)
    selection: FaceSelection = FaceSelection.CENTRE
    seed: int = 0
    fit_direction: bool = False
    policy: CollectionPolicy = DEFAULT_POLICY
    fit_orientation: bool = False


@dataclass(frozen=True, slots=True)
class Bench:
    """What measures: the pack, its pipeline, a way to show progress, a clock, the pack's
    calibration, the direction by which faces are compared, and the lift for two degraded faces."""

    pack: ModelPack
    analyser: Analyser
    progress: Progress
    clock: Callable[[], datetime]
    shipped: Calibration | None
    shared: SharedDirection | None = None
    degraded: PairLift | None = None

    @property
    def comparator(self) -> Comparator:
        return COSINE if self.shared is None else self.shared.comparator


def folder_name(folder: Path) -> str:
    """The folder with the one it is in: "images" alone says little."""
    return "/".join(folder.resolve().parts[-2:])
