"""Every row of the table whose loss has a compiled pass gets one answer, compiled or not, however large its numbers."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from itertools import product
from typing import Any

import pytest
import torch
from torch import Tensor

from compiled.test_passes import noted
from evaluating import COMPILED, Evaluated, alone, generally, layout, together
from lossd.compiled.passes import Passes
from lossd.losses import REGISTRY
from lossd.request.planning import make_plan
from lossd_client.errors import Problem
from losses.case import Case, Parameters
from losses.test_values import ROWS
from rows import each_row

OUTPUTS = ["loss", "gradient"]
RELATIVE = {torch.float32: 3e-6, torch.float64: 1e-11}
FINITE = {torch.float32: 3.4e38, torch.float64: 1.7e308}
SMALLEST = {torch.float32: 1e-45, torch.float64: 5e-324}
TINY = 1e-44


pytestmark = pytest.mark.usefixtures("compiled_passes")


def has_a_pass(passes: Passes, request: Mapping[str, Any], inputs: Mapping[str, Tensor]) -> bool:
    recipe = make_plan({"outputs": OUTPUTS, **request}).job(layout(inputs)).recipe
    return passes.find(recipe) is not None


def floats(inputs: Mapping[str, Tensor], dtype: torch.dtype) -> dict[str, Tensor]:
    """The inputs as a pass takes them; labels, and targets that are classes, as integers."""
    indices = {"prediction", "target"} <= inputs.keys() and inputs["target"].ndim < inputs["prediction"].ndim
    return {n: t if n == "label" or (n == "target" and indices) else t.to(dtype) for n, t in inputs.items()}


CANDIDATES = [row for row in ROWS if row.values[0].name in COMPILED]


def test_these_are_the_losses_that_have_passes() -> None:
    from lossd.compiled.recipes import FORMS

    assert FORMS.keys() == COMPILED


def extremes(case: Case, parameters: Parameters, dtype: torch.dtype) -> Iterator[tuple[str, dict[str, Tensor]]]:
    """The row's own inputs, at every magnitude that the dtype has, and its limits."""
    drawn = floats(case.inputs(parameters), dtype)
    loss = REGISTRY[case.name]
    # Above, no digit is left: either way, or of float32's difference of two distances.
    narrow = case.name == "triplet" and dtype == torch.float32
    cancels = case.name == "negative_binomial_nll" or narrow
    errors = ("target",) if loss.task in ("regression", "intervals") and not cancels else ()
    largest, smallest = FINITE[dtype], SMALLEST[dtype]
    scales = [smallest, math.sqrt(smallest), 1e-20, 1.0, *([] if cancels else [1e4, 1e20, math.sqrt(largest), 1e37])]
    for names in dict.fromkeys((loss.differentiable, *((name,) for name in loss.differentiable))):
        for scale in scales:
            yield f"{names} times {scale}", drawn | {name: drawn[name] * scale for name in (*names, *errors)}
    for name in loss.differentiable:
        for value in (largest, -largest, 65504.0, smallest, -smallest, 88.8, -104.5, -745.5):
            if narrow and abs(value) > 1:
                continue
            changed = drawn[name].clone()
            changed[0] = value
            yield f"all of a row of {name} {value}", drawn | {name: changed}
            changed = drawn[name].clone()
            changed.view(-1)[-1] = value
            yield f"one of {name} {value}", drawn | {name: changed}
            if errors:
                target = drawn["target"].clone()
                target[0] = -value
                yield f"target {value}", drawn | {name: changed, "target": target}


