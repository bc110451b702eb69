"""A column type for JSON from clients, whose reading never fails."""

from collections.abc import Callable
from typing import Any

from sqlalchemy import JSON, ColumnElement, Dialect, Text, cast, type_coerce
from sqlalchemy.types import TypeDecorator

from app.store.metadata import read_stored


class MetadataColumn(TypeDecorator[dict[str, Any]]):
    """A JSON object of a client's. Reading never fails: one that would not be stored today is
    returned as `CorrectedMetadata`."""

    impl = JSON
    cache_ok = True

    def column_expression(self, column: ColumnElement[Any]) -> ColumnElement[Any]:
        """Its text: drivers would parse it, and fail where it cannot be."""
        return type_coerce(cast(column, Text), self)

    def result_processor(self, dialect: Dialect, coltype: Any) -> Callable[[Any], Any]:  # noqa: ARG002
        """From its text."""
        return read_stored
