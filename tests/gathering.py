"""One test for all rows of a table: it goes on after a row that fails, and names each of them at the end."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager

__all__ = ["gathering"]


@contextmanager
def gathering() -> Iterator[Callable[[object], AbstractContextManager[None]]]:
    """Give blocks their names. What is raised in them is raised together at the end, each with its block's name."""
    failures = []

    @contextmanager
    def named(name: object) -> Iterator[None]:
        try:
            yield
        except Exception as error:
            error.add_note(f"in {name}")
            failures.append(error)

    yield named
    if failures:
        raise ExceptionGroup("rows of the table fail", failures)
