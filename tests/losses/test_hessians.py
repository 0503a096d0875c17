"""The Hessian's diagonal, and its product with a direction, against the references' full Hessians."""

from __future__ import annotations

import math
from collections.abc import Callable
from functools import partial
from typing import Any

import mpmath
import pytest
import torch
from torch import Tensor

import evaluating
from evaluating import COMPILED, Evaluated, Tensors, alone, together
from lossd.losses import REGISTRY
from lossd_client.errors import InvalidRequest, MissingInput, ShapeMismatch, TooLarge, UnknownInput
from losses.case import Case, Parameters
from losses.test_gradients import arguments, computed
from losses.test_values import EXACT, ROWS, denominator, expected, over_rows
from rows import each_row

TWICE = [
    row
    for row in ROWS
    if REGISTRY[row.values[0].name].twice
    and REGISTRY[row.values[0].name].kind != "composed"
    and not row.values[0].held_constant
    and row.values[0].name != "perceptual"  # a matrix of images' pixels
]
DIAGONAL = [row for row in TWICE if REGISTRY[row.values[0].name].kind == "rows"]
"""The rows of the table whose losses have a Hessian."""


def inputs_of(case: Case, parameters: Parameters, n: int = 3, **more: Any) -> dict[str, Tensor]:
    return case.inputs(parameters, n=n, **more)


def request(case: Case, parameters: Parameters, **more: Any) -> dict[str, Any]:
    names = REGISTRY[case.name].differentiable
    return {
        "loss": {"name": case.name, **parameters},
        "outputs": [*(f"{kind}.{name}" for kind in ("gradient", "hessian") for name in names)],
        **more,
    }


def hessians(
    case: Case, inputs: dict[str, Tensor], parameters: Parameters, upstream: Tensor | float
) -> dict[str, Callable[[Tensor], Tensor]]:
    """The reference's Hessian by each input, as what multiplies it by a direction of the input's shape."""
    reference = expected(case, inputs, parameters)
    upstream = torch.as_tensor(upstream, dtype=torch.float64).expand_as(reference.value)
    gradients = torch.autograd.grad(reference.value, list(reference.leaves.values()), upstream, create_graph=True)

    def times(name: str, gradient: Tensor, direction: Tensor) -> Tensor:
        if not gradient.requires_grad:
            return torch.zeros_like(direction)
        try:
            return torch.autograd.grad(
                gradient, reference.leaves[name], direction, retain_graph=True, materialize_grads=True
            )[0]
        except RuntimeError:  # torch's margin losses have none; they are linear or quadratic between their kinks
            return _difference(case, inputs, parameters, upstream, name, direction)

    return {name: partial(times, name, gradient) for name, gradient in zip(reference.leaves, gradients, strict=True)}


def _difference(
    case: Case, inputs: dict[str, Tensor], parameters: Parameters, upstream: Tensor, name: str, direction: Tensor
) -> Tensor:
    """The change of the reference's gradient in a direction of an input."""
    low, high = (
        expected(case, {**inputs, name: inputs[name] + step * direction}, parameters).gradients(upstream)[name]
        for step in (-1e-4, 1e-4)
    )
    return (high - low) / 2e-4


def matrices(times: Callable[[Tensor], Tensor], like: Tensor) -> Tensor:
    """The Hessian of each row's loss by the row's entries: (rows, entries of a row, entries of a row)."""
    units = torch.eye(like[0].numel(), dtype=like.dtype)
    columns = [times(unit.reshape(like[0].shape).expand_as(like)).reshape(len(like), -1) for unit in units]
    return torch.stack(columns, -1)


