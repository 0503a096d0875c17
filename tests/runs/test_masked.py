"""A run leaves out what masks leave out, however its rows are split into batches."""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt
import pytest

import lossd
from lossd.metrics import METRICS
from lossd.runs.run import Run
from losses.test_dropped import compare
from runs.drawing import NEEDED

Array = npt.NDArray[Any]

ROWS, STEPS, CLASSES = 9, 5, 3


def drawn(loss: str) -> tuple[dict[str, Array], Array]:
    """Inputs and a mask: of some rows no entry counts."""
    rng = np.random.default_rng(3)
    mask = rng.random((ROWS, STEPS)) < 0.6
    mask[1] = False
    prediction = rng.normal(size=(ROWS, STEPS))
    match loss:
        case "mse":
            target = rng.normal(size=(ROWS, STEPS))
        case "bce_with_logits":
            target = rng.integers(0, 2, (ROWS, STEPS)).astype(float)
        case _:
            prediction = rng.normal(size=(ROWS, CLASSES, STEPS))
            target = rng.integers(0, CLASSES, (ROWS, STEPS))
    return {"prediction": prediction, "target": target}, mask


def spoiled(inputs: dict[str, Array], mask: Array) -> dict[str, Array]:
    found = {}
    for name, array in inputs.items():
        under = ~mask if array.ndim == 2 else np.broadcast_to(~mask[:, None], array.shape)
        found[name] = np.where(under, np.nan if array.dtype.kind == "f" else -7, array)
    return found


def gathered(inputs: dict[str, Array], mask: Array) -> dict[str, Array]:
    return {name: a[mask] if a.ndim == 2 else np.moveaxis(a, 1, -1)[mask] for name, a in inputs.items()}


def numbers(metrics: Any) -> Any:
    """Return the metrics without what only a run says of them."""
    plain = {name: value for name, value in metrics.items() if name not in ("undefined", "task")}
    return {name: value["value"] if isinstance(value, dict) and "value" in value else value
            for name, value in plain.items()}  # fmt: skip


@pytest.mark.parametrize("loss", ["mse", "bce_with_logits", "cross_entropy"])
def test_a_run_counts_what_a_mask_keeps(loss: str) -> None:
    inputs, mask = drawn(loss)
    task = {"mse": "regression", "bce_with_logits": "binary", "cross_entropy": "multiclass"}[loss]
    left_out = (
        *("top_k_accuracy", "per_image_iou", "per_image_dice", "roc_curve", "pr_curve"),
        *("cosine_similarity", "generalized_dice", "volume_difference", "relative_volume_difference"),  # of each row
    )
    names = [name for name, metric in METRICS[task].items() if metric.reads is not None and name not in left_out]
    options = {"names": names, **NEEDED}
    poison = spoiled(inputs, mask)
    whole, split = Run(loss=loss, metrics=options), Run(loss=loss, metrics=options)
    whole.add(inputs=poison, mask=mask)
    for first in range(0, ROWS, 2):
        rows = slice(first, first + 2)
        split.add(inputs={name: array[rows] for name, array in poison.items()}, mask=mask[rows].astype(np.int8))
    found, expected = split.result(), lossd.evaluate(loss, inputs=gathered(inputs, mask), metrics=options)
    assert found.loss == pytest.approx(expected.loss, rel=1e-12)
    compare(numbers(found.metrics), numbers(expected.metrics))
    assert split.state() == whole.state()


def test_the_fingerprint_tells_masks_apart() -> None:
    inputs, mask = drawn("mse")

    def fingerprint(**masks: Array) -> str:
        run = Run(loss="mse", metrics=["mae"])
        run.add(inputs=inputs, **masks)
        return str(run.result().targets)

    other = mask.copy()
    other[0, 0] = not other[0, 0]
    lengths = np.full(ROWS, STEPS)
    same = {fingerprint(mask=mask), fingerprint(mask=mask.astype(np.int64))}
    assert len(same) == 1
    assert len({*same, fingerprint(), fingerprint(mask=other), fingerprint(lengths=lengths)}) == 4


def test_a_run_may_leave_out_targets_that_are_nan() -> None:
    inputs, mask = drawn("mse")
    run = Run(loss={"name": "mse", "nan_targets": "ignore"}, metrics=["mae"])
    run.add(inputs={**inputs, "target": np.where(mask, inputs["target"], np.nan)})
    expected = lossd.evaluate("mse", inputs=gathered(inputs, mask))
    assert run.result().loss == pytest.approx(expected.loss, rel=1e-12)
    assert run.result().metrics.mae == pytest.approx(expected.metrics.mae, rel=1e-12)