def assert_one_answer(
    found: Sequence[Evaluated], expected: Sequence[Evaluated], dtype: torch.dtype, titles: Sequence[str]
) -> None:
    """Check that requests of one recipe and as many rows have the same answers, but for rounding."""
    for f, e, title in zip(found, expected, titles, strict=True):
        documents = f.document, e.document
        norms = [norm for document in documents for norm in document["diagnostics"]["gradient_norm"].values()]
        if all(isinstance(norm, float) and norm < TINY for norm in norms):  # float32's least number, or nothing
            for document in documents:
                warnings = document["diagnostics"]["warnings"]
                document["diagnostics"]["warnings"] = [each for each in warnings if each["code"] != "zero_gradient"]
        assert_like(*documents, RELATIVE[dtype], title)
        assert f.tensors.keys() == e.tensors.keys(), title
    for name in expected[0].tensors if expected else ():
        tensor, other = (torch.stack([each.tensors[name].flatten() for each in those]) for those in (expected, found))
        largest = torch.where(tensor.isfinite(), tensor, 0).abs().amax(1, keepdim=True).double().clamp(max=1e300)
        allowed = (RELATIVE[dtype] * largest).clamp(min=1.5 * SMALLEST[dtype])  # a tie of the least numbers
        distance = (other.double() - tensor.double()).abs()  # NaN of infinities that are equal
        close = (distance <= allowed + 10 * RELATIVE[dtype] * tensor.double().abs()) & other.isfinite()
        near = close | (other == tensor) | (other.isnan() & tensor.isnan())
        for position in (~near.all(1)).nonzero():
            pytest.fail(f"{titles[position]}: {name} is {other[position]}, the general way's {tensor[position]}")


def assert_like(found: Any, expected: Any, relative: float, path: str) -> None:
    if isinstance(expected, dict):
        assert list(found) == list(expected), path
        for name in expected:
            assert_like(found[name], expected[name], relative, f"{path}/{name}")
    elif isinstance(expected, list):
        assert len(found) == len(expected), (path, found, expected)
        for position, (f, e) in enumerate(zip(found, expected, strict=True)):
            assert_like(f, e, relative, f"{path}/{position}")
    elif isinstance(expected, float) and isinstance(found, float | int):
        # What is beneath float32's own numbers is nothing beside them.
        assert math.isclose(found, expected, rel_tol=10 * relative, abs_tol=TINY), (path, found, expected)
    else:
        assert found == expected, path


@each_row(CANDIDATES)
def test_a_row_has_one_answer(case: Case, parameters: Parameters, passes: Passes) -> None:
    """Requests with a pass in one batch, and the general way in another; those of a batch do not change each other.

    The first row of a loss is asked for in both dtypes and reductions, the others in one dtype each, by turns.
    """
    kinds = [(torch.float32, "mean"), (torch.float64, "mean"), (torch.float32, "sum")]
    turn = case.parameters.index(parameters) % 2
    for dtype, reduction in kinds if parameters is case.parameters[0] else kinds[turn : turn + 1]:
        request = {"loss": {"name": case.name, **parameters, "reduction": reduction}, "outputs": OUTPUTS}
        if not has_a_pass(passes, request, floats(case.inputs(parameters), dtype)):
            continue
        titles, inputs = zip(*extremes(case, parameters, dtype), strict=True)
        # The far distances of this loss cancel: rounding depends on the batch.
        batches = [[sent] for sent in inputs] if case.name == "mined_triplet" else [list(inputs)]
        found, expected = (
            [answer for batch in batches for answer in answered([request] * len(batch), batch)]
            for answered in (together, generally)
        )
        answers = []
        for title, f, e in zip(titles, found, expected, strict=True):
            what = f"{dtype}, {reduction}, {title}"
            if isinstance(e, Problem):  # beyond the domain of the loss
                assert isinstance(f, Problem), what
                assert str(f) == str(e), what
            else:
                assert isinstance(f, Evaluated), what
                answers.append((f, e, what))
        if answers:
            ours, theirs, whats = zip(*answers, strict=True)
            assert_one_answer(ours, theirs, dtype, whats)


