"""Requests of one formula share a batch if each row of the value depends on the same row of the inputs alone."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

import pytest
import torch
from hypothesis import assume, given, settings
from hypothesis import strategies as st
from torch import Tensor

from evaluating import Evaluated, alone, layout, together
from lossd.losses.formula_parser import parse
from lossd.losses.operations import OPERATIONS
from lossd.request.planning import make_plan
from lossd_client.errors import DtypeMismatch, InvalidRequest, InvalidValue, Problem

SHAPES = {"x": (4, 3), "y": (4, 3), "z": (4, 1), "v": (4,), "u": (4, 2, 3), "row": (1, 3), "s": (), "t": (4,)}


def shapes_of(text: str) -> dict[str, tuple[int, ...]]:
    return {name: SHAPES[name] for name in parse(text).names}


@pytest.mark.parametrize(
    "text",
    [
        "(x - y) ** 2",
        "v",
        "abs(v) + 1",
        "where(x > y, x, z)",
        "x - mean(x, 1)",
        "norm(x, -1) * x",
        "-sum(y * log_softmax(x), 1)",
        "logsumexp(x) - gather(x, t)",
        "softmax(u, 2) + cumsum(u, -1) + sort(u, 2) - logcumsumexp(u, 2)",
        "transpose(u)",
        "sum(transpose(u), 2)",
        "dot(x, z, 1)",
        "gather(u, u > 9, 2)",
        "stop(exp(x)) * erf(x) - lgamma(exp(y)) + log1mexp(-exp(z))",
    ],
)
def test_these_keep_rows(text: str) -> None:
    assert parse(text).keeps_rows(shapes_of(text))


@pytest.mark.parametrize(
    "text",
    [
        "sum(x)",
        "mean((x - y) ** 2)",
        "x - mean(x)",
        "x - mean(x, 0)",
        "x - max(x, -2)",
        "dot(x, y)",
        "norm(x) * x",
        "softmax(v)",
        "v - logsumexp(v)",
        "cumsum(v)",
        "sort(x, 0)",
        "logcumsumexp(x, 0)",
        "gather(x, x > 9, 0)",
        "transpose(x)",
        "matmul(x, transpose(y))",
        "matmul(u, transpose(u))",
        "x - row",
        "x * s",
        "unused = x; 5",
        "sum(u, 1)",  # they could be, but torch vectorizes over the axis beside
        "softmax(u)",
        "u - max(u, 1)",
    ],
)
def test_these_do_not(text: str) -> None:
    assert not parse(text).keeps_rows(shapes_of(text))


def test_a_row_that_threads_would_share_is_not_shared() -> None:
    assert parse("sum(x, 1)").keeps_rows({"x": (4, (1 << 15) - 1)})
    assert not parse("sum(x, 1)").keeps_rows({"x": (4, 1 << 15)})


def request(text: str, **fields: Any) -> dict[str, Any]:
    return {"loss": {"name": "expression", "formula": text, **fields}}


def rows(count: int, width: int, seed: int, dtype: torch.dtype) -> dict[str, Tensor]:
    g = torch.Generator().manual_seed(seed)
    inputs = {
        name: torch.randn(count, columns, generator=g, dtype=torch.float64).to(dtype)
        for name, columns in (("x", width), ("y", width), ("z", 1))
    }
    return {**inputs, "t": torch.randint(0, width, (count,), generator=g)}


def assert_equal_to_alone(text: str, inputs: Sequence[Mapping[str, Tensor]], reduction: str) -> None:
    """Each request's loss and gradients are the same bits with the others as by itself."""
    used = [{name: t for name, t in tensors.items() if name in parse(text).names} for tensors in inputs]
    query = request(text, reduction=reduction)
    for batched, arguments in zip(together([query] * len(used), used), used, strict=True):
        single = alone(query, arguments)
        assert isinstance(batched, Evaluated), batched
        assert batched.document == single.document  # NaN is a text in it
        assert batched.tensors.keys() == single.tensors.keys()
        for name, tensor in single.tensors.items():
            torch.testing.assert_close(batched.tensors[name], tensor, rtol=0, atol=0, equal_nan=True)


UNARY = [name for name, o in OPERATIONS.items() if name.isidentifier() and o.operands == 1 and o.axis is None]
ALONG = [name for name, o in OPERATIONS.items() if o.operands == 1 and o.axis is not None]


