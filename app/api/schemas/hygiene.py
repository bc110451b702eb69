"""What `/v1/collections/{c}/hygiene` answers."""

from typing import Annotated, Any

from pydantic import BaseModel, ConfigDict, Field

from app.api.schemas.common import EXAMPLE_HEAD, Answer, Fmr, FmrInterval, QualityInfo


class DuplicateInfo(BaseModel):
    person_id_a: str
    person_id_b: str
    face_id_a: str
    face_id_b: str
    similarity: float
    fmr: Fmr = None
    fmr_interval: FmrInterval = None
    expected_by_chance: Annotated[
        float | None,
        Field(
            description="How many pairs of different people in the whole collection are expected "
            "to be at least this similar; null without a calibration, or if it cannot estimate so "
            "small a number."
        ),
    ] = None


class MislabelInfo(BaseModel):
    face_id: str
    person_id: str
    looks_like: str
    similarity: float
    own_similarity: Annotated[
        float, Field(description="Similarity to the nearest other face of its person.")
    ]
    fmr: Fmr = None
    fmr_interval: FmrInterval = None


class OutlierInfo(BaseModel):
    face_id: str
    person_id: str
    own_similarity: Annotated[
        float, Field(description="Similarity to the nearest other face of its person.")
    ]
    fmr: Fmr = None
    fmr_interval: FmrInterval = None


class WeakInfo(BaseModel):
    face_id: str
    person_id: str
    reasons: list[str]
    quality: QualityInfo


class DegradedInfo(BaseModel):
    face_id: str
    person_id: str
    degradation: Annotated[
        float, Field(description="As in the answer of /v1/embed, beyond the calibration's limit.")
    ]


_EXAMPLE: dict[str, Any] = {
    "persons": 2883,
    "faces": 6410,
    "threshold": 0.59,
    "duplicates_by_chance": 0.4,
    "mislabels_by_chance": 1.2,
    "duplicates": [
        {
            "person_id_a": "j.smith",
            "person_id_b": "john.smith",
            "face_id_a": "7f8de8f5-53c9-4a52-9e3a-1d2b7f3f1f11",
            "face_id_b": "0c1f3a52-64f7-4a0a-a1f5-55a3c6f0f6d2",
            "similarity": 0.86,
            "fmr": 3e-08,
            "fmr_interval": [1e-08, 9e-08],
            "expected_by_chance": 0.12,
        }
    ],
    "mislabels": [],
    "outliers": [],
    "weak": [],
    "degraded": [],
    "counts": {"duplicates": 1, "mislabels": 0, "outliers": 0, "weak": 0, "degraded": 0},
}


class HygieneAnswer(Answer):
    """What may be wrong, the worst first; `counts` has the numbers of all findings."""

    model_config = ConfigDict(json_schema_extra={"examples": [{**EXAMPLE_HEAD, **_EXAMPLE}]})
    persons: int
    faces: int
    threshold: Annotated[
        float, Field(description="Similarity from which two faces were taken for one person.")
    ]
    duplicates_by_chance: Annotated[
        float | None,
        Field(
            description="How many of the duplicates are expected to be different people who look "
            "alike; null without a calibration."
        ),
    ] = None
    mislabels_by_chance: Annotated[
        float | None,
        Field(
            description="How many of the mislabels are expected to be faces of the right person "
            "that resemble somebody else by chance; null without a calibration."
        ),
    ] = None
    duplicates: list[DuplicateInfo]
    mislabels: list[MislabelInfo]
    outliers: list[OutlierInfo]
    weak: list[WeakInfo]
    degraded: list[DegradedInfo]
    counts: dict[str, int]
