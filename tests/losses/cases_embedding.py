"""Rows of the losses of embeddings. References: torch.nn.functional, or the papers' sums written as loops."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional

from lossd_client.errors import DtypeMismatch, InvalidRequest, InvalidValue, ShapeMismatch
from losses.case import Array, Case, Parameters, Refused, Stated

WIDTH = 3
LABELS = (0, 0, 1, 1, 0, 2, 1)
NAN = float("nan")


def pairs(rng: np.random.Generator, n: int, _: Parameters) -> dict[str, Array]:
    return {
        "first": rng.normal(0, 1, (n, WIDTH)),
        "second": rng.normal(0, 0.5, (n, WIDTH)),
        "similar": np.arange(n) % 2,
    }


def signed_pairs(rng: np.random.Generator, n: int, parameters: Parameters) -> dict[str, Array]:
    return pairs(rng, n, parameters) | {"similar": (np.arange(n) % 2) * 2.0 - 1}


def views(rng: np.random.Generator, n: int, _: Parameters) -> dict[str, Array]:
    first = rng.normal(0, 1, (n, WIDTH))
    return {"first": first, "second": first + rng.normal(0, 0.5, (n, WIDTH))}


def triplets(rng: np.random.Generator, n: int, _: Parameters) -> dict[str, Array]:
    return {name: rng.normal(0, 1, (n, WIDTH)) for name in ("anchor", "positive", "negative")}


def labelled(rng: np.random.Generator, n: int, _: Parameters) -> dict[str, Array]:
    return {"embedding": rng.normal(0, 1, (n, WIDTH)), "label": np.array(LABELS[:n])}


def contrastive(
    first: Tensor, second: Tensor, similar: Tensor, *, margin: float = 1.0, factor: float = 0.5, eps: float = 0.0
) -> Tensor:
    """Hadsell et al. 2006, equation 4, with torch's distance."""
    distance = functional.pairwise_distance(first, second, eps=eps)
    far = functional.relu(margin - distance) ** 2
    return factor * torch.where(similar == 1, distance**2, far)


def cosine_embedding(first: Tensor, second: Tensor, similar: Tensor, *, margin: float = 0.0) -> Tensor:
    return functional.cosine_embedding_loss(first, second, similar, margin, reduction="none")


def triplet(
    anchor: Tensor,
    positive: Tensor,
    negative: Tensor,
    *,
    margin: float = 1.0,
    p: float | str = 2.0,
    squared: bool = False,
    swap: bool = False,
    eps: float = 1e-6,
) -> Tensor:
    if not squared:
        return functional.triplet_margin_loss(
            anchor, positive, negative, margin, p=float(p), eps=eps, swap=swap, reduction="none"
        )
    near, far = ((anchor - positive) ** 2).sum(1), ((anchor - negative) ** 2).sum(1)
    between = ((positive - negative) ** 2).sum(1)
    return functional.relu(near - (torch.minimum(far, between) if swap else far) + margin)


def mined_triplet(
    embedding: Tensor,
    label: Tensor,
    *,
    margin: float = 1.0,
    mining: str = "hard",
    squared: bool = False,
    active_only: bool = False,
) -> tuple[Tensor, Tensor]:
    """Every triplet in turn."""
    values, weights = [], []
    everyone = range(len(label))
    for a in everyone:
        distances = [(embedding[a] - embedding[j]).norm() ** (2 if squared else 1) for j in everyone]
        near = [distances[j] for j in everyone if j != a and label[j] == label[a]]
        far = [distances[j] for j in everyone if label[j] != label[a]]
        if mining == "hard":
            chosen = [(max(near), min(far))] if near and far else []
        else:
            chosen = [(p, n) for p in near for n in far if mining == "all" or p < n < p + margin]
        losses = [functional.relu(p - n + margin) for p, n in chosen]
        values.append(sum(losses, start=torch.zeros((), dtype=torch.float64)))
        weights.append(float(len([v for v in losses if v > 0 or not active_only])))
    return torch.stack(values), torch.tensor(weights, dtype=torch.float64)


