"""What can be wrong with labelled data before anything is measured."""

from app.errors import LikenessError


class EvaluationError(LikenessError):
    """The labels or photos of an evaluation cannot be used; `detail` says how to correct them."""

    code, status, title = "evaluation_error", 422, "The evaluation cannot be run"
