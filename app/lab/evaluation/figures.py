"""The figures of one evaluation as plain values: what the table, JSON, CSV and HTML are made of.

Terms are those of ISO/IEC 19795-1 and NIST FRTE: FMR and FNMR of one comparison; FPIR and FNIR of
a search in a gallery of N persons. A rate comes with its 95 % interval (`app.decision.rates`).
"""

from collections.abc import Mapping
from dataclasses import dataclass

from app.decision.rates import Rate
from app.lab.evaluation.metrics import EqualErrorRate, FoldAccuracy, MeasuredPoint, SizeRecall


@dataclass(frozen=True, slots=True)
class ModelFigures:
    """What was measured; figures without it mean nothing."""

    pack: str
    version: str
    embedding_space: str
    precision: str
    calibration_id: str | None
    face_selection: str


@dataclass(frozen=True, slots=True)
class PhotoProblem:
    """A photo or person that was counted but not compared, and why: a stable code."""

    image: str
    code: str
    detail: str = ""


@dataclass(frozen=True, slots=True)
class DataFigures:
    """What it was measured on. `failures_to_enrol` are photos without a usable face."""

    name: str
    photos: int
    people: int
    people_with_one_photo: int
    failures_to_enrol: int
    left_out: tuple[str, ...]
    problems: tuple[PhotoProblem, ...]


@dataclass(frozen=True, slots=True)
class TimingFigures:
    """Milliseconds per photo on one thread, median of each stage; `cached` photos took none."""

    measured: int
    cached: int
    stages_ms: Mapping[str, float]
    seconds: float


@dataclass(frozen=True, slots=True)
class PairsFigures:
    """Verification on a pairs file, the protocol of LFW. `at_threshold` is the pack's constant."""

    name: str
    pairs: int
    mated: int
    photos: int
    failures: int
    accuracy: FoldAccuracy
    eer: EqualErrorRate
    points: tuple[MeasuredPoint, ...]
    at_threshold: MeasuredPoint


@dataclass(frozen=True, slots=True)
class ComparisonPoint:
    """Threshold for one FMR, with what it costs. `fmr_interval` is that of the measured rate."""

    target_fmr: float
    threshold: float
    fmr: Rate
    fnmr: Rate | None


@dataclass(frozen=True, slots=True)
class Series:
    """Points of a curve, in order."""

    x: tuple[float, ...]
    y: tuple[float, ...]


@dataclass(frozen=True, slots=True)
class Histogram:
    """Shares of comparisons by similarity: `edges` has one more than the others."""

    edges: tuple[float, ...]
    mated: tuple[float, ...]
    non_mated: tuple[float, ...]


@dataclass(frozen=True, slots=True)
class ComparedPair:
    """Two photos and their similarity."""

    image_a: str
    image_b: str
    person_a: str
    person_b: str
    similarity: float


@dataclass(frozen=True, slots=True)
class ComparisonFigures:
    """Every photo against every other. A pair of people counts once, however many photos.

    `roc`: FMR against 1 - FNMR; `det`: FMR against FNMR.
    """

    person_pairs: float
    comparisons: int
    mated_people: int
    mated_comparisons: int
    eer: EqualErrorRate
    points: tuple[ComparisonPoint, ...]
    roc: Series
    det: Series
    histogram: Histogram
    worst_mated: tuple[ComparedPair, ...]
    worst_non_mated: tuple[ComparedPair, ...]


@dataclass(frozen=True, slots=True)
class IdentificationPoint:
    """One operating point of open-set identification: FNIR counts mated probes whose own person
    is not first or not at the threshold."""

    target_fpir: float
    threshold: float
    fpir: Rate
    fnir: Rate


@dataclass(frozen=True, slots=True)
class IdentificationFigures:
    """Open-set identification at one gallery size: `persons` enrolled with one photo each."""

    persons: int
    repeats: int
    mated_probes: int
    non_mated_probes: int
    rank_one: Rate
    points: tuple[IdentificationPoint, ...]
    det: Series


@dataclass(frozen=True, slots=True)
class SettingFigures:
    """Open-set identification as a service with this pack runs it: everyone with two photos
    enrolled, at the threshold that it takes for `target_fpir` and a gallery of that size.

    `target_fpir` is None where the pack has no calibration and its constant decides. `same_data`:
    the calibration was made of this data, so that FPIR is near its target by construction.
    """

    target_fpir: float | None
    threshold: float
    calibration_id: str | None
    same_data: bool
    persons: int
    strangers: int
    fpir: Rate
    fnir: Rate


@dataclass(frozen=True, slots=True)
class FpirPrediction:
    """What a calibration promised and what a simulation on real faces gave, at its threshold.

    `held_out`: the people of the simulation are not those of the calibration. `by_maximum`: FPIR
    at that threshold foretold by the calibrating people's highest of N; None beyond their number.
    """

    persons: int
    templates_per_person: int
    target_fpir: float
    threshold: float
    simulated: Rate
    held_out: bool
    by_maximum: float | None = None

    @property
    def error(self) -> float:
        """Simulated over promised, less one: 0.1 is ten per cent more than promised."""
        return self.simulated.value / self.target_fpir - 1.0

    @property
    def kept(self) -> bool:
        """Whether the promised rate lies within the simulation's interval."""
        return self.simulated.low <= self.target_fpir <= self.simulated.high


@dataclass(frozen=True, slots=True)
class DiscardFigures:
    """Error versus discard (Grother & Tabassi, PAMI 2007) for one quality measure.

    FNMR at a fixed threshold after the share `discarded` of mated comparisons with the worst
    quality is left out. `gain`: the mean reduction of FNMR against no discard, as a share of it.
    """

    measure: str
    threshold: float
    discarded: tuple[float, ...]
    fnmr: tuple[float, ...]
    gain: float


@dataclass(frozen=True, slots=True)
class ScoreFigures:
    """One way to make one score of several templates, in open-set identification."""

    rule: str
    templates: int
    persons: int
    rank_one: Rate
    fnir: Mapping[str, Rate]


@dataclass(frozen=True, slots=True)
class GroupFigures:
    """One group of people: comparisons within the group at the threshold of all people.

    `fmr` compares people of the group with one another; None where there is nothing to count.
    """

    attribute: str
    group: str
    people: int
    photos: int
    failures_to_enrol: Rate | None
    threshold: float
    fmr: Rate | None
    fnmr: Rate | None
    fpir: Rate | None
    fnir: Rate | None


@dataclass(frozen=True, slots=True)
class DetectionFigures:
    """Detection on labelled boxes. `unmatched` detections overlap no labelled face.

    They are not all false: some faces are not labelled.
    """

    name: str
    photos: int
    detections: int
    unmatched: int
    recall: tuple[SizeRecall, ...]
    failures: tuple[PhotoProblem, ...]


@dataclass(frozen=True, slots=True)
class Evaluation:
    """Everything one run measured; a section is None or empty where its data was not given."""

    model: ModelFigures
    created_at: str
    data: tuple[DataFigures, ...]
    timings: TimingFigures
    pairs: PairsFigures | None = None
    comparisons: ComparisonFigures | None = None
    setting: SettingFigures | None = None
    identification: tuple[IdentificationFigures, ...] = ()
    predictions: tuple[FpirPrediction, ...] = ()
    scores: tuple[ScoreFigures, ...] = ()
    discard: tuple[DiscardFigures, ...] = ()
    groups: tuple[GroupFigures, ...] = ()
    detection: DetectionFigures | None = None