def formulas() -> st.SearchStrategy[str]:
    """Formulas of all functions, along the last axis."""

    def grown(inner: st.SearchStrategy[str]) -> st.SearchStrategy[str]:
        pair = st.tuples(inner, inner)
        return st.one_of(
            st.tuples(st.sampled_from(sorted(set(UNARY) - {"transpose"})), inner).map(lambda p: f"{p[0]}({p[1]})"),
            st.tuples(st.sampled_from(ALONG), inner).map(lambda p: f"{p[0]}({p[1]} + 0 * x, 1)"),
            st.tuples(st.sampled_from("+-*/<"), pair).map(lambda p: f"({p[1][0]} {p[0]} {p[1][1]})"),
            st.tuples(st.sampled_from(["minimum", "maximum"]), pair).map(lambda p: f"{p[0]}({', '.join(p[1])})"),
            pair.map(lambda p: f"dot({p[0]} + 0 * x, {p[1]}, 1)"),
            pair.map(lambda p: f"where({p[0]} < {p[1]}, {p[0]}, {p[1]})"),
            pair.map(lambda p: f"clamp({p[0]}, -1, {p[1]})"),
            pair.map(lambda p: f"(1 + {p[0]} ** 2) ** {p[1]}"),
            inner.map(lambda p: f"gather({p} + 0 * x, t)"),
        )

    return st.recursive(st.sampled_from(["x", "y", "z", "0.3"]), grown, max_leaves=8)


@settings(max_examples=75, deadline=None)
@given(
    formulas(),
    st.lists(st.integers(1, 40), min_size=2, max_size=4),
    st.sampled_from([1, 3, 5, 37]),
    st.sampled_from([torch.float32, torch.float64]),
    st.sampled_from(["mean", "sum", "none"]),
)
def test_any_formula_that_keeps_rows_is_answered_as_alone(
    text: str, counts: list[int], width: int, dtype: torch.dtype, reduction: str
) -> None:
    inputs = [rows(n, width, seed, dtype) for seed, n in enumerate(counts)]
    assume(parse(text).names and {"x", "y", "z"} & set(parse(text).names))
    assert parse(text).keeps_rows({name: tuple(inputs[0][name].shape) for name in parse(text).names})
    assert_equal_to_alone(text, inputs, reduction)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=str)
@pytest.mark.parametrize(
    "text",
    [
        "x - mean(x, 1) - sum(y, 1) / 3 + norm(x * z, 1)",
        "logsumexp(x) - gather(x, t) + softmax(y) * sort(x) - z",
        "lgamma(exp(x)) - erf(y) * sin(x) + cos(y) + sigmoid(x) - softplus(z) + exp(x) ** z",
        "logcumsumexp(x - y) + cumsum(x) - log1mexp(-exp(z)) + tanh(x) * logsigmoid(y)",
        "dot(x, z, 1) + max(x, 1) - min(y, 1) + log_softmax(x)",
    ],
)
def test_rows_that_threads_share_are_answered_as_alone(text: str, dtype: torch.dtype) -> None:
    """Together they have more entries than one thread takes."""
    inputs = [rows(n, 11, seed, dtype) for seed, n in enumerate((1, 9_001, 3, 517))]
    assert_equal_to_alone(text, inputs, "mean")


def test_three_dimensions_are_answered_as_alone() -> None:
    g = torch.Generator().manual_seed(0)
    inputs = [{"u": torch.randn(n, 3, 7, generator=g)} for n in (2, 1, 5)]
    text = "transpose(sort(transpose(u), 2)) * softmax(u, 2) - sum(u, 2)"
    for batched, tensors in zip(together([request(text)] * 3, inputs), inputs, strict=True):
        assert isinstance(batched, Evaluated)
        single = alone(request(text), tensors)
        assert batched.loss == single.loss
        assert torch.equal(batched.gradient("u"), single.gradient("u"))


@pytest.mark.parametrize("poison", [math.nan, math.inf])
def test_a_poisoned_neighbour_changes_no_bit(poison: float) -> None:
    text = "logcumsumexp(x - mean(x, 1)) + gather(softmax(y), t) * sort(x)"
    inputs = [rows(n, 5, seed, torch.float32) for seed, n in enumerate((4, 3, 5))]
    inputs[1]["x"][1, 2] = poison
    del inputs[0]["z"], inputs[1]["z"], inputs[2]["z"]
    answers = together([request(text)] * 3, inputs)
    for position in (0, 2):
        answer, single = answers[position], alone(request(text), inputs[position])
        assert isinstance(answer, Evaluated)
        assert answer.loss == single.loss
        assert all(torch.equal(answer.tensors[name], tensor) for name, tensor in single.tensors.items())
    assert isinstance(answers[1], Evaluated)
    assert "non_finite" in answers[1].warnings