def one_sided_duplicate(first: Tensor, second: Tensor, temperature: float) -> Tensor:
    """Of each of the first view: its counterpart's similarity, then those of all other vectors, picked by class 0."""
    both = [v / v.norm() for v in (*first, *second)]
    values = []
    for i in range(len(first)):
        others = [both[i] @ both[j] for j in range(len(both)) if j != i]
        scores = torch.stack([both[i] @ both[len(first) + i], *others]) / temperature
        values.append(-torch.log_softmax(scores, 0)[0])
    return torch.stack(values)


def info_nce(default: float) -> Any:
    def reference(first: Tensor, second: Tensor, *, temperature: float = default, variant: str = "symmetric") -> Tensor:
        n = len(first)
        both = functional.normalize(torch.cat([first, second]))
        score = both @ both.T / temperature
        if variant == "one_sided_duplicate":
            return one_sided_duplicate(first, second, temperature)
        values = []
        for i in range(2 * n):
            others = [j for j in range(2 * n) if j != i]
            values.append(functional.cross_entropy(score[i, others], torch.tensor(others.index((i + n) % (2 * n)))))
        return (torch.stack(values[:n]) + torch.stack(values[n:])) / 2

    return reference


def clip(first: Tensor, second: Tensor, *, temperature: float = 0.07) -> Tensor:
    """Radford et al. 2021, figure 3."""
    score = functional.normalize(first) @ functional.normalize(second).T / temperature
    target = torch.arange(len(first))
    entropies = [functional.cross_entropy(s, target, reduction="none") for s in (score, score.T)]
    return (entropies[0] + entropies[1]) / 2


def supcon(embedding: Tensor, label: Tensor, *, temperature: float = 0.07) -> tuple[Tensor, Tensor]:
    """Khosla et al. 2020, equation 2, anchor by anchor."""
    z = functional.normalize(embedding)
    values, weights = [], []
    for i in range(len(z)):
        others = [j for j in range(len(z)) if j != i]
        total = torch.stack([z[i] @ z[j] / temperature for j in others]).logsumexp(0)
        terms = [total - z[i] @ z[p] / temperature for p in others if label[p] == label[i]]
        values.append(sum(terms, start=torch.zeros((), dtype=torch.float64)) / max(len(terms), 1))
        weights.append(1.0 if terms else 0.0)
    return torch.stack(values), torch.tensor(weights, dtype=torch.float64)


ZERO, ONE, TWO = [[0.0, 0.0]], [[1.0, 0.0]], [[0.0, 2.0]]
DEGENERATE = {"zero_vector", "zero_gradient"}
UNLIKE = Refused(
    ShapeMismatch,
    r"second has shape \(5, 4\), expected \(5, 3\) since first is \(5, 3\)",
    inputs={"second": np.zeros((5, 4))},
)
NO_LABEL = (
    Refused(DtypeMismatch, "label .* must be a tensor of integers, found float64", inputs={"label": [0.0] * 5}),
    Refused(ShapeMismatch, r"label has shape \(4,\), expected \(5,\)", inputs={"label": [0, 1, 0, 1]}),
    Refused(ShapeMismatch, "empty", inputs={"embedding": np.zeros((0, 3)), "label": np.zeros(0, int)}),
)
NEGATIVE_MARGIN = Refused(InvalidRequest, "margin.*greater than or equal to 0", {"margin": -1.0})
TEMPERATURE = (
    Refused(InvalidRequest, "loss.temperature.*greater than 0", {"temperature": 0.0}),
    Refused(InvalidRequest, "loss.temperature.*greater than 0", {"temperature": -0.5}),
)
TWO_VIEWS = (UNLIKE, *TEMPERATURE)


def both(gradient: Any) -> dict[str, Any]:
    return {"first": gradient, "second": gradient}


TOGETHER = {"anchor": ZERO, "positive": ZERO, "negative": ZERO}
ALONE = {"first": [[0.3, 0.7]], "second": [[2.0, -1.0]]}
COPIES = [[0.1, 0.7]] * 64
# Zero vectors are similar to nothing: of two views without direction each score is 0.
NOWHERE = {"first": [[0.0, 0.0]] * 3, "second": [[0.0, 0.0]] * 3}


