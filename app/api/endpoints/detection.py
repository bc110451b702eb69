"""`/v1/detect` and `/v1/embed`: the faces of photos, without a gallery."""

from collections.abc import Sequence
from typing import Annotated, Any

import msgpack
import numpy as np
from fastapi import Request, Response
from pydantic import ConfigDict, SkipValidation, WithJsonSchema

from app.access.keys import Scope
from app.api.access import needs
from app.api.analysed_face import FaceInfo, ImageInfo
from app.api.context import Context
from app.api.fields import CallFields, Liveness, MaxFaces
from app.api.openapi import photo_body
from app.api.problems import PHOTOS, problems
from app.api.requests import read_call
from app.api.responses import Answer, Example, json_answer
from app.api.routers import Router
from app.recognition.analysis import (
    FoundFace,
    PhotoOutcome,
    embedding_of,
    faces_of,
)
from app.types import FloatArray

router = Router(prefix="/v1", tags=["faces"])

OCTETS = "application/octet-stream"
MSGPACK = "application/msgpack"
BINARY = {"schema": {"type": "string", "format": "binary"}}
EMBEDDINGS: dict[int | str, dict[str, Any]] = {
    200: {
        "content": {OCTETS: BINARY, MSGPACK: BINARY},
        "headers": {
            "X-Embedding-Shape": {
                "description": "With `application/octet-stream`: rows, columns.",
                "schema": {"type": "string", "examples": ["2,192"]},
            }
        },
    }
}


class DetectFields(CallFields):
    max_faces: MaxFaces | None = None
    liveness: Liveness = False


class DetectAnswer(Answer):
    images: list[ImageInfo]
    faces: list[FaceInfo]


class EmbeddedFace(FaceInfo):
    model_config = ConfigDict(arbitrary_types_allowed=True)
    # Written from the array; bytes in MessagePack.
    embedding: Annotated[
        FloatArray | bytes,
        SkipValidation,
        WithJsonSchema({"type": "array", "items": {"type": "number"}}),
        Example([0.052, -0.031, 0.108]),
    ]


class EmbedAnswer(Answer):
    images: list[ImageInfo]
    faces: list[EmbeddedFace]


@router.post(
    "/detect",
    response_model=DetectAnswer,
    responses=problems(PHOTOS),
    openapi_extra=photo_body(DetectFields, {"max_faces": 10}),
)
@needs(Scope.DETECT)
async def detect(request: Request, context: Context) -> Response:
    """Find the faces of photos: box, five landmarks, score and quality, the largest first."""
    call = await read_call(request, DetectFields)

    def write(outcomes: Sequence[PhotoOutcome]) -> Response:
        comparator = context.gallery.comparator
        faces = [FaceInfo.of(one, comparator) for one in faces_of(outcomes)]
        images = _images(outcomes)
        return json_answer(DetectAnswer(images=images, faces=faces, **context.envelope()))

    fields = call.fields
    return await context.analysed(
        call.images, fields.max_faces, write, embed=False, liveness=fields.liveness
    )


@router.post(
    "/embed",
    response_model=EmbedAnswer,
    responses={**problems(PHOTOS), **EMBEDDINGS},
    openapi_extra=photo_body(DetectFields, {"max_faces": 10}),
)
@needs(Scope.DETECT)
async def embed(request: Request, context: Context) -> Response:
    """Find the faces of photos and compute their embeddings.

    Embeddings are unit vectors, comparable within one embedding space.

    With `Accept: application/octet-stream` the answer is the float32 matrix, little endian, with
    its shape in `X-Embedding-Shape`; with `application/msgpack` it is the whole answer in
    MessagePack, with embeddings as float32 bytes.
    """
    call = await read_call(request, DetectFields)
    accepted = request.headers.get("accept", "")

    def write(outcomes: Sequence[PhotoOutcome]) -> Response:
        found, comparator = faces_of(outcomes), context.gallery.comparator
        if OCTETS in accepted:
            return _octets(found, context.services.pack.recogniser.dimension)
        packed = MSGPACK in accepted
        faces = [
            EmbeddedFace.of(one, comparator, embedding=_embedding(one, packed)) for one in found
        ]
        answer = EmbedAnswer(images=_images(outcomes), faces=faces, **context.envelope())
        if packed:
            return Response(msgpack.packb(vars(answer), default=vars), media_type=MSGPACK)
        return json_answer(answer)

    fields = call.fields
    return await context.analysed(call.images, fields.max_faces, write, liveness=fields.liveness)


def _images(outcomes: Sequence[PhotoOutcome]) -> list[ImageInfo]:
    return [ImageInfo.of(index, outcome) for index, outcome in enumerate(outcomes)]


def _embedding(found: FoundFace, packed: bool) -> FloatArray | bytes:
    embedding = embedding_of(found[2])
    return embedding.astype("<f4").tobytes() if packed else embedding


def _octets(found: Sequence[FoundFace], dimension: int) -> Response:
    vectors = [embedding_of(face) for _, _, face in found]
    matrix = np.array(vectors, dtype="<f4").reshape(len(vectors), dimension)
    shape = f"{len(vectors)},{dimension}"
    return Response(matrix.tobytes(), media_type=OCTETS, headers={"X-Embedding-Shape": shape})