@each_row(DIAGONAL)
def test_a_hessian_is_the_references_diagonal(case: Case, parameters: Parameters) -> None:
    inputs = inputs_of(case, parameters)
    reference = expected(case, inputs, parameters)
    weight = torch.tensor([0.5, 0.0, 2.0], dtype=torch.float64)
    plain = alone(request(case, parameters), inputs)
    weighted = alone(request(case, parameters), inputs | {"sample_weight": weight})
    assert "loss" not in plain.document
    for name, times in hessians(case, inputs, parameters, 1.0).items():
        whole = matrices(times, inputs[name])
        summed = whole.diagonal(dim1=1, dim2=2).reshape(inputs[name].shape)
        diagonal = summed / denominator(case, reference, parameters)
        torch.testing.assert_close(plain.tensors[f"hessian.{name}"], diagonal, **EXACT)
        diagonal = over_rows(weight, summed) * summed / denominator(case, reference, parameters, weight)
        torch.testing.assert_close(weighted.tensors[f"hessian.{name}"], diagonal, **EXACT)
        if REGISTRY[case.name].is_elementwise(name, arguments(REGISTRY[case.name], parameters)):
            off = whole - whole.diagonal(dim1=1, dim2=2).diag_embed()
            assert not off.any(), "the loss is marked as elementwise, and is not"


@each_row(TWICE)
def test_a_product_is_the_references_hessian_times_the_direction(case: Case, parameters: Parameters) -> None:
    inputs = inputs_of(case, parameters, n=3 if REGISTRY[case.name].kind == "rows" else 5)
    reference = expected(case, inputs, parameters)
    below = denominator(case, reference, parameters)
    for name, times in hessians(case, inputs, parameters, 1 / below).items():
        direction = torch.linspace(-1, 2, inputs[name].numel(), dtype=torch.float64).reshape(inputs[name].shape)
        query = {"loss": {"name": case.name, **parameters}, "outputs": [f"hvp.{name}"]}
        answer = alone(query, inputs | {"direction": direction})
        torch.testing.assert_close(answer.tensors[f"hvp.{name}"], times(direction), **EXACT)


@each_row(row for row in DIAGONAL if row.id.endswith(("-0", "-1")))
def test_autograd_equals_finite_differences_twice(case: Case, parameters: Parameters) -> None:
    loss = REGISTRY[case.name]
    inputs = computed(loss, case.inputs(parameters, n=2, seed=1))
    leaves = [inputs[name].clone().requires_grad_() for name in loss.differentiable]

    def value(*leaves: Tensor) -> Tensor:
        unreduced = loss.function(
            **{**inputs, **dict(zip(loss.differentiable, leaves, strict=True))}, **arguments(loss, parameters)
        )
        return unreduced if isinstance(unreduced, Tensor) else unreduced.value

    assert torch.autograd.gradgradcheck(value, leaves, fast_mode=True, atol=1e-4)


# Batches, and compiled passes


def hessian_of(answer: Any) -> Tensor:
    assert isinstance(answer, Evaluated), answer
    return answer.tensors["hessian.prediction"]


PLAIN = [row for row in DIAGONAL if row.values[0].name in COMPILED or row.id.startswith(("poisson", "gaussian"))]


@each_row(PLAIN, both_ways=True)
def test_a_hessian_among_strangers_equals_that_alone(case: Case, parameters: Parameters) -> None:
    if evaluating.passes is None and parameters is not case.parameters[0]:
        return  # a pass reads the parameters of each request; the general way has one function for all rows
    inputs = [case.inputs(parameters, n, seed=n, dtype=torch.float32) for n in (4, 1, 7)]
    # No parameter is read where the axes of a gradient are arranged.
    for layout in ("as_input", "class_first") if parameters is case.parameters[0] else ("as_input",):
        query = request(case, parameters, gradient={"layout": layout}, outputs=["hessian", "gradient"])
        for batched, tensors in list(zip(together([query] * 3, inputs), inputs, strict=True))[1:]:
            assert isinstance(batched, Evaluated), batched
            diagonals = {
                name: tensor for name, tensor in alone(query, tensors).tensors.items() if name.startswith("hessian.")
            }
            assert diagonals
            for name, hessian in diagonals.items():
                torch.testing.assert_close(batched.tensors[name], hessian, rtol=1e-6, atol=1e-7)


CURVED = [
    ("mse", torch.float32, {}),
    ("bce_with_logits", torch.float64, {"floor": 0.01}),
    *(("cross_entropy", torch.float64, {"form": form}) for form in ("exact", "xgboost", "lightgbm")),
    *(("focal", dtype, {"form": form}) for dtype in (torch.float32, torch.float64) for form in ("exact", "fisher")),
    ("focal", torch.float64, {"floor": 1e-3}),
]


