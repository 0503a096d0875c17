"""One test for all rows of a table: it goes on after a row that fails, and names each of them at the end."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Iterable, Iterator
from contextlib import AbstractContextManager, contextmanager
from functools import wraps
from typing import Any

import pytest

__all__ = ["gathering", "in_one_item"]


@contextmanager
def gathering() -> Iterator[Callable[[object], AbstractContextManager[None]]]:
    """Give blocks their names. What is raised in them is raised together at the end, each with its block's name."""
    failures: list[BaseException] = []

    @contextmanager
    def named(name: object) -> Iterator[None]:
        try:
            yield
        except (Exception, BaseExceptionGroup, pytest.fail.Exception) as error:
            error.add_note(f"in {name}")
            failures.append(error)

    yield named
    if failures:
        raise BaseExceptionGroup("rows of the table fail", failures)


def in_one_item(names: str, values: Iterable[Any]) -> Callable[[Callable[..., None]], Callable[..., None]]:
    """Return a decorator like ``pytest.mark.parametrize``, whose test runs with all values in one item.

    An item takes 5 ms over all processes, more than a short test.

    Args:
        names: The arguments that the values are of, with commas between them.
        values: A value for each run; a tuple of them if there are several names.
    """
    arguments, rows = names.replace(" ", "").split(","), list(values)

    def decorate(test: Callable[..., None]) -> Callable[..., None]:
        @wraps(test)
        def run(**others: Any) -> None:
            with gathering() as named:
                for row in rows:
                    own = row if len(arguments) > 1 else (row,)
                    with named(", ".join(str(value)[:80] for value in own)):
                        test(**dict(zip(arguments, own, strict=True)), **others)

        signature = inspect.signature(test)
        left = [parameter for name, parameter in signature.parameters.items() if name not in arguments]
        run.__signature__ = signature.replace(parameters=left)  # type: ignore[attr-defined]
        return run

    return decorate
