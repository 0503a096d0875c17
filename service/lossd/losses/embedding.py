"""Losses of embeddings: pairs and triplets, one value a row, and batches whose samples are each other's negatives.

A distance of 0 and a vector of length 0 have no direction: their gradient is 0, and the answer warns. Distances are
computed from differences, so a row is at distance 0 of itself exactly.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Annotated, Literal

from annotated_types import Ge, Le

import lossd.losses.softmax as softmax
from lossd.cost import PairCost
from lossd.lazy_torch import Tensor, torch
from lossd.losses.distances import in_own_dtype, one_less_cosine, row_direction, row_distance, zero_with_slopes
from lossd.losses.registry import Unreduced, loss
from lossd.losses.types import Indicator, Integer, Kept, NonNegative, Positive, Real, Sign

Cosine = Annotated[float, Ge(-1), Le(1)]
Order = Annotated[float, Ge(1)] | Literal["inf"]
BLOCK = 1 << 18
"""Pairs whose triplets are mined together: a dozen tables of so many."""

Mining = Literal["hard", "semi_hard", "all"]
Variant = Literal["symmetric", "one_sided_duplicate"]


def _of_one(shapes: Mapping[str, tuple[int, ...]]) -> int:
    return shapes["embedding"][0] ** 2


def _of_both_views(shapes: Mapping[str, tuple[int, ...]]) -> int:
    return 4 * shapes["first"][0] ** 2


# Bytes as measured in float64, and times of one core: tables are walked over a few times, and sorted to mine triplets.
MINED = PairCost(_of_one, 48, 300, 1.0)
LABELLED = PairCost(_of_one, 31, 60, 0.5)
VIEWS = PairCost(_of_both_views, 45, 60, 0.5)
SCORED = PairCost(_of_both_views, 13, 20, 0.2)


@loss(task="pairs", kind="rows", differentiable=("first", "second"))
def contrastive(
    first: Real[Tensor, "N D"],
    second: Real[Tensor, "N D"],
    similar: Indicator[Tensor, "N"],
    *,
    margin: NonNegative = 1.0,
    factor: NonNegative = 0.5,
    eps: NonNegative = 0.0,
) -> Real[Tensor, "N"] | Unreduced:
    r"""Pulls similar pairs together and pushes other pairs apart, up to a margin.

    .. math:: f\left[y\,d^2 + (1-y)\max(0, m-d)^2\right], \quad d = \lVert a - b + \varepsilon\rVert_2

    Args:
        first: Embeddings a.
        second: Embeddings b, each paired with the row of a.
        similar: y: 1 for a similar pair, 0 for another.
        margin: m, the distance from which pairs that are not similar count no more.
        factor: f: 0.5 as in the paper; others use 1.
        eps: Added to every coordinate of the difference, as torch's pairwise_distance does (1e-6 there).

    Returns:
        One value per pair, >= 0, unreduced.

    Gradient:
        With respect to ``first`` and ``second``; 0 for identical embeddings.

    References:
        R. Hadsell, S. Chopra, Y. LeCun, Dimensionality Reduction by Learning an Invariant Mapping, 2006,
            doi:10.1109/CVPR.2006.100.
    """
    distance, same = row_distance(first, second, eps=eps)
    short = in_own_dtype(lambda d: margin - d, first.dtype, distance)
    value = factor * (similar * distance.square() + (1 - similar) * torch.relu(short).square())
    return Unreduced(value, torch.ones_like(value), flags={"zero_vector": same})


@loss(task="cosine_pairs", kind="rows", differentiable=("first", "second"), byte_ns=12)
def cosine_embedding(
    first: Real[Tensor, "N D"],
    second: Real[Tensor, "N D"],
    similar: Sign[Tensor, "N"],
    *,
    margin: Cosine = 0.0,
) -> Real[Tensor, "N"] | Unreduced:
    r"""1 minus the cosine of similar pairs; for other pairs, the excess of the cosine over ``margin``.

    .. math:: 1 - \cos(a, b) \;(y = 1), \quad \max(0, \cos(a, b) - m) \;(y = -1)

    Args:
        first: Embeddings a.
        second: Embeddings b, each paired with the row of a.
        similar: y: 1 for a similar pair, -1 for another.
        margin: m, the cosine down to which pairs that are not similar are pushed apart, in [-1, 1].

    Returns:
        One value per pair, in [0, 2], unreduced.

    Gradient:
        With respect to ``first`` and ``second``; 0 where one of them is the zero vector, whose cosines are 0.

    References:
        torch.nn.functional.cosine_embedding_loss.
    """
    apart, zero = one_less_cosine(first, second)
    value = torch.where(similar > 0, apart, (1 - apart - margin).clamp(min=0))
    return Unreduced(value, torch.ones_like(value), flags={"zero_vector": zero})


@loss(task="triplets", kind="rows", differentiable=("anchor", "positive", "negative"))
def triplet(
    anchor: Real[Tensor, "N D"],
    positive: Real[Tensor, "N D"],
    negative: Real[Tensor, "N D"],
    *,
    margin: NonNegative = 1.0,
    p: Order = 2.0,
    squared: bool = False,
    swap: bool = False,
    eps: NonNegative = 1e-6,
) -> Real[Tensor, "N"] | Unreduced:
    r"""Pulls the anchor closer to its positive than to its negative, by a margin.

    .. math:: \max(0,\; d(a, p) - d(a, n) + m), \quad d(x, y) = \lVert x - y + \varepsilon\rVert_p

    Args:
        anchor: Embeddings a.
        positive: Embeddings of the same kind as the anchors.
        negative: Embeddings of another kind.
        margin: m, by how much nearer, in units of the distance.
        p: Order of the norm, >= 1, or "inf".
        squared: Whether distances are squared; ``eps`` then plays no part.
        swap: Whether the negative's distance is the smaller of those to the anchor and to the positive.
        eps: Added to every coordinate of a difference, as torch does.

    Returns:
        One value per triplet, >= 0, unreduced.

    Gradient:
        With respect to ``anchor``, ``positive`` and ``negative``; identical embeddings do not pull or push each other.

    References:
        F. Schroff, D. Kalenichenko, J. Philbin, FaceNet, 2015, arXiv:1503.03832.
        V. Balntas et al., Learning Local Feature Descriptors with Triplets, 2016, doi:10.5244/C.30.119 (swap).
        torch.nn.functional.triplet_margin_loss.
    """
    order = float(p)
    near, same = row_distance(anchor, positive, order, eps, squared)
    far, also_same = row_distance(anchor, negative, order, eps, squared)
    same = same | also_same
    if swap:
        between, also_same = row_distance(positive, negative, order, eps, squared)
        far, same = torch.minimum(far, between), same | also_same
    value = in_own_dtype(lambda near, far: near - far + margin, anchor.dtype, near, far).clamp(min=0)
    return Unreduced(value, torch.ones_like(value), flags={"zero_vector": same})


# Its gradient is made of slopes that are held constant.
@loss(task="labelled_embeddings", kind="stack", differentiable=("embedding",), pairs=MINED, twice=False)
def mined_triplet(
    embedding: Real[Tensor, "N D"],
    label: Integer[Tensor, "N"],
    mask: Kept[Tensor, "N"] | None = None,
    *,
    margin: NonNegative = 1.0,
    mining: Mining = "hard",
    squared: bool = False,
    active_only: bool = False,
) -> Real[Tensor, "N"] | Unreduced:
    r"""The triplet loss of triplets found within the batch, by label.

    .. math:: \max(0,\; d(a, p) - d(a, n) + m), \quad
        \text{label}_a = \text{label}_p \ne \text{label}_n

    Args:
        embedding: Embeddings; distances are Euclidean.
        label: What each is an embedding of; any integers.
        mask: Which embeddings count; the others are neither anchors, nor positives, nor negatives.
        margin: m, in units of the distance.
        mining: Which triplets: "hard", of each anchor its furthest positive and its nearest negative; "semi_hard",
            all whose negative is further than the positive, but by less than the margin; "all" there are.
        squared: Whether distances are squared.
        active_only: Whether only triplets with a loss above 0 are counted in the mean.

    Returns:
        The sum over the triplets of each anchor, >= 0, unreduced. The mean's denominator is the number of triplets.

    Gradient:
        With respect to ``embedding``; identical embeddings do not pull or push each other. Without a triplet 0.

    References:
        A. Hermans, L. Beyer, B. Leibe, In Defense of the Triplet Loss, 2017, arXiv:1703.07737.
        F. Schroff, D. Kalenichenko, J. Philbin, FaceNet, 2015, arXiv:1503.03832 (semi-hard).
    """
    wide, n = embedding.double(), embedding.shape[0]
    step = max(1, BLOCK // n)
    with torch.no_grad():
        table = torch.cdist(wide, wide, compute_mode="donot_use_mm_for_euclid_dist")
        blocks = [
            _of_anchors(table, label, mask, slice(first, first + step), margin, mining, squared)
            for first in range(0, n, step)
        ]
        value, active, valid, zero, has_positive, has_negative = (
            torch.cat(parts) for parts in zip(*blocks, strict=True)
        )
    value = value + zero_with_slopes(wide, table)
    flags = {"zero_vector": zero, "no_positives": ~has_positive.any(), "no_negatives": ~has_negative.any()}
    return Unreduced(value, active if active_only else valid, flags)


def _of_anchors(
    table: Tensor,
    label: Tensor,
    mask: Tensor | None,
    anchors: slice,
    margin: float | Tensor,
    mining: Mining,
    squared: bool,
) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor, Tensor]:
    """Of some anchors, (b,) each: their triplets' sum, how many are active and valid; three that make warnings.

    Those are whether another is at distance 0, and whether there is a positive and a negative. In place of their
    distances, ``table`` (N, N) then has what the gradient multiplies half the squared distances with.
    """
    distance = table[anchors].clone()
    index = torch.arange(table.shape[1], device=table.device)
    equal = label[anchors].unsqueeze(-1) == label
    positive, negative = equal & (index[anchors].unsqueeze(-1) != index), ~equal
    zero = distance == 0
    if mask is not None:
        both = mask[anchors].unsqueeze(-1) & mask
        positive, negative, zero = positive & both, negative & both, zero & both
    slope = (~zero).double() * 2 if squared else distance.reciprocal().masked_fill(distance == 0, 0)
    if squared:
        distance = distance.square()
    if mining == "hard":
        signs, active, valid = _hardest(distance, positive, negative, margin)
    else:
        signs, active = _active(distance, positive, negative, margin, semi_hard=mining == "semi_hard")
        valid = active if mining == "semi_hard" else positive.sum(-1) * negative.sum(-1)
    # Piecewise linear: each distance enters with a sign, as often as it is in an active triplet.
    signs, active = signs.double(), active.double()
    value = (signs * distance).sum(-1) + margin * active
    table[anchors] = signs * slope
    return value, active, valid.double(), zero.sum(-1) > 1, positive.any(-1), negative.any(-1)


@loss(task="paired_views", kind="stack", differentiable=("first", "second"), pairs=VIEWS)
def info_nce(
    first: Real[Tensor, "N D"],
    second: Real[Tensor, "N D"],
    mask: Kept[Tensor, "N"] | None = None,
    *,
    temperature: Positive = 0.07,
    variant: Variant = "symmetric",
) -> Real[Tensor, "N"] | Unreduced:
    r"""Identifies an embedding's counterpart among the embeddings of both views, by cosine similarity.

    .. math:: -\frac12\sum_{x\in\{a_i, b_i\}} \log\frac{e^{\cos(a_i, b_i)/\tau}}{\sum_{y\ne x} e^{\cos(x, y)/\tau}}

    Args:
        first: One view's embeddings a.
        second: The other view's embeddings b; row i is the counterpart of row i.
        mask: Which pairs count; the embeddings of the others are no negatives either.
        temperature: τ, what similarities are divided by.
        variant: "symmetric": each of the 2N embeddings picks its counterpart among the other 2N−1.
            "one_sided_duplicate": each of the N embeddings of the first view picks its counterpart, which is there
            twice: at the front, and again among the other 2N−1.

    Returns:
        One value per pair, >= 0, unreduced. A pair alone has loss 0 (ln 2 where its counterpart is there twice).

    Gradient:
        With respect to ``first`` and ``second``; 0 for zero vectors, which are similar to nothing.

    References:
        A. van den Oord, Y. Li, O. Vinyals, Representation Learning with Contrastive Predictive Coding, 2018,
            arXiv:1807.03748.
        T. Chen et al., A Simple Framework for Contrastive Learning of Visual Representations, 2020, arXiv:2002.05709.
    """
    return _info_nce(first, second, mask, temperature, variant)


@loss(task="paired_views", kind="stack", differentiable=("first", "second"), pairs=VIEWS, like=info_nce)
def nt_xent(
    first: Real[Tensor, "N D"],
    second: Real[Tensor, "N D"],
    mask: Kept[Tensor, "N"] | None = None,
    *,
    temperature: Positive = 0.5,
    variant: Variant = "symmetric",
) -> Real[Tensor, "N"] | Unreduced:
    r"""The normalised temperature-scaled cross-entropy of SimCLR: info_nce at another temperature.

    .. math:: -\frac12\sum_{x\in\{a_i, b_i\}} \log\frac{e^{\cos(a_i, b_i)/\tau}}{\sum_{y\ne x} e^{\cos(x, y)/\tau}}

    The inputs and parameters are those of ``info_nce``.

    Returns:
        One value per pair, >= 0, unreduced. A pair alone has loss 0 (ln 2 where its counterpart is there twice).

    Gradient:
        With respect to ``first`` and ``second``; 0 for zero vectors, which are similar to nothing.

    References:
        T. Chen et al., A Simple Framework for Contrastive Learning of Visual Representations, 2020, arXiv:2002.05709.
    """
    return _info_nce(first, second, mask, temperature, variant)


@loss(task="paired_views", kind="stack", differentiable=("first", "second"), pairs=SCORED)
def clip(
    first: Real[Tensor, "N D"],
    second: Real[Tensor, "N D"],
    mask: Kept[Tensor, "N"] | None = None,
    *,
    temperature: Positive = 0.07,
) -> Real[Tensor, "N"] | Unreduced:
    r"""Cross-entropy of matching the embeddings of two views, in both directions.

    .. math:: -\frac12\left[\log\frac{e^{s_{ii}}}{\sum_j e^{s_{ij}}} + \log\frac{e^{s_{ii}}}{\sum_j e^{s_{ji}}}\right],
        \quad s_{ij} = \cos(a_i, b_j)/\tau

    Args:
        first: One view's embeddings a, such as those of images.
        second: The other view's embeddings b, such as those of texts; row i belongs to row i.
        mask: Which pairs count; the embeddings of the others are no negatives either.
        temperature: τ, what similarities are divided by.

    Returns:
        One value per pair, >= 0, unreduced.

    Gradient:
        With respect to ``first`` and ``second``; 0 for zero vectors, which are similar to nothing.

    References:
        A. Radford et al., Learning Transferable Visual Models From Natural Language Supervision, 2021,
            arXiv:2103.00020.
    """
    (a, no_a), (b, no_b) = row_direction(first), row_direction(second)
    score = a @ b.mT / temperature
    forth, back = _among(score, mask, mask), _among(score.mT, mask, mask).mT
    value = (softmax.surprise(forth, -1) + softmax.surprise(back, -2)).diagonal() / 2
    return _of_views(value, no_a | no_b, mask)


@loss(task="labelled_embeddings", kind="stack", differentiable=("embedding",), pairs=LABELLED)
def supcon(
    embedding: Real[Tensor, "N D"],
    label: Integer[Tensor, "N"],
    mask: Kept[Tensor, "N"] | None = None,
    *,
    temperature: Positive = 0.07,
) -> Real[Tensor, "N"] | Unreduced:
    r"""Identifies the embeddings with the anchor's label P among all others, by cosine similarity.

    .. math:: -\frac{1}{|P_i|}\sum_{p\in P_i} \log\frac{e^{s_{ip}}}{\sum_{a\ne i} e^{s_{ia}}},
        \quad s_{ij} = \cos(z_i, z_j)/\tau

    Args:
        embedding: Embeddings z.
        label: What each is an embedding of; any integers.
        mask: Which embeddings count; the others are neither anchors, nor positives, nor negatives.
        temperature: τ, what similarities are divided by. There is no base temperature.

    Returns:
        One value per anchor, >= 0, unreduced. Anchors without a positive have none and are out of the mean.

    Gradient:
        With respect to ``embedding``; 0 for zero vectors, which are similar to nothing.

    References:
        P. Khosla et al., Supervised Contrastive Learning, 2020, arXiv:2004.11362, equation 2.
    """
    direction, zero = row_direction(embedding)
    positive, negative = _relations(label)
    if mask is not None:
        both = mask.unsqueeze(-1) & mask
        positive, negative, zero = positive & both, negative & both, zero & mask
    score = (direction @ direction.mT / temperature).masked_fill(_diagonal(embedding), -torch.inf)
    score = _among(score, mask, mask)
    count = positive.sum(-1)
    value = softmax.surprise(score, -1).masked_fill(~positive, 0).sum(-1) / count.clamp(min=1)
    flags = {"zero_vector": zero, "no_positives": ~positive.any(), "no_negatives": ~negative.any()}
    return Unreduced(value, (count > 0).to(value.dtype), flags)


def _diagonal(like: Tensor) -> Tensor:
    return torch.eye(like.shape[0], dtype=torch.bool, device=like.device)


def _relations(label: Tensor) -> tuple[Tensor, Tensor]:
    """Return each pair's relation, positive and negative, (N, N); no sample is its own positive or negative."""
    equal = label.unsqueeze(-1) == label
    return equal & ~_diagonal(label), ~equal


