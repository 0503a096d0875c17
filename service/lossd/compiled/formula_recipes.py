"""How the losses of :mod:`lossd.compiled.formulas` take a batch."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np
import numpy.typing as npt

from lossd.compiled import formulas
from lossd.compiled.counting import counting_of
from lossd.compiled.forms import NOTHING, Form, doubt_what_vanished, words_of_all
from lossd.compiled.kernels import kernel_of
from lossd.compiled.work import PassOutput, Work
from lossd.job import Recipe

__all__ = ["FORMULA_FORMS", "evaluate_formula"]

Array = npt.NDArray[Any]
Floats = npt.NDArray[np.float64]


def evaluate_formula(
    name: str,
    inputs: Sequence[Array],
    words: int,
    starts: Array,
    parameters: Sequence[Floats],
    upstream: Floats,
    slopes: Sequence[Array],
) -> tuple[Floats, Array]:
    """Evaluate a formula, and write its gradients.

    Args:
        name: One of ``FORMULAS``.
        inputs: (E,) each.
        words: The float32 words of a number.
        starts: (B + 1,) the first element of each request, and E.
        parameters: Both parameters, (B,) each.
        upstream: (B,) the factors of the gradients.
        slopes: (E,) each, written; (0,) where it is not wanted.

    Returns:
        The columns that the kernel writes, (7, B), and which requests are doubtful, (B,) bool.
    """
    count = len(starts) - 1
    columns, doubtful = np.zeros((4 + formulas.SLOPES, count)), np.zeros(count, bool)
    missing_inputs, missing_slopes = formulas.INPUTS - len(inputs), formulas.SLOPES - len(slopes)
    first, second, third, fourth = [array.view(np.float32) for array in inputs] + [NOTHING] * missing_inputs
    by_first, by_second, by_third = [array.view(np.float32) for array in slopes] + [NOTHING] * missing_slopes
    a, b = parameters
    formulas.formulas(
        formulas.FORMULAS[name].number, first, second, third, fourth, words, starts, a, b,
        upstream, by_first, by_second, by_third, columns, doubtful,
    )  # fmt: skip
    if words == 2:
        for norm, gradient in zip(columns[4:], slopes, strict=False):
            doubt_what_vanished(norm, gradient, starts, doubtful)
    return columns, doubtful


def _is_written_out(recipe: Recipe) -> bool:
    """Return whether the formula of a loss is that of these parameters."""
    parameters = recipe.parameters
    match recipe.loss:
        case "mape":
            return parameters["eps"] is None
        case "bce":
            return all(parameters[name] is None for name in ("eps", "ignore_index", "label_smoothing"))
        case "dpo":
            return bool(parameters["form"] == "sigmoid")
        case "poisson_nll" | "gamma_nll":
            return bool(parameters["log_input"] and not parameters["full"])
        case "tweedie":
            return bool(parameters["log_input"])
    return not parameters.get("squared")


def _formula(recipe: Recipe) -> Form | None:
    loss = recipe.loss or ""
    _, names, parameters = formulas.FORMULAS[loss]
    if {column.name for column in recipe.inputs} != set(names) or recipe.axes or not _is_written_out(recipe):
        return None
    words = words_of_all(recipe.inputs)
    if words is None or len({column.trailing for column in recipe.inputs}) > 1:
        return None
    width, margin = math.prod(recipe.inputs[0].trailing), "margin" in parameters and words == 1
    full = bool(recipe.parameters.get("full"))
    fixed = {
        "words": float(words),
        "full": float(full),
        "constant": 0.5 * math.log(2 * math.pi) if full else 0.0,
        "floor": 1e-12,
        "sign": -1.0 if recipe.parameters.get("form") == "saturating" else 1.0,
    }
    slopes = [f"gradient.{name}" for name in names if name not in formulas.CONSTANT]
    norms = [4 + slopes.index(f"gradient.{name}") for name in recipe.gradients] or [4]
    mean, counting = recipe.reduction == "mean", counting_of(recipe)

    def evaluate(work: Work) -> PassOutput | None:
        count, starts = len(work.rows), work.starts() * width
        weighting = work.number("beta" if loss == "gaussian_nll" else "")
        if weighting.all():
            return None
        inputs = [work.inputs[name].reshape(-1) for name in names]
        gradients = [work.answers.get(name, NOTHING).reshape(-1) for name in slopes]
        numbers = [np.full(count, fixed[name]) if name in fixed else work.number(name) for name in parameters]
        if margin:  # a score that equals the margin in its own dtype is at the bend
            numbers[0] = numbers[0].astype(np.float32).astype(np.float64)
        upstream = 1 / (starts[1:] - starts[:-1]) if mean else np.ones(count)
        columns, doubtful = evaluate_formula(loss, inputs, words, starts, numbers, upstream, gradients)
        doubtful |= weighting != 0
        return PassOutput(columns[[0, 1, 2, 3, *norms]], doubtful, counting.count(work))

    return Form([kernel_of(formulas.formulas), *counting.kernels], evaluate, counting.nbytes)


FORMULA_FORMS: Mapping[str, Callable[[Recipe], Form | None]] = dict.fromkeys(formulas.FORMULAS, _formula)