def views_stated(among: int) -> tuple[Stated, ...]:
    """What both have in common; of three pairs, each embedding picks its counterpart among so many."""
    return (
        Stated("a pair alone", ALONE, 0, gradient=both(ZERO), warnings={"no_negatives", "zero_gradient"}),
        Stated("no directions", NOWHERE, math.log(among), gradient=both(ZERO * 3), warnings=DEGENERATE),
        # Equal directions of any length: of the other scores each is 0.
        Stated("tiny and huge", {"first": [[1e-30, 0.0], [0.0, 1e30]], "second": [[1e-38, 0.0], [0.0, 1e-20]]},
               math.log(1 + (among - 1) / 2 * math.exp(-1)), {"temperature": 1.0}, warnings=set()),
        Stated("a low temperature", {"first": ONE + TWO, "second": TWO + ONE}, 1e6, {"temperature": 1e-6}),
    )  # fmt: skip


CASES = (
    Case(
        "contrastive",
        pairs,
        contrastive,
        ({}, {"margin": 2.0}, {"factor": 1.0, "eps": 1e-6}, {"margin": 0.5, "factor": 0.0}),
        {"margin": (0.5, 1.0, 3.0), "factor": (0.5, 1.0, 2.0), "eps": (0.0, 1e-6, 1e-2)},
        (
            Stated("similar and identical", {"first": ONE, "second": ONE, "similar": [1]}, 0,
                   gradient=both(ZERO), warnings=DEGENERATE),
            Stated("not similar, yet identical", {"first": ONE, "second": ONE, "similar": [0]}, 0.5,
                   gradient=both(ZERO), warnings=DEGENERATE),
            Stated("identical, torch's eps", {"first": ONE, "second": ONE, "similar": [0]}, (1 - 1e-6 * 2**0.5) ** 2,
                   {"eps": 1e-6, "factor": 1.0}, both(ZERO), DEGENERATE),
            Stated("a unit apart, similar", {"first": ONE, "second": ZERO, "similar": [True]}, 0.5,
                   gradient={"first": [[1.0, 0.0]], "second": [[-1.0, 0.0]]}),
            Stated("a half apart, not similar", {"first": [[0.5, 0.0]], "second": ZERO, "similar": [0.0]}, 0.125,
                   gradient={"first": [[-0.5, 0.0]], "second": [[0.5, 0.0]]}),
            Stated("beyond the margin", {"first": TWO, "second": ZERO, "similar": [0]}, 0, gradient=both(ZERO)),
            # The square of 1e25 is beyond float32, as is the loss; far and not similar it is 0 all the same.
            Stated("very far apart", {"first": [[1e25, 0.0]], "second": ZERO, "similar": [0]}, 0, gradient=both(ZERO)),
            Stated("very near", {"first": [[1e-30, 0.0]], "second": ZERO, "similar": [0]}, 0.5,
                   gradient={"first": [[-1.0, 0.0]], "second": [[1.0, 0.0]]}),
        ),
        (
            UNLIKE,
            NEGATIVE_MARGIN,
            Refused(InvalidValue, r"1 \(yes\) or 0 \(no\) expected, found -1 at similar\[1\]",
                    inputs={"similar": [1, -1, 0, 0, 1]}),
            Refused(InvalidValue, r"found 0.5 at similar\[0\]", inputs={"similar": [0.5, 0.0, 1.0, 1.0, 0.0]}),
            Refused(InvalidValue, r"found NaN at similar\[4\]", inputs={"similar": [0.0, 0.0, 1.0, 1.0, NAN]}),
            Refused(ShapeMismatch, r"similar has shape \(4,\), expected \(5,\)", inputs={"similar": [1, 0, 1, 0]}),
        ),
    ),
    Case(
        "cosine_embedding",
        signed_pairs,
        cosine_embedding,
        ({}, {"margin": 0.3}, {"margin": -0.7}),
        {"margin": (-0.5, 0.0, 0.5)},
        (
            Stated("zero vector, similar", {"first": ZERO, "second": ONE, "similar": [1]}, 1, gradient=both(ZERO),
                   warnings=DEGENERATE),
            Stated("zero vectors, not similar", {"first": ZERO, "second": ZERO, "similar": [-1]}, 0.25,
                   {"margin": -0.25}, both(ZERO), DEGENERATE),
            Stated("tiny and huge", {"first": [[1e-30, 0.0]], "second": [[1e30, 1e30]], "similar": [1]}, 1 - 0.5**0.5),
            Stated("opposite", {"first": ONE, "second": [[-3.0, 0.0]], "similar": [1]}, 2, gradient=both(ZERO)),
            Stated("right angle", {"first": ONE, "second": TWO, "similar": [1]}, 1,
                   gradient={"first": [[0.0, -1.0]], "second": [[-0.5, 0.0]]}),
        ),
        (
            UNLIKE,
            Refused(InvalidRequest, "margin.*less than or equal to 1", {"margin": 1.5}),
            Refused(InvalidValue, r"1 \(yes\) or -1 \(no\) expected, found 0 at similar\[2\]",
                    inputs={"similar": [1, -1, 0, 1, 1]}),
            Refused(InvalidValue, r"found 255 at similar\[0\]",
                    inputs={"similar": np.array([255, 1, 1, 1, 1], np.uint8)}),
        ),
    ),
    Case(
        "triplet",
        triplets,
        triplet,
        (
            {},
            {"margin": 3.0, "swap": True},
            {"squared": True},
            {"squared": True, "swap": True, "margin": 0.2},
            {"p": 1, "eps": 1e-2},
            {"p": 3.5},
            {"p": "inf", "swap": True},
        ),
        {"margin": (0.2, 1.0, 3.0), "eps": (0.0, 1e-6, 1e-2)},
        (
            Stated("all the same", TOGETHER, 1,
                   gradient=TOGETHER, warnings=DEGENERATE),
            Stated("all the same, squared", TOGETHER, 1, {"squared": True},
                   gradient=TOGETHER, warnings=DEGENERATE),
            Stated("on the positive", {"anchor": ZERO, "positive": ZERO, "negative": [[0.5, 0.0]]}, 0.5, {"eps": 0.0},
                   {"anchor": [[1.0, 0.0]], "positive": ZERO, "negative": [[-1.0, 0.0]]}, {"zero_vector"}),
            Stated("told apart", {"anchor": ZERO, "positive": ONE, "negative": [[9.0, 0.0]]}, 0,
                   gradient=TOGETHER, warnings={"zero_gradient"}),
            Stated("squared", {"anchor": ZERO, "positive": [[2.0, 0.0]], "negative": ONE}, 4, {"squared": True}),
            Stated("far away", {"anchor": [[1e30, 0.0]], "positive": ZERO, "negative": [[2e30, 0.0]]}, 1, {"eps": 0.0}),
        ),
        (
            NEGATIVE_MARGIN,
            Refused(InvalidRequest, "p.*greater than or equal to 1", {"p": 0.5}),
            Refused(ShapeMismatch, r"negative has shape \(5, 1\), expected \(5, 3\)",
                    inputs={"negative": np.zeros((5, 1))}),
        ),
    ),
    Case(
        "mined_triplet",
        labelled,
        mined_triplet,
        (
            {},
            {"margin": 0.1, "active_only": True},
            {"squared": True, "margin": 2.0},
            {"mining": "semi_hard"},
            {"mining": "semi_hard", "squared": True, "margin": 3.0},
            {"mining": "all"},
            {"mining": "all", "active_only": True, "margin": 0.3},
            {"mining": "all", "squared": True, "active_only": True},
        ),
        {"margin": (0.2, 1.0, 5.0)},
        (
            *(
                Stated(f"64 copies, {mining}", {"embedding": COPIES, "label": [0, 1] * 32}, loss, {"mining": mining},
                       {"embedding": [[0.0, 0.0]] * 64}, warnings)
                for mining, loss, warnings in (
                    ("hard", 1.0, DEGENERATE),
                    ("all", 1.0, DEGENERATE),
                    ("semi_hard", 0.0, {"zero_vector", "nothing_to_average"}),
                )
            ),
            *(
                Stated(f"one label, {mining}", {"embedding": ZERO + ONE + TWO, "label": [7, 7, 7]}, 0,
                       {"mining": mining}, {"embedding": ZERO * 3}, {"no_negatives", "nothing_to_average"})
                for mining in ("hard", "semi_hard", "all")
            ),
            Stated("one of each label", {"embedding": ZERO + ONE + TWO, "label": [-1, 0, 1]}, 0,
                   gradient={"embedding": ZERO * 3}, warnings={"no_positives", "nothing_to_average"}),
            Stated("one alone", {"embedding": ZERO, "label": [1]}, 0, gradient={"embedding": ZERO},
                   warnings={"no_positives", "no_negatives", "nothing_to_average"}),
            # On a line at 0 and 1 (one label) and 2: a tie at margin 1 is not active.
            Stated("ties", {"embedding": [[0.0], [1.0], [2.0]], "label": [0, 0, 1]}, 0.5, {"mining": "all"},
                   {"embedding": [[-0.5], [1.0], [-0.5]]}),
            Stated("ties are not semi-hard", {"embedding": [[0.0], [1.0], [2.0]], "label": [0, 0, 1]}, 0,
                   {"mining": "semi_hard"}, warnings={"nothing_to_average"}),
        ),
        (*NO_LABEL, NEGATIVE_MARGIN, Refused(InvalidRequest, "mining", {"mining": "soft"})),
    ),
    *(
        Case(
            name,
            views,
            info_nce(temperature),
            ({}, {"temperature": 0.2}, {"variant": "one_sided_duplicate"},
             {"variant": "one_sided_duplicate", "temperature": 0.2}),
            {"temperature": (0.1, 0.5, 2.0)},
            (
                *views_stated(5),
                Stated("a pair alone, twice", ALONE, math.log(2), {"variant": "one_sided_duplicate"},
                       both(ZERO), {"no_negatives", "zero_gradient"}),
                # Five others of three pairs, and the counterpart once more.
                Stated("no directions, duplicate", NOWHERE, math.log(6), {"variant": "one_sided_duplicate"}),
                # Its counterpart, twice, scores 1; the other two vectors score 0.
                Stated("two axes, duplicate", {"first": ONE + TWO, "second": ONE + TWO}, math.log(2 + 2 * math.exp(-1)),
                       {"variant": "one_sided_duplicate", "temperature": 1.0}),
            ),
            (*TWO_VIEWS, Refused(InvalidRequest, "variant", {"variant": "both"})),
        )
        for name, temperature in (("info_nce", 0.07), ("nt_xent", 0.5))
    ),
    Case("clip", views, clip, ({}, {"temperature": 0.5}), {"temperature": (0.1, 0.5, 2.0)}, views_stated(3), TWO_VIEWS),
    Case(
        "supcon",
        labelled,
        supcon,
        ({}, {"temperature": 0.5}),
        {"temperature": (0.1, 0.5, 2.0)},
        (
            Stated("no directions", {"embedding": ZERO * 4, "label": [0, 0, 1, 1]}, math.log(3),
                   gradient={"embedding": ZERO * 4}, warnings=DEGENERATE),
            Stated("two of a label and one more", {"embedding": ZERO * 3, "label": [0, 0, 1]}, math.log(2)),
            Stated("no two of a label", {"embedding": ONE + TWO, "label": [0, 1]}, 0, gradient={"embedding": ZERO * 2},
                   warnings={"no_positives", "nothing_to_average"}),
            Stated("one alone", {"embedding": ONE, "label": [0]}, 0, gradient={"embedding": ZERO},
                   warnings={"no_positives", "no_negatives", "nothing_to_average"}),
            Stated("one label", {"embedding": ONE * 3, "label": [5, 5, 5]}, math.log(2),
                   warnings={"no_negatives", "zero_gradient"}),
        ),
        (*NO_LABEL, *TEMPERATURE),
    ),
)  # fmt: skip
