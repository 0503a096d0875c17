"""Statements that every commit executes, without what SQLAlchemy does around each execution.

SQLAlchemy makes the text of a statement once for each database, and the driver executes it: SQLAlchemy takes 40 to
100 µs of a core for what takes SQLite 10 µs. Types that need a conversion, such as JSON, are not converted.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from operator import itemgetter
from typing import Any, NamedTuple

from sqlalchemy.dialects import sqlite
from sqlalchemy.dialects.postgresql import psycopg
from sqlalchemy.engine import Connection
from sqlalchemy.engine.interfaces import DBAPICursor
from sqlalchemy.sql import ClauseElement

__all__ = ["Statement", "cursor_of"]

DIALECTS: Mapping[str, tuple[Any, str]] = {
    "sqlite": (sqlite.dialect, "qmark"),
    "postgresql": (psycopg.dialect, "format"),
}
"""The databases, and how they write parameters by their places."""


class _Text(NamedTuple):
    """The text of a statement, the names of its parameters in their order, and the values of the constant ones.

    ``getter`` returns the values of several parameters in their order, if none is constant.
    """

    text: str
    names: Sequence[str]
    constants: Mapping[str, Any]
    getter: Callable[[Mapping[str, Any]], Sequence[Any]] | None


class Statement:
    """A statement that is executed without SQLAlchemy.

    Args:
        clause: The statement.
        among: The name of the parameter that is a list, of ``column.in_(bindparam(among, expanding=True))``.
        order: The names of its parameters in their order, for :meth:`execute_each`.
    """

    def __init__(self, clause: ClauseElement, among: str | None = None, order: Sequence[str] = ()) -> None:
        self._clause = clause
        self._among = among
        self._order = tuple(order)
        self._texts: dict[tuple[str, int], _Text] = {}

    def rows(self, connection: Connection, parameters: Mapping[str, Any]) -> list[tuple[Any, ...]]:
        """Return the rows that the statement finds.

        Args:
            connection: The connection, in a transaction.
            parameters: The values by name.

        Raises:
            The driver's errors, which :meth:`lossd.recorder.database.Database.run` words.
        """
        length = 0
        if self._among is not None:
            values = parameters[self._among]
            length = 1 << max(len(values) - 1, 0).bit_length()  # so that there are few texts
            filled = [*values, *values[-1:] * (length - len(values))]
            parameters = {**parameters, **{f"{self._among}_{k}": value for k, value in enumerate(filled, 1)}}
        text = self._text(connection, length)
        cursor = cursor_of(connection)
        cursor.execute(text.text, _in_order(text, parameters))
        return list(cursor.fetchall())

    def execute(self, connection: Connection, parameters: Mapping[str, Any]) -> None:
        """Execute the statement; arguments and errors are those of :meth:`rows`."""
        text = self._text(connection, 0)
        cursor_of(connection).execute(text.text, _in_order(text, parameters))

    def execute_each(self, connection: Connection, many: Sequence[Sequence[Any]]) -> None:
        """Execute the statement for each of several sets of parameters, without waiting for the answer to each.

        It must not be the last statement of a transaction: PostgreSQL then lets a client that is stopped idle for ever.

        Args:
            connection: The connection, in a transaction.
            many: Sets of parameters, each in the statement's ``order``.
        """
        text = self._text(connection, 0)
        if tuple(text.names) != self._order:
            raise ValueError(f"the parameters are {text.names}, and {self._order} are given")
        cursor_of(connection).executemany(text.text, many)

    def _text(self, connection: Connection, length: int) -> _Text:
        name = connection.dialect.name
        found = self._texts.get((name, length))
        if found is None:
            dialect, style = DIALECTS[name]
            compiled: Any = self._clause.compile(dialect=dialect(paramstyle=style))
            names, text, constants = compiled.positiontup, compiled.string, compiled.params
            if self._among is not None:
                expanded = compiled.construct_expanded_state({**constants, self._among: [""] * length})
                names, text = expanded.positiontup, expanded.statement
            constants = {name: value for name, value in constants.items() if value is not None and name in names}
            getter = itemgetter(*names) if len(names) > 1 and not constants else None
            found = self._texts[name, length] = _Text(text, names, constants, getter)
        return found


def _in_order(text: _Text, parameters: Mapping[str, Any]) -> Sequence[Any]:
    if text.getter is not None:
        return text.getter(parameters)
    values = {**text.constants, **parameters}
    return [values[name] for name in text.names]


def cursor_of(connection: Connection) -> DBAPICursor:
    """Return a new cursor of the driver."""
    return connection.connection.cursor()
