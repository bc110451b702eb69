"""SQL statements that are made once and executed often.

SQLAlchemy takes eight times as long to execute such a statement as SQLite's driver does, and all of
that is Python code, during which no other thread runs. So where the backend allows it, these
statements are compiled once and given to the driver.
"""

from collections import namedtuple
from collections.abc import Callable, Collection, Mapping, Sequence
from typing import Any, cast

from sqlalchemy import Connection, Dialect, Executable
from sqlalchemy.exc import DBAPIError
from sqlalchemy.sql.compiler import SQLCompiler

from app.store.backends import backend_of

Values = Mapping[str, Any]


class Statement:
    """A SQL statement with parameters. Every execution gives a value to the same ones, and raises
    what SQLAlchemy does. It cannot have a list as a parameter (`IN` with an expanding one)."""

    def __init__(self, statement: Executable) -> None:
        """Of an INSERT the parameters are the columns that values are given to."""
        self._statement = statement
        self._compiled: _Compiled | None = None

    def rows(self, connection: Connection, values: Values) -> Sequence[Any]:
        """Execute it within the connection's transaction; the rows that it returns, whose columns
        are attributes."""
        driver = backend_of(connection.engine).driver_of(connection)
        if driver is None:
            return connection.execute(self._statement, values).all()
        compiled = self._compiled_for(connection, values)
        try:
            found = driver.execute(compiled.sql, compiled.parameters(values)).fetchall()
        except Exception as error:
            _raise_as_sqlalchemy(connection, compiled.sql, error)
            raise
        return compiled.rows(found)

    def first(self, connection: Connection, values: Values) -> Any:
        """The first row that it returns; None if there is none."""
        found = self.rows(connection, values)
        return found[0] if found else None

    def run(self, connection: Connection, *values: Values) -> None:
        """Execute it once for each of the values; it returns no rows."""
        driver = backend_of(connection.engine).driver_of(connection)
        if driver is None:
            connection.execute(self._statement, list(values))
            return
        compiled = self._compiled_for(connection, values[0])
        try:
            driver.executemany(compiled.sql, [compiled.parameters(one) for one in values])
        except Exception as error:
            _raise_as_sqlalchemy(connection, compiled.sql, error)
            raise

    def _compiled_for(self, connection: Connection, values: Values) -> "_Compiled":
        # Only one dialect has a driver that is used directly.
        if self._compiled is None:
            self._compiled = _Compiled(self._statement, connection.dialect, values.keys())
        return self._compiled


class _Compiled:
    """A statement for one dialect, with what converts its parameters and its rows."""

    def __init__(self, statement: Executable, dialect: Dialect, given: Collection[str]) -> None:
        made = statement.compile(dialect=dialect, column_keys=list(given))  # type: ignore[attr-defined]
        compiled = cast(SQLCompiler, made)
        self.sql = str(compiled)
        kinds = {name: bound.type for bound, name in compiled.bind_names.items()}
        # Of each parameter: its name, its constant if it has one, and its conversion.
        self._parameters = [
            (
                name if name in given else None,
                compiled.params.get(name),
                kinds[name].dialect_impl(dialect).bind_processor(dialect),
            )
            for name in compiled.positiontup or ()
        ]
        columns = list(statement.exported_columns)  # type: ignore[attr-defined]
        row: Any = namedtuple("Row", [one.key for one in columns])  # type: ignore[misc]
        self._make: Callable[[Sequence[Any]], Any] = row._make
        readers = (
            one.type.dialect_impl(dialect).result_processor(dialect, None) for one in columns
        )
        self._readers = [(i, read) for i, read in enumerate(readers) if read is not None]

    def parameters(self, values: Values) -> tuple[Any, ...]:
        found = []
        for name, constant, convert in self._parameters:
            value = constant if name is None else values[name]
            found.append(value if convert is None else convert(value))
        return tuple(found)

    def rows(self, found: Sequence[Sequence[Any]]) -> list[Any]:
        if not self._readers:
            return [self._make(row) for row in found]
        rows = []
        for row in found:
            values = list(row)
            for i, read in self._readers:
                values[i] = read(values[i])
            rows.append(self._make(values))
        return rows


def _raise_as_sqlalchemy(connection: Connection, sql: str, error: Exception) -> None:
    """Raise a driver's error as SQLAlchemy would, without the parameters."""
    base = connection.dialect.loaded_dbapi.Error
    if isinstance(error, base):
        raise DBAPIError.instance(
            sql, None, error, base, hide_parameters=True, dialect=connection.dialect
        ) from error
