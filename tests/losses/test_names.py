"""Names that other libraries use: a hint leads to the same numbers, or says what is different."""

from __future__ import annotations

import re
import time

import numpy as np
import pytest
import torch
from sklearn.metrics import (
    hinge_loss,
    mean_absolute_percentage_error,
    mean_gamma_deviance,
    mean_squared_log_error,
    mean_tweedie_deviance,
)
from torch.nn import functional

from evaluating import alone
from lossd.losses import REGISTRY
from lossd.losses.lookup import find_loss
from lossd.losses.names import METRICS, NOT_HERE, NOT_QUITE, SYNONYMS, folded, meaning
from lossd.metrics import METRICS as TASK_METRICS
from lossd.request.planning import make_plan
from lossd_client.errors import InvalidRequest, UnknownLoss
from rows import in_one_item


def hint(name: str) -> str:
    with pytest.raises(UnknownLoss) as error:
        find_loss(name)
    return str(error.value)


@in_one_item("name, ours", SYNONYMS.items())
def test_a_synonym_leads_to_a_loss(name: str, ours: str) -> None:
    assert ours in REGISTRY
    if name not in REGISTRY:
        assert f"did you mean {ours}" in hint(name)
    assert name not in NOT_QUITE


@in_one_item(
    "name, ours",
    [
        ("dice_ce", "ce_dice"),
        ("DiceCELoss", "ce_dice"),
        ("dice_bce", "bce_dice"),
        ("tripletmargin", "triplet"),
        ("L1Loss", "mae"),
        ("torch.nn.L1Loss", "mae"),
        ("l1-loss", "mae"),
        ("tf.keras.losses.MeanSquaredError", "mse"),
        ("mean absolute error", "mae"),
        ("BCEWithLogitsLoss", "bce_with_logits"),
        ("BinaryCrossentropy(from_logits=True)", "bce_with_logits"),
        ("SoftTargetCrossEntropy", "cross_entropy"),
        ("CrossEntropyLoss", "cross_entropy"),
        ("KLDivLoss", "kl_div"),
        ("PML NTXentLoss", "nt_xent"),
        ("MONAI Contrastive", "nt_xent"),
        ("generalized_box_iou_loss", "giou"),
        ("xentropy (LightGBM)", "bce_with_logits"),
        ("reg:absoluteerror", "mae"),
    ],
)
def test_names_of_other_libraries_are_known(name: str, ours: str) -> None:
    assert f"did you mean {ours}" in hint(name)


@pytest.mark.parametrize("name", ["Dice", "DiceLoss", "mean_squared_error", "KLDivLoss"])
def test_a_known_name_has_one_proposal(name: str) -> None:
    assert re.search(r"did you mean \w+\? ", hint(name))


def test_metrics_have_the_names_of_other_libraries() -> None:
    for name, ours in (("dice", "f1"), ("jaccard", "iou"), ("acc", "accuracy")):
        with pytest.raises(InvalidRequest, match=rf"did you mean {ours}\? GET /v1/metrics lists"):
            make_plan({"task": "multiclass", "metrics": {"names": [name]}})


TABLES = {"synonyms": SYNONYMS, "not quite": NOT_QUITE, "not here": NOT_HERE}


def test_each_name_stands_in_the_table_once() -> None:
    names = [folded(name) for table in TABLES.values() for name in table]
    assert len(names) == len(set(names))
    assert not {folded(name) for name in REGISTRY} & set(names), "our own name needs no other"
    assert len({folded(name) for name in METRICS}) == len(METRICS)


@in_one_item("name, ours", METRICS.items())
def test_a_metric_by_another_name_is_one(name: str, ours: str) -> None:
    assert any(ours in of_task for of_task in TASK_METRICS.values())
    assert not any(name in of_task for of_task in TASK_METRICS.values())
    assert meaning(name).metric == ours


def test_the_name_of_a_metric_is_said_to_be_one() -> None:
    assert "it is a metric, recall" in hint("sensitivity")
    assert "it is a metric, iou" in hint("ThreatScore")
    with pytest.raises(InvalidRequest, match="did you mean recall"):
        make_plan({"loss": {"name": "bce_with_logits"}, "metrics": {"names": ["sensitivity"]}})