def _hardest(
    distance: Tensor, positive: Tensor, negative: Tensor, margin: float | Tensor
) -> tuple[Tensor, Tensor, Tensor]:
    """The sign of each distance (N, N) in its anchor's hardest triplet; whether it is active, and there is one (N,)."""
    far, furthest = distance.masked_fill(~positive, -torch.inf).max(-1, keepdim=True)
    near, nearest = distance.masked_fill(~negative, torch.inf).min(-1, keepdim=True)
    valid = positive.any(-1) & negative.any(-1)
    active = valid & ~(far - near + margin <= 0).squeeze(-1)
    column = torch.arange(distance.shape[-1], device=distance.device)
    signs = (column == furthest).long() - (column == nearest).long()
    return signs * active.unsqueeze(-1), active.long(), valid


def _active(
    distance: Tensor, positive: Tensor, negative: Tensor, margin: float | Tensor, *, semi_hard: bool
) -> tuple[Tensor, Tensor]:
    """How often each distance (N, N) is added, less how often subtracted, in active triplets; and their number (N,).

    Counted in sorted distances, for there are N³ triplets.
    """
    n = distance.shape[-1]
    reach = distance + margin
    negatives = distance.masked_fill(~negative, torch.inf).sort(-1).values
    reaches = reach.masked_fill(~positive, -torch.inf).sort(-1).values
    # The very same numbers are compared from both sides, so that the counts agree where rounding makes a tie.
    adds = torch.searchsorted(negatives, reach)
    subtracts = n - torch.searchsorted(reaches, distance, right=True)
    if semi_hard:
        positives = distance.masked_fill(~positive, -torch.inf).sort(-1).values
        adds = (adds - torch.searchsorted(negatives, distance, right=True)).clamp(min=0)
        subtracts = (subtracts - n + torch.searchsorted(positives, distance)).clamp(min=0)
    adds = adds.masked_fill(~positive, 0)
    return adds - subtracts.masked_fill(~negative, 0), adds.sum(-1)


