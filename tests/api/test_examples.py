"""Examples of the OpenAPI document are made of those of the fields."""

from typing import Annotated

import pytest
from pydantic import BaseModel

from app.api.responses import Example, example_of, with_example


class Eye(BaseModel):
    colour: Annotated[str, Example("green")]
    glass: bool = False


class Portrait(BaseModel):
    model_config = with_example(year=1503)
    name: Annotated[str, Example("Mona Lisa")]
    year: Annotated[int, Example(0)]
    left: Eye
    eyes: list[Eye]


def test_an_example_is_made_of_those_of_the_fields() -> None:
    assert Portrait.model_json_schema()["examples"] == [
        {
            "name": "Mona Lisa",
            "year": 1503,
            "left": {"colour": "green"},
            "eyes": [{"colour": "green"}],
        }
    ]


def test_a_subclass_has_its_own() -> None:
    class Bust(Portrait):
        marble: Annotated[bool, Example(True)]

    assert Bust.model_json_schema()["examples"][0]["marble"] is True


def test_a_required_field_needs_one() -> None:
    class Bare(BaseModel):
        name: str

    with pytest.raises(LookupError, match=r"Bare\.name"):
        example_of(Bare)
