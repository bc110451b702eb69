"""Why an export did not happen. Each message is one sentence for a person."""


class ExportError(Exception):
    """The source cannot be exported, or what is needed to prove the export is missing."""


class UnsupportedOperator(ExportError):
    """The source uses an operator, or a variant of one, that has no translation here."""

    def __init__(self, name: str, reason: str = "has no translation to ONNX here") -> None:
        super().__init__(f"operator {name}: {reason}")
        self.name = name


class ParityError(ExportError):
    """The exported network does not answer like its source; it must not be used."""
