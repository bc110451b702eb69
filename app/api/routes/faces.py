"""`/v1/detect` and `/v1/embed`: what is in a photo, compared with nobody."""

from typing import Any

import msgpack
import numpy as np
from fastapi import APIRouter, Request, Response

from app.api.fields import DetectFields
from app.api.openapi import photo_body
from app.api.problems import PHOTOS, problems
from app.api.requests import read_call
from app.api.responses import (
    AnswerHead,
    answer_of_faces,
    face_members,
    image_info,
    json_answer,
)
from app.api.schemas.faces import DetectAnswer, EmbedAnswer
from app.recognition.analysis import PhotoOutcome, analyse_images, faces_of
from app.types import Face, FloatArray

router = APIRouter(prefix="/v1", tags=["faces"])

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


@router.post(
    "/detect",
    response_model=DetectAnswer,
    responses=problems(PHOTOS),
    openapi_extra=photo_body(DetectFields, {"max_faces": 10}),
)
async def detect(request: Request) -> Any:
    """Find the faces of photos: box, five landmarks, score and quality, the largest first."""
    head = AnswerHead(request)
    call = await read_call(request, DetectFields)
    fields = call.fields
    outcomes = await analyse_images(
        head.services,
        head.times,
        call.images,
        fields.max_faces,
        embed=False,
        liveness=fields.liveness,
    )
    found, members = faces_of(outcomes), head.envelope()
    comparator = head.services.gallery.comparator

    def write() -> Response:
        faces = [face_members(face, image, index, comparator) for index, image, face in found]
        return json_answer({**members, "images": _infos(outcomes), "faces": faces})

    return await answer_of_faces(request, len(found), write)


@router.post(
    "/embed",
    response_model=EmbedAnswer,
    responses={**problems(PHOTOS), **EMBEDDINGS},
    openapi_extra=photo_body(DetectFields, {"max_faces": 10}),
)
async def embed(request: Request) -> Any:
    """Find the faces of photos and compute their embeddings.

    Embeddings are unit vectors, comparable within one embedding space.

    With `Accept: application/octet-stream` the answer is the float32 matrix, little endian, with
    its shape in `X-Embedding-Shape`; with `application/msgpack` it is the whole answer in
    MessagePack, with embeddings as float32 bytes.
    """
    head = AnswerHead(request)
    call = await read_call(request, DetectFields)
    fields = call.fields
    outcomes = await analyse_images(
        head.services, head.times, call.images, fields.max_faces, liveness=fields.liveness
    )
    accepted = request.headers.get("accept", "")
    if OCTETS in accepted:
        return _octets(outcomes, head.services.pack.recogniser.dimension)
    packed = MSGPACK in accepted
    found, members = faces_of(outcomes), head.envelope()
    comparator = head.services.gallery.comparator

    def write() -> Response:
        faces = [
            {**face_members(face, image, index, comparator), "embedding": _embedding(face, packed)}
            for index, image, face in found
        ]
        answer = {**members, "images": _infos(outcomes), "faces": faces}
        if packed:
            return Response(msgpack.packb(answer), media_type=MSGPACK)
        return json_answer(answer)

    return await answer_of_faces(request, len(found), write)


def _infos(outcomes: list[PhotoOutcome]) -> list[Any]:
    return [image_info(index, outcome).model_dump() for index, outcome in enumerate(outcomes)]


def _embedding(face: Face, packed: bool) -> FloatArray | bytes:
    assert face.embedding is not None, "the pipeline was asked to embed"
    return face.embedding.astype("<f4").tobytes() if packed else face.embedding


def _octets(outcomes: list[PhotoOutcome], dimension: int) -> Response:
    vectors = [face.embedding for _, _, face in faces_of(outcomes) if face.embedding is not None]
    matrix = np.array(vectors, dtype="<f4").reshape(len(vectors), dimension)
    shape = f"{len(vectors)},{dimension}"
    return Response(matrix.tobytes(), media_type=OCTETS, headers={"X-Embedding-Shape": shape})
