"""The error tree: every failure a caller can meet has a stable code and an HTTP status.

Domain code raises these; only `app.api.problems` turns them into RFC 9457 problem documents. Errors
of one task that no call over HTTP meets, such as those of backups, are in its modules.
"""

from collections.abc import Mapping
from typing import Any, ClassVar


class LikenessError(Exception):
    """Base of the tree. `detail` is one sentence for a person: what happened and what to do about
    it. `extra` holds machine-readable members added to the problem document."""

    code: ClassVar[str] = "internal_error"
    status: ClassVar[int] = 500
    title: ClassVar[str] = "Internal error"

    def __init__(self, detail: str, extra: Mapping[str, Any] | None = None) -> None:
        super().__init__(detail)
        self.detail = detail
        self.extra: dict[str, Any] = dict(extra or {})


# --- the request -----------------------------------------------------------------------------


class InvalidRequest(LikenessError):
    code, status, title = "invalid_request", 422, "The request is not valid"


class UnknownField(InvalidRequest):
    code, title = "unknown_field", "The request has a field this call does not take"


class MissingField(InvalidRequest):
    code, title = "missing_field", "A required field is missing"


class RouteNotFound(LikenessError):
    code, status, title = "route_not_found", 404, "There is no such call"


class MethodNotAllowed(LikenessError):
    code, status, title = "method_not_allowed", 405, "The path does not take this method"


class UnsupportedMediaType(LikenessError):
    code, status, title = "unsupported_media_type", 415, "The body's content type is not supported"


class UnsupportedEncoding(LikenessError):
    code, status, title = "unsupported_encoding", 415, "The body's encoding is not supported"


class RequestTooLarge(LikenessError):
    code, status, title = "request_too_large", 413, "The request is too large"


class RequestTimeout(LikenessError):
    code, status, title = "request_timeout", 408, "The request arrived too slowly"


class InvalidHttp(LikenessError):
    code, status, title = "invalid_http", 400, "The request is not valid HTTP"


class PathTooLong(LikenessError):
    code, status, title = "path_too_long", 414, "The path and query are too long"


class HeadTooLarge(LikenessError):
    code, status, title = "head_too_large", 431, "The head of the request is too large"


class InvalidCursor(InvalidRequest):
    code, title = "invalid_cursor", "The cursor is invalid"


class IdempotencyKeyReused(InvalidRequest):
    code, title = "idempotency_key_reused", "The Idempotency-Key belongs to another request"


# --- access ----------------------------------------------------------------------------------


class Unauthenticated(LikenessError):
    code, status, title = "unauthenticated", 401, "The request has no valid access key"


class Forbidden(LikenessError):
    code, status, title = "forbidden", 403, "The access key does not allow this"


class AccessKeyNotFound(LikenessError):
    code, status, title = "access_key_not_found", 404, "There is no such access key"


class AccessPepperDiffers(LikenessError):
    code, status, title = "access_pepper_differs", 409, "Keys were created with another pepper"


class AccessKeyExists(LikenessError):
    code, status, title = "access_key_exists", 409, "An access key of that name exists"


# --- one image -------------------------------------------------------------------------------


class ImageError(LikenessError):
    """The bytes of one image cannot be used; the rest of the request still can."""

    code, status, title = "unreadable_image", 422, "The image cannot be read"


class EmptyImage(ImageError):
    code, title = "empty_image", "The image has no bytes"


class UnsupportedImage(ImageError):
    code, status, title = "unsupported_image", 415, "The image format is not supported"


class UnreadableImage(ImageError):
    pass


class ImageTooLarge(ImageError):
    code, status, title = "image_too_large", 413, "The image is too large"


# --- the faces of one image ------------------------------------------------------------------


class FaceError(LikenessError):
    """One image cannot serve a call that needs exactly one usable face."""

    code, status, title = "unusable_face", 422, "The photo does not show one usable face"


class NoFace(FaceError):
    code, title = "no_face", "No face was found"


class SeveralFaces(FaceError):
    code, title = "several_faces", "More than one face was found"


class FaceTooSmall(FaceError):
    code, title = "face_too_small", "The face is too small"


class LowQuality(FaceError):
    code, title = "low_quality", "The face is not clear enough"


class NotLive(FaceError):
    code, title = "not_live", "The face does not look live"


class NoFaceEnrolled(LikenessError):
    code, status, title = "no_face_enrolled", 422, "The person has no face enrolled"


class NothingEnrolled(LikenessError):
    code, status, title = "nothing_enrolled", 422, "No image could be enrolled"


class InvalidEmbedding(LikenessError):
    code, status, title = "invalid_embedding", 422, "The embedding cannot be used"


