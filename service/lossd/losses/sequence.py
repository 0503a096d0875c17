"""Losses of label sequences."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Annotated, Any, Literal

from annotated_types import Ge

from lossd.cost import Cost
from lossd.lazy_torch import Tensor, functional, torch
from lossd.losses.regions import UNCERTAIN
from lossd.losses.registry import Unreduced, loss
from lossd.losses.types import Integer, LogProbability, Real
from lossd_client.errors import InvalidRequest, InvalidValue

Blank = Annotated[int, Ge(0)]


# Of each time step and place in a sequence of labels and blanks, for the forward and the backward probabilities, in
# float64; and the time that takes.
CELL_BYTES, CELL_NS = 16, 100


def _cost(_: Mapping[str, Any], shapes: Mapping[str, tuple[int, ...]]) -> Cost:
    steps, sequences = shapes["prediction"][:2]
    cells = steps * sequences * (2 * shapes["target"][1] + 1)
    return Cost(CELL_BYTES * cells, CELL_NS * cells)


@loss(task="sequences", kind="alone", cost=_cost, byte_ns=12, twice=False)
def ctc(
    prediction: LogProbability[Tensor, "T N C"],
    target: Integer[Tensor, "N S"],
    input_lengths: Integer[Tensor, "N"],
    target_lengths: Integer[Tensor, "N"],
    *,
    blank: Blank = 0,
    zero_infinity: bool = False,
    reduction: Literal["mean", "sum", "none"] = "mean",
) -> Real[Tensor, "N"] | Unreduced:
    r"""Connectionist temporal classification: a label sequence's negative log-probability over all its alignments.

    .. math:: -\log \sum_{\pi \in B^{-1}(y)} \prod_t p_t(\pi_t)

    Args:
        prediction: Log-probabilities of each of T time steps, N sequences and C classes, as log_softmax gives them;
            -inf is a class that cannot be.
        target: Class indices of each sequence's labels, none of them the blank; what follows its length is not read.
            S is 0 where no sequence has a label.
        input_lengths: Time steps of each sequence, 1 to T.
        target_lengths: Labels of each sequence, 0 to S.
        blank: The class that stands for no label.
        zero_infinity: Whether a sequence too short for its labels has loss 0 and gradient 0, rather than infinity.
        reduction: As in torch, "mean" first divides each sequence's loss by the number of its labels (at least 1).

    Returns:
        One value per sequence, >= 0, unreduced. Where it is below 0, ``positive_log_probability`` is warned.

    Gradient:
        With respect to ``prediction``, as torch has it: the probability less the posterior of each class at each step.
        That is the gradient of the scores under a log_softmax, not of the log-probabilities alone; the two agree once
        the chain rule has passed the log_softmax. 0 at -inf, and beyond a sequence's time steps. Where the loss is
        infinite there is no posterior: NaN, unless ``zero_infinity``.

    References:
        A. Graves et al., Connectionist Temporal Classification, 2006, doi:10.1145/1143844.1143891.
        torch.nn.functional.ctc_loss.
    """
    # Of a class that cannot be, torch's gradient is NaN; filled in, -inf has the gradient 0.
    value = functional.ctc_loss(
        prediction.masked_fill(prediction == -torch.inf, -torch.inf),
        _labels(prediction, target, input_lengths, target_lengths, blank),
        input_lengths.long(),
        target_lengths.long(),
        blank=blank,
        reduction="none",
        zero_infinity=zero_infinity,
    )
    flags = {"positive_log_probability": value < -UNCERTAIN}  # no probability of a sequence is above 1
    value = value / target_lengths.clamp(min=1) if reduction == "mean" else value
    return Unreduced(value, torch.ones_like(value), flags)


def _labels(prediction: Tensor, target: Tensor, input_lengths: Tensor, target_lengths: Tensor, blank: int) -> Tensor:
    """Return the labels, after checks of everything that torch indexes with: torch does not check, and may crash."""
    steps, _, classes = prediction.shape
    if blank >= classes:
        raise InvalidRequest(f"blank is {blank}, prediction has classes 0 to {classes - 1}")
    _check_lengths("input_lengths", input_lengths, 1, steps)
    _check_lengths("target_lengths", target_lengths, 0, target.shape[1])
    labels = target.long()
    read = torch.arange(labels.shape[1], device=labels.device) < target_lengths.unsqueeze(1)
    bad = read & ((labels < 0) | (labels >= classes) | (labels == blank))
    if bool(bad.any()):
        row, place = bad.nonzero()[0].tolist()
        raise InvalidValue(
            f"class {labels[row, place].item()} at target[{row}, {place}] is not a label: classes 0 to {classes - 1} "
            f"expected, without the blank, {blank}"
        )
    labels = labels.masked_fill(~read, 0)
    return labels if labels.shape[1] else functional.pad(labels, (0, 1))  # torch wants a column, read or not


def _check_lengths(name: str, lengths: Tensor, least: int, most: int) -> None:
    bad = (lengths < least) | (lengths > most)
    if bool(bad.any()):
        at = int(bad.nonzero()[0])
        raise InvalidValue(f"{name} must be from {least} to {most}, found {lengths[at].item()} at {name}[{at}]")
