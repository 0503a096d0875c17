"""Names that other libraries use for losses and metrics: one table, for errors, for the search and for the explorer.

Each name stands here once, in snake case; :func:`meaning` finds ``l1`` for ``L1Loss``, ``l1-loss`` and
``torch.nn.L1Loss``. They appear in errors and in searches only: a request needs our name.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Final, NamedTuple

__all__ = ["METRICS", "NOT_HERE", "NOT_QUITE", "SYNONYMS", "Meaning", "folded", "meaning", "other_names"]

SYNONYMS: Mapping[str, str] = {
    "l1": "mae",
    "mean_absolute_error": "mae",
    "absolute_error": "mae",
    "reg_absoluteerror": "mae",
    "regression_l1": "mae",
    "mean_squared_error": "mse",
    "binary_cross_entropy": "bce",
    "binary_cross_entropy_with_logits": "bce_with_logits",
    "binary_crossentropy_from_logits": "bce_with_logits",
    "sigmoid_binary_cross_entropy": "bce_with_logits",
    "sigmoid_cross_entropy_with_logits": "bce_with_logits",
    "binary_logistic": "bce_with_logits",
    "xentropy": "bce_with_logits",
    "ce": "cross_entropy",
    "softmax_cross_entropy": "cross_entropy",
    "softmax_cross_entropy_with_logits": "cross_entropy",
    "softmax_cross_entropy_with_integer_labels": "cross_entropy",
    "sparse_softmax_cross_entropy_with_logits": "cross_entropy",
    "categorical_crossentropy_from_logits": "cross_entropy",
    "sparse_categorical_crossentropy_from_logits": "cross_entropy",
    "soft_target_cross_entropy": "cross_entropy",
    "softmax": "cross_entropy",
    "multi_softmax": "cross_entropy",
    "multi_softprob": "cross_entropy",
    "soft_dice": "dice",
    "gdl": "generalized_dice",
    "lovasz_softmax": "lovasz",
    "soft_jaccard": "jaccard",
    "pinball": "quantile",
    "reg_quantileerror": "quantile",
    "kl": "kl_div",
    "kullback_leibler": "kl_div",
    "negative_log_likelihood": "nll",
    "count_poisson": "poisson_nll",
    "generalized_iou": "giou",
    "generalized_box_iou": "giou",
    "distance_iou": "diou",
    "distance_box_iou": "diou",
    "complete_iou": "ciou",
    "complete_box_iou": "ciou",
    "triplet_margin": "triplet",
    "dice_ce": "ce_dice",
    "dice_bce": "bce_dice",
    "simclr": "nt_xent",
    "monai_contrastive": "nt_xent",
    "supervised_contrastive": "supcon",
    "gan": "gan_discriminator",
    "elbo": "vae",
    "vgg": "perceptual",
    "content": "perceptual",
    "reg_pseudohubererror": "pseudo_huber",
    "squared_log_error": "squared_log",
    "reg_squaredlogerror": "squared_log",
    "gamma": "gamma_nll",
    "reg_gamma": "gamma_nll",
    "reg_tweedie": "tweedie",
    "negative_binomial": "negative_binomial_nll",
    "nbinom": "negative_binomial_nll",
    "student_t": "student_t_nll",
    "laplace": "laplace_nll",
    "winkler": "interval_score",
    "winkler_score": "interval_score",
    "direct_preference_optimization": "dpo",
    "reward_model": "bradley_terry",
    "reward": "bradley_terry",
    "pairwise_reward": "bradley_terry",
    "odds_ratio": "orpo",
    "knowledge_distillation": "distillation",
    "kd": "distillation",
    "ppo": "policy_gradient",
    "ppo_clip": "policy_gradient",
    "reinforce": "policy_gradient",
    "pairwise_logistic": "ranknet",
    "rank:pairwise": "ranknet",
    "lambdarank": "lambda_loss",
    "lambda": "lambda_loss",
    "rank:ndcg": "lambda_loss",
}
"""Other libraries' names of our losses, which give the same numbers."""

