"""What `/v1/detect`, `/v1/embed` and `/v1/enroll` answer."""

from typing import Annotated, Any

from pydantic import BaseModel, Field

from app.api.schemas.common import FACE, IMAGE, QUALITY, Answer, FaceInfo, ImageInfo, example


class EmbeddedFace(FaceInfo):
    embedding: list[float]


class DetectAnswer(Answer):
    model_config = example(images=[IMAGE], faces=[FACE])
    images: list[ImageInfo]
    faces: list[FaceInfo]


class EmbedAnswer(Answer):
    model_config = example(images=[IMAGE], faces=[{**FACE, "embedding": [0.052, -0.031, 0.108]}])
    images: list[ImageInfo]
    faces: list[EmbeddedFace]


class EnrolledFace(BaseModel):
    index: int
    face_id: str
    duplicate: Annotated[
        bool, Field(description="The same content was stored for this person before.")
    ]
    quality: dict[str, Any]
    degradation: Annotated[
        float | None, Field(description="As in the answer of /v1/embed; null without a domain.")
    ] = None
    degraded: Annotated[
        list[str],
        Field(
            default_factory=list,
            description="What makes it a template of little use (degraded, blurred, too_dark): it "
            "is not compared with faces degraded in the same way. Enroll a better photo.",
        ),
    ]


class RejectedImage(BaseModel):
    index: int
    reasons: list[str]
    detail: str


class EnrollAnswer(Answer):
    model_config = example(
        collection="default",
        person_id="obama",
        enrolled=[
            {
                "index": 0,
                "face_id": "7f8de8f5-53c9-4a52-9e3a-1d2b7f3f1f11",
                "duplicate": False,
                "quality": QUALITY,
                "degradation": -0.04,
                "degraded": [],
            }
        ],
        rejected=[
            {"index": 1, "reasons": ["no_face"], "detail": "No face was found in the photo."}
        ],
    )
    collection: str
    person_id: str
    enrolled: list[EnrolledFace]
    rejected: list[RejectedImage]
