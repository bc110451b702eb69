"""What verify and identify have in common: the threshold that decides, and the errors it allows."""

from typing import Annotated, Any, Literal, Self

from pydantic import BaseModel, Field, model_validator

from app.api.fields import CallFields
from app.api.responses import Example
from app.decision.calibration import Calibration
from app.decision.rates import Rate
from app.decision.thresholds import ThresholdDecision, ThresholdRequest, ThresholdSource
from app.decision.verdicts import Doubt
from app.gallery.candidates import Candidate
from app.index.person_scores import PersonScore
from app.index.port import GallerySize

Threshold = Annotated[
    float,
    Field(
        ge=-1,
        le=1,
        description="Lowest similarity at which two faces are taken for the same person.",
    ),
]
TargetFpir = Annotated[
    float,
    Field(
        gt=0,
        le=0.5,
        description="Share of searches for strangers (people who are not enrolled) that may find "
        "somebody, at the gallery's size.",
    ),
]
TargetFmr = Annotated[
    float,
    Field(gt=0, le=0.5, description="Share of comparisons of different people that may match."),
]


# Which faces a calibration was counted on.
CalibrationKind = Literal["collection", "pack"]


class ThresholdFields(CallFields):
    """What decides: a similarity, or the error rate it shall keep; the collection's policy
    where none is given."""

    threshold: Threshold | None = None
    target_fpir: TargetFpir | None = None
    target_fmr: TargetFmr | None = None

    @model_validator(mode="after")
    def _at_most_one(self) -> Self:
        given = [self.threshold, self.target_fpir, self.target_fmr]
        if sum(value is not None for value in given) > 1:
            raise ValueError("give only one of threshold, target_fpir and target_fmr")
        return self

    def threshold_request(self) -> ThresholdRequest:
        """The threshold or target that the call names."""
        return ThresholdRequest(self.threshold, self.target_fpir, self.target_fmr)


def extrapolation_of(rate: str) -> Any:
    """The description of the member that says whether a rate is extrapolated."""
    return Field(
        description=f"Whether {rate}, or where it is null the upper limit of its interval, is "
        "extrapolated beyond the comparisons that were counted."
    )


Fmr = Annotated[
    float | None,
    Field(
        description=(
            "Share of comparisons of different people that reach this similarity. Null without "
            "a calibration, and if the similarity is so high that only the upper limit of the "
            "interval is known. 1 if it is below the lowest similarity of the calibration: the "
            "lower limit of the interval is that of the rate there."
        )
    ),
]
FmrInterval = Annotated[
    list[float] | None, Field(description="95 % interval of fmr.", min_length=2, max_length=2)
]
FmrExtrapolated = Annotated[bool, extrapolation_of("fmr")]


class Extent(BaseModel):
    persons: Annotated[int, Example(2)]
    faces: Annotated[int, Example(3)]

    @classmethod
    def of(cls, size: GallerySize) -> Self:
        """The size of a gallery, or of what a filter leaves of it."""
        return cls(persons=size.persons, faces=size.templates)


class CandidateInfo(BaseModel):
    person_id: Annotated[str, Example("obama")]
    face_id: Annotated[str, Example("7f8de8f5-53c9-4a52-9e3a-1d2b7f3f1f11")]
    similarity: Annotated[
        float,
        Field(
            ge=-1,
            le=1,
            description="Cosine of the embeddings, lowered where both faces look "
            "degraded or both look covered; never a percentage.",
        ),
        Example(0.61),
    ]
    fmr: Annotated[Fmr, Example(3.9e-06)] = None
    fmr_interval: Annotated[FmrInterval, Example([2.2e-06, 6.4e-06])] = None
    fmr_extrapolated: Annotated[FmrExtrapolated, Example(False)] = False
    margin: Annotated[
        float | None,
        Field(
            description="Difference to the similarity of the next person; null if there is none."
        ),
        Example(0.76),
    ] = None

    @classmethod
    def of(cls, candidate: Candidate, decision: ThresholdDecision) -> Self:
        """One person whom a face may be."""
        return cls(
            person_id=candidate.face.person_id,
            face_id=candidate.face.face_id,
            similarity=candidate.similarity,
            margin=candidate.margin,
            **fmr_members(decision, candidate.similarity),
        )


class Doubtful(BaseModel):
    between: Annotated[
        list[CandidateInfo],
        Field(
            default_factory=list,
            description=(
                "If ambiguous: the persons, declared to be different, whose face it may be, "
                "the most similar first. Otherwise empty."
            ),
        ),
        Example([]),
    ]
    margin_required: Annotated[
        float | None,
        Field(
            description=(
                "If ambiguous: by how much the similarity of the first of `between` would have "
                "to exceed that of the other; null without a calibration."
            )
        ),
        Example(None),
    ] = None

    @staticmethod
    def doubt_members(doubt: Doubt | None, decision: ThresholdDecision) -> dict[str, Any]:
        """The members about persons declared to be different: whom the face may be, and the lead
        that is needed."""
        if doubt is None:
            return {"between": [], "margin_required": None}
        between = [CandidateInfo.of(one, decision) for one in doubt.between]
        return {"between": between, "margin_required": doubt.margin}


