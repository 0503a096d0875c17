"""Each loss of the catalogue as someone who knows PyTorch writes it for one model: value, autograd, a few metrics.

Parameters are lossd's defaults. Nothing is checked, and nothing is said about numbers that are not finite.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from typing import NamedTuple

import torch
import torch.nn.functional as F  # noqa: N812 - as all the world calls it
from torch import Tensor

Inputs = Mapping[str, Tensor]
Numbers = dict[str, float]


class Answer(NamedTuple):
    loss: float
    metrics: Numbers
    gradients: dict[str, Tensor]


class Job(NamedTuple):
    """A loss, the inputs that have a gradient, and the metrics of its task."""

    loss: Callable[[Inputs], Tensor]
    leaves: tuple[str, ...]
    metrics: Callable[[Inputs], Numbers]


def evaluate(name: str, inputs: Inputs) -> Answer:
    """The loss, its gradients and the metrics."""
    job = JOBS[name]
    leaves = {leaf: inputs[leaf].requires_grad_() for leaf in job.leaves}
    value = job.loss(inputs)
    gradients = torch.autograd.grad(value, list(leaves.values()))
    with torch.no_grad():
        metrics = job.metrics(inputs)
    return Answer(value.item(), metrics, dict(zip(leaves, gradients, strict=True)))


# Metrics


def of_values(t: Inputs) -> Numbers:
    error = t["prediction"] - t["target"]
    mse = error.square().mean()
    spread = (t["target"] - t["target"].mean()).square().mean()
    size = error.abs()
    found = torch.stack((size.mean(), mse, mse.sqrt(), error.mean(), size.max(), 1 - mse / spread)).tolist()
    return dict(zip(("mae", "mse", "rmse", "bias", "max_error", "r2"), found, strict=True))


def of_rates(t: Inputs) -> Numbers:
    return of_values({"prediction": t["prediction"].exp(), "target": t["target"]})


def of_counts(tp: Tensor, fp: Tensor, fn: Tensor) -> dict[str, Tensor]:
    both = 2 * tp + fp + fn
    return {"precision": tp / (tp + fp), "recall": tp / (tp + fn), "f1": 2 * tp / both, "iou": tp / (tp + fp + fn)}


def of_decisions(predicted: Tensor, actual: Tensor) -> Numbers:
    tp, fp, fn = (predicted & actual).sum(), (predicted & ~actual).sum(), (~predicted & actual).sum()
    rates = {"accuracy": (predicted == actual).double().mean(), **of_counts(tp, fp, fn)}
    return dict(zip(rates, torch.stack([*rates.values()]).tolist(), strict=True))


def of_logits(t: Inputs) -> Numbers:
    return of_decisions(t["prediction"] >= 0, t["target"] > 0)


def of_labels(prediction: Tensor, target: Tensor) -> Numbers:
    predicted, actual = prediction >= 0, target > 0
    tp, fp, fn = ((a & b).sum(0) for a, b in ((predicted, actual), (predicted, ~actual), (~predicted, actual)))
    rates = {name: rate.nan_to_num(0).mean() for name, rate in of_counts(tp, fp, fn).items()}
    return {name: rate.item() for name, rate in {"accuracy": (predicted == actual).double().mean(), **rates}.items()}


def of_classes(t: Inputs) -> Numbers:
    prediction, target = t["prediction"], t["target"]
    classes = prediction.shape[1]
    target = target.argmax(1) if target.is_floating_point() else target
    cells = torch.bincount((target * classes + prediction.argmax(1)).flatten(), minlength=classes * classes)
    matrix = cells.view(classes, classes)
    tp = matrix.diagonal()
    rates = of_counts(tp, matrix.sum(0) - tp, matrix.sum(1) - tp)
    found = torch.stack([tp.sum() / matrix.sum(), *(rate.nanmean() for rate in rates.values())]).tolist()
    return dict(zip(("accuracy", *rates), found, strict=True)) | {"confusion_matrix": matrix.tolist()}


def of_pairs(t: Inputs) -> Numbers:
    return of_decisions(F.pairwise_distance(t["first"], t["second"], eps=0) < 0.5, t["similar"] > 0)


def of_directions(t: Inputs) -> Numbers:
    return of_decisions(1 - F.cosine_similarity(t["first"], t["second"]) < 0.5, t["similar"] > 0)


def of_triplets(t: Inputs) -> Numbers:
    near = F.pairwise_distance(t["anchor"], t["positive"], eps=1e-6)
    far = F.pairwise_distance(t["anchor"], t["negative"], eps=1e-6)
    found = ((far > near).float().mean(), (near - far + 1 <= 0).float().mean(), near.mean(), far.mean())
    names = ("correct", "satisfied", "mean_positive_distance", "mean_negative_distance")
    return dict(zip(names, torch.stack(found).tolist(), strict=True))


def of_order(t: Inputs) -> Numbers:
    ahead = t["target"] * (t["first"] - t["second"])
    return {"correct": (ahead > 0).float().mean().item(), "satisfied": (ahead >= 0).float().mean().item()}


def of_boxes(t: Inputs) -> Numbers:
    iou, _, _ = overlap(t)
    hits = (iou >= 0.5).float().mean().item()
    return {"mean_iou": iou.mean().item(), "precision": hits, "recall": hits, "f1": hits}


def of_neighbours(t: Inputs) -> Numbers:
    unit = F.normalize(t["embedding"])
    nearest = (unit @ unit.T).fill_diagonal_(-torch.inf).argmax(1)
    return {"recall@1": (t["label"][nearest] == t["label"]).float().mean().item()}


def of_views(t: Inputs) -> Numbers:
    first, second = F.normalize(t["first"]), F.normalize(t["second"])
    score, partner = first @ second.T, torch.arange(len(first))
    spread = [torch.pdist(view).square().mul(-2).exp().mean().log() for view in (first, second)]
    found = torch.stack(
        [
            (score.argmax(1) == partner).float().mean(),
            (score.argmax(0) == partner).float().mean(),
            (first - second).square().sum(1).mean(),
            (spread[0] + spread[1]) / 2,
        ]
    )
    names = ("first_to_second@1", "second_to_first@1", "alignment", "uniformity")
    return dict(zip(names, found.tolist(), strict=True))


def of_players(middle: float) -> Callable[[Inputs], Numbers]:
    def measure(t: Inputs) -> Numbers:
        scores = torch.cat([t["real"], t["fake"]])
        actual = torch.zeros_like(scores, dtype=torch.bool)
        actual[: len(t["real"])] = True
        return of_decisions(scores >= middle, actual)

    return measure


def fooled(middle: float) -> Callable[[Inputs], Numbers]:
    return lambda t: {"fooled": (t["fake"] >= middle).float().mean().item()}


def of_latents(t: Inputs) -> Numbers:
    return {"reconstruction": reconstruction(t).mean().item(), "kl": latent_divergence(t).mean().item()}


def of_preferences(t: Inputs) -> Numbers:
    return of_rewards(t["chosen"], t["rejected"])


def of_references(t: Inputs) -> Numbers:
    chosen, rejected = t["chosen"] - t["reference_chosen"], t["rejected"] - t["reference_rejected"]
    return of_rewards(0.1 * chosen, 0.1 * rejected)


def of_rewards(chosen: Tensor, rejected: Tensor) -> Numbers:
    found = ((chosen > rejected).float().mean(), (chosen - rejected).mean(), chosen.mean(), rejected.mean())
    names = ("preference_accuracy", "mean_margin", "mean_chosen_reward", "mean_rejected_reward")
    return dict(zip(names, torch.stack(found).tolist(), strict=True))


def nothing(_: Inputs) -> Numbers:
    return {}


# Losses


def fair(t: Inputs) -> Tensor:
    size = (t["prediction"] - t["target"]).abs()
    return (size - torch.log1p(size)).mean()


def squared_log(t: Inputs) -> Tensor:
    return 0.5 * (torch.log1p(t["prediction"]) - torch.log1p(t["target"])).square().mean()


def asymmetric_mse(t: Inputs) -> Tensor:
    error = t["prediction"] - t["target"]
    return torch.where(error > 0, 2 * error * error, error * error).mean()


def quantile(t: Inputs) -> Tensor:
    error = t["target"] - t["prediction"]
    return torch.maximum(0.5 * error, -0.5 * error).mean()


def log_cosh(t: Inputs) -> Tensor:
    error = t["prediction"] - t["target"]
    return (error + F.softplus(-2 * error) - math.log(2)).mean()


def pseudo_huber(t: Inputs) -> Tensor:
    return ((1 + (t["prediction"] - t["target"]).square()).sqrt() - 1).mean()


def sigmoid_focal(t: Inputs) -> Tensor:
    logits, target = t["prediction"], t["target"]
    p = torch.sigmoid(logits)
    missed = p * (1 - target) + (1 - p) * target
    alpha = 0.25 * target + 0.75 * (1 - target)
    return (alpha * missed.square() * F.binary_cross_entropy_with_logits(logits, target, reduction="none")).mean()


def focal(t: Inputs) -> Tensor:
    nll = F.cross_entropy(t["prediction"], t["target"], reduction="none")
    return ((1 - (-nll).exp()).square() * nll).mean()


def region_sums(t: Inputs) -> tuple[Tensor, Tensor, Tensor]:
    """Overlap, prediction and target of each class over the batch."""
    p = torch.softmax(t["prediction"], 1)
    hot = torch.zeros_like(p).scatter_(1, t["target"].unsqueeze(1), 1.0)
    axes = [0, *range(2, p.ndim)]
    return (p * hot).sum(axes), p.sum(axes), hot.sum(axes)


def dice(t: Inputs) -> Tensor:
    overlap, predicted, target = region_sums(t)
    return (1 - (2 * overlap + 1) / (predicted + target + 1)).mean()


def jaccard(t: Inputs) -> Tensor:
    overlap, predicted, target = region_sums(t)
    return (1 - (overlap + 1) / (predicted + target - overlap + 1)).mean()


def tversky_values(t: Inputs) -> Tensor:
    overlap, predicted, target = region_sums(t)
    return 1 - (overlap + 1) / (overlap + 0.5 * (predicted - overlap) + 0.5 * (target - overlap) + 1)


def lovasz(t: Inputs) -> Tensor:
    p = torch.softmax(t["prediction"], 1).transpose(0, 1).flatten(1)
    target = t["target"].flatten()
    values = []
    for c, scores in enumerate(p):
        present = (target == c).float()
        errors, order = torch.sort((present - scores).abs(), descending=True, stable=True)  # as lossd orders equal ones
        present = present[order]
        total = present.sum()
        jaccard_of = 1 - (total - present.cumsum(0)) / (total + (1 - present).cumsum(0))
        steps = torch.cat([jaccard_of[:1], jaccard_of[1:] - jaccard_of[:-1]])
        values.append(errors @ steps)
    return torch.stack(values).mean()


def bce_dice(t: Inputs) -> Tensor:
    p, target = torch.sigmoid(t["prediction"]), t["target"]
    overlap = 1 - (2 * (p * target).sum() + 1) / (p.sum() + target.sum() + 1)
    return F.binary_cross_entropy_with_logits(t["prediction"], target) + overlap


def overlap(t: Inputs) -> tuple[Tensor, Tensor, Tensor]:
    """IoU, union and the smallest enclosing box's sides."""
    p, b = t["prediction"], t["target"]
    sides = (torch.minimum(p[:, 2:], b[:, 2:]) - torch.maximum(p[:, :2], b[:, :2])).clamp(min=0)
    shared = sides.prod(1)
    union = (p[:, 2:] - p[:, :2]).prod(1) + (b[:, 2:] - b[:, :2]).prod(1) - shared
    return shared / union, union, torch.maximum(p[:, 2:], b[:, 2:]) - torch.minimum(p[:, :2], b[:, :2])


