"""What every peer computes: a loss, its gradient and the metrics of its task, by someone who knows PyTorch well.

Requests of one loss with equally many columns are concatenated and evaluated together; images go alone. The focal loss,
which is what the benchmark mostly asks for, has its gradient written out; the others take autograd.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import NamedTuple

import torch
import torch.nn.functional as F  # noqa: N812 - as all the world calls it
from torch import Tensor

Parameter = float | Tensor
"""A loss's one parameter: of a single request, or a column that gives each row its request's."""


class Request(NamedTuple):
    loss: str
    parameter: float
    prediction: Tensor
    target: Tensor


class Answer(NamedTuple):
    loss: float
    metrics: dict[str, float]
    gradient: Tensor
    confusion: Tensor | None


def evaluate(requests: Sequence[Request]) -> list[Answer]:
    """An answer for each request, in their order."""
    answers: dict[int, Answer] = {}
    groups: dict[tuple[str, object], list[int]] = {}
    for index, request in enumerate(requests):
        columns = request.prediction.shape[1] if request.prediction.dim() == 2 else -1 - index
        groups.setdefault((request.loss, columns), []).append(index)
    for (loss, _), members in groups.items():
        group = [requests[index] for index in members]
        if len(group) == 1:
            prediction, target = group[0].prediction, group[0].target
        else:
            prediction = torch.cat([request.prediction for request in group])
            target = torch.cat([request.target for request in group])
        rows = [request.target.shape[0] for request in group]
        found = evaluate_rows(loss, [request.parameter for request in group], rows, prediction, target)
        answers.update(zip(members, found, strict=True))
    return [answers[index] for index in range(len(requests))]


def evaluate_rows(
    loss: str, parameters: Sequence[float], rows: Sequence[int], prediction: Tensor, target: Tensor
) -> list[Answer]:
    """The answers of requests whose rows follow one another; what is not (N, C) is one request."""
    owner: Tensor | None = None
    share: Parameter
    parameter: Parameter
    if len(rows) == 1:
        share, parameter = 1.0 / target.numel(), parameters[0]
    else:
        owner = torch.repeat_interleave(torch.arange(len(rows)), torch.tensor(rows))
        share = torch.tensor([1.0 / count for count in rows])[owner]
        parameter = torch.tensor(parameters)[owner].unsqueeze(1)
        if target.dim() > 1:
            share = share.unsqueeze(1) / target.shape[1]
    if loss == "focal":
        values, gradient = focal(prediction, target, parameter, share)
    else:
        leaf = prediction.detach().requires_grad_(True)
        weighted = LOSSES[loss](leaf, target, parameter) * share
        weighted.sum().backward()
        assert leaf.grad is not None
        values, gradient = weighted.detach(), leaf.grad
    losses = totals(values, owner, len(rows)).tolist()
    metrics, confusion = METRICS[TASKS[loss]](prediction, target, owner, rows)
    gradients = [gradient] if owner is None else gradient.split(list(rows))
    tables = [None] * len(rows) if confusion is None else list(confusion)
    named = [dict(zip(NAMES[TASKS[loss]], numbers, strict=True)) for numbers in metrics.tolist()]
    return [Answer(*parts) for parts in zip(losses, named, gradients, tables, strict=True)]


def totals(values: Tensor, owner: Tensor | None, count: int) -> Tensor:
    """The sum of each request's entries."""
    if owner is None:
        return values.sum().unsqueeze(0)
    if values.dim() > 1:
        values = values.sum(1)
    return values.new_zeros(count).index_add_(0, owner, values)


# Losses: one value for each entry, or for each row of classes


def focal(prediction: Tensor, target: Tensor, gamma: Parameter, share: Parameter) -> tuple[Tensor, Tensor]:
    """Values and gradient, both times the share of each row; in closed form, over the class axis 1."""
    index = target.unsqueeze(1)
    if isinstance(share, Tensor):
        share = share.unsqueeze(1)
    gradient = torch.softmax(prediction, 1)
    p = gradient.gather(1, index)
    logp = p.clamp_min(torch.finfo(p.dtype).tiny).log_()
    q = 1 - p
    power = q * q if isinstance(gamma, float) and gamma == 2.0 else q.pow(gamma)
    # d/dz_j = (gamma q^(gamma-1) p log p - q^gamma) (1[j = t] - p_j)
    slope = (gamma * (q if isinstance(gamma, float) and gamma == 2.0 else q.pow(gamma - 1)) * p * logp - power) * share
    gradient.mul_(-slope).scatter_add_(1, index, slope)
    return power.mul_(logp).mul_(share).neg_().squeeze(1), gradient


def huber(x: Tensor, y: Tensor, delta: Parameter) -> Tensor:
    e = (x - y).abs()
    return torch.where(e <= delta, 0.5 * e * e, delta * (e - 0.5 * delta))