class Decided(BaseModel):
    """The threshold that decided, and what backs it."""

    threshold: Annotated[float, Example(0.527)]
    lift: Annotated[
        float,
        Field(
            description=(
                "By how much the threshold was raised because the collection's people are "
                "alike, or in a verification because both faces look degraded or typical of a "
                "group; 0 for a fixed threshold."
            )
        ),
        Example(0.0),
    ] = 0.0
    score: Annotated[
        PersonScore,
        Field(
            description=(
                "The similarity of a person with several faces, as the collection's policy has "
                "it: that of the `best`, of their `centroid`, or the mean of both (`fused`). "
                "It is also `best` if no calibration was made for the score of the policy."
            )
        ),
        Example("best"),
    ] = PersonScore.BEST
    threshold_source: Annotated[
        ThresholdSource,
        Field(
            description="Where the threshold comes from: this request, the collection's policy, "
            "the default policy, or the model pack's constant if nothing is calibrated."
        ),
        Example("default"),
    ]
    target: Annotated[
        float | None,
        Field(
            description="The error rate that the threshold was chosen for; null "
            "for a fixed threshold."
        ),
        Example(0.0001),
    ] = None
    calibration_id: Annotated[str | None, Example("cal-139201e23a15dd14")] = None
    calibration_source: Annotated[
        CalibrationKind | None,
        Field(description="Which faces the calibration was counted on."),
        Example("pack"),
    ] = None

    @staticmethod
    def threshold_members(decision: ThresholdDecision) -> dict[str, Any]:
        """The members about the threshold: its value, where it comes from, and its calibration."""
        calibration = decision.calibration
        return {
            "threshold": decision.threshold,
            "score": decision.score,
            "lift": round(decision.lift, 6),
            "threshold_source": decision.source,
            "target": decision.target,
            "calibration_id": calibration.calibration_id if calibration else None,
            "calibration_source": calibration_kind(calibration),
        }


class ThresholdFmr(BaseModel):
    """How often the threshold of a verification is reached by somebody else."""

    threshold_fmr: Annotated[
        float | None,
        Field(
            description="Share of verifications of different people that reach the threshold, "
            "with all templates of the claimed person; null without a calibration, and beyond its "
            "end, where only the interval is known."
        ),
        Example(0.0001),
    ] = None
    threshold_fmr_interval: Annotated[
        tuple[float, float] | None,
        Field(description="Its 95 % confidence interval."),
        Example([9.06e-05, 0.00011]),
    ] = None
    threshold_fmr_extrapolated: Annotated[
        bool, extrapolation_of("threshold_fmr"), Example(False)
    ] = False


def fmr_members(decision: ThresholdDecision, similarity: float) -> dict[str, Any]:
    """The false match rate at a similarity: its value, 95 % interval, and where it comes from.

    Beyond the calibration's end only the upper limit is known.
    """
    calibration = decision.calibration
    if calibration is None:
        return _rate_members("fmr", None, None)
    rate = calibration.fmr_at(decision.unshifted(similarity))
    return _rate_members("fmr", rate, calibration.fmr.upper[-1])


def threshold_fmr_members(decision: ThresholdDecision, compared: GallerySize) -> dict[str, Any]:
    """How often the threshold of a verification is reached by somebody else, with what was compared
    of the claimed person: as `fmr_members`."""
    return _members_at_threshold("threshold_fmr", decision, compared.scored_by(decision.score))


def fpir_members(decision: ThresholdDecision, searched: GallerySize) -> dict[str, Any]:
    """How often a stranger is taken for somebody in what was searched: as `fmr_members`."""
    return _members_at_threshold("fpir", decision, searched)


def _members_at_threshold(
    name: str, decision: ThresholdDecision, size: GallerySize
) -> dict[str, Any]:
    if decision.calibration is None:
        return _rate_members(name, None, None)
    rate = decision.calibration.fpir_at(decision.unshifted(decision.threshold), size)
    highest = decision.calibration.fpir_at_end(size).high if rate is None else None
    return _rate_members(name, rate, highest)


def _rate_members(name: str, rate: Rate | None, highest: float | None) -> dict[str, Any]:
    """A rate, of which without a value only the `highest` is known, or not even that."""
    if rate is None:
        interval = None if highest is None else [0.0, three_digits(highest)]
        return {name: None, f"{name}_interval": interval, f"{name}_extrapolated": bool(interval)}
    return {
        name: three_digits(rate.value),
        f"{name}_interval": [three_digits(rate.low), three_digits(rate.high)],
        f"{name}_extrapolated": rate.extrapolated,
    }


def calibration_kind(calibration: Calibration | None) -> CalibrationKind | None:
    """Which faces a calibration was counted on."""
    if calibration is None:
        return None
    return "collection" if calibration.source.kind == "collection" else "pack"


def three_digits(rate: float) -> float:
    """A rate with three digits: no calibration is more accurate."""
    return float(f"{rate:.3g}")