def recipe(text: str, inputs: Mapping[str, Tensor], **fields: Any) -> Any:
    return make_plan({**request(text), **fields}).job(layout(inputs)).recipe


def test_what_shares_a_batch() -> None:
    few, many = rows(2, 3, 0, torch.float32), rows(9, 3, 1, torch.float32)
    pair = {name: few[name] for name in ("x", "y")}
    more = {name: many[name] for name in ("x", "y")}
    local, crossing = "abs(x - y)", "mean(abs(x - y))"
    assert recipe(local, pair).text == recipe(local, more).text
    assert recipe(local, pair).kind == "rows"
    assert recipe(local, pair).text != recipe("abs(y - x)", pair).text
    assert recipe(crossing, pair).alone
    assert recipe(local, pair, outputs=["loss", "hessian.x"]).alone
    assert recipe(local, {name: t[0, 0] for name, t in pair.items()}).alone


# Indices


def classes(n: int, dtype: torch.dtype = torch.int64) -> dict[str, Tensor]:
    g = torch.Generator().manual_seed(n)
    return {"prediction": torch.randn(n, 4, generator=g), "target": torch.randint(0, 4, (n,), generator=g).to(dtype)}


ENTROPY = "-gather(log_softmax(prediction), target)"


@pytest.mark.parametrize("dtype", [torch.int64, torch.int32, torch.uint8])
def test_an_index_is_a_tensor_of_integers_without_a_gradient(dtype: torch.dtype) -> None:
    inputs = classes(6, dtype)
    answer = alone({"outputs": ["loss", "gradient"], **request(ENTROPY)}, inputs)
    leaf = inputs["prediction"].double().requires_grad_()
    exact = torch.nn.functional.cross_entropy(leaf, inputs["target"].long())
    exact.backward()
    assert answer.loss == pytest.approx(float(exact.detach()), rel=1e-6)
    assert list(answer.gradients) == ["prediction"]
    torch.testing.assert_close(answer.gradient().double(), leaf.grad, rtol=1e-5, atol=1e-7)
    assert list(alone(request("gather(a, i)"), {"a": torch.ones(2, 3), "i": torch.ones(2).to(dtype)}).gradients) == [
        "a"
    ]
    with pytest.raises(InvalidRequest, match="has gradients for prediction, not for 'target'"):
        alone({"outputs": ["gradient.target"], **request(ENTROPY)}, inputs)


def test_an_index_of_floats_is_refused_and_a_computed_one_is_not() -> None:
    inputs = classes(3)
    with pytest.raises(DtypeMismatch, match="target of expression must be a tensor of integers, found float32"):
        alone(request(ENTROPY), {**inputs, "target": inputs["target"].float()})
    ignoring = "kept = target >= 0; -kept * gather(log_softmax(prediction), maximum(target, 0))"
    target = torch.tensor([1, -100, 3])
    answer = alone(request(ignoring, reduction="sum"), {**inputs, "target": target[:, None]})
    exact = torch.nn.functional.cross_entropy(inputs["prediction"].double(), target, reduction="sum")
    assert answer.loss == pytest.approx(float(exact), rel=1e-6)


@pytest.mark.parametrize(
    ("text", "wrong", "message"),
    [
        (
            ENTROPY,
            4,
            r"column 2: gather\(log_softmax\(prediction\), target\): the index 4 at \[1\] is out of range: axis 1 has",
        ),
        (ENTROPY, -1, r"the index -1 at \[1\] is out of range: axis 1 has 0 to 3"),
        ("gather(prediction, target + 0.5)", 0, r"the index 0.5 at \[0\] is no whole number"),
        ("gather(prediction, 0 * target / 0)", 0, r"the index nan at \[0\] is no whole number"),
        ("gather(prediction, target + 1e30)", 0, r"the index 1000000000000000019884624838656 at \[0\] is out of range"),
    ],
)
def test_a_bad_index_fails_its_own_request(text: str, wrong: int, message: str) -> None:
    bad = classes(3)
    bad["target"][:2] = torch.tensor([0, wrong])
    with pytest.raises(InvalidValue, match=message):
        alone(request(text), bad)
    if text == ENTROPY:
        good = classes(5)
        first, refused, last = together([request(text)] * 3, [good, bad, good])
        assert isinstance(refused, Problem)
        assert refused.detail.startswith("column 2: gather")
        assert isinstance(first, Evaluated)
        assert isinstance(last, Evaluated)
        assert first.loss == last.loss == alone(request(text), good).loss
