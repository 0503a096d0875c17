"""Tables of short rows: one item of pytest runs all rows of a loss or task, and a failure names its row.

pytest takes about 2 ms for an item, in each process that collects it: more than most rows take.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable, Iterable
from functools import wraps
from typing import Any

import pytest
from _pytest.mark import ParameterSet

import evaluating

Test = Callable[..., None]


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
            for row in rows:
                for way in ways(row) if both_ways else (None,):
                    try:
                        with pytest.MonkeyPatch.context() as patch:
                            if way is not None:
                                patch.setattr(evaluating, "passes", passes if way == "compiled" else None)
                            test(*row.values, **fixtures)
                    except BaseException as failure:  # pytest.fail raises no Exception
                        failure.add_note(f"in row {row.id}" + (f", {way}" if way else ""))
                        raise

        signature = inspect.signature(test)
        fixtures = list(signature.parameters)[len(next(iter(of_losses.values()))[0].values) :]
        run.__signature__ = signature.replace(  # type: ignore[attr-defined]
            parameters=[
                inspect.Parameter(name, inspect.Parameter.KEYWORD_ONLY)
                for name in ("rows", *(["passes"] if both_ways else []), *fixtures)
            ]
        )
        return pytest.mark.parametrize("rows", [pytest.param(own, id=name) for name, own in of_losses.items()])(run)

    return decorate


def ways(row: ParameterSet) -> tuple[str, ...]:
    """Return the ways to evaluate a row: the general one, and compiled passes if its loss has them."""
    name = getattr(row.values[0], "name", row.values[0])
    return ("compiled", "general") if name in evaluating.COMPILED else ("general",)
