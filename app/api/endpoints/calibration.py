"""`/v1/collections/{c}/calibrate` and `…/calibration`: error rates of a collection's own faces."""

import secrets
from dataclasses import asdict
from datetime import datetime
from typing import Annotated, Any, Self

import numpy as np
from pydantic import BaseModel, Field

from app.access.keys import Scope
from app.api.access import needs
from app.api.context import CallContext, Context
from app.api.decisions import CalibrationKind, Extent, FmrInterval, calibration_kind, three_digits
from app.api.fields import Collection
from app.api.problems import ANY_WRITE, IN_SPACE, problems
from app.api.responses import TIME, Answer, Example, example_of
from app.api.routers import GalleryRouter
from app.decision.calibration import SHOWN_FMR, SHOWN_FPIR, ScoreExponents
from app.decision.calibrations import CollectionCalibration, calibrate_collection
from app.decision.domain import Domain
from app.decision.thresholds import (
    ONE_COMPARISON,
    OperatingPoint,
    ThresholdRequest,
    operating_point,
)
from app.errors import NotEnoughData
from app.index.person_scores import PersonScore
from app.services import Services

router = GalleryRouter(prefix="/v1/collections/{collection}", tags=["calibration"])

RETRY_AFTER_S = 5


class CalibrationSource(BaseModel):
    """The faces it was counted on."""

    kind: Annotated[str, Field(description="`photos` or `collection`."), Example("collection")]
    name: Annotated[str, Example("default")]
    persons: Annotated[int, Example(812)]
    faces: Annotated[int, Example(1904)]
    person_pairs: Annotated[
        float, Field(description="Pairs of different people compared."), Example(329265)
    ]
    mated_persons: Annotated[int, Field(description="People with two faces or more."), Example(401)]
    digest: Annotated[str, Field(description="SHA-256 of their embeddings."), Example("0" * 64)]
    left_out: Annotated[
        int, Field(description="Pairs of ids left out as probably one person."), Example(1)
    ]


class OperatingPointInfo(BaseModel):
    """A threshold for an error rate, and what it costs in missed matches."""

    target: Annotated[float, Example(0.0001)]
    threshold: Annotated[
        float | None,
        Field(description="Null if no calibration supports a rate that low."),
        Example(0.527),
    ]
    calibration_source: Annotated[
        CalibrationKind | None,
        Field(
            description="Whose calibration decides at this target: the pack's, where the "
            "collection's own does not know the rate well enough."
        ),
        Example("collection"),
    ] = None
    extrapolated: Annotated[bool, Example(False)] = False
    fnmr: Annotated[
        float | None,
        Field(description="Mated comparisons missed; null where none were counted."),
        Example(0.049),
    ] = None
    fnmr_interval: Annotated[FmrInterval, Example([0.036, 0.065])] = None

    @classmethod
    def of(cls, target: float, point: OperatingPoint | None) -> Self:
        """What decides at a target."""
        if point is None:
            return cls(target=target, threshold=None)
        missed = point.fnmr
        return cls(
            target=target,
            threshold=round(point.threshold, 4),
            calibration_source=calibration_kind(point.calibration),
            extrapolated=point.extrapolated,
            fnmr=None if missed is None else three_digits(missed.value),
            fnmr_interval=(
                None if missed is None else [three_digits(missed.low), three_digits(missed.high)]
            ),
        )


