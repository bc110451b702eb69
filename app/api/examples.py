"""Examples for the OpenAPI document, written beside the fields they are of."""

from collections.abc import Collection
from dataclasses import dataclass
from typing import Any, get_args

from pydantic import BaseModel, ConfigDict
from pydantic.fields import FieldInfo

TIME = "2026-11-23T12:00:00Z"


@dataclass(frozen=True, slots=True)
class Example:
    """Annotates a field with its value in the example of its model. One that holds a model, or a
    list of them, has their example without it; one that has a default is left out without it."""

    value: Any


def with_example(**instead: Any) -> ConfigDict:
    """The `model_config` of a model with an example, made of those of its fields; `instead`
    replaces or adds members of it."""

    def add(schema: dict[str, Any], model: type[BaseModel]) -> None:
        schema["examples"] = [{**example_of(model, but=instead), **instead}]

    return ConfigDict(json_schema_extra=add)


def example_of(model: type[BaseModel], *, but: Collection[str] = ()) -> dict[str, Any]:
    """The examples of a model's fields, `but` of these. Raises LookupError for a required field
    without one."""
    found = {}
    for name, field in model.model_fields.items():
        if name in but:
            continue
        given = [one.value for one in field.metadata if isinstance(one, Example)]
        if given:
            found[name] = given[-1]
        elif field.is_required():
            found[name] = _nested_example(field, f"{model.__name__}.{name}")
    return found


def _nested_example(field: FieldInfo, name: str) -> Any:
    kind = field.annotation
    if isinstance(kind, type) and issubclass(kind, BaseModel):
        return example_of(kind)
    for item in get_args(kind):
        if isinstance(item, type) and issubclass(item, BaseModel):
            return [example_of(item)]
    raise LookupError(f"{name} has no example: annotate it with Example(...)")