def iou(t: Inputs) -> Tensor:
    return (1 - overlap(t)[0]).mean()


def giou(t: Inputs) -> Tensor:
    share, union, sides = overlap(t)
    hull = sides.prod(1)
    return (1 - share + (hull - union) / hull).mean()


def distance_values(t: Inputs) -> tuple[Tensor, Tensor]:
    share, _, sides = overlap(t)
    p, b = t["prediction"], t["target"]
    centres = ((p[:, :2] + p[:, 2:] - b[:, :2] - b[:, 2:]) / 2).square().sum(1)
    return 1 - share + centres / sides.square().sum(1), share


def diou(t: Inputs) -> Tensor:
    return distance_values(t)[0].mean()


def ciou(t: Inputs) -> Tensor:
    value, share = distance_values(t)
    p, b = (box[:, 2:] - box[:, :2] for box in (t["prediction"], t["target"]))
    v = 4 / math.pi**2 * (torch.atan(b[:, 0] / b[:, 1]) - torch.atan(p[:, 0] / p[:, 1])).square()
    with torch.no_grad():
        alpha = v / (1 - share + v)
    return (value + alpha * v).mean()


def distillation(t: Inputs) -> Tensor:
    student, teacher = (torch.log_softmax(t[name], 1) for name in ("prediction", "teacher"))
    return F.kl_div(student, teacher, log_target=True, reduction="batchmean")


