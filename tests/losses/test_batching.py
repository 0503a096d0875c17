"""Batching never changes an answer, and the order of the samples matters to none."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

import pytest
import torch
from torch import Tensor

from evaluating import Evaluated, alone, together
from lossd.losses import REGISTRY
from lossd_client.errors import InvalidValue, Problem
from losses.case import Case, Parameters
from losses.cases import CASES
from losses.test_values import ROWS, request
from rows import each_row

# What a request may differ by when it is evaluated among strangers: sums are taken in another order.
WITHIN = {torch.float64: 1e-13, torch.float32: 1e-6}


def assert_same(batched: Evaluated | Problem, single: Evaluated, dtype: torch.dtype, beside: str = "") -> None:
    assert isinstance(batched, Evaluated), (batched, beside)
    within = WITHIN[dtype]
    assert batched.loss == pytest.approx(single.loss, rel=within, abs=within), beside
    assert batched.denominator == pytest.approx(single.denominator, rel=within), beside
    assert batched.warnings == single.warnings, beside
    for name, gradient in single.gradients.items():
        close = {"rtol": 10 * within, "atol": within * float(gradient.abs().max())}
        torch.testing.assert_close(batched.gradient(name), gradient, **close, msg=lambda message: f"{beside} {message}")


def requests(case: Case, parameters: Parameters) -> list[dict[str, Any]]:
    """Three requests of one batch, each with its own numbers where it may have them."""
    return [
        request(case, {**parameters, **{n: values[i % len(values)] for n, values in case.vary.items()}})
        for i in range(3)
    ]


def row_counts(case: Case) -> tuple[int, int, int]:
    return (4, 2, 5) if REGISTRY[case.name].kind == "rows" else (4, 4, 4)


HERE = [
    row
    for row in ROWS
    for case, parameters in [row.values]
    if parameters is case.parameters[0] or REGISTRY[case.name].kind != "rows"
]
"""The rows of the table; of losses of rows the first of each, since :mod:`test_splitting` evaluates every parameter's
requests in batches and in any order, and compares their bits.
"""

IN_BOTH_DTYPES = [
    pytest.param(*row.values, dtype, id=f"{row.id}-{dtype}")
    for row in ROWS
    for dtype in (torch.float64, torch.float32)
    if row in HERE or row.values[0].vary
    if dtype == torch.float64 or row.values[1] is row.values[0].parameters[0]
]
"""These rows, and those whose requests may have different numbers, in float64, in which another row's trace shows best;
each loss in float32 too.
"""


@each_row(IN_BOTH_DTYPES, both_ways=True)
def test_among_strangers_equals_alone(case: Case, parameters: Parameters, dtype: torch.dtype) -> None:
    queries = requests(case, parameters)
    inputs = [case.inputs(parameters, n, seed=n + i, dtype=dtype) for i, n in enumerate(row_counts(case))]
    answers = together(queries, inputs)
    for position in (1, 2):  # between two others, and after them
        assert_same(answers[position], alone(queries[position], inputs[position]), dtype)


def poisoned(inputs: Mapping[str, Tensor], name: str, value: float) -> dict[str, Tensor]:
    tensor = inputs[name].clone()
    tensor[(0, 0) if tensor.ndim > 2 else 0] = value
    return {**inputs, name: tensor}


@pytest.mark.parametrize("case", CASES, ids=str)
def test_a_poisoned_neighbour_changes_nothing(case: Case) -> None:
    parameters = case.parameters[0]
    queries = requests(case, parameters)
    inputs = [case.inputs(parameters, n, seed=n + i, dtype=torch.float32) for i, n in enumerate(row_counts(case))]
    single = {position: alone(queries[position], inputs[position]) for position in (0, 2)}
    poisons = [
        (name, poison)
        for name, drawn in inputs[1].items()
        for poison in ((math.nan, math.inf, 10_000) if drawn.is_floating_point() else (10_000,))
    ]
    for name, poison in poisons:
        answers = together(queries, [inputs[0], poisoned(inputs[1], name, poison), inputs[2]])
        for position, answer in single.items():
            assert_same(answers[position], answer, torch.float32, f"{name} {poison}")
        neighbour = answers[1]
        if isinstance(neighbour, Problem):
            assert isinstance(neighbour, InvalidValue), (name, poison)
            assert name in neighbour.detail
        elif math.isnan(poison):
            assert "non_finite" in neighbour.warnings, name
            assert neighbour.document["diagnostics"]["finite"] is False, name


@each_row(HERE)
def test_the_order_of_the_samples_does_not_matter(case: Case, parameters: Parameters) -> None:
    inputs = case.inputs(parameters)
    order = torch.tensor([3, 0, 4, 1, 2])

    def permuted(tensor: Tensor, name: str) -> Tensor:
        return tensor.index_select(case.sample_axis.get(name, 0), order)

    straight = alone(request(case, parameters), inputs)
    shuffled = alone(request(case, parameters), {name: permuted(t, name) for name, t in inputs.items()})
    assert shuffled.loss == pytest.approx(straight.loss, rel=1e-12)
    for name, gradient in straight.gradients.items():
        torch.testing.assert_close(shuffled.gradient(name), permuted(gradient, name), rtol=1e-11, atol=1e-13)
