"""Templates of photos and of embeddings made elsewhere: what `enroll` and imports store."""

import hashlib
from collections.abc import Sequence
from dataclasses import asdict
from functools import partial

from app.decision.gates import check_quality
from app.decision.policy import FaceSelection, select_box
from app.decision.thresholds import CollectionPolicy
from app.faces.pipeline import run_to_completion
from app.imaging import encode_crop
from app.services import Services
from app.store.records import NewTemplate
from app.types import AnalysedImage, CooperativeTask, Face, FloatArray


def template_task(
    services: Services, data: bytes, selection: FaceSelection, policy: CollectionPolicy
) -> CooperativeTask[tuple[AnalysedImage, NewTemplate]]:
    """Analyse a photo and make a template of its one face, in steps.

    Raises the ImageError and FaceError families.
    """
    gate = policy.enroll_gate
    image = yield from services.pipeline.steps(
        data,
        max_faces=services.settings.max_faces,
        liveness=gate.min_liveness is not None,
        crops=policy.keep_crops,
        selector=partial(select_box, selection=selection),
    )
    (face,) = image.faces
    check_quality(face, gate)
    return image, _template(face, data)


def template_from_photo(
    services: Services, data: bytes, selection: FaceSelection, policy: CollectionPolicy
) -> NewTemplate:
    """`template_task` at once, on the caller's thread."""
    return run_to_completion(template_task(services, data, selection, policy))[1]


def template_from_embedding(
    services: Services, values: Sequence[float] | FloatArray
) -> NewTemplate:
    """A template of an embedding made elsewhere in the same space. Raises InvalidEmbedding."""
    vector = services.gallery.check_embedding(values)
    return NewTemplate(vector, content_digest(vector.tobytes()))


def content_digest(data: bytes) -> str:
    """The SHA-256 of a photo or an embedding, by which it is stored once for a person."""
    return hashlib.sha256(data).hexdigest()


def _template(face: Face, data: bytes) -> NewTemplate:
    assert face.embedding is not None, "the pipeline was asked to embed"
    crop = None if face.crop is None else encode_crop(face.crop)
    return NewTemplate(face.embedding, content_digest(data), asdict(face.quality), crop)
