"""The loss of a run: every loss whose value is a mean over rows, however the rows are split."""

from __future__ import annotations

import itertools
from typing import Any

import numpy as np
import pytest

import lossd
from lossd.losses import REGISTRY
from lossd.runs.result import RunResult
from lossd.runs.run import Run
from lossd_client.errors import InvalidRequest
from losses.case import Case
from losses.cases import CASES
from runs.drawing import rows, splits

ROWS = [case for case in CASES if REGISTRY[case.name].kind == "rows" and not case.sample_axis]
OTHERS = [case for case in CASES if REGISTRY[case.name].kind in ("stack", "alone") and not case.sample_axis]


def test_every_loss_is_tried() -> None:
    named = {case.name for case in (*ROWS, *OTHERS)} | {c.name for c in CASES if c.sample_axis}
    kinds = {name for name, loss in REGISTRY.items() if loss.kind != "composed"}
    assert named == kinds - {"gradnorm", "expression", "feature_matching"}  # their inputs are no single tensors


def drawn(case: Case, n: int, dtype: str, seed: int = 0) -> dict[str, Any]:
    inputs = case.draw(np.random.default_rng(seed), n, case.parameters[0] if case.parameters else {})
    return {name: array.astype(dtype) if array.dtype.kind == "f" else array for name, array in inputs.items()}


def codes(result: RunResult) -> list[str]:
    """Return the codes of a result's warnings, but for that of few rows, which is about intervals."""
    return [warning.code for warning in result.warnings if warning.code != "few_rows"]


@pytest.mark.parametrize("case", ROWS, ids=lambda case: f"{case.name}{case.variant}")
def test_the_loss_of_rows_does_not_depend_on_the_split(case: Case) -> None:
    """In both dtypes with a loss's first parameters, and by turns with its others."""
    rng = np.random.default_rng(17)
    sets = list(enumerate(case.parameters or [{}]))
    for dtype, (number, parameters) in [("float64", sets[0]), *zip(itertools.cycle(["float32", "float64"]), sets)]:
        n = 37
        inputs = case.draw(np.random.default_rng(number), n, parameters)
        inputs = {name: a.astype(dtype) if a.dtype.kind == "f" else a for name, a in inputs.items()}
        if number % 2:
            inputs["sample_weight"] = rng.random(n) * (rng.random(n) > 0.2)
        known = {name: value for name, value in parameters.items() if value is not None}
        if known.get("reduction") == "none":
            continue

        def run(known: Any = known) -> Run:
            return Run(loss={"name": case.name, **known}, metrics=[], identity="position")

        whole, split = run(), run()
        whole.add(inputs=inputs, first=0)
        for first, last in splits(rng, n, most=4):
            split.add(inputs=rows(inputs, first, last), first=first)
        assert split.state() == whole.state(), f"{known}, {dtype}"
        expected = lossd.evaluate({"name": case.name, **known}, inputs=inputs, outputs=["loss"])
        result = whole.result()
        assert result.loss == pytest.approx(expected.loss, rel=1e-12, abs=1e-300), f"{known}, {dtype}"
        assert codes(result) == []


@pytest.mark.parametrize("case", OTHERS, ids=lambda case: f"{case.name}{case.variant}")
def test_a_loss_of_a_whole_batch_is_flagged(case: Case) -> None:
    run = Run(loss={"name": case.name, **(case.parameters[0] if case.parameters else {})}, metrics=[])
    losses = []
    for seed in range(2):
        inputs = drawn(case, 6, "float32", seed)
        run.add(inputs=inputs)
        parameters = case.parameters[0] if case.parameters else {}
        losses.append(lossd.evaluate({"name": case.name, **parameters}, inputs=inputs, outputs=["loss"]).reduction)
    result = run.result()
    assert codes(result) == ["depends_on_batches"]
    numerator, denominator = (sum(parts) for parts in zip(*losses, strict=True))
    assert result.loss == pytest.approx(numerator / denominator if denominator else 0, rel=1e-14)


def test_an_unreduced_loss_has_no_run() -> None:
    with pytest.raises(InvalidRequest, match="reduction mean or sum"):
        Run(loss={"name": "mse", "reduction": "none"})


def test_float32_rows_beyond_its_range_are_computed_in_float64_each_by_itself() -> None:
    prediction = np.array([[2e30], [1.0], [0.5]], "float32")
    target = np.zeros_like(prediction)
    whole, split = (Run(loss="mse", metrics=[], identity="position") for _ in range(2))
    whole.add(prediction, target, first=0)
    for row in (2, 0, 1):
        split.add(prediction[row : row + 1], target[row : row + 1], first=row)
    assert whole.state() == split.state()
    exact = (float(np.float32(2e30)) ** 2 + 1.25) / 3
    assert whole.result().loss == pytest.approx(exact, rel=1e-15)