def _among(score: Tensor, mask: Tensor | None, others: Tensor | None) -> Tensor:
    """Return the scores (A, B) with -inf for pairs of a sample that counts (A,) and one that does not (B,).

    A sample that does not count keeps its scores, so that its value, which is thrown away, stays a number.
    """
    if mask is None or others is None:
        return score
    return score.masked_fill(mask.unsqueeze(-1) & ~others, -torch.inf)


def _info_nce(
    first: Tensor, second: Tensor, mask: Tensor | None, temperature: float | Tensor, variant: str
) -> Unreduced:
    n = first.shape[0]
    (a, no_a), (b, no_b) = row_direction(first), row_direction(second)
    both = torch.cat([a, b])
    picking = both if variant == "symmetric" else a
    score = picking @ both.mT / temperature
    others = score.masked_fill(_diagonal(both)[: picking.shape[0]], -torch.inf)
    if mask is not None:
        of_both = torch.cat([mask, mask])
        others = _among(others, of_both[: picking.shape[0]], of_both)
    if variant == "symmetric":
        nll = softmax.surprise(others, -1)
        value = (nll.diagonal(n) + nll.diagonal(-n)) / 2
    else:
        positive = score.diagonal(n)
        value = torch.cat([positive.unsqueeze(-1), others], -1).logsumexp(-1) - positive
    return _of_views(value, no_a | no_b, mask)


def _of_views(value: Tensor, zero: Tensor, mask: Tensor | None) -> Unreduced:
    if mask is not None:
        flags = {"zero_vector": zero & mask, "no_negatives": mask.sum() == 1}
        return Unreduced(torch.where(mask, value, torch.zeros_like(value)), mask.to(value.dtype), flags=flags)
    alone = torch.full((), value.shape[0] == 1, device=value.device)
    return Unreduced(value, torch.ones_like(value), flags={"zero_vector": zero, "no_negatives": alone})
