"""What can be wrong with an attestation, its key, its requirement or its data."""

from app.errors import LikenessError


class AttestationError(LikenessError):
    """It cannot be made; `detail` says why and what to do."""

    code, status, title = "attestation_error", 422, "The attestation cannot be made"


class InvalidAttestation(LikenessError):
    """A file that is no attestation signed by the key that was named."""

    code, status, title = "invalid_attestation", 422, "The attestation is not valid"