_KERAS = "cross_entropy takes logits, this one probabilities: give nll their logarithms"
_HALF = "mse is the mean of squares, twice what these mean"
_SYMMETRIC = "it is clip with temperature 1 / scale"
_RARE = "focal and sigmoid_focal give less weight to easy examples; for regions use dice, tversky or focal_tversky"
_SIAMESE = "for pairs of embeddings use contrastive or cosine_embedding, for threes triplet or mined_triplet"
NOT_QUITE: Mapping[str, str] = {
    "imbalance": _RARE,
    "imbalanced": _RARE,
    "class_imbalance": _RARE,
    "siamese": _SIAMESE,
    "l2": "mse is the mean of squares; optax and TensorFlow call its half, or half the sum, l2_loss",
    "reg_squarederror": _HALF,
    "regression_l2": _HALF,
    "rmse": "mse is its square, which has the same minimum",
    "root_mean_squared_error": "mse is its square, which has the same minimum",
    "rmse_with_uncertainty": "gaussian_nll takes the variance: send exp(2 * log_scale)",
    "kl_divergence": "kl_div takes the logarithms of predicted probabilities; Keras takes the probabilities",
    "poisson": "poisson_nll takes the logarithm of the rate; Keras takes the rate: set log_input to false",
    "log_loss": "bce takes probabilities of two classes, bce_with_logits their logits; nll takes logarithms of several",
    "categorical_crossentropy": _KERAS,
    "sparse_categorical_crossentropy": _KERAS,
    "sparse_categorical": _KERAS,
    "label_smoothing_cross_entropy": "it is cross_entropy with label_smoothing",
    "multiclassova": "it is bce_with_logits with one-hot targets",
    "multi_class_one_vs_all": "it is bce_with_logits with one-hot targets",
    "soft_bce_with_logits": "it is bce_with_logits with smoothed targets",
    "binary_focal_crossentropy": "sigmoid_focal takes logits unless from_logits is false, and weights classes by alpha",
    "categorical_focal_crossentropy": "focal takes logits and class indices",
    "lovasz_hinge": "it is lovasz with mode binary",
    "dice_focal": "it is weighted_sum of dice and focal",
    "squared_hinge": "it is hinge with squared true",
    "expectileerror": "expectile is twice XGBoost's",
    "reg_expectileerror": "expectile is twice XGBoost's",
    "f1": "soft_f1 is its smooth form for classes, dice the same for regions",
    "msle": "squared_log is the half of it",
    "mean_squared_logarithmic_error": "squared_log is the half of it",
    "mean_absolute_percentage_error": "mape is a fraction; Keras's is 100 times it",
    "tweedie_deviance": "tweedie is half of it, without the terms that do not depend on the prediction",
    "gamma_deviance": "gamma_nll is half of it, without the terms that do not depend on the prediction",
    "beta_nll": "it is gaussian_nll with a beta of 0.5",
    "crps": "crps_ensemble takes members, crps_normal a mean and a scale, quantiles is half of an approximation",
    "multi_quantile": "it is quantiles, which averages over the levels",
    "ipo": 'it is dpo with the form "ipo"; TRL divides by the lengths of the answers, which dpo takes as inputs',
    "cdpo": 'it is dpo with the form "conservative" and label_smoothing',
    "robust_dpo": 'it is dpo with the form "robust" and label_smoothing',
    "cpo": "it is dpo with references of 0; its likelihood term is added by weighted_sum",
    "grpo": 'it is policy_gradient with the aggregation "sequence_mean" and advantages standardised by group',
    "dr_grpo": 'it is policy_gradient with the aggregation "constant" and a length',
    "dapo": 'it is policy_gradient with ratio_max 1.28, whose aggregation is "token_mean" by default',
    "cispo": 'it is policy_gradient with the form "cispo"',
    "gspo": 'it is policy_gradient with the form "gspo" and the aggregation "sequence_mean"',
    "sapo": 'it is policy_gradient with the form "sapo"',
    "dro": 'it is policy_gradient with the form "dro" and beta',
    "importance_sampling": 'it is policy_gradient with that form; Tinker adds up all tokens: reduction "sum"',
    "gkd": 'it is distillation with the scale "none"; its beta 0 and 1 are the divergences "forward" and "reverse"',
    "polyloss": "it is cross_entropy with poly",
    "poly": "it is cross_entropy with poly",
    "logit_adjusted": "it is cross_entropy with a prior, the frequency of each class",
    "logit_adjustment": "it is cross_entropy with a prior, the frequency of each class",
    "balanced_softmax": "it is cross_entropy with a prior, the number of samples of each class",
    "z": "it is cross_entropy with z_loss",
    "logistic": "it is soft_margin for labels of -1 and 1, bce_with_logits for labels of 0 and 1",
    "cosine": "cosine_embedding is 1 - cos where similar is 1; others leave out the 1",
    "cosine_similarity": "cosine_embedding is 1 - cos where similar is 1; others leave out the 1",
    "cosine_distance": "it is cosine_embedding where similar is 1",
    "multiple_negatives_ranking": "clip is its symmetric form, with temperature 1 / scale",
    "mnr": "clip is its symmetric form, with temperature 1 / scale",
    "multiple_negatives_symmetric_ranking": _SYMMETRIC,
    "symmetric_mnr": _SYMMETRIC,
    "batch_hard": 'it is mined_triplet with mining "hard"',
    "batch_hard_triplet": 'it is mined_triplet with mining "hard"',
    "triplet_hard": 'it is mined_triplet with mining "hard"',
    "batch_semi_hard_triplet": 'it is mined_triplet with mining "semi_hard"',
    "triplet_semi_hard": 'it is mined_triplet with mining "semi_hard"',
    "batch_all_triplet": 'it is mined_triplet with mining "all"',
    "ndcg": "it is a metric of the task queries; approx_ndcg is a smooth loss, lambda_loss a bound of it",
    "adversarial": "gan_discriminator and gan_generator are its two sides",
    "wgan": "wgan_discriminator and wgan_generator are its two sides",
    "wasserstein": "wgan_discriminator and wgan_generator are its two sides",
    "lsgan": "lsgan_discriminator and lsgan_generator are its two sides, halved as in the paper",
    "least_squares": "of numbers it is mse; lsgan_discriminator and lsgan_generator are those of GANs, halved",
    "adversarial_least_squares": "lsgan_discriminator and lsgan_generator are its two sides, halved as in the paper",
    "hinge_gan": "hinge_gan_discriminator and hinge_gan_generator are its two sides",
    "adversarial_hinge": "hinge_gan_discriminator and hinge_gan_generator are its two sides",
}
"""Other names for what none of our losses computes with its defaults, and words for a need: what to use. The losses
that a note mentions are those that a search for the name finds."""