# --- the gallery -----------------------------------------------------------------------------


class NotFound(LikenessError):
    code, status, title = "not_found", 404, "Nothing is there"


class CollectionNotFound(NotFound):
    code, title = "collection_not_found", "The collection does not exist"


class PersonNotFound(NotFound):
    code, title = "person_not_found", "The person is not in this collection"


class ImportNotFound(NotFound):
    code, title = "import_not_found", "There is no such import"


class FaceNotFound(NotFound):
    code, title = "face_not_found", "The face is not in this collection"


class PairNotFound(NotFound):
    code, title = "pair_not_found", "The two persons are not declared to be different"


class Conflict(LikenessError):
    code, status, title = "conflict", 409, "The request conflicts with what is stored"


class CollectionExists(Conflict):
    code, title = "collection_exists", "A collection of that name exists"


class PersonExists(Conflict):
    code, title = "person_exists", "A person of that id exists"


class PreconditionFailed(LikenessError):
    code, status, title = "precondition_failed", 412, "It was changed since it was read"


class DeclaredDifferent(Conflict):
    code, title = "declared_different", "The two persons are declared to be different"


class OtherFaceEnrolled(Conflict):
    code, title = "other_face_enrolled", "Another face of this photo is enrolled for the person"


class EnrolledBefore(Conflict):
    """The enrollment of that Idempotency-Key is done; its answer can be had."""

    code, title = "enrolled_before", "This enrollment was done before"


class ConsentMissing(LikenessError):
    code, status, title = "consent_missing", 422, "The person has no valid consent"


class NoConsent(ConsentMissing):
    """There is no consent of the expected form, not even one that has ended or was withdrawn."""


class NotReembedded(Conflict):
    code, title = "not_reembedded", "Some faces have no embedding of that model pack"


class CollectionProtected(Conflict):
    code, title = "collection_protected", "The default collection cannot be deleted"


class EmbeddingSpaceMismatch(Conflict):
    code = "embedding_space_mismatch"
    title = "The collection belongs to another embedding space"


class CalibrationMismatch(Conflict):
    code = "calibration_mismatch"
    title = "The calibration does not match the model pack"


class NotEnoughData(LikenessError):
    code, status, title = "not_enough_data", 422, "There is too little data to calibrate on"


class RateOutOfReach(LikenessError):
    code, status = "rate_out_of_reach", 422
    title = "The rate is below what any calibration supports"


class LivenessUnavailable(Conflict):
    code, title = "liveness_unavailable", "The model pack has no liveness networks"


class NotCalibrated(Conflict):
    code, title = "not_calibrated", "Nothing is calibrated"


class StoreUnavailable(LikenessError):
    code, status, title = "store_unavailable", 503, "The database cannot be used right now"


class RevisionPruned(StoreUnavailable):
    """The change log does not reach back to the requested revision."""


class StoreFull(LikenessError):
    code, status, title = "storage_full", 507, "There is no space left on the disk"


class EncryptionKeyMissing(LikenessError):
    code, status, title = "encryption_key_missing", 503, "Stored data cannot be decrypted"


class DamagedData(LikenessError):
    """Stored data is not what the service wrote: damage and tampering look the same."""

    code, status, title = "damaged_data", 500, "Stored data is damaged"


# --- the service -----------------------------------------------------------------------------


class RateLimited(LikenessError):
    code, status, title = "rate_limited", 429, "The access key has reached its rate limit"


class QuotaExceeded(LikenessError):
    code, status, title = "quota_exceeded", 429, "The access key has reached its daily quota"


class Overloaded(LikenessError):
    code, status, title = "overloaded", 503, "The service is busy"


class DeadlineExceeded(LikenessError):
    code, status, title = "deadline_exceeded", 503, "The service could not answer in time"


class WorkerDied(LikenessError):
    code, status, title = "worker_died", 503, "A worker of the service ended unexpectedly"


class NotReady(LikenessError):
    code, status, title = "not_ready", 503, "The service is not ready"


# --- start-up (never met over HTTP) ----------------------------------------------------------


class StartupError(LikenessError):
    """The service cannot start; the CLI prints `detail` and exits with status 2."""

    code, title = "startup_error", "The service cannot start"


class PackError(StartupError):
    code, title = "pack_error", "The model pack cannot be used"


class DeviceError(StartupError):
    code, title = "device_error", "The requested device cannot be used"


class DatabaseError(StartupError):
    code, title = "database_error", "The database cannot be opened"


class AccessKeyError(StartupError):
    code, title = "access_key_error", "The access keys cannot be used"


class EncryptionKeyError(StartupError):
    code, title = "encryption_key_error", "The encryption key cannot be used"
