"""Tables of short rows: one item of pytest runs many of them, goes on after one that fails, and names each that failed.

An item of pytest takes about 5 ms over all processes: more than most rows take.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable, Iterable, Iterator
from contextlib import AbstractContextManager, contextmanager
from functools import wraps
from typing import Any

import pytest
from _pytest.mark import ParameterSet

import evaluating

__all__ = ["each_row", "gathering", "in_one_item"]

Test = Callable[..., None]


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

    try:
        yield named
    finally:  # a row that is skipped ends the item, and hides no failure
        if failures:
            raise BaseExceptionGroup("rows of the table fail", failures)


def in_one_item(names: str, values: Iterable[Any]) -> Callable[[Test], Test]:
    """Return a decorator like ``pytest.mark.parametrize``, whose test runs with all values in one item.

    Args:
        names: The arguments that the values are of, with commas between them.
        values: A value for each run; a tuple of them if there are several names.
    """
    arguments, rows = names.replace(" ", "").split(","), list(values)

    def decorate(test: Test) -> Test:
        @wraps(test)
        def run(**others: Any) -> None:
            with gathering() as named:
                for row in rows:
                    entries = row if len(arguments) > 1 else (row,)
                    with named(", ".join(str(entry)[:80] for entry in entries)):
                        test(**dict(zip(arguments, entries, strict=True)), **others)

        _take(run, [name for name in inspect.signature(test).parameters if name not in arguments])
        return run

    return decorate


def each_row(rows: Iterable[ParameterSet], *, both_ways: bool = False) -> Callable[[Test], Test]:
    """Return a decorator that parametrizes a test by loss and runs it for each row of the loss.

    Args:
        rows: The values of the test's first arguments; the first of them is the name of a loss, or of what the rows
            have in common otherwise, or has this name as an attribute.
        both_ways: Whether to run each row with compiled passes too, if its loss has them.
    """
    of_losses: dict[str, list[ParameterSet]] = {}
    for row in rows:
        of_losses.setdefault(getattr(row.values[0], "name", row.values[0]), []).append(row)

    def decorate(test: Test) -> Test:
        @wraps(test)
        def run(rows: list[ParameterSet], **fixtures: Any) -> None:
            passes = fixtures.pop("passes") if both_ways else None
            with gathering() as named:
                for row in rows:
                    for way in ways(row) if both_ways else ("",):
                        with named(f"row {row.id} {way}".rstrip()), pytest.MonkeyPatch.context() as patch:
                            if way:
                                patch.setattr(evaluating, "passes", passes if way == "compiled" else None)
                            test(*row.values, **fixtures)

        fixtures = list(inspect.signature(test).parameters)[len(next(iter(of_losses.values()))[0].values) :]
        _take(run, ["rows", *(["passes"] if both_ways else []), *fixtures])
        return pytest.mark.parametrize("rows", [pytest.param(some, id=name) for name, some in of_losses.items()])(run)

    return decorate


def _take(run: Test, names: Iterable[str]) -> None:
    """Let pytest see these arguments of a test."""
    parameters = [inspect.Parameter(name, inspect.Parameter.KEYWORD_ONLY) for name in names]
    run.__signature__ = inspect.Signature(parameters)  # type: ignore[attr-defined]


def ways(row: ParameterSet) -> tuple[str, ...]:
    """Return the ways to evaluate a row: the general one, and compiled passes if its loss has them."""
    name = getattr(row.values[0], "name", row.values[0])
    return ("compiled", "general") if name in evaluating.COMPILED else ("general",)
