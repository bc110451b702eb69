"""What pydantic finds is named by the fields of the value, and each place once."""

from ipaddress import IPv4Network, IPv6Network
from typing import Annotated, Any, Literal

import pytest
from pydantic import BaseModel, ConfigDict, Field, ValidationError

from app.findings import findings


class Example(BaseModel):
    model_config = ConfigDict(extra="forbid")

    count: Annotated[int, Field(gt=0, le=64)] | Literal["auto"] = "auto"
    mean: float | tuple[float, float, float] = 0.0
    networks: tuple[IPv4Network | IPv6Network, ...] = ()
    top: Annotated[int | None, Field(le=9)] = None


@pytest.mark.parametrize(
    ("value", "expected"),
    [
        ({"count": 65}, ("count", "Input should be less than or equal to 64 or 'auto'")),
        ({"mean": "x"}, ("mean", "valid number, unable to parse string as a number or tuple")),
        ({"mean": [1, 2, "x"]}, ("mean.2", "Input should be a valid number")),
        ({"networks": ["x"]}, ("networks.0", "Input is not a valid IPv4 network or IPv6 network")),
        ({"top": 10}, ("top", "Input should be less than or equal to 9")),
        # Names that the client chose, although pydantic names parts of unions so.
        ({"int": 1}, ("int", "There is no such field here; check its name, or leave it out")),
        ({"a[b]": 1}, ("a[b]", "There is no such field here; check its name, or leave it out")),
    ],
)
def test_a_mistake_is_one_finding(value: dict[str, Any], expected: tuple[str, str]) -> None:
    with pytest.raises(ValidationError) as caught:
        Example.model_validate(value)
    ((place, message),) = findings(caught.value.errors())
    assert place == expected[0]
    assert expected[1] in message


def test_each_place_is_named_in_its_order() -> None:
    with pytest.raises(ValidationError) as caught:
        Example.model_validate({"top": 10, "count": 0})
    assert [place for place, _ in findings(caught.value.errors())] == ["count", "top"]
