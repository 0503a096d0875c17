"""Runs a compiled pass on a batch, and says which of its requests the general way must answer."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import NamedTuple

import torch
from torch import Tensor

from lossd.compiled.passes import Passes
from lossd.compiled.work import PassOutput, Work
from lossd.evaluation.batch import TensorBatch
from lossd.evaluation.columns import arrays_of

__all__ = ["PassResult", "run_pass"]

HALF = (torch.float16, torch.bfloat16)


class PassResult(NamedTuple):
    """A compiled pass's outcome for a batch, and the inputs as it read them: in float32 at least."""

    outcome: PassOutput
    inputs: Mapping[str, Tensor]


def run_pass(batch: TensorBatch, passes: Passes | None) -> PassResult | None:
    """Run a compiled pass on a batch; return None if there is none, or if it leaves all requests to the general way."""
    recipe = batch.recipe
    if passes is None or batch.device.type != "cpu" or (run := passes.find(recipe)) is None:
        return None
    inputs, answers, rounded = batch.inputs, batch.answers, {}
    if recipe.half:
        inputs = {name: tensor.float() if tensor.dtype in HALF else tensor for name, tensor in inputs.items()}
        rounded = {name: torch.empty(a.shape) for name, a in answers.items() if a.dtype in HALF}
        answers = {**answers, **rounded}
    numbers = dict(zip(recipe.numbers, zip(*batch.numbers, strict=True), strict=True))
    outcome = run(Work(batch.rows, numbers, arrays_of(inputs), arrays_of(answers), passes.threads))
    if outcome is None or (len(batch.rows) == 1 and outcome.doubtful[0]):
        return None
    for name, exact in rounded.items():
        batch.answers[name].copy_(exact)
        rows = batch.rows if recipe.kind == "rows" else [1] * len(batch.rows)
        _doubt_what_overflowed(outcome, batch.answers[name], rows)
    return PassResult(outcome, inputs)


def _doubt_what_overflowed(outcome: PassOutput, rounded: Tensor, rows: Sequence[int]) -> None:
    """Mark the requests whose answers overflow half precision as doubtful: the general way describes them."""
    if not bool(rounded.isfinite().all()):
        for position, request_part in enumerate(torch.split(rounded, list(rows))):
            outcome.doubtful[position] |= not bool(request_part.isfinite().all())
