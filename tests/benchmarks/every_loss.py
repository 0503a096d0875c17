"""A small request of every loss of the catalogue."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import numpy as np

from benchmarks.dialects import Arrays, Question

SEED = 2
ROWS, WIDTH, CLASSES = 64, 10, 10
PAIRS = 32
IMAGES, REGIONS, SIDE = 2, 4, 16
STEPS, LABELS = 20, 6

Floats = np.ndarray[Any, np.dtype[np.float32]]


class Draw:
    """Inputs of a small request, float32 and int64.

    Args:
        random: The generator.
    """

    def __init__(self, random: np.random.Generator) -> None:
        self.random = random

    def normal(self, *shape: int) -> Floats:
        """Standard normal numbers."""
        return self.random.standard_normal(shape, dtype=np.float32)

    def uniform(self, low: float, high: float, *shape: int) -> Floats:
        """Numbers between two bounds."""
        return self.random.uniform(low, high, shape).astype(np.float32)

    def integers(self, count: int, *shape: int) -> np.ndarray[Any, np.dtype[np.int64]]:
        """Integers from 0 to count - 1."""
        return self.random.integers(0, count, shape, dtype=np.int64)

    def values(self) -> Arrays:
        return {"prediction": self.normal(ROWS, WIDTH), "target": self.normal(ROWS, WIDTH)}

    def positive(self) -> Arrays:
        return {name: self.uniform(0.1, 3, ROWS, WIDTH) for name in ("prediction", "target")}

    def logits(self) -> Arrays:
        return {"prediction": self.normal(ROWS, WIDTH), "target": self.integers(2, ROWS, WIDTH).astype(np.float32)}

    def probabilities(self) -> Arrays:
        return self.logits() | {"prediction": self.uniform(0.01, 0.99, ROWS, WIDTH)}

    def signs(self) -> Arrays:
        return {"prediction": self.normal(ROWS, WIDTH), "target": 2 * self.logits()["target"] - 1}

    def classes(self) -> Arrays:
        return {"prediction": self.normal(ROWS, CLASSES), "target": self.integers(CLASSES, ROWS)}

    def log_probabilities(self) -> Arrays:
        drawn = self.classes()
        scores = drawn["prediction"]
        return drawn | {"prediction": scores - np.log(np.exp(scores).sum(1, keepdims=True))}

    def distributions(self) -> Arrays:
        target = self.random.dirichlet(np.ones(CLASSES), ROWS).astype(np.float32)
        return self.log_probabilities() | {"target": target}

    def sets(self) -> Arrays:
        target = np.stack([self.random.permutation(CLASSES) for _ in range(ROWS)])
        target[np.arange(CLASSES) >= 1 + self.integers(CLASSES - 1, ROWS)[:, None]] = -1
        return {"prediction": self.normal(ROWS, CLASSES), "target": target}

    def regions(self) -> Arrays:
        shape = (IMAGES, REGIONS, SIDE, SIDE)
        return {"prediction": self.normal(*shape), "target": self.integers(REGIONS, IMAGES, SIDE, SIDE)}

    def masks(self) -> Arrays:
        drawn = self.normal(IMAGES, SIDE, SIDE), self.integers(2, IMAGES, SIDE, SIDE).astype(np.float32)
        return dict(zip(("prediction", "target"), drawn, strict=True))

    def boxes(self) -> Arrays:
        low, size = self.uniform(0, 2, 2, ROWS, 2), self.uniform(0.5, 3, 2, ROWS, 2)
        prediction, target = np.concatenate([low, low + size], -1)
        return {"prediction": prediction, "target": target}

    def teacher(self) -> Arrays:
        return self.classes() | {"teacher": self.normal(ROWS, CLASSES)}

    def pairs(self) -> Arrays:
        return {
            "first": self.normal(PAIRS, WIDTH),
            "second": self.normal(PAIRS, WIDTH),
            "similar": self.integers(2, PAIRS),
        }

    def signed_pairs(self) -> Arrays:
        drawn = self.pairs()
        return drawn | {"similar": 2 * drawn["similar"] - 1}

    def triplets(self) -> Arrays:
        return {name: self.normal(PAIRS, WIDTH) for name in ("anchor", "positive", "negative")}

    def labelled(self) -> Arrays:
        return {"embedding": self.normal(PAIRS, WIDTH), "label": np.arange(PAIRS, dtype=np.int64) % 8}

    def views(self) -> Arrays:
        first = self.normal(PAIRS, WIDTH)
        return {"first": first, "second": first + self.uniform(-0.5, 0.5, PAIRS, WIDTH)}

    def players(self) -> Arrays:
        return {"real": self.normal(ROWS, 1), "fake": self.normal(ROWS, 1)}

    def forgeries(self) -> Arrays:
        return {"fake": self.normal(ROWS, 1)}

    def latents(self) -> Arrays:
        return {
            "prediction": self.uniform(0.01, 0.99, ROWS, WIDTH),
            "target": self.uniform(0, 1, ROWS, WIDTH),
            "mean": self.normal(ROWS, 4),
            "log_variance": self.normal(ROWS, 4),
        }

    def counts(self) -> Arrays:
        return {
            "prediction": self.normal(ROWS, WIDTH),
            "target": self.random.poisson(2, (ROWS, WIDTH)).astype(np.float32),
        }

    def amounts(self) -> Arrays:
        return {"prediction": self.normal(ROWS, WIDTH), "target": self.uniform(0.1, 3, ROWS, WIDTH)}

    def scaled(self) -> Arrays:
        return self.values() | {"scale": self.uniform(0.2, 3, ROWS, WIDTH)}

    def several(self, count: int) -> Arrays:
        return {"prediction": self.normal(ROWS, count, WIDTH), "target": self.normal(ROWS, WIDTH)}

    def preferences(self) -> Arrays:
        return {name: self.normal(ROWS) for name in ("chosen", "rejected")}

    def referenced(self) -> Arrays:
        return self.preferences() | {name: self.normal(ROWS) for name in ("reference_chosen", "reference_rejected")}

    def log_odds(self) -> Arrays:
        return {name: self.uniform(-3, -0.1, ROWS) for name in ("chosen", "rejected")}

    def tokens(self) -> Arrays:
        prediction = self.uniform(-3, -0.1, ROWS, WIDTH)
        return {
            "prediction": prediction,
            "advantage": self.normal(ROWS, WIDTH),
            "sampled": prediction + self.uniform(-0.4, 0.4, ROWS, WIDTH),
        }

    def queries(self) -> Arrays:
        return {"prediction": self.normal(ROWS, WIDTH), "target": self.integers(5, ROWS, WIDTH).astype(np.float32)}

    def sequences(self) -> Arrays:
        scores = self.normal(STEPS, 4, CLASSES)
        return {
            "prediction": scores - np.log(np.exp(scores).sum(2, keepdims=True)),
            "target": 1 + self.integers(CLASSES - 1, 4, LABELS),
            "input_lengths": np.full(4, STEPS, np.int64),
            "target_lengths": np.full(4, LABELS, np.int64),
        }


INPUTS: Mapping[str, Callable[[Draw], Arrays]] = {
    **dict.fromkeys(
        ("mse", "mae", "huber", "smooth_l1", "log_cosh", "asymmetric_mse", "quantile", "expectile", "pseudo_huber",
         "fair"),
        Draw.values,
    ),
    **dict.fromkeys(("squared_log", "mape"), Draw.positive),
    "bce": Draw.probabilities,
    **dict.fromkeys(("bce_with_logits", "sigmoid_focal", "multilabel_soft_margin"), Draw.logits),
    **dict.fromkeys(("soft_margin", "hinge", "hinge_embedding"), Draw.signs),
    **dict.fromkeys(("cross_entropy", "focal", "multi_margin", "soft_f1"), Draw.classes),
    "nll": Draw.log_probabilities,
    "kl_div": Draw.distributions,
    "multilabel_margin": Draw.sets,
    **dict.fromkeys(
        ("dice", "jaccard", "tversky", "focal_tversky", "generalized_dice", "lovasz", "ce_dice"), Draw.regions
    ),
    "bce_dice": Draw.masks,
    **dict.fromkeys(("iou", "giou", "diou", "ciou"), Draw.boxes),
    "distillation": Draw.teacher,
    "contrastive": Draw.pairs,
    "cosine_embedding": Draw.signed_pairs,
    "triplet": Draw.triplets,
    **dict.fromkeys(("mined_triplet", "supcon"), Draw.labelled),
    **dict.fromkeys(("info_nce", "nt_xent", "clip"), Draw.views),
    "margin_ranking": lambda draw: {
        **dict(zip(("first", "second"), draw.values().values(), strict=True)),
        "target": draw.signs()["target"],
    },
    **dict.fromkeys(
        ("gan_discriminator", "wgan_discriminator", "lsgan_discriminator", "hinge_gan_discriminator"), Draw.players
    ),
    **dict.fromkeys(("gan_generator", "wgan_generator", "lsgan_generator", "hinge_gan_generator"), Draw.forgeries),
    "vae": Draw.latents,
    "poisson_nll": Draw.counts,
    **dict.fromkeys(("gamma_nll", "tweedie"), Draw.amounts),
    "negative_binomial_nll": lambda draw: draw.counts()
    | {"prediction": draw.uniform(0.1, 3, ROWS, WIDTH), "dispersion": draw.uniform(0.1, 2, ROWS, WIDTH)},
    "gaussian_nll": lambda draw: draw.values() | {"variance": draw.uniform(0.1, 3, ROWS, WIDTH)},
    **dict.fromkeys(("laplace_nll", "crps_normal"), Draw.scaled),
    "student_t_nll": lambda draw: draw.scaled() | {"df": draw.uniform(1, 30, ROWS, WIDTH)},
    "quantiles": lambda draw: draw.several(3),
    "crps_ensemble": lambda draw: draw.several(5),
    "interval_score": lambda draw: {
        "lower": draw.normal(ROWS, WIDTH) - 1,
        "upper": draw.normal(ROWS, WIDTH) + 1,
        "target": draw.normal(ROWS, WIDTH),
    },
    "feature_matching": lambda draw: {
        f"{name}.{layer}": draw.normal(ROWS, WIDTH) for name in ("prediction", "target") for layer in range(2)
    },
    "policy_gradient": Draw.tokens,
    "dpo": Draw.referenced,
    **dict.fromkeys(("simpo", "bradley_terry"), Draw.preferences),
    "orpo": Draw.log_odds,
    "kto": lambda draw: {"log_ratio": draw.normal(ROWS), "desirable": draw.integers(2, ROWS)},
    **dict.fromkeys(("ranknet", "lambda_loss", "list_net", "list_mle", "approx_ndcg"), Draw.queries),
    "ctc": Draw.sequences,
}  # fmt: skip
"""The inputs of each loss."""

PARAMETERS: Mapping[str, Mapping[str, Any]] = {"quantiles": {"levels": [0.1, 0.5, 0.9]}}
"""The parameters without a default."""


def requests() -> dict[str, Question]:
    """Return a request of each loss, by name."""
    draw = Draw(np.random.default_rng(SEED))
    return {
        name: ({"loss": {"name": name, **PARAMETERS.get(name, {})}}, inputs_of(draw))
        for name, inputs_of in INPUTS.items()
    }