def contrastive(t: Inputs) -> Tensor:
    distance = F.pairwise_distance(t["first"], t["second"], eps=0)
    similar = t["similar"]
    return 0.5 * (similar * distance.square() + (1 - similar) * F.relu(1 - distance).square()).mean()


def nt_xent(temperature: float) -> Callable[[Inputs], Tensor]:
    def loss(t: Inputs) -> Tensor:
        both, n = F.normalize(torch.cat([t["first"], t["second"]])), len(t["first"])
        score = (both @ both.T / temperature).masked_fill(torch.eye(2 * n, dtype=torch.bool), -torch.inf)
        return F.cross_entropy(score, torch.cat([torch.arange(n, 2 * n), torch.arange(n)]))

    return loss


def clip(t: Inputs) -> Tensor:
    score = F.normalize(t["first"]) @ F.normalize(t["second"]).T / 0.07
    partner = torch.arange(len(score))
    return (F.cross_entropy(score, partner) + F.cross_entropy(score.T, partner)) / 2


def bce_of(scores: Tensor, real: bool) -> Tensor:
    return F.binary_cross_entropy_with_logits(scores, torch.full_like(scores, float(real)))


def reconstruction(t: Inputs) -> Tensor:
    return F.binary_cross_entropy(t["prediction"], t["target"], reduction="none").sum(1)


