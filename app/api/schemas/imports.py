"""What `/v1/collections/{c}/imports` answers."""

from typing import Any

from app.api.schemas.common import TIME, Answer, example
from app.importing.job_folder import ImportJob

_IMPORT: dict[str, Any] = {
    "import_id": "5f0c6b0e6f5b4a8e9b1d2c3a4f5e6d7c",
    "collection": "default",
    "state": "done",
    "created_at": TIME,
    "started_at": TIME,
    "finished_at": TIME,
    "archive": "5f0c6b0e6f5b4a8e9b1d2c3a4f5e6d7c.zip",
    "options": {"face": "largest", "on_conflict": "report"},
    "total": 200,
    "counts": {
        "enrolled": 197,
        "skipped": 0,
        "rejected": 3,
        "conflicts": 1,
        "reasons": [
            {"result": "enrolled", "reason": "", "rows": 196},
            {"result": "enrolled", "reason": "conflict", "rows": 1},
            {"result": "rejected", "reason": "no_face", "rows": 3},
        ],
    },
    "attempts": 1,
    "cancelling": False,
    "detail": None,
}


class ImportAnswer(Answer, ImportJob):
    """One import."""

    model_config = example(**_IMPORT)


class ImportList(Answer):
    """The newest first."""

    model_config = example(items=[_IMPORT])
    items: list[ImportJob]
