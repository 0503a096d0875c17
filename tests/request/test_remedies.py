"""What people send who come from other libraries, and the remedy that each refusal names."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
import pytest

import lossd
from lossd_client.errors import Problem

CLASSES = np.random.default_rng(0).integers(0, 3, (2, 4, 4))
CLASSES[0, 0, :3] = (0, 1, 2)
SCORES = np.random.default_rng(1).standard_normal((2, 3, 4, 4)).astype(np.float32)
MASK = np.where(CLASSES == 1, 255, 0)
FLAT = CLASSES.reshape(-1)


def refusal(*arguments: Any, **options: Any) -> str:
    with pytest.raises(Problem) as refused:
        lossd.evaluate(*arguments, **options)
    return str(refused.value)


@pytest.mark.parametrize(
    ("loss", "inputs", "remedy"),
    [
        ("mse", {"pred": [1.0], "y": [2.0]}, "did you mean prediction?"),
        ("cross_entropy", {"logits": SCORES, "target": CLASSES}, "did you mean prediction?"),
        ("MSELoss", {"prediction": [1.0], "target": [2.0]}, "did you mean mse?"),
        ("CrossEntropyLoss", {"prediction": SCORES, "target": CLASSES}, "did you mean cross_entropy?"),
        ("nll", {"prediction": SCORES[:, :, 0, 0] - 9, "target": np.eye(3)[:2]}, "send target.argmax(axis=1)"),
        ("dice", {"prediction": np.moveaxis(SCORES, 1, -1), "target": CLASSES}, "numpy.moveaxis(prediction, -1, 1)"),
        ("dice", {"prediction": SCORES[0], "target": CLASSES[0]}, "send prediction[None] and target[None]"),
        ("bce", {"prediction": np.full(MASK.shape, 0.5), "target": MASK}, "send target / 255"),
        ("bce_with_logits", {"prediction": [0.1, 2.0], "target": [-1, 1]}, "send (target + 1) / 2"),
        ("cross_entropy", {"prediction": SCORES[:, :2], "target": MASK}, "send target // 255"),
    ],
)
def test_a_refusal_names_what_to_send(loss: str, inputs: Mapping[str, Any], remedy: str) -> None:
    assert remedy in refusal(loss, inputs=inputs)


@pytest.mark.parametrize(
    ("task", "predicted"), [("multiclass", FLAT), ("multiclass", CLASSES), ("segmentation", CLASSES)]
)
def test_predicted_classes_are_scored_as_the_refusal_says(task: str, predicted: np.ndarray) -> None:
    other = np.where(predicted == 2, 0, predicted)
    for sent in (other, other.astype(np.float32)):
        assert "set metrics.classes to the" in refusal(
            task=task, inputs={"prediction": sent, "target": predicted}
        ).replace("to their number", "to the number of classes")
    answer = lossd.evaluate(
        task=task, prediction=other, target=predicted, metrics={"names": ["accuracy"], "classes": 3}
    )
    assert answer.metrics.accuracy == pytest.approx(np.mean(other == predicted))


def test_a_loss_says_where_predicted_classes_are_scored() -> None:
    other = np.where(CLASSES == 2, 0, CLASSES)
    for loss in ("cross_entropy", "dice", "focal"):
        assert "name a task in place of the loss and set metrics.classes" in refusal(loss, other, CLASSES)
        assert "name a task in place of the loss and set metrics.classes" in refusal(loss, other[0, 0], CLASSES[0, 0])
        assert "leave it out, or name a task in place of the loss" in refusal(
            loss, other, CLASSES, metrics={"classes": 3}
        )