def smooth_l1(x: Tensor, y: Tensor, beta: Parameter) -> Tensor:
    e = (x - y).abs()
    return torch.where(e < beta, 0.5 * e * e / beta, e - 0.5 * beta)


def log_cosh(x: Tensor, y: Tensor, _: Parameter) -> Tensor:
    e = x - y
    return e + F.softplus(-2 * e) - math.log(2)


def quantile(x: Tensor, y: Tensor, q: Parameter) -> Tensor:
    e = y - x
    return torch.maximum(q * e, (q - 1) * e)


def cross_entropy(x: Tensor, y: Tensor, smoothing: Parameter) -> Tensor:
    logp = F.log_softmax(x, 1)
    picked = logp.gather(1, y.unsqueeze(1))
    return (-(1 - smoothing) * picked - smoothing * logp.mean(1, keepdim=True)).squeeze(1)


def sigmoid_focal(x: Tensor, y: Tensor, gamma: Parameter) -> Tensor:
    p = torch.sigmoid(x)
    missed = p + y - 2 * p * y
    return (0.75 - 0.5 * y) * missed.pow(gamma) * F.binary_cross_entropy_with_logits(x, y, reduction="none")


LOSSES: dict[str, Callable[[Tensor, Tensor, Parameter], Tensor]] = {
    "mse": lambda x, y, _: F.mse_loss(x, y, reduction="none"),
    "mae": lambda x, y, _: F.l1_loss(x, y, reduction="none"),
    "huber": huber,
    "smooth_l1": smooth_l1,
    "log_cosh": log_cosh,
    "quantile": quantile,
    "cross_entropy": cross_entropy,
    "bce_with_logits": lambda x, y, _: F.binary_cross_entropy_with_logits(x, y, reduction="none"),
    "sigmoid_focal": sigmoid_focal,
}
TASKS = {
    **dict.fromkeys(("mse", "mae", "huber", "smooth_l1", "log_cosh", "quantile"), "regression"),
    **dict.fromkeys(("focal", "cross_entropy"), "multiclass"),
    **dict.fromkeys(("bce_with_logits", "sigmoid_focal"), "binary"),
}
PARAMETERS = {
    "focal": ("gamma", 2.0),
    "cross_entropy": ("label_smoothing", 0.0),
    "huber": ("delta", 1.0),
    "smooth_l1": ("beta", 1.0),
    "quantile": ("q", 0.5),
    "sigmoid_focal": ("gamma", 2.0),
}
"""A loss's parameter and its default; the others have none."""


# Metrics: a row of numbers for each request, and its confusion matrix where there is one


def of_classes(
    prediction: Tensor, target: Tensor, owner: Tensor | None, rows: Sequence[int]
) -> tuple[Tensor, Tensor | None]:
    """Averages over the classes for which the metric is defined."""
    classes = prediction.shape[1]
    cell = target * classes + prediction.argmax(1)
    confusion = count_cells(cell, owner, len(rows), classes)
    hits = confusion.diagonal(dim1=1, dim2=2)
    scores = of_counts(hits, confusion.sum(1) - hits, confusion.sum(2) - hits)
    return scores.nanmean(2), confusion


def of_decisions(
    prediction: Tensor, target: Tensor, owner: Tensor | None, rows: Sequence[int]
) -> tuple[Tensor, Tensor | None]:
    cell = target.long() * 2 + (prediction >= 0)
    confusion = count_cells(cell, owner, len(rows), 2)
    return of_counts(confusion[:, 1, 1], confusion[:, 0, 1], confusion[:, 1, 0]), confusion


def of_values(
    prediction: Tensor, target: Tensor, owner: Tensor | None, rows: Sequence[int]
) -> tuple[Tensor, Tensor | None]:
    e = prediction - target
    entries = torch.tensor(rows) * (target.numel() // target.shape[0])
    mae, mse = (totals(values, owner, len(rows)) / entries for values in (e.abs(), e * e))
    return torch.stack((mae, mse, mse.sqrt()), 1), None


def count_cells(cell: Tensor, owner: Tensor | None, requests: int, classes: int) -> Tensor:
    if owner is not None:
        cell = cell + (owner * classes**2).view(-1, *[1] * (cell.dim() - 1))
    return torch.bincount(cell.view(-1), minlength=requests * classes**2).view(requests, classes, classes)


def of_counts(tp: Tensor, fp: Tensor, fn: Tensor) -> Tensor:
    """Precision, recall, F1 and IoU; NaN where there is nothing to divide by."""
    return torch.stack((tp / (tp + fp), tp / (tp + fn), 2 * tp / (2 * tp + fp + fn), tp / (tp + fp + fn)), 1)


METRICS = {"multiclass": of_classes, "binary": of_decisions, "regression": of_values}
NAMES = {
    "multiclass": ("precision", "recall", "f1", "iou"),
    "binary": ("precision", "recall", "f1", "iou"),
    "regression": ("mae", "mse", "rmse"),
}
