"""Names that other libraries use: a hint leads to the same numbers, or says what is different."""

from __future__ import annotations

import re

import numpy as np
import pytest
import torch
from sklearn.metrics import hinge_loss
from torch.nn import functional

from evaluating import alone
from lossd.losses import REGISTRY
from lossd.losses.registry import NOT_QUITE, SYNONYMS, find_loss
from lossd_client.errors import UnknownLoss


def hint(name: str) -> str:
    with pytest.raises(UnknownLoss) as told:
        find_loss(name)
    return str(told.value)


@pytest.mark.parametrize(("name", "ours"), SYNONYMS.items())
def test_a_synonym_leads_to_a_loss(name: str, ours: str) -> None:
    assert ours in REGISTRY
    if name not in REGISTRY:
        assert f"did you mean {ours}" in hint(name)
    assert name not in NOT_QUITE


@pytest.mark.parametrize(
    ("name", "ours"),
    [("dice_ce", "ce_dice"), ("DiceCELoss", "ce_dice"), ("dice_bce", "bce_dice"), ("tripletmargin", "triplet")],
)
def test_names_of_other_libraries_are_known(name: str, ours: str) -> None:
    assert f"did you mean {ours}" in hint(name)


@pytest.mark.parametrize("name", NOT_QUITE)
def test_what_is_not_quite_the_same_is_said_to_be(name: str) -> None:
    assert name not in REGISTRY
    for spelled in (name, f"{name}_loss", f"{name}-loss".upper(), name.title().replace("_", "") + "Loss"):
        if "_" not in name or "_" in spelled.lower().removesuffix("_loss"):
            assert NOT_QUITE[name] in hint(spelled)
    mentioned = set(re.findall(r"[a-z][a-z_]+[a-z]", NOT_QUITE[name])) & REGISTRY.keys()
    assert mentioned


def test_a_hinge_is_not_that_of_classes() -> None:
    assert "multi_margin is that of classes" in hint("hinge")
    assert "did you mean" not in hint("HingeLoss")


def test_the_written_hinges_are_the_hinges() -> None:
    inputs = {"prediction": torch.tensor([0.3, -2.0, 0.5, 1.5]), "target": torch.tensor([1.0, 1.0, -1.0, 1.0])}
    margins = np.maximum(0, 1 - (inputs["prediction"] * inputs["target"]).double().numpy())
    for name, wanted in (
        ("hinge", hinge_loss(inputs["target"].numpy(), inputs["prediction"].double().numpy())),
        ("squared_hinge", (margins**2).mean()),
    ):
        (formula,) = re.findall(r'"(.*?)"', NOT_QUITE[name])
        answer = alone({"loss": {"name": "expression", "formula": formula}}, inputs)
        assert float(answer.loss) == pytest.approx(wanted, rel=1e-6)


def test_half_a_square_is_not_mse() -> None:
    assert "half" in hint("l2_loss")
    assert "half" in hint("l2")


def test_logistic_is_two_losses_by_its_labels() -> None:
    scores, yes = torch.tensor([0.3, -2.0]), torch.tensor([1.0, 0.0])
    signed = alone({"loss": {"name": "soft_margin"}}, {"prediction": scores, "target": 2 * yes - 1})
    plain = alone({"loss": {"name": "bce_with_logits"}}, {"prediction": scores, "target": yes})
    wanted = functional.binary_cross_entropy_with_logits(scores, yes).item()
    assert float(signed.loss) == pytest.approx(wanted, rel=1e-6)
    assert float(plain.loss) == pytest.approx(wanted, rel=1e-6)


def test_cosine_of_similar_vectors_is_one_less_their_cosine() -> None:
    first, second = torch.tensor([[1.0, 2.0]]), torch.tensor([[2.0, -0.5]])
    answer = alone(
        {"loss": {"name": "cosine_embedding"}}, {"first": first, "second": second, "similar": torch.tensor([1])}
    )
    assert float(answer.loss) == pytest.approx(1 - functional.cosine_similarity(first, second).item(), rel=1e-6)
    assert "1 - cos" in hint("cosine")