NOT_HERE: Mapping[str, str] = {
    "lpips": "its learned weights are not here; perceptual compares VGG-16's features without them",
}
"""Names of losses that no loss here computes, and what comes near. A search for them finds nothing."""

METRICS: Mapping[str, str] = {
    "sensitivity": "recall",
    "true_positive_rate": "recall",
    "tpr": "recall",
    "positive_predictive_value": "precision",
    "ppv": "precision",
    "true_negative_rate": "specificity",
    "tnr": "specificity",
    "threat_score": "iou",
    "critical_success_index": "iou",
    "jaccard": "iou",
    "jaccard_index": "iou",
    "jaccard_score": "iou",
    "miou": "iou",
    "dice": "f1",
    "dice_metric": "f1",
    "dice_score": "f1",
    "dice_coefficient": "f1",
    "f_score": "f1",
    "f1_score": "f1",
    "f_measure": "f1",
    "fbeta_score": "f_beta",
    "roc_auc": "auroc",
    "roc_auc_score": "auroc",
    "auc": "auroc",
    "auc_roc": "auroc",
    "average_precision_score": "average_precision",
    "pr_auc": "average_precision",
    "auc_pr": "average_precision",
    "matthews_corrcoef": "mcc",
    "matthews_correlation_coefficient": "mcc",
    "kappa": "cohen_kappa",
    "cohen_kappa_score": "cohen_kappa",
    "brier_score": "brier",
    "brier_score_loss": "brier",
    "expected_calibration_error": "ece",
    "calibration_error": "ece",
    "calibration_curve": "reliability",
    "reliability_diagram": "reliability",
    "top_k_categorical_accuracy": "top_k_accuracy",
    "sparse_top_k_categorical_accuracy": "top_k_accuracy",
    "balanced_accuracy_score": "balanced_accuracy",
    "acc": "accuracy",
    "accuracy_score": "accuracy",
    "ndcg": "ndcg@k",
    "normalized_dcg": "ndcg@k",
    "normalized_discounted_cumulative_gain": "ndcg@k",
    "mean_average_precision": "map@k",
    "mean_reciprocal_rank": "mrr",
    "median_absolute_error": "medae",
    "mean_squared_log_error": "msle",
    "mean_squared_logarithmic_error": "msle",
    "root_mean_squared_log_error": "rmsle",
    "mean_absolute_scaled_error": "mase",
    "symmetric_mean_absolute_percentage_error": "smape",
    "mean_pinball_loss": "pinball",
    "concordance_correlation_coefficient": "ccc",
    "kendall_tau": "kendall",
    "kendall_rank_corrcoef": "kendall",
    "spearmanr": "spearman",
    "spearman_corrcoef": "spearman",
    "quadratic_weighted_kappa": "cohen_kappa",
    "kolmogorov_smirnov": "ks",
    "equal_error_rate": "eer",
    "false_positive_rate": "fpr",
    "false_negative_rate": "fnr",
    "miss_rate": "fnr",
    "negative_predictive_value": "npv",
    "youden": "informedness",
    "hamming_distance": "hamming",
    "subset_accuracy": "exact_match",
    "label_ranking_average_precision": "lrap",
    "label_ranking_loss": "ranking_loss",
    "maximum_calibration_error": "mce",
    "hit_ratio": "hit_rate@k",
    "expected_reciprocal_rank": "err",
    "mean_absolute_error": "mae",
    "mean_squared_error": "mse",
    "root_mean_squared_error": "rmse",
    "r2_score": "r2",
    "coefficient_of_determination": "r2",
    "pearsonr": "pearson",
    "pearson_corrcoef": "pearson",
    "explained_variance_score": "explained_variance",
    "mean_absolute_percentage_error": "mape",
}
"""Other libraries' names of our metrics."""

