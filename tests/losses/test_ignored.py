"""Targets that are missing: losses of yes and no, and the metrics beside them, are of the others alone."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor

from evaluating import alone
from lossd.metrics import METRICS
from lossd_client.errors import InvalidValue
from losses.test_dropped import compare

# Of each image (row), which are no images any more once their entries stand in one row.
OF_IMAGES = (
    *("per_image_iou", "per_image_dice"),
    *("exact_match", "lrap", "coverage_error", "ranking_loss", "precision@k", "ndcg@k"),
)
NAMES = {task: [name for name in METRICS[task] if name not in OF_IMAGES] for task in ("binary", "multilabel")}


def labels(ignored: int) -> dict[str, Tensor]:
    random = torch.Generator().manual_seed(3)
    target = torch.randint(0, 2, (12, 3), generator=random)
    target[torch.rand(target.shape, generator=random) < 0.4] = ignored
    return {"prediction": torch.randn(12, 3, generator=random, dtype=torch.float64), "target": target}


def request(loss: dict[str, Any], task: str) -> dict[str, Any]:
    return {"loss": loss, "outputs": ["loss", "gradient", "metrics"], "metrics": {"task": task, "names": NAMES[task]}}


@pytest.mark.parametrize("ignored", [-1, 255, -100])
@pytest.mark.parametrize("name", ["bce", "bce_with_logits", "sigmoid_focal"])
def test_metrics_leave_out_what_the_loss_does(name: str, ignored: int) -> None:
    inputs = labels(ignored)
    if name == "bce":
        inputs["prediction"] = inputs["prediction"].sigmoid()
    there = inputs["target"] != ignored
    known = {key: tensor[there] for key, tensor in inputs.items()}
    found = alone(request({"name": name, "ignore_index": ignored}, "binary"), inputs)
    expected = alone(request({"name": name}, "binary"), known)
    assert float(found.loss) == pytest.approx(float(expected.loss), rel=1e-12)
    assert found.denominator == int(there.sum())
    torch.testing.assert_close(found.gradient()[there], expected.gradient())
    assert not found.gradient()[~there].any()
    compare(found.document["metrics"], expected.document["metrics"])


def test_labels_leave_out_their_own() -> None:
    inputs = labels(-1)
    names = ["precision", "recall", "f1", "auroc", "average_precision", "support"]
    options = {"task": "multilabel", "names": names}
    found = alone(
        {"loss": {"name": "bce_with_logits", "ignore_index": -1}, "outputs": ["metrics"], "metrics": options}, inputs
    ).document["metrics"]
    for label in range(3):
        there = inputs["target"][:, label] != -1
        known = {key: tensor[there, label] for key, tensor in inputs.items()}
        query = {"task": "binary", "outputs": ["metrics"], "metrics": {"names": names}}
        metrics = alone(query, known).document["metrics"]
        for name in names:
            per_class = found[name] if isinstance(found[name], list) else found[name]["per_class"]
            compare(per_class[label], metrics[name])


def test_a_missing_label_says_what_would_help() -> None:
    inputs = {"prediction": torch.zeros(2), "target": torch.tensor([1.0, -1.0])}
    with pytest.raises(InvalidValue, match=r"found -1 at target\[1\]; .*; set ignore_index to the value"):
        alone({"loss": {"name": "bce_with_logits"}}, inputs)
    with pytest.raises(InvalidValue, match=r"or -1 \(ignore_index\) for targets that do not count, found -2"):
        alone({"loss": {"name": "bce_with_logits", "ignore_index": -1}}, {**inputs, "target": torch.tensor([-1, -2])})
