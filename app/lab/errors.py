"""What can go wrong in the laboratory. Each message is one sentence for a person."""

from app.errors import LikenessError


class EvaluationError(LikenessError):
    """The labels or photos of an evaluation cannot be used; `detail` says how to correct them."""

    code, status, title = "evaluation_error", 422, "The evaluation cannot be run"


class AttestationError(LikenessError):
    """An attestation cannot be made; `detail` says why and what to do."""

    code, status, title = "attestation_error", 422, "The attestation cannot be made"


class InvalidAttestation(LikenessError):
    """A file that is no attestation signed by the key that was named."""

    code, status, title = "invalid_attestation", 422, "The attestation is not valid"


class ExportError(Exception):
    """The source cannot be exported, or what is needed to prove the export is missing."""


class UnsupportedOperator(ExportError):
    """The source uses an operator, or a variant of one, that has no translation here."""

    def __init__(self, name: str, reason: str = "has no translation to ONNX here") -> None:
        super().__init__(f"operator {name}: {reason}")
        self.name = name


class ParityError(ExportError):
    """The exported network does not answer like its source; it must not be used."""