LIBRARIES = (
    "catboost",
    "keras",
    "kornia",
    "lightgbm",
    "lightly",
    "monai",
    "optax",
    "pml",
    "sklearn",
    "smp",
    "tensorflow",
    "timm",
    "torch",
    "torchmetrics",
    "xgboost",
)


class Meaning(NamedTuple):
    """What other libraries mean by a name.

    Attributes:
        loss: Our loss of the same numbers; None if there is none.
        metric: Our metric of that name; None if there is none.
        note: What differs, and what to use; empty if the loss is the same.
        here: Whether a loss that the note mentions computes it.
        keys: The folded names that it may mean, up to the one that the table has; all of them if it has none.
    """

    loss: str | None
    metric: str | None
    note: str
    here: bool
    keys: list[str]


MAX_NAME = 256
"""The length of a name in characters from which on it means nothing: the patterns here take quadratic time."""

_PATH = re.compile(r"(?:[A-Za-z_]\w*\.)+(?=[A-Za-z_]\w*(?:\(.*\))?$)")


def folded(name: str) -> str:
    """Return a name without what libraries spell differently: case, and all but letters, digits and ``@``."""
    return re.sub(r"[^a-z0-9@]", "", name.lower())


def _spellings(name: str) -> list[str]:
    """Return the folded names that a name may mean, the most literal first, without duplicates.

    A module's path, the word loss or metric at the end, and the name of a library are left out one after the other.
    """
    last = re.sub(r"=\s*True", "", _PATH.sub("", name.strip()), flags=re.IGNORECASE)
    words = [word for word in re.split(r"[^A-Za-z0-9@]+", last) if word.lower() not in LIBRARIES]
    found = [folded(last)]
    found += [found[0].removesuffix(end) for end in ("loss", "error", "metric")]
    joined = folded("".join(words))
    found += [joined, joined.removesuffix("loss")]
    return list(dict.fromkeys(key for key in found if key))


def meaning(name: str) -> Meaning:
    """Return what other libraries mean by a name, however it is spelled."""
    keys = _spellings(name) if len(name) < MAX_NAME else []
    for position, key in enumerate(keys):
        loss, note, absent, metric = (table.get(key) for table in _TABLES)
        if loss or note or absent or metric:
            return Meaning(loss, metric, note or absent or "", absent is None, keys[: position + 1])
    return Meaning(None, None, "", here=True, keys=keys)


def other_names(table: Mapping[str, str]) -> dict[str, list[str]]:
    """Return the folded names that a table has for each of ours."""
    found: dict[str, list[str]] = {}
    for name, ours in table.items():
        found.setdefault(ours, []).append(folded(name))
    return found


_TABLES: Final = tuple(
    {folded(name): meant for name, meant in table.items()} for table in (SYNONYMS, NOT_QUITE, NOT_HERE, METRICS)
)