class DomainInfo(BaseModel):
    """How decisions allow for degraded faces and for galleries of similar people."""

    weight: Annotated[
        float,
        Field(description="Weight in the score of how degraded both faces look (k)."),
        Example(1.5),
    ]
    covering_weight: Annotated[
        float | None,
        Field(
            description=(
                "Weight in the score of how covered both faces look; null if the calibration "
                "has no such part."
            )
        ),
        Example(0.14),
    ]
    likeness: Annotated[
        float,
        Field(description="99th percentile of the scores of its different people."),
        Example(0.342),
    ]
    lift: Annotated[
        float,
        Field(
            description="A threshold is raised by this factor times the excess "
            "of likeness over `likeness`."
        ),
        Example(0.75),
    ]
    small_lift: Annotated[
        float, Field(description="The same factor in small galleries."), Example(1.0)
    ]
    small_gallery: Annotated[
        int, Field(description="A gallery of fewer people is small."), Example(100)
    ]
    source: Annotated[
        str,
        Field(description="The folder whose photos were degraded to find the direction."),
        Example("lfw/images"),
    ]
    faces: Annotated[
        int,
        Field(description="Number of people whose faces were degraded artificially."),
        Example(600),
    ]
    degradations: Annotated[
        list[str], Example(["blur of 6 pixels", "brightness x 0.05", "turned by 180 degrees"])
    ]

    @classmethod
    def of(cls, domain: Domain) -> Self:
        """The domain of a calibration."""
        shared = domain.shared
        return cls(
            weight=shared.weight,
            covering_weight=None if shared.covered is None else shared.covered.weight,
            likeness=domain.likeness,
            lift=domain.lift,
            small_lift=domain.small_lift,
            small_gallery=domain.small_gallery,
            source=shared.source,
            faces=shared.faces,
            degradations=list(shared.degradations),
        )


class SuspectInfo(BaseModel):
    """Two ids that are probably one person (or close relatives)."""

    person_id_a: Annotated[str, Example("j.smith")]
    person_id_b: Annotated[str, Example("john.smith")]
    similarity: Annotated[float, Example(0.86)]


_FOR_SEARCHES = {**example_of(OperatingPointInfo), "target": 0.01, "threshold": 0.578}


class CalibrationAnswer(Answer):
    """The calibration behind a collection's decisions; without one, its members are null."""

    calibration_id: Annotated[str | None, Example("cal-139201e23a15dd14")] = None
    calibration_source: Annotated[CalibrationKind | None, Example("collection")] = None
    embedding_space: Annotated[str | None, Example("es-d95369e552dd4d70")] = None
    precision: Annotated[str | None, Example("float32")] = None
    created_at: Annotated[datetime | None, Example(TIME)] = None
    source: Annotated[CalibrationSource | None, Example(example_of(CalibrationSource))] = None
    template_exponent: Annotated[
        float | None,
        Field(
            description=(
                "With the score `best`, a person with n different faces is falsely matched as "
                "often as n ** template_exponent persons with one face each. Near-copies of a "
                "face hardly raise n."
            )
        ),
        Example(0.81),
    ] = None
    score: Annotated[
        PersonScore,
        Field(description="How persons with several faces are compared; `fpir` is for this score."),
        Example("best"),
    ] = PersonScore.BEST
    score_exponents: Annotated[
        ScoreExponents | None,
        Field(
            description="The same exponents of the other scores; null for a calibration that was "
            "not made for them: calibrate again to use them."
        ),
        Example({"centroid": 0.23, "fused": 0.39}),
    ] = None
    searched: Annotated[Extent, Example({"persons": 812, "faces": 1904})]
    likeness: Annotated[
        float | None,
        Field(
            description="99th percentile of the scores of the collection's different people; null "
            "with fewer than 10 people, or without a domain. With fewer than 40 it is estimated "
            "from the mean and the standard deviation of the scores."
        ),
        Example(0.361),
    ] = None
    lift: Annotated[
        float,
        Field(
            description="By how much `likeness` raises the thresholds of this calibration for "
            "target_fpir."
        ),
        Example(0.0142),
    ] = 0.0
    domain: Annotated[
        DomainInfo | None,
        Field(description="Null: similarities are cosines, and thresholds are not raised."),
        Example(example_of(DomainInfo)),
    ] = None
    fmr: Annotated[
        list[OperatingPointInfo],
        Field(default_factory=list, description="Thresholds for some values of target_fmr."),
        Example([example_of(OperatingPointInfo)]),
    ]
    fpir: Annotated[
        list[OperatingPointInfo],
        Field(
            default_factory=list,
            description="Thresholds for some values of target_fpir, at the collection's size now.",
        ),
        Example([_FOR_SEARCHES]),
    ]

    @classmethod
    def of(cls, services: Services, collection: str, **others: Any) -> Self:
        """What decides in a collection now; needs its index. `others`: further members."""
        gallery = services.gallery
        chain = services.calibrations.chain(gallery.require(collection))
        size, likeness = gallery.size(collection), gallery.likeness(collection)
        size = size.scored_by(chain.score)
        calibration = next(iter(chain.calibrations), None)
        if calibration is None:
            return cls(searched=Extent.of(size), **others)
        domain = calibration.domain
        lift = 0.0 if domain is None else domain.lift_of(likeness, size)
        return cls(
            calibration_id=calibration.calibration_id,
            calibration_source=calibration_kind(calibration),
            embedding_space=calibration.embedding_space,
            precision=calibration.precision,
            created_at=calibration.created_at,
            source=CalibrationSource(**calibration.source.model_dump()),
            template_exponent=calibration.template_exponent,
            score=chain.score,
            score_exponents=calibration.score_exponents,
            searched=Extent.of(size),
            likeness=None if domain is None or likeness is None else round(likeness, 4),
            lift=round(lift, 4),
            domain=None if domain is None else DomainInfo.of(domain),
            fmr=[
                OperatingPointInfo.of(
                    rate, operating_point(ThresholdRequest(target_fmr=rate), chain, ONE_COMPARISON)
                )
                for rate in SHOWN_FMR
            ],
            fpir=[
                OperatingPointInfo.of(
                    rate,
                    operating_point(
                        ThresholdRequest(target_fpir=rate), chain, size, likeness=likeness
                    ),
                )
                for rate in SHOWN_FPIR
            ],
            **others,
        )