def latent_divergence(t: Inputs) -> Tensor:
    mean, log_variance = t["mean"], t["log_variance"]
    return 0.5 * (mean.square() + log_variance.exp() - 1 - log_variance).sum(1)


def negative_binomial(t: Inputs) -> Tensor:
    mean, count, alpha = t["prediction"], t["target"], t["dispersion"]
    inverse = 1 / alpha
    value = torch.lgamma(inverse) - torch.lgamma(count + inverse) + torch.lgamma(count + 1)
    return (value + inverse * torch.log1p(alpha * mean) - count * torch.log(alpha * mean / (1 + alpha * mean))).mean()


def normal_crps(t: Inputs) -> Tensor:
    z = (t["target"] - t["prediction"]) / t["scale"]
    density = torch.exp(-0.5 * z * z) / math.sqrt(2 * math.pi)
    return (t["scale"] * (z * torch.erf(z / math.sqrt(2)) + 2 * density - 1 / math.sqrt(math.pi))).mean()


def interval_score(t: Inputs) -> Tensor:
    lower, upper, target = t["lower"], t["upper"], t["target"]
    return (upper - lower + 20 * (F.relu(lower - target) + F.relu(target - upper))).mean()


def of_interval(t: Inputs) -> Numbers:
    inside = (t["target"] >= t["lower"]) & (t["target"] <= t["upper"])
    found = torch.stack((inside.float().mean(), (t["upper"] - t["lower"]).mean())).tolist()
    return dict(zip(("coverage", "width"), found, strict=True))


