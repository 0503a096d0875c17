"""One small request for each loss, with numbers a reader can follow; the answers are computed."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

REGRESSION = {"prediction": [2.5, 0.0, 2.1, 7.8], "target": [3.0, -0.5, 2.0, 8.0]}
BINARY = {"prediction": [2.0, -1.0, 0.5, -0.5], "target": [1, 0, 0, 1]}
CLASSES = {"prediction": [[2.0, 1.0, 0.1], [0.5, 2.5, 0.3], [3.0, 0.2, 0.1]], "target": [0, 1, 2]}
LOG_PROBABILITIES = {"prediction": [[-0.417, -1.417, -2.317], [-2.219, -0.219, -2.419]]}
EMBEDDINGS = {"embedding": [[1.0, 0.1], [0.9, 0.3], [0.0, 1.0], [0.2, 0.8]], "label": [0, 0, 1, 1]}
PAIRS = {"first": [[1.0, 0.0], [0.2, 0.9]], "second": [[0.8, 0.3], [0.5, 0.6]], "similar": [1, 0]}
BOXES = {
    "prediction": [[10.0, 10.0, 50.0, 50.0], [20.0, 20.0, 60.0, 60.0]],
    "target": [[15.0, 15.0, 55.0, 55.0], [25.0, 25.0, 65.0, 65.0]],
}
MASKS = {
    "prediction": [[[2.0, 0.5, -1.0, 0.0], [-1.0, 0.0, 2.0, 1.0]]],  # one image of four pixels, scores of two classes
    "target": [[0, 0, 1, 1]],
}
VIEWS = {"first": [[1.0, 0.0], [0.0, 1.0], [0.7, 0.7]], "second": [[0.9, 0.2], [0.1, 0.8], [0.6, 0.9]]}
TOKENS = {  # two answers of three tokens
    "prediction": [[-1.0, -2.0, -0.5], [-0.7, -1.2, 0.0]],
    "sampled": [[-1.5, -1.5, -0.5], [-0.9, -1.0, 0.0]],
    "advantage": [1.0, -1.0],
}
TWO_TASKS = {"price": [2.5, 0.0], "paid": [3.0, -0.5], "scores": [[2.0, 1.0], [0.5, 2.5]], "kind": [0, 1]}
TERMS = [
    {"loss": {"name": "huber"}, "inputs": {"prediction": "price", "target": "paid"}},
    {"loss": {"name": "cross_entropy"}, "inputs": {"prediction": "scores", "target": "kind"}},
]

BY_TASK: Mapping[str, Mapping[str, Any]] = {
    "regression": REGRESSION,
    "quantiles": {"prediction": [[1.5, 2.5, 4.0], [-1.0, 0.0, 0.8]], "target": [3.0, -1.5]},
    "ensembles": {"prediction": [[2.0, 2.5, 3.5, 4.0], [-1.0, -0.2, 0.0, 0.5]], "target": [3.0, -1.5]},
    "intervals": {"lower": [1.5, -1.0], "upper": [4.0, 0.8], "target": [3.0, -1.5]},
    "binary": BINARY,
    "multiclass": CLASSES,
    "segmentation": MASKS,
    "boxes": BOXES,
    "pairs": PAIRS,
    "cosine_pairs": PAIRS | {"similar": [1, -1]},
    "triplets": {"anchor": [[1.0, 0.0]], "positive": [[0.8, 0.3]], "negative": [[0.5, 0.9]]},
    "labelled_embeddings": EMBEDDINGS,
    "paired_views": VIEWS,
    "gan": {"real": [1.2, 0.4, 2.0], "fake": [-0.7, 0.3, -1.5]},
    "lsgan": {"real": [0.9, 0.6, 1.1], "fake": [0.2, 0.4, -0.1]},
    "gan_generator": {"fake": [-0.7, 0.3, -1.5]},
    "lsgan_generator": {"fake": [0.2, 0.4, -0.1]},
    "vae": {
        "prediction": [[0.8, 0.2], [0.4, 0.9]],
        "target": [[1.0, 0.0], [0.0, 1.0]],
        "mean": [[0.5, -0.3], [0.1, 0.2]],
        "log_variance": [[-0.2, 0.1], [0.0, -0.5]],
    },
    "distances": {"prediction": [0.25, 0.25, 2.0], "target": [1, -1, -1]},
    "ranking": {"first": [1.0, 0.4], "second": [0.2, 0.9], "target": [1, 1]},
    "multilabel": {"prediction": [[2.0, -1.0, 0.5], [-0.5, 1.5, -2.0]], "target": [[1, 0, 1], [0, 1, 0]]},
    "sets": {"prediction": [[0.1, 0.2, 0.4, 0.8]], "target": [[3, 0, -1, -1]]},
    "features": {
        "prediction.0": [[0.2, 0.4], [0.1, 0.3]],
        "target.0": [[0.0, 0.5], [0.2, 0.3]],
        "prediction.1": [[1.0], [0.5]],
        "target.1": [[0.8], [0.7]],
    },
    "queries": {  # two queries of four and three documents
        "prediction": [[0.2, 1.5, -0.3, 0.7], [2.0, 0.1, 0.4, 0.0]],
        "target": [[0, 2, 1, 3], [1, 0, 2, 0]],
        "lengths": [4, 3],
    },
    "preferences": {"chosen": [-0.4, -1.1], "rejected": [-0.9, -0.7]},
    "desirability": {"log_ratio": [1.5, -0.5, 2.0], "desirable": [1, 0, 0]},
    "policy": TOKENS,
    "distillation": {"prediction": [[1.0, 0.0, -1.0]], "teacher": [[0.5, 0.5, -1.0]]},
    "sequences": {  # three steps, one sequence, a blank and two labels
        "prediction": [[[-0.4, -1.5, -2.3]], [[-1.6, -0.4, -2.0]], [[-2.2, -1.8, -0.3]]],
        "target": [[1, 2]],
        "input_lengths": [3],
        "target_lengths": [2],
    },
}

PARAMETERS: Mapping[str, Mapping[str, Any]] = {
    "huber": {"delta": 0.3},
    "asymmetric_mse": {"over_penalty": 3.0},
    "quantile": {"q": 0.9},
    "focal": {"gamma": 2.0},
    "cross_entropy": {"label_smoothing": 0.1},
    "weighted_sum": {"terms": [{**TERMS[0], "weight": 0.5}, TERMS[1]]},
    "uncertainty": {"terms": TERMS},
    "curriculum": {"loss": {"name": "mse"}, "progress": 0.5},
    "distillation": {"temperature": 2.0},
    "expression": {"formula": "e = prediction - target; where(e > 0, k * e**2, e**2)", "parameters": {"k": 3.0}},
}

INPUTS: Mapping[str, Mapping[str, Any]] = {
    "bce": {"prediction": [0.9, 0.2, 0.6, 0.4], "target": [1, 0, 0, 1]},
    "soft_margin": {"prediction": [2.0, -1.0, 0.5, -0.5], "target": [1, -1, -1, 1]},
    "nll": LOG_PROBABILITIES | {"target": [0, 1]},
    "kl_div": LOG_PROBABILITIES | {"target": [[0.7, 0.2, 0.1], [0.1, 0.8, 0.1]]},
    "hinge": {"prediction": [2.0, -1.0, 0.5, -0.5], "target": [1, -1, -1, 1]},
    "squared_log": {"prediction": [99.0, 0.0, 7.0], "target": [120.0, 0.0, 5.0]},
    "gamma_nll": {"prediction": [0.9, 0.0, 1.5], "target": [3.5, 0.8, 4.0]},
    "tweedie": {"prediction": [0.9, 0.0, 1.5], "target": [3.5, 0.0, 4.0]},
    "negative_binomial_nll": {"prediction": [2.5, 1.0, 4.5], "target": [3, 1, 9], "dispersion": [0.5, 0.5, 0.2]},
    "student_t_nll": REGRESSION | {"scale": [0.5, 0.5, 0.1, 1.0], "df": [4.0, 4.0, 4.0, 4.0]},
    "laplace_nll": REGRESSION | {"scale": [0.5, 0.5, 0.1, 1.0]},
    "crps_normal": REGRESSION | {"scale": [0.5, 0.5, 0.1, 1.0]},
    "gaussian_nll": REGRESSION | {"variance": [0.5, 0.5, 0.1, 1.0]},
    "poisson_nll": {"prediction": [0.9, 0.0, 1.5], "target": [3, 1, 4]},
    "bce_dice": {"prediction": [[2.0, 0.5, -1.0, -2.0]], "target": [[1, 1, 0, 0]]},
    "weighted_sum": TWO_TASKS,
    "uncertainty": TWO_TASKS | {"log_variance": [0.0, -0.5]},
    "curriculum": REGRESSION | {"difficulty": [0.1, 0.4, 0.6, 0.9]},
    "gradnorm": {
        "losses": [0.4, 1.2],
        "initial_losses": [1.0, 1.5],
        "gradient_norms": [2.0, 0.7],
        "task_weight": [1.0, 1.0],
    },
    "expression": REGRESSION,
    "dpo": {
        "chosen": [-10.0, -31.5],
        "rejected": [-12.0, -30.0],
        "reference_chosen": [-10.5, -32.0],
        "reference_rejected": [-11.7, -31.0],
    },
    "policy_gradient": {**TOKENS, "lengths": [3, 2]},  # the last token of the second answer is padding
    "bradley_terry": {"chosen": [1.2, 0.3], "rejected": [0.4, 0.6]},
}


TOO_LARGE = frozenset({"perceptual"})  # pictures, and a network's weights


def request(loss: str, task: str) -> dict[str, Any] | None:
    """What to post to ``/v1/evaluate`` to see the loss at work; None where that is too much for a page."""
    if loss in TOO_LARGE:
        return None
    inputs = INPUTS.get(loss) or BY_TASK[task]
    return {"loss": {"name": loss, **PARAMETERS.get(loss, {})}, "inputs": dict(inputs)}