def test_what_is_not_here_points_at_no_loss() -> None:
    for name in ("lpips", "LPIPS", "piq.LPIPS"):
        assert "its learned weights are not here" in hint(name)
        assert "did you mean" not in hint(name)


@in_one_item("name", NOT_QUITE)
def test_what_is_not_quite_the_same_is_said_to_be(name: str) -> None:
    assert name not in REGISTRY
    for spelled in (name, f"{name}_loss", f"{name}-loss".upper(), name.title().replace("_", "") + "Loss"):
        assert NOT_QUITE[name] in hint(spelled)
    mentioned = set(re.findall(r"[a-z][a-z_]+[a-z]", NOT_QUITE[name])) & REGISTRY.keys()
    assert mentioned


def test_hinges_are_those_of_other_libraries() -> None:
    inputs = {"prediction": torch.tensor([0.3, -2.0, 0.5, 1.5]), "target": torch.tensor([1.0, 1.0, -1.0, 1.0])}
    scores, labels = inputs["prediction"].double().numpy(), inputs["target"].numpy()
    plain = alone({"loss": {"name": "hinge"}}, inputs)
    assert float(plain.loss) == pytest.approx(hinge_loss(labels, scores), rel=1e-6)
    assert "hinge with squared true" in hint("squared_hinge")
    squared = alone({"loss": {"name": "hinge", "squared": True}}, inputs)
    assert float(squared.loss) == pytest.approx((np.maximum(0, 1 - scores * labels) ** 2).mean(), rel=1e-6)


def test_deviances_are_doubles_without_constants() -> None:
    random = torch.Generator().manual_seed(0)
    logarithm = torch.randn(50, generator=random, dtype=torch.float64)
    target = torch.rand(50, generator=random, dtype=torch.float64) + 0.1
    mean = logarithm.exp()
    for name, of_scikit_learn, parameters in (
        ("tweedie", lambda p: mean_tweedie_deviance(target, p, power=1.3), {"power": 1.3}),
        ("gamma_nll", lambda p: mean_gamma_deviance(target, p), {}),
    ):
        request = {"loss": {"name": name, **parameters}}
        found = alone(request, {"prediction": logarithm, "target": target}).loss
        least = alone(request, {"prediction": target.log(), "target": target}).loss
        assert 2 * (found - least) == pytest.approx(of_scikit_learn(mean), rel=1e-10)
    half = alone({"loss": {"name": "squared_log"}}, {"prediction": mean, "target": target}).loss
    assert 2 * half == pytest.approx(mean_squared_log_error(target, mean), rel=1e-10)
    fraction = alone({"loss": {"name": "mape"}}, {"prediction": mean, "target": target}).loss
    assert fraction == pytest.approx(mean_absolute_percentage_error(target, mean), rel=1e-10)


def test_half_a_square_is_not_mse() -> None:
    assert "half" in hint("l2_loss")
    assert "half" in hint("l2")


def test_logistic_is_two_losses_by_its_labels() -> None:
    scores, yes = torch.tensor([0.3, -2.0]), torch.tensor([1.0, 0.0])
    signed = alone({"loss": {"name": "soft_margin"}}, {"prediction": scores, "target": 2 * yes - 1})
    plain = alone({"loss": {"name": "bce_with_logits"}}, {"prediction": scores, "target": yes})
    expected = functional.binary_cross_entropy_with_logits(scores, yes).item()
    assert float(signed.loss) == pytest.approx(expected, rel=1e-6)
    assert float(plain.loss) == pytest.approx(expected, rel=1e-6)


def test_cosine_of_similar_vectors_is_one_less_their_cosine() -> None:
    first, second = torch.tensor([[1.0, 2.0]]), torch.tensor([[2.0, -0.5]])
    answer = alone(
        {"loss": {"name": "cosine_embedding"}}, {"first": first, "second": second, "similar": torch.tensor([1])}
    )
    assert float(answer.loss) == pytest.approx(1 - functional.cosine_similarity(first, second).item(), rel=1e-6)
    assert "1 - cos" in hint("cosine")


def test_a_long_name_is_not_looked_for() -> None:
    """The patterns of other libraries' spellings take quadratic time: minutes for 400,000 letters."""
    begin = time.process_time()
    assert hint("a" * 400_000).startswith("there is no loss named 'aaaa")
    assert meaning("nn." * 100 + "MSELoss").keys == []
    assert time.process_time() - begin < 1.0
