"""What `/v1/collections/{c}/persons/{p}/different-from` answers."""

from datetime import datetime
from typing import Annotated, Any

from pydantic import BaseModel, Field

from app.api.schemas.common import TIME, Answer, example
from app.api.schemas.galleries import Erased, Listed

_PAIR: dict[str, Any] = {"different_from": "ada.twin", "declared_at": TIME}


class PairInfo(BaseModel):
    different_from: Annotated[str, Field(description="The id of the other person.")]
    declared_at: datetime


class PairAnswer(Answer, PairInfo):
    model_config = example(person_id="ada", **_PAIR)
    person_id: str


class PairList(Listed):
    model_config = example(items=[_PAIR], next_cursor=None)
    items: list[PairInfo]


class PairReceipt(Answer):
    """The declaration is withdrawn."""

    model_config = example(erased="done")
    erased: Erased