LARGE: dict[str, tuple[list[Any], list[Any], float, list[Any]]] = {
    # Of prediction, target, loss and gradient: the mean of e², |e|, |e| - 1/2, … of float32's own numbers.
    "mse": ([2e30, 1.0], [0.0, 1.0], 2e60, [2e30, 0.0]),
    "mae": ([3e38, 1.0], [-3e38, 1.0], 3e38, [0.5, 0.0]),
    "huber": ([3e38, 1.0], [-3e38, 1.0], 3e38, [0.5, 0.0]),
    "smooth_l1": ([3e38, 1.0], [-3e38, 1.0], 3e38, [0.5, 0.0]),
    "log_cosh": ([3e38, 1.0], [-3e38, 1.0], 3e38, [0.5, 0.0]),
    "quantile": ([3e38, 1.0], [-3e38, 1.0], 1.5e38, [0.25, 0.0]),
    "bce_with_logits": ([3e38, -3e38], [0.0, 1.0], 3e38, [0.5, -0.5]),
    "sigmoid_focal": ([3e38, -3e38], [0.0, 1.0], 1.5e38, [0.375, -0.125]),
    "cross_entropy": ([[3e38, -3e38], [0.0, 3e38]], [1, 1], 3e38, [[0.5, -0.5], [0.0, 0.0]]),
    "focal": ([[3e38, -3e38], [0.0, 3e38]], [1, 1], 3e38, [[0.5, -0.5], [0.0, 0.0]]),
    "nll": ([[0.0, -3e38], [-3e38, -3e38]], [1, 1], 3e38, [[0.0, -0.5], [0.0, -0.5]]),
}


ASKED: list[tuple[Mapping[str, Any], Mapping[str, Tensor]]] = [
    ({}, {}),
    ({}, {"sample_weight": torch.ones(2)}),
    ({}, {"sample_weight": torch.full((2,), 1e308, dtype=torch.float64)}),
    ({}, {"cotangent": torch.tensor(1.0)}),
    ({"gradient": {"clip_norm": 1e300}}, {}),
    ({"gradient": {"clip_value": 1e300}}, {}),
    ({"gradient": {"dtype": "float64"}}, {}),
]


@pytest.mark.parametrize("name", LARGE)
def test_what_asks_for_the_general_way_changes_no_number(name: str) -> None:
    prediction, target, loss, gradient = LARGE[name]
    norm = math.sqrt(sum(g**2 for g in torch.tensor(gradient).double().flatten().tolist()))
    for (more, inputs), dtype in product(ASKED, (torch.float32, torch.float64)):
        as_target = torch.tensor(target) if isinstance(target[0], int) else torch.tensor(target, dtype=dtype)
        tensors = {"prediction": torch.tensor(prediction, dtype=dtype), "target": as_target, **inputs}
        with noted(more, inputs, dtype):
            answer = alone({"loss": {"name": name}, "outputs": OUTPUTS, **more}, tensors)
            assert answer.loss == pytest.approx(loss, rel=1e-6)
            assert "non_finite" not in answer.warnings
            expected = torch.tensor(gradient, dtype=torch.float64)
            torch.testing.assert_close(answer.gradient().double(), expected, rtol=1e-6, atol=0)
            found = answer.document["diagnostics"]["gradient_norm"]["prediction"]
            assert found == pytest.approx(norm, rel=1e-6)


@pytest.mark.parametrize("name", LARGE)
def test_what_overflows_changes_no_digit_of_its_neighbours(name: str) -> None:
    prediction, target, _, _ = LARGE[name]
    request = {"loss": {"name": name}, "outputs": OUTPUTS}
    weights = {"sample_weight": torch.ones(2)}
    far = {"prediction": torch.tensor(prediction), "target": torch.tensor(target), **weights}
    generator = torch.Generator().manual_seed(1)
    near = {**far, "prediction": torch.rand(far["prediction"].shape, generator=generator)}
    left, middle, right = together([request] * 3, [near, far, near])
    one, other = together([request] * 2, [near, near])
    for batched, expected in ((left, one), (right, other)):
        assert isinstance(batched, Evaluated)
        assert isinstance(expected, Evaluated)
        assert batched.document == expected.document
        assert torch.equal(batched.gradient(), expected.gradient())
    assert isinstance(middle, Evaluated)
    assert_one_answer([middle], [alone(request, far)], torch.float32, [name])
