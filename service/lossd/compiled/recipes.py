"""Which recipes have a compiled pass, which kernels it needs, and how it takes a batch."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from lossd.compiled import elementwise, neighbours, overlaps, vectors
from lossd.compiled.class_recipes import CLASS_FORMS
from lossd.compiled.counting import counting_of
from lossd.compiled.forms import (
    FLOATS,
    OF_MASK,
    Form,
    doubt_what_vanished,
    floor_of,
    prediction_and_target,
    words_of,
)
from lossd.compiled.formula_recipes import FORMULA_FORMS
from lossd.compiled.kernels import Kernel, all_ready, kernel_of
from lossd.compiled.lovasz import LOVASZ_FORMS
from lossd.compiled.multivariate_recipes import MULTIVARIATE_FORMS
from lossd.compiled.sum_recipes import SUM_FORMS
from lossd.compiled.work import Pass, PassOutput, Work
from lossd.job import Recipe

__all__ = ["RecipePass", "look_up"]

Array = npt.NDArray[Any]

FOUND_BYTES = 2048


@dataclass(slots=True, eq=False)
class RecipePass:
    """What is known of a recipe: its pass, and the kernels that must be ready before the pass can run.

    Attributes:
        run: The pass; None if the recipe has none.
        kernels: The kernels that were not ready at the last look.
        nbytes: About how many bytes this and the recipe take in memory.
    """

    run: Pass | None
    kernels: Sequence[Kernel]
    nbytes: int

    def is_ready(self) -> bool:
        """Return whether the kernels are ready; each that is not is asked for."""
        if self.kernels:
            if not all_ready(self.kernels):
                return False
            self.kernels = ()
        return True


def look_up(recipe: Recipe) -> RecipePass:
    """Return what is known of a recipe."""
    form = _form_of(recipe)
    run, kernels = (None, ()) if form is None else (form.evaluate, form.kernels)
    arrays = 0 if form is None else form.array_bytes
    return RecipePass(run, kernels, FOUND_BYTES + recipe.nbytes + arrays)


def _form_of(recipe: Recipe) -> Form | None:
    options = recipe.gradient_options
    first = next(column.dtype for column in recipe.inputs if column.name not in OF_MASK)  # in the order of their names
    plain = (
        recipe.kind in ("rows", "stack")
        and recipe.reduction in ("mean", "batchmean", "sum")
        and first in FLOATS
        and all(words_of(answer.dtype) == words_of(first) for answer in recipe.answers)
        and options.get("clip_norm") is None
        and options.get("clip_value") is None
    )
    form = FORMS.get(recipe.loss or "")
    if recipe.hessians and recipe.loss not in CURVED:
        return None
    return form(recipe) if plain and form is not None else None


def _elements(recipe: Recipe) -> Form | None:
    inputs = prediction_and_target(recipe)
    if recipe.axes or inputs is None:
        return None
    prediction, target = inputs
    parameters = recipe.parameters
    if prediction.trailing != target.trailing or target.dtype not in FLOATS:
        return None
    if words_of(prediction.dtype) != words_of(target.dtype):
        return None
    general = ("pos_weight", "ignore_index", "label_smoothing")
    if any(parameters.get(name) is not None for name in general) or parameters.get("from_logits") is False:
        return None
    width, words = math.prod(prediction.trailing), words_of(prediction.dtype)
    element = elementwise.ELEMENTS[recipe.loss or ""]
    floor = floor_of(recipe)
    alpha = parameters.get("alpha")
    yes, no = (1.0, 1.0) if alpha is None else (alpha, 1 - alpha if parameters["alpha_mode"] == "balance" else alpha)
    counting = counting_of(recipe)

    def evaluate(work: Work) -> PassOutput:
        count, starts = len(work.rows), work.starts() * width
        scores, target = work.inputs["prediction"].reshape(-1), work.inputs["target"].reshape(-1)
        gradient = work.answers.get("gradient.prediction", scores[:0]).reshape(-1)
        scores, target, slopes = scores.view(np.float32), target.view(np.float32), gradient.view(np.float32)
        hessian = work.answers.get("hessian.prediction", work.inputs["prediction"][:0]).reshape(-1).view(np.float32)
        columns, doubtful = np.zeros((5 + len(recipe.hessians), count)), np.zeros(count, bool)
        elementwise.elements(
            element.number,
            scores,
            target,
            words,
            starts,
            work.number(element.parameter),
            yes,
            no,
            recipe.reduction == "mean",
            slopes,
            columns,
            doubtful,
            hessian,
            floor,
        )
        if words == 2:
            doubt_what_vanished(columns[4], gradient, starts, doubtful)
        return PassOutput(columns, doubtful, counting.count(work), ("negative_hessian",) if recipe.hessians else ())

    return Form([kernel_of(elementwise.elements), *counting.kernels], evaluate, counting.nbytes)


CURVED = ("cross_entropy", "focal", "mse", "bce_with_logits")
"""The losses whose passes write Hessians."""

FORMS: Mapping[str, Callable[[Recipe], Form | None]] = {
    **CLASS_FORMS,
    **dict.fromkeys(elementwise.ELEMENTS, _elements),
    **FORMULA_FORMS,
    **vectors.FORMS,
    **neighbours.FORMS,
    **dict.fromkeys(overlaps.BOXES, overlaps.boxes_of),
    **dict.fromkeys(overlaps.REGIONS, overlaps.regions_of),
    **LOVASZ_FORMS,
    **MULTIVARIATE_FORMS,
    **SUM_FORMS,
}