class NewCalibrationAnswer(CalibrationAnswer):
    suspected_duplicates: Annotated[
        list[SuspectInfo],
        Field(
            default_factory=list,
            description="Pairs of ids that are probably one person, for review.",
        ),
        Example([example_of(SuspectInfo)]),
    ]


@router.post("/calibrate", responses=problems(IN_SPACE, ANY_WRITE, (NotEnoughData,)))
@needs(Scope.MANAGE)
async def calibrate(context: Context, collection: Collection) -> NewCalibrationAnswer:
    """Calibrate a collection on the similarities between its own persons, and use the result.

    This needs at least 100 people and takes some seconds. Ids that are probably one person are
    reported and left out. From now on the calibration decides at the targets whose error rate it
    knows well enough; `calibration_source` of each target says which one does.
    """
    made = await context.examine(_calibrate, context.services, collection)
    suspects = [SuspectInfo(**asdict(suspect)) for suspect in made.suspects]
    return await context.search(
        lambda: NewCalibrationAnswer.of(
            context.services, collection, suspected_duplicates=suspects, **context.envelope()
        )
    )


@router.get("/calibration", responses=problems(IN_SPACE))
@needs(Scope.MANAGE)
async def read_calibration(context: Context, collection: Collection) -> CalibrationAnswer:
    """Read the calibration in use, the collection's own or the pack's, and its operating points."""
    return await _in_use(context, collection)


@router.delete("/calibration", responses=problems(IN_SPACE, ANY_WRITE))
@needs(Scope.MANAGE)
async def delete_calibration(context: Context, collection: Collection) -> CalibrationAnswer:
    """Delete the collection's own calibration and use that of the model pack again.

    The answer is the calibration that is used from now on.
    """
    await context.delete(context.store.calibrations.clear, collection)
    return await _in_use(context, collection)


async def _in_use(context: CallContext, collection: str) -> CalibrationAnswer:
    return await context.search(
        lambda: CalibrationAnswer.of(context.services, collection, **context.envelope())
    )


def _calibrate(services: Services, collection: str) -> CollectionCalibration:
    with services.examining(RETRY_AFTER_S):
        generator = np.random.default_rng(secrets.randbits(64))
        return calibrate_collection(
            services.gallery, collection, generator, domain=services.calibrations.domain
        )
