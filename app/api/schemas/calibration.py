"""What `/v1/collections/{c}/calibration` answers."""

from datetime import datetime
from typing import Annotated, Any, Literal

from pydantic import BaseModel, Field

from app.api.schemas.common import MODEL, TIME, Answer, Extent, FmrInterval, example


class CalibrationSource(BaseModel):
    """The faces it was counted on."""

    kind: Annotated[str, Field(description="photos, or the collection itself.")]
    name: str
    persons: int
    faces: int
    person_pairs: Annotated[float, Field(description="Pairs of different people compared.")]
    mated_persons: Annotated[int, Field(description="People with two faces or more.")]
    digest: Annotated[str, Field(description="SHA-256 of their embeddings.")]
    left_out: Annotated[int, Field(description="Pairs of ids left out as probably one person.")]


class OperatingPointInfo(BaseModel):
    """A threshold for an error rate, and what it costs in missed matches."""

    target: float
    threshold: Annotated[
        float | None, Field(description="Null if the rate is below what the calibration supports.")
    ]
    extrapolated: bool = False
    fnmr: Annotated[
        float | None, Field(description="Mated comparisons missed; null where none were counted.")
    ] = None
    fnmr_interval: FmrInterval = None


class DomainInfo(BaseModel):
    """How decisions follow degraded faces and galleries of people who are alike."""

    weight: Annotated[float, Field(description="Of what both faces share with degraded ones.")]
    likeness: Annotated[
        float, Field(description="99th percentile of the scores of its different people.")
    ]
    lift: Annotated[
        float, Field(description="Thresholds rise by this times the excess in likeness.")
    ]
    small_lift: Annotated[float, Field(description="The same in small galleries.")]
    small_gallery: Annotated[int, Field(description="Fewer people make a small gallery.")]
    source: Annotated[str, Field(description="Whose faces were degraded to find the direction.")]
    faces: int
    degradations: list[str]


class SuspectInfo(BaseModel):
    """Two ids that are probably one person (or close relatives)."""

    person_id_a: str
    person_id_b: str
    similarity: float


_OPERATING_POINT: dict[str, Any] = {
    "target": 0.0001,
    "threshold": 0.527,
    "extrapolated": False,
    "fnmr": 0.049,
    "fnmr_interval": [0.036, 0.065],
}
_CALIBRATION: dict[str, Any] = {
    "calibration_id": "cal-139201e23a15dd14",
    "calibration_source": "collection",
    "embedding_space": MODEL["embedding_space"],
    "precision": "float32",
    "created_at": TIME,
    "source": {
        "kind": "collection",
        "name": "default",
        "persons": 812,
        "faces": 1904,
        "person_pairs": 329265,
        "mated_persons": 401,
        "digest": "0" * 64,
        "left_out": 1,
    },
    "template_exponent": 0.81,
    "searched": {"persons": 812, "faces": 1904},
    "likeness": 0.361,
    "lift": 0.0142,
    "domain": {
        "weight": 1.5,
        "likeness": 0.342,
        "lift": 0.75,
        "small_lift": 1.0,
        "small_gallery": 100,
        "source": "lfw/images",
        "faces": 600,
        "degradations": ["blur of 6 pixels", "brightness x 0.05", "turned by 180 degrees"],
    },
    "fmr": [_OPERATING_POINT],
    "fpir": [{**_OPERATING_POINT, "target": 0.01, "threshold": 0.578}],
}


class CalibrationAnswer(Answer):
    """The calibration behind a collection's decisions; all its members are null without one."""

    model_config = example(**_CALIBRATION)
    calibration_id: str | None = None
    calibration_source: Literal["collection", "pack"] | None = None
    embedding_space: str | None = None
    precision: str | None = None
    created_at: datetime | None = None
    source: CalibrationSource | None = None
    template_exponent: Annotated[
        float | None,
        Field(
            description="A person with n different faces is falsely matched as often as n ** "
            "template_exponent persons with one. Near-copies count as what they add."
        ),
    ] = None
    searched: Extent
    likeness: Annotated[
        float | None,
        Field(
            description="99th percentile of the scores of the collection's different people; null "
            "with fewer than 40 people, or without a domain."
        ),
    ] = None
    lift: Annotated[
        float, Field(description="By how much that raises the thresholds for target_fpir.")
    ] = 0.0
    domain: Annotated[
        DomainInfo | None, Field(description="Null: similarities are cosines, nothing is raised.")
    ] = None
    fmr: Annotated[
        list[OperatingPointInfo], Field(default_factory=list, description="For target_fmr.")
    ]
    fpir: Annotated[
        list[OperatingPointInfo],
        Field(default_factory=list, description="For target_fpir at the collection's size now."),
    ]


class NewCalibrationAnswer(CalibrationAnswer):
    model_config = example(
        **_CALIBRATION,
        suspected_duplicates=[
            {"person_id_a": "j.smith", "person_id_b": "john.smith", "similarity": 0.86}
        ],
    )
    suspected_duplicates: Annotated[
        list[SuspectInfo],
        Field(
            default_factory=list,
            description="Pairs of ids that are probably one person, for review.",
        ),
    ]
