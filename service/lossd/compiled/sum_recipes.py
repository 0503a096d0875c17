"""How losses that are sums of formulas take a batch: those of discriminators, and of the variational autoencoder."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt

from lossd.compiled import elementwise, formulas
from lossd.compiled.forms import FLOATS, Form, words_of_all
from lossd.compiled.formula_recipes import evaluate_formula
from lossd.compiled.kernels import kernel_of
from lossd.compiled.work import PassOutput, Work
from lossd.job import Recipe
from lossd.metrics.activation import least_scores

__all__ = ["SUM_FORMS"]

Array = npt.NDArray[Any]
Floats = npt.NDArray[np.float64]

FLOOR = float(np.float32(1e-12))
"""The least product of p and 1 - p by which the slope of torch's binary cross-entropy is divided."""


class _Side(NamedTuple):
    """The value of real samples or of fake ones: a formula of a score and of a number that all of them share."""

    formula: str
    target: float
    parameter: float = 0.0


DISCRIMINATORS: Mapping[str, tuple[_Side, _Side]] = {
    "gan_discriminator": (_Side("soft_margin", 1.0), _Side("soft_margin", -1.0)),
    "wgan_discriminator": (_Side("wgan_generator", 1.0), _Side("hinge_embedding", 1.0)),
    "lsgan_discriminator": (_Side("expectile", 1.0, 0.5), _Side("expectile", 0.0, 0.5)),
    "hinge_gan_discriminator": (_Side("hinge", 1.0, 1.0), _Side("hinge", -1.0, 1.0)),
}
"""The formulas of real and of fake samples."""


def _discriminator(recipe: Recipe) -> Form | None:
    columns = {column.name: column for column in recipe.inputs}
    if columns.keys() != {"real", "fake"} or (words := words_of_all(recipe.inputs)) is None:
        return None
    shapes = {name: columns[name].trailing for name in ("real", "fake")}
    together = shapes["real"][0] + shapes["fake"][0]
    width = math.prod(shapes["real"][1:])
    sides = dict(zip(shapes, DISCRIMINATORS[recipe.loss or ""], strict=True))
    # So weighted that the mean of all is the sum of the two means.
    weights = {name: together / (2 * shape[0]) for name, shape in shapes.items()}
    mean, entries = recipe.reduction == "mean", float(together * width)
    sent = min((column.dtype for column in recipe.inputs), key=FLOATS.index)
    activation = "score" if recipe.task == "lsgan" else "logits"
    least = least_scores(recipe.metric_options.get("threshold"), activation, sent, 1) if recipe.metrics else np.empty(0)

    def evaluate(work: Work) -> PassOutput:
        count = len(work.rows)
        columns, doubtful = np.zeros((4 + len(recipe.gradients), count)), np.zeros(count, bool)
        cells = np.zeros((count, 1, 4), np.int64)
        for name, side in sides.items():
            size = shapes[name][0] * width
            starts = np.arange(count + 1) * size
            scores = work.inputs[name].reshape(-1)
            target = np.full_like(scores, side.target)
            upstream = np.full(count, 1 / size if mean else weights[name])
            gradient = work.answers.get(f"gradient.{name}", scores[:0]).reshape(-1)
            inputs = (scores, target)[: len(formulas.FORMULAS[side.formula].inputs)]
            numbers = np.full(count, side.parameter), np.zeros(count)
            found, doubts = evaluate_formula(side.formula, inputs, words, starts, numbers, upstream, (gradient,))
            with np.errstate(all="ignore"):  # of infinities, which are doubtful
                columns[0] += found[1] * upstream
                columns[1] += found[1] * weights[name]
            doubtful |= doubts
            if name in recipe.gradients:
                columns[4 + recipe.gradients.index(name)] = found[4]
            if recipe.metrics:
                target[:] = name == "real"
                memory = scores.view(np.float32), target.view(np.float32)
                elementwise.decisions(*memory, words, starts, size, least, cells)
        doubtful |= ~np.isfinite(columns).all(0)
        columns[2], columns[3] = entries / 2, entries
        return PassOutput(columns, doubtful, {"cells": cells} if recipe.metrics else {})

    counting = (elementwise.decisions,) if recipe.metrics else ()
    return Form([kernel_of(function) for function in (formulas.formulas, *counting)], evaluate, least.nbytes)


NAMES = ("prediction", "target", "mean", "log_variance")


def _vae(recipe: Recipe) -> Form | None:
    columns = {column.name: column for column in recipe.inputs}
    if columns.keys() != set(NAMES) or recipe.axes or (words := words_of_all(recipe.inputs)) is None:
        return None
    mean = recipe.reduction != "sum"
    width, latent = (math.prod(columns[name].trailing) for name in ("prediction", "mean"))
    # An asymmetric square whose two sides weigh the same is a square.
    formula, of_formula = ("bce", FLOOR) if recipe.parameters["reconstruction"] == "bce" else ("asymmetric_mse", 1.0)

    def evaluate(work: Work) -> PassOutput:
        count, rows = len(work.rows), work.starts()
        beta, one, samples = work.number("beta"), np.ones(count), (rows[1:] - rows[:-1]).astype(np.float64)
        upstream = 1 / samples if mean else one
        prediction, target, centre, spread = (work.inputs[name].reshape(-1) for name in NAMES)
        slopes = {
            name: work.answers.get(f"gradient.{name}", prediction[:0]).reshape(-1) for name in NAMES if name != "target"
        }
        zero = np.zeros(count)
        error, doubtful = evaluate_formula(
            formula, (prediction, target), words, rows * width, (np.full(count, of_formula), zero), upstream,
            (slopes["prediction"],),
        )  # fmt: skip
        divergence, doubts = evaluate_formula(
            "vae", (centre, spread), words, rows * latent, (one, zero), beta * upstream,
            (slopes["mean"], slopes["log_variance"]),
        )  # fmt: skip
        with np.errstate(all="ignore"):  # of infinities, which are doubtful
            total = error[1] + beta * divergence[1]
        doubtful |= doubts | ~np.isfinite(total)
        norms = {"prediction": error[4], "mean": divergence[4], "log_variance": divergence[5]}
        found = [total * upstream, total, samples, samples, *(norms[name] for name in recipe.gradients)]
        counted = {"error": np.array([error[1], samples]), "divergence": np.array([divergence[1], samples])}
        return PassOutput(np.array(found), doubtful, counted)

    return Form([kernel_of(formulas.formulas)], evaluate)


SUM_FORMS: Mapping[str, Callable[[Recipe], Form | None]] = {
    **dict.fromkeys(DISCRIMINATORS, _discriminator),
    "vae": _vae,
}