def dpo(t: Inputs) -> Tensor:
    gains = t["chosen"] - t["rejected"] - t["reference_chosen"] + t["reference_rejected"]
    return -F.logsigmoid(0.1 * gains).mean()


def of_simple(t: Inputs) -> Numbers:
    return of_rewards(2 * t["chosen"], 2 * t["rejected"])


def quantiles(t: Inputs) -> Tensor:
    error = t["target"].unsqueeze(1) - t["prediction"]
    level = torch.tensor([0.1, 0.5, 0.9]).view(1, -1, 1)
    return torch.maximum(level * error, (level - 1) * error).mean()


def of_quantiles(t: Inputs) -> Numbers:
    lower, upper = t["prediction"][:, 0], t["prediction"][:, -1]
    return of_interval({"lower": lower, "upper": upper, "target": t["target"]})


def crps_ensemble(t: Inputs) -> Tensor:
    members, count = t["prediction"], t["prediction"].shape[1]
    apart = (members.unsqueeze(1) - members.unsqueeze(2)).abs().sum((1, 2))
    return ((members - t["target"].unsqueeze(1)).abs().mean(1) - apart / (2 * count**2)).mean()


def student_t(t: Inputs) -> Tensor:
    df, scale = t["df"], t["scale"]
    z = (t["target"] - t["prediction"]) / scale
    value = torch.lgamma(df / 2) - torch.lgamma((df + 1) / 2) + 0.5 * torch.log(math.pi * df)
    return (value + torch.log(scale) + (df + 1) / 2 * torch.log1p(z * z / df)).mean()


def supcon(t: Inputs) -> Tensor:
    unit, label = F.normalize(t["embedding"]), t["label"]
    diagonal = torch.eye(len(unit), dtype=torch.bool)
    score = torch.log_softmax((unit @ unit.T / 0.07).masked_fill(diagonal, -torch.inf), 1)
    positive = (label.unsqueeze(1) == label) & ~diagonal
    return (-score.masked_fill(~positive, 0).sum(1) / positive.sum(1)).mean()


def mined_triplet(t: Inputs) -> Tensor:
    distance, label = torch.cdist(t["embedding"], t["embedding"]), t["label"]
    equal = label.unsqueeze(1) == label
    far = distance.masked_fill(~equal, -torch.inf).amax(1)
    near = distance.masked_fill(equal, torch.inf).amin(1)
    return F.relu(far - near + 1).mean()


def list_net(t: Inputs) -> Tensor:
    return F.cross_entropy(t["prediction"], torch.softmax(t["target"], 1))


def ranknet(t: Inputs) -> Tensor:
    apart = t["prediction"].unsqueeze(2) - t["prediction"].unsqueeze(1)
    ahead = t["target"].unsqueeze(2) > t["target"].unsqueeze(1)
    pairs = F.softplus(-apart).masked_fill(~ahead, 0).sum((1, 2))
    return (pairs / ahead.sum((1, 2)).clamp(min=1)).mean()


def of_queries(t: Inputs) -> Numbers:
    """NDCG, mean average precision, reciprocal rank, hit rate and recall of the first five."""
    target, k = t["target"], 5
    order = t["prediction"].argsort(1, descending=True)
    grades = target.gather(1, order)[:, :k]
    discount = 1 / torch.log2(torch.arange(grades.shape[1]) + 2.0)
    best = target.sort(1, descending=True).values[:, :k]
    ndcg = (grades * discount).sum(1) / (best * discount).sum(1)
    relevant = (grades > 0).float()
    rank = torch.arange(grades.shape[1]) + 1.0
    precision = relevant.cumsum(1) / rank
    found = (
        ndcg.nanmean(),
        ((precision * relevant).sum(1) / (target > 0).sum(1).clamp(max=k)).nanmean(),
        (relevant / rank).amax(1).mean(),
        relevant.amax(1).mean(),
    )
    return dict(zip(("ndcg@k", "map@k", "mrr", "hit_rate@k"), torch.stack(found).tolist(), strict=True))


