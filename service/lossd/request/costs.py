"""What the evaluation of a request costs, as the loss, its terms and the metrics state it."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence

import lossd.metrics as metrics
from lossd.cost import Cost, together
from lossd.job import MAX_PAIRS, Job
from lossd.request.signature import Signature
from lossd_client.errors import TooLarge
from lossd_client.wire.tensor import element_count

__all__ = ["backward_passes", "check_pairs", "evaluation_cost", "has_closed_hessian"]

TENSOR_NS = 200_000
"""The cost of each tensor of a term, measured on one core."""

ROW = Cost(200, 800)
"""The cost of each row if rows are evaluated as requests of their own, measured on one core."""

SECOND = Cost(96, 50)
"""The cost of each entry by which second derivatives are taken, and of each backward pass: twelve float64 are kept."""

Shapes = Mapping[str, tuple[int, ...]]


def backward_passes(signature: Signature, name: str, form: str, shapes: Shapes) -> int:
    """Return how many backward passes a form of the Hessian by an input takes."""
    loss = signature.loss
    if loss is None or loss.is_elementwise(name, signature.parameters):
        return 1
    forms = (form, "exact") if name == "prediction" else ()
    return 1 if any(has_closed_hessian(signature, each, shapes) for each in forms) else element_count(shapes[name][1:])


def has_closed_hessian(signature: Signature, form: str, shapes: Shapes) -> bool:
    """Return whether a form of the Hessian by ``prediction`` takes no backward pass."""
    loss = signature.loss
    return loss is not None and loss.closed_hessian(form, signature.parameters, shapes) is not None


def check_pairs(signature: Signature, names: Sequence[str], shapes: Shapes) -> int:
    """Return how many pairs of entries a loss of kind ``stack`` compares; 0 for others, whose requests differ in it.

    Args:
        signature: The signature.
        names: The names of the requested metrics.
        shapes: The shape of each tensor.

    Raises:
        TooLarge: The loss or the metrics compare too many pairs.
    """
    loss = signature.loss
    metric_pairs = metrics.pairs(signature.task, shapes) if names else 0
    loss_pairs = loss.pairs(shapes) if loss and loss.pairs else 0
    if max(loss_pairs, metric_pairs) > MAX_PAIRS:
        raise TooLarge(
            f"{signature.subject if loss_pairs > MAX_PAIRS else f'the {signature.task} metrics'} would compare "
            f"{max(loss_pairs, metric_pairs)} pairs of entries, at most {MAX_PAIRS} are compared; send smaller batches"
        )
    return loss_pairs if loss and loss.kind == "stack" else 0


def evaluation_cost(
    signature: Signature, shapes: Shapes, names: Sequence[str], passes: Iterable[tuple[str, int]], terms: Sequence[Job]
) -> Cost:
    """Return the cost of the evaluation beyond reading the tensors.

    Args:
        signature: The signature.
        shapes: The shape of each tensor.
        names: The names of the requested metrics.
        passes: The inputs by which second derivatives are taken, and the backward passes that each takes.
        terms: The terms of a composed loss as jobs of their own.
    """
    loss = signature.loss
    parts = [metrics.cost(signature.task, names, shapes, signature.predicted_classes)] if names else []
    if loss is not None and loss.pairs is not None:
        parts.append(loss.pairs.cost(shapes))
    if loss is not None and loss.cost is not None:
        parts.append(loss.cost(signature.parameters, shapes))
    for name, times in passes:
        elements = element_count(shapes[name])
        parts.append(Cost(SECOND.scratch_bytes * elements, SECOND.work_ns * elements * times))
    if not terms:
        return together(parts)
    rows = terms[0].rows if loss is not None and loss.per_sample else 0
    parts += [term.cost for term in terms]
    parts += [Cost(0, TENSOR_NS * len(term.recipe.columns) + term.work_ns - term.cost.work_ns) for term in terms]
    peak_bytes, work_ns = together(parts)
    # Each term's gradients are kept, and then summed in float64.
    kept = sum(column.unit_bytes * column.units(term.rows) for term in terms for column in term.recipe.answers)
    return Cost(peak_bytes + 3 * kept + ROW.scratch_bytes * rows, work_ns + ROW.work_ns * rows)