@pytest.mark.usefixtures("compiled_passes")
@pytest.mark.parametrize(("name", "dtype", "options"), CURVED)
def test_a_pass_writes_what_the_general_way_does(
    name: str, dtype: torch.dtype, options: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    random = torch.Generator().manual_seed(0)
    scores = (5 * torch.randn(300, 10, generator=random, dtype=torch.float64)).to(dtype)
    scores[0, 0] = 60.0
    target = torch.randint(0, 10, (300,), generator=random)
    if name in ("mse", "bce_with_logits"):
        target = torch.rand(300, 10, generator=random).to(dtype)
    query = {"loss": {"name": name}, "outputs": ["hessian"], "hessian": options}
    inputs = {"prediction": scores, "target": target}
    passed = alone(query, inputs)
    monkeypatch.setattr("evaluating.passes", None)
    general = alone(query, inputs)
    assert passed.document["diagnostics"]["warnings"] == general.document["diagnostics"]["warnings"]
    exact = {"rtol": 1e-11, "atol": 1e-300} if dtype == torch.float64 else {"rtol": 3e-7, "atol": 1e-40}
    torch.testing.assert_close(hessian_of(passed), hessian_of(general), **exact)


# Numbers


def ask(
    name: str, prediction: Any, target: Any = None, *, form: str = "exact", floor: float | None = None, **loss: Any
) -> Evaluated:
    """The sum's gradient and Hessian in float64."""
    inputs: dict[str, Tensor] = {"prediction": torch.as_tensor(prediction, dtype=torch.float64)}
    if target is not None:
        inputs["target"] = torch.as_tensor(target)
    query = {"loss": {"name": name, "reduction": "sum", **loss}, "outputs": ["gradient", "hessian"]}
    return alone({**query, "hessian": {"form": form, "floor": floor}}, inputs)


@pytest.mark.parametrize(
    ("form", "expected"),
    [
        ("exact", [0.222695, 0.184836, 0.081925]),
        ("fisher", [0.222695, 0.184836, 0.081925]),
        ("xgboost", [0.445391, 0.369673, 0.163850]),
        ("lightgbm", [0.334043, 0.277255, 0.122888]),
    ],
)
def test_the_forms_of_a_softmax(form: str, expected: list[float]) -> None:
    [found] = hessian_of(ask("cross_entropy", [[1.0, 0.0, -1.0]], [0], form=form)).tolist()
    assert found == pytest.approx(expected, abs=1e-6)


def test_a_focal_hessian_is_negative_where_the_prediction_is_wrong() -> None:
    answer = ask("sigmoid_focal", [-6.0, -3.0, -2.0, 0.0, 2.0], [1.0] * 5)
    assert hessian_of(answer).tolist() == pytest.approx([-0.004262, -0.005022, 0.038641, 0.099786, 0.003169], abs=1e-6)
    assert answer.gradient().tolist() == pytest.approx(
        [-0.255534, -0.281687, -0.269178, -0.074572, -0.001218], abs=1e-6
    )
    [warning] = answer.document["diagnostics"]["warnings"]
    assert warning["code"] == "negative_hessian"
    assert "(2 times)" in warning["detail"]
    floored = ask("sigmoid_focal", [-6.0, 0.0], [1.0] * 2, floor=0.01)
    assert hessian_of(floored).tolist() == pytest.approx([0.01, 0.099786], abs=1e-6)
    assert not floored.warnings
    information = hessian_of(ask("sigmoid_focal", [-6.0, -3.0], [1.0] * 2, form="fisher"))
    assert (information > 0).all()


def test_poisson_in_boosters() -> None:
    for form in ("xgboost", "lightgbm"):
        assert hessian_of(ask("poisson_nll", [0.5], [3.0], form=form)).item() == pytest.approx(3.32012, abs=1e-5)
    assert hessian_of(ask("poisson_nll", [0.5], [3.0])).item() == pytest.approx(1.648721, abs=1e-6)


@pytest.mark.parametrize(
    ("name", "prediction", "target", "parameters", "slope", "curvature"),
    [
        ("tweedie", 0.5, 3.0, {"power": 1.5}, -1.052377, 1.810214),
        ("gamma_nll", 0.5, 3.0, {}, -0.819592, 1.819592),
        ("pseudo_huber", 2.0, 0.0, {}, 0.894427, 0.089443),
        ("fair", 2.0, 0.0, {}, 2 / 3, 1 / 9),
        ("expectile", 2.0, 0.0, {"q": 0.9}, 0.4, 0.2),
        ("squared_log", 3.0, 0.0, {}, 0.346574, -0.024143),
    ],
)
def test_smooth_losses_of_boosters(
    name: str, prediction: float, target: float, parameters: dict[str, Any], slope: float, curvature: float
) -> None:
    answer = ask(name, [prediction], [target], **parameters)
    assert answer.gradient().item() == pytest.approx(slope, abs=1e-6)
    assert hessian_of(answer).item() == pytest.approx(curvature, abs=1e-6)


def test_a_power_of_the_variance_weighs_the_second_derivative() -> None:
    inputs = {"prediction": torch.tensor([3.0]), "target": torch.tensor([1.0]), "variance": torch.tensor([4.0])}
    query = {"loss": {"name": "gaussian_nll", "beta": 0.5}, "outputs": ["gradient", "hessian"]}
    answer = alone(query, inputs)
    assert answer.gradient().item() == pytest.approx(2 * 2 / 4)
    assert hessian_of(answer).item() == pytest.approx(2 / 4)


@pytest.mark.parametrize("z", [0.0, 1.0, -1.0, 20.0, -37.0, 40.0, 100.0, 700.0])
def test_logistic_variances_keep_their_digits(z: float) -> None:
    with mpmath.workdps(400):
        exact = float(1 / ((1 + mpmath.exp(mpmath.mpf(z))) * (1 + mpmath.exp(-mpmath.mpf(z)))))
        cosh = float(1 / mpmath.cosh(mpmath.mpf(z) / 2) ** 2)
    for found, curvature in (
        (ask("bce_with_logits", [z], [1.0]), exact),
        (ask("soft_margin", [z], [1]), exact),
        (ask("cross_entropy", [[z, 0.0]], [0]), exact),
        (ask("focal", [[z, 0.0]], [0], gamma=0.0), exact),
        (ask("sigmoid_focal", [z], [1.0], gamma=0.0, alpha=None), exact),
        (ask("log_cosh", [z / 2], [0.0]), cosh),
    ):
        torch.testing.assert_close(hessian_of(found).flatten()[0].item(), curvature, rtol=1e-12, atol=0.0)


def test_library_forms_have_a_floor() -> None:
    assert hessian_of(ask("bce_with_logits", [400.0], [1.0], form="xgboost")).item() == 1e-16
    assert hessian_of(ask("mae", [3.0], [1.0])).item() == 0
    assert hessian_of(ask("mae", [3.0], [1.0], form="lightgbm")).item() == 1
    assert hessian_of(ask("quantile", [3.0], [1.0], form="xgboost", q=0.9)).item() == 1
    assert hessian_of(ask("huber", [3.0], [1.0], form="lightgbm")).item() == 1
    assert hessian_of(ask("huber", [3.0], [1.0])).item() == 0
    weights = {"sample_weight": torch.tensor([0.0, 2.0])}
    query = {"loss": {"name": "mae", "reduction": "sum"}, "outputs": ["hessian"], "hessian": {"form": "xgboost"}}
    inputs = {"prediction": torch.tensor([3.0, 3.0]), "target": torch.zeros(2)}
    assert hessian_of(alone(query, inputs | weights)).tolist() == [0, 2]


def test_boosters_forms_of_losses_with_kinks() -> None:
    found = hessian_of(ask("hinge", [0.5, 2.0, -3.0], [1, 1, -1], form="xgboost"))
    assert found.tolist() == [1, 1e-16, 1e-16]  # the floor
    assert hessian_of(ask("hinge", [0.5], [1], form="xgboost", squared=True)).tolist() == [2]
    assert hessian_of(ask("mape", [3.0], [2.0], form="lightgbm")).tolist() == [1]
    found = hessian_of(ask("quantiles", [[3.0, 1.0, 2.0]], [2.0], form="lightgbm", crossing_penalty=1.0))
    assert found.tolist() == [[pytest.approx(1 / 3)] * 3]
    assert hessian_of(ask("crps_ensemble", [[3.0, 1.0, 2.0]], [2.0])).tolist() == [[0, 0, 0]]
    # Of a prediction far above the target, the second derivative is negative.
    assert hessian_of(ask("squared_log", [9.0], [0.0])).item() == pytest.approx((1 - math.log(10)) / 100)
    assert hessian_of(ask("squared_log", [9.0], [0.0], form="xgboost")).item() == 1e-6
    # At the target the error counts as one above it.
    assert hessian_of(ask("expectile", [1.0, 0.0, 2.0], [1.0] * 3, q=0.9)).tolist() == pytest.approx([0.2, 1.8, 0.2])


@pytest.mark.parametrize(
    ("name", "prediction", "mean", "parameters"),
    [
        ("gamma_nll", math.log(2), 2.0, {"shape": 3.0}),
        ("gamma_nll", 2.0, 2.0, {"shape": 3.0, "log_input": False}),
        ("tweedie", math.log(2), 2.0, {"power": 1.3}),
        ("tweedie", 2.0, 2.0, {"power": 1.3, "log_input": False}),
        ("negative_binomial_nll", 2.0, 2.0, {}),
    ],
)
def test_information_is_the_hessian_at_the_mean(
    name: str, prediction: float, mean: float, parameters: dict[str, Any]
) -> None:
    """Because the second derivative is linear in the target, whose expectation is the mean."""
    dispersion = {"dispersion": torch.tensor([0.5])} if name.startswith("neg") else {}

    def hessian(target: float, form: str) -> Tensor:
        inputs = {"prediction": torch.tensor([prediction], dtype=torch.float64), "target": torch.tensor([target])}
        query = {"loss": {"name": name, **parameters}, "outputs": ["hessian"], "hessian": {"form": form}}
        return hessian_of(alone(query, inputs | dispersion))

    torch.testing.assert_close(hessian(7.0, "fisher"), hessian(mean, "exact"), rtol=1e-12, atol=0)


def test_what_is_not_finite_is_said() -> None:
    answer = ask("poisson_nll", [800.0], [1.0])
    assert "non_finite_hessian" in answer.warnings


def test_what_a_mask_hides_has_a_hessian_of_0() -> None:
    nan = float("nan")
    inputs = {
        "prediction": torch.tensor([[1.0, nan], [2.0, 3.0]]),
        "target": torch.tensor([[0.0, 0.0], [nan, 0.0]]),
        "mask": torch.tensor([[1, 0], [0, 1]]),
        "direction": torch.tensor([[1.0, nan], [nan, 2.0]]),
    }
    answer = alone({"loss": {"name": "mse", "reduction": "sum"}, "outputs": ["hessian", "hvp"]}, inputs)
    assert hessian_of(answer).tolist() == [[2, 0], [0, 2]]
    assert answer.tensors["hvp.prediction"].tolist() == [[2, 0], [0, 4]]


# Formulas


@pytest.mark.parametrize(
    ("formula", "second"),
    [
        ("mean(log(prediction) ** 2)", lambda x: 2 * (1 - x.log()) / x**2 / 3),
        ("e = prediction - target; sum(sqrt(1 + e**2)) / 2", lambda x: (1 + (x - 1) ** 2) ** -1.5 / 2),
        ("sum(prediction * target) - mean(exp(prediction), 0)", lambda x: -x.exp() / 3),
        ("where(prediction > 2, prediction ** 3, log(prediction))", lambda x: torch.where(x > 2, 6 * x, -1 / x**2)),
    ],
)
def test_a_formula_of_single_entries_has_a_hessian(formula: str, second: Any) -> None:
    x = torch.tensor([1.0, 2.0, 3.0], dtype=torch.float64)
    query = {"loss": {"name": "expression", "formula": formula, "reduction": "sum"}, "outputs": ["hessian"]}
    inputs = {"prediction": x} | ({"target": torch.ones(3, dtype=torch.float64)} if "target" in formula else {})
    torch.testing.assert_close(hessian_of(alone(query, inputs)), second(x), rtol=1e-10, atol=1e-12)


@pytest.mark.parametrize(
    "formula", ["sum(x) ** 2", "sum(softmax(x))", "x * mean(x)", "norm(x)", "dot(x, sum(x, 0) * x)"]
)
def test_a_formula_that_mixes_entries_has_none(formula: str) -> None:
    query = {"loss": {"name": "expression", "formula": formula}, "outputs": ["hessian.x"]}
    with pytest.raises(InvalidRequest, match=r"expression by x is not diagonal.*ask for hvp"):
        alone(query, {"x": torch.ones(3)})


# Refusals

PAIR: Tensors = {"prediction": torch.zeros(2), "target": torch.zeros(2)}


@pytest.mark.parametrize(
    ("query", "inputs", "error", "message"),
    [
        ({"loss": "dice", "outputs": ["hessian"]}, PAIR, InvalidRequest, "dice by prediction is not diagonal"),
        ({"loss": "ce_dice", "outputs": ["hvp"]}, PAIR, InvalidRequest, "ce_dice has no Hessian and no hvp"),
        ({"loss": "ctc", "outputs": ["hvp"]}, PAIR, InvalidRequest, "ctc has no second derivatives"),
        (
            {"loss": "mae", "outputs": ["hessian"], "hessian": {"form": "fisher"}},
            PAIR,
            InvalidRequest,
            "mae has no Fisher",
        ),
        (
            {"loss": "mse", "outputs": ["hessian.target"]},
            PAIR,
            InvalidRequest,
            "Hessians for prediction, not for 'target'",
        ),
        ({"loss": "mse", "outputs": ["hessian"], "hessian": {"form": "x"}}, PAIR, InvalidRequest, "hessian.form"),
        ({"loss": "mse", "outputs": ["hessians"]}, PAIR, InvalidRequest, "there are loss, gradient, .*hvp"),
        ({"loss": "mse", "outputs": ["hvp"]}, PAIR, MissingInput, "needs the input direction"),
        ({"loss": "mse"}, PAIR | {"direction": torch.zeros(2)}, UnknownInput, "ask for hvp in outputs"),
        ({"loss": "mse", "outputs": ["hvp"]}, PAIR | {"direction": torch.zeros(3)}, ShapeMismatch, "direction"),
        (
            {"loss": "contrastive", "outputs": ["hvp"]},
            PAIR,
            InvalidRequest,
            "hvp is by one input; name it, as in hvp.first",
        ),
    ],
)
def test_what_does_not_exist_is_refused(
    query: dict[str, Any], inputs: Tensors, error: type[Exception], message: str
) -> None:
    with pytest.raises(error, match=message):
        alone(query, inputs)


def test_a_hessian_that_takes_many_passes_is_refused() -> None:
    inputs = {name: torch.randn(2, 65) for name in ("first", "second")} | {"similar": torch.ones(2)}
    with pytest.raises(TooLarge, match="at most 64, and first is"):
        alone({"loss": "contrastive", "outputs": ["hessian.first"]}, inputs)


@pytest.mark.parametrize(
    ("loss", "target"),
    [
        ({"name": "cross_entropy", "poly": 1.0}, torch.zeros(2, dtype=torch.int64)),
        ({"name": "cross_entropy", "z_loss": 0.1}, torch.zeros(2, dtype=torch.int64)),
        ({"name": "focal", "label_smoothing": 0.1}, torch.zeros(2, dtype=torch.int64)),
        ({"name": "focal"}, torch.full((2, 65), 1 / 65)),
    ],
    ids=["poly", "z_loss", "smoothed", "shares"],
)
def test_where_a_closed_form_ends_passes_are_counted_and_there_is_no_information(
    loss: dict[str, Any], target: Tensor
) -> None:
    inputs = {"prediction": torch.randn(2, 65), "target": target}
    for form in ("exact", "xgboost", "lightgbm"):
        with pytest.raises(TooLarge, match="at most 64, and prediction is"):
            alone({"loss": loss, "outputs": ["hessian"], "hessian": {"form": form}}, inputs)
    with pytest.raises(InvalidRequest, match="has no Fisher form with these parameters and targets; use form exact"):
        alone({"loss": loss, "outputs": ["hessian"], "hessian": {"form": "fisher"}}, inputs)
    few = {name: tensor[:, :64] if tensor.ndim == 2 else tensor for name, tensor in inputs.items()}
    assert alone({"loss": loss, "outputs": ["hessian"]}, few).tensors["hessian.prediction"].shape == (2, 64)