REGRESSION: dict[str, Callable[[Inputs], Tensor]] = {
    "mse": lambda t: F.mse_loss(t["prediction"], t["target"]),
    "mae": lambda t: F.l1_loss(t["prediction"], t["target"]),
    "huber": lambda t: F.huber_loss(t["prediction"], t["target"]),
    "smooth_l1": lambda t: F.smooth_l1_loss(t["prediction"], t["target"]),
    "log_cosh": log_cosh,
    "asymmetric_mse": asymmetric_mse,
    "quantile": quantile,
    "expectile": lambda t: 0.5 * F.mse_loss(t["prediction"], t["target"]),
    "pseudo_huber": pseudo_huber,
    "fair": fair,
    "squared_log": squared_log,
    "mape": lambda t: ((t["prediction"] - t["target"]).abs() / t["target"].abs()).mean(),
}
RATES: dict[str, Callable[[Inputs], Tensor]] = {
    "poisson_nll": lambda t: F.poisson_nll_loss(t["prediction"], t["target"]),
    "gamma_nll": lambda t: (t["prediction"] + t["target"] * torch.exp(-t["prediction"])).mean(),
    "tweedie": lambda t: (
        2 * t["target"] * torch.exp(-0.5 * t["prediction"]) + 2 * torch.exp(0.5 * t["prediction"])
    ).mean(),
}
CLASSES: dict[str, Callable[[Inputs], Tensor]] = {
    "cross_entropy": lambda t: F.cross_entropy(t["prediction"], t["target"]),
    "focal": focal,
    "nll": lambda t: F.nll_loss(t["prediction"], t["target"]),
    "kl_div": lambda t: F.kl_div(t["prediction"], t["target"], reduction="batchmean"),
    "multi_margin": lambda t: F.multi_margin_loss(t["prediction"], t["target"]),
    "dice": dice,
    "jaccard": jaccard,
    "tversky": lambda t: tversky_values(t).mean(),
    "focal_tversky": lambda t: tversky_values(t).pow(0.75).mean(),
    "lovasz": lovasz,
    "ce_dice": lambda t: 0.5 * (F.cross_entropy(t["prediction"], t["target"]) + dice(t)),
}
LOGITS: dict[str, Callable[[Inputs], Tensor]] = {
    "bce_with_logits": lambda t: F.binary_cross_entropy_with_logits(t["prediction"], t["target"]),
    "sigmoid_focal": sigmoid_focal,
    "soft_margin": lambda t: F.soft_margin_loss(t["prediction"], t["target"]),
    "hinge": lambda t: F.relu(1 - t["target"] * t["prediction"]).mean(),
    "bce_dice": bce_dice,
}
BOXES: dict[str, Callable[[Inputs], Tensor]] = {"iou": iou, "giou": giou, "diou": diou, "ciou": ciou}
VIEWS: dict[str, Callable[[Inputs], Tensor]] = {"info_nce": nt_xent(0.07), "nt_xent": nt_xent(0.5), "clip": clip}
ONE, TWO = ("prediction",), ("first", "second")

JOBS: dict[str, Job] = {
    **{name: Job(loss, ONE, of_values) for name, loss in REGRESSION.items()},
    **{name: Job(loss, ONE, of_rates) for name, loss in RATES.items()},
    **{name: Job(loss, ONE, of_classes) for name, loss in CLASSES.items()},
    **{name: Job(loss, ONE, of_logits) for name, loss in LOGITS.items()},
    **{name: Job(loss, ONE, of_boxes) for name, loss in BOXES.items()},
    **{name: Job(loss, TWO, of_views) for name, loss in VIEWS.items()},
    "bce": Job(
        lambda t: F.binary_cross_entropy(t["prediction"], t["target"]),
        ONE,
        lambda t: of_decisions(t["prediction"] >= 0.5, t["target"] > 0),
    ),
    "multilabel_soft_margin": Job(
        lambda t: F.multilabel_soft_margin_loss(t["prediction"], t["target"]),
        ONE,
        lambda t: of_labels(t["prediction"], t["target"]),
    ),
    "hinge_embedding": Job(
        lambda t: F.hinge_embedding_loss(t["prediction"], t["target"]),
        ONE,
        lambda t: of_decisions(t["prediction"] < 0.5, t["target"] > 0),
    ),
    "distillation": Job(distillation, ONE, nothing),
    "contrastive": Job(contrastive, TWO, of_pairs),
    "cosine_embedding": Job(
        lambda t: F.cosine_embedding_loss(t["first"], t["second"], t["similar"]), TWO, of_directions
    ),
    "triplet": Job(
        lambda t: F.triplet_margin_loss(t["anchor"], t["positive"], t["negative"]),
        ("anchor", "positive", "negative"),
        of_triplets,
    ),
    "margin_ranking": Job(lambda t: F.margin_ranking_loss(t["first"], t["second"], t["target"]), TWO, of_order),
    "gan_discriminator": Job(
        lambda t: bce_of(t["real"], real=True) + bce_of(t["fake"], real=False), ("real", "fake"), of_players(0)
    ),
    "wgan_discriminator": Job(lambda t: t["fake"].mean() - t["real"].mean(), ("real", "fake"), of_players(0)),
    "lsgan_discriminator": Job(
        lambda t: 0.5 * ((t["real"] - 1).square().mean() + t["fake"].square().mean()),
        ("real", "fake"),
        of_players(0.5),
    ),
    "hinge_gan_discriminator": Job(
        lambda t: F.relu(1 - t["real"]).mean() + F.relu(1 + t["fake"]).mean(), ("real", "fake"), of_players(0)
    ),
    "gan_generator": Job(lambda t: bce_of(t["fake"], real=True), ("fake",), fooled(0)),
    "wgan_generator": Job(lambda t: -t["fake"].mean(), ("fake",), fooled(0)),
    "lsgan_generator": Job(lambda t: 0.5 * (t["fake"] - 1).square().mean(), ("fake",), fooled(0.5)),
    "hinge_gan_generator": Job(lambda t: -t["fake"].mean(), ("fake",), fooled(0)),
    "vae": Job(
        lambda t: (reconstruction(t) + latent_divergence(t)).mean(),
        ONE,
        of_latents,
    ),
    "negative_binomial_nll": Job(negative_binomial, ONE, of_values),
    "gaussian_nll": Job(
        lambda t: F.gaussian_nll_loss(t["prediction"], t["target"], t["variance"]),
        ONE,
        of_values,
    ),
    "laplace_nll": Job(
        lambda t: (torch.log(2 * t["scale"]) + (t["prediction"] - t["target"]).abs() / t["scale"]).mean(),
        ONE,
        of_values,
    ),
    "crps_normal": Job(normal_crps, ONE, of_values),
    "interval_score": Job(interval_score, ("lower", "upper"), of_interval),
    "dpo": Job(dpo, ("chosen", "rejected"), of_references),
    "simpo": Job(
        lambda t: -F.logsigmoid(2 * (t["chosen"] - t["rejected"]) - 1).mean(), ("chosen", "rejected"), of_simple
    ),
    "quantiles": Job(quantiles, ONE, of_quantiles),
    "student_t_nll": Job(student_t, ONE, of_values),
    "supcon": Job(supcon, ("embedding",), of_neighbours),
    "mined_triplet": Job(mined_triplet, ("embedding",), of_neighbours),
    "list_net": Job(list_net, ONE, of_queries),
    "ranknet": Job(ranknet, ONE, of_queries),
    "crps_ensemble": Job(crps_ensemble, ONE, nothing),
    "bradley_terry": Job(
        lambda t: -F.logsigmoid(t["chosen"] - t["rejected"]).mean(), ("chosen", "rejected"), of_preferences
    ),
}
