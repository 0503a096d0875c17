"""CTC by its definition: every path through the classes is walked, and those that read as the labels are added up."""

from __future__ import annotations

import itertools
import math
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from evaluating import alone, together

INF = math.inf


def collapsed(path: tuple[int, ...], blank: int) -> list[int]:
    """What a path reads as: repetitions are one label, and blanks none."""
    return [c for i, c in enumerate(path) if c != blank and (i == 0 or c != path[i - 1])]


def enumerated(scores: np.ndarray[Any, Any], labels: list[int], blank: int) -> tuple[float, np.ndarray[Any, Any]]:
    """The loss of one sequence (T, C), and its gradient: each class's probability less its posterior."""
    steps, classes = scores.shape
    p = np.exp(scores)
    total, passing = 0.0, np.zeros_like(p)
    for path in itertools.product(range(classes), repeat=steps):
        if collapsed(path, blank) == labels:
            probability = math.prod(p[t, c] for t, c in enumerate(path))
            total += probability
            for t, c in enumerate(path):
                passing[t, c] += probability
    return (-math.log(total), p - passing / total) if total else (INF, np.full_like(p, math.nan))


def sequences(seed: int, blank: int, masked: float) -> dict[str, Tensor]:
    """Five sequences of unlike lengths, a share of their classes -inf; labels beyond a length mean nothing."""
    random = np.random.default_rng(seed)
    steps, n, classes, most = 4, 5, 3, 2
    scores = random.normal(0, 1, (steps, n, classes))
    scores[random.random(scores.shape) < masked] = -INF
    scores[..., random.integers(classes)] = random.normal(0, 1, (steps, n))  # one class is left at each step
    target_lengths = random.integers(0, most + 1, n)
    target = random.choice([c for c in range(classes) if c != blank], (n, most))
    target[np.arange(most) >= target_lengths[:, None]] = 99
    return {
        "prediction": torch.from_numpy(scores).log_softmax(2),
        "target": torch.from_numpy(target),
        "input_lengths": torch.from_numpy(random.integers(1, steps + 1, n)),
        "target_lengths": torch.from_numpy(target_lengths),
    }


def expected(inputs: dict[str, Tensor], blank: int, *, forgiven: bool) -> tuple[list[float], Tensor]:
    """Each sequence's loss and gradient; the loss is not divided by the number of labels."""
    values, gradient = [], torch.zeros_like(inputs["prediction"], dtype=torch.float64)
    for i, steps in enumerate(inputs["input_lengths"].tolist()):
        scores = inputs["prediction"][:steps, i].double().numpy()
        value, slope = enumerated(scores, inputs["target"][i, : inputs["target_lengths"][i]].tolist(), blank)
        if value == INF and forgiven:
            value, slope = 0.0, np.zeros_like(scores)
        values.append(value)
        gradient[:steps, i] = torch.from_numpy(slope).masked_fill(torch.from_numpy(scores) == -INF, 0)
    return values, gradient


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32], ids=str)
@pytest.mark.parametrize("forgiven", [False, True])
@pytest.mark.parametrize("masked", [0.0, 0.4])
@pytest.mark.parametrize(("seed", "blank"), [(0, 0), (1, 2), (2, 0), (3, 1)])
def test_every_path_is_added_up(seed: int, blank: int, masked: float, forgiven: bool, dtype: torch.dtype) -> None:
    inputs = sequences(seed, blank, masked)
    inputs["prediction"] = inputs["prediction"].to(dtype)
    loss = {"name": "ctc", "blank": blank, "zero_infinity": forgiven}
    values, gradient = expected(inputs, blank, forgiven=forgiven)
    within = {"rtol": 1e-12, "atol": 1e-12} if dtype == torch.float64 else {"rtol": 1e-5, "atol": 1e-6}

    each = alone({"loss": {**loss, "reduction": "none"}}, inputs)
    torch.testing.assert_close(each.loss.double(), torch.tensor(values, dtype=torch.float64), **within)
    torch.testing.assert_close(each.gradient().double(), gradient, equal_nan=True, **within)

    labels = inputs["target_lengths"].clamp(min=1)
    mean = alone({"loss": loss}, inputs)
    torch.testing.assert_close(float(mean.loss), float((torch.tensor(values) / labels).mean()), rtol=1e-5, atol=1e-6)
    shared = gradient / (len(values) * labels.reshape(-1, 1))
    torch.testing.assert_close(mean.gradient().double(), shared, equal_nan=True, **within)


def test_some_sequences_are_impossible() -> None:
    """The cases above hold both: sequences that no path reads as, and classes that are masked on a way through."""
    drawn = [expected(sequences(seed, blank, 0.4), blank, forgiven=False)[0] for seed, blank in [(0, 0), (1, 2)]]
    assert any(math.isinf(value) for values in drawn for value in values)
    assert any(math.isfinite(value) for values in drawn for value in values)


def test_a_masked_class_has_no_gradient() -> None:
    """Three steps, and the six paths of classes 0 and 1 that read as one label, by hand."""
    p = [[[0.5, 0.5, 0.0]], [[0.4, 0.6, 0.0]], [[0.7, 0.3, 0.0]]]
    inputs = {
        "prediction": torch.tensor(p, dtype=torch.float64).log(),
        "target": torch.tensor([[1]]),
        "input_lengths": torch.tensor([3]),
        "target_lengths": torch.tensor([1]),
    }
    # 1bb b1b bb1 11b b11 111: 0.14 + 0.21 + 0.06 + 0.21 + 0.09 + 0.09 = 0.8
    answer = alone({"loss": {"name": "ctc"}}, inputs)
    assert float(answer.loss) == pytest.approx(-math.log(0.8), rel=1e-12)
    # Of class 1 the posteriors are 0.44, 0.6 and 0.24 over 0.8.
    ones = torch.tensor([0.5 - 0.55, 0.6 - 0.75, 0.3 - 0.3], dtype=torch.float64)
    gradient = torch.stack([-ones, ones, torch.zeros(3, dtype=torch.float64)], 1).unsqueeze(1)
    torch.testing.assert_close(answer.gradient(), gradient, rtol=0, atol=1e-12)
    assert answer.warnings == set()


@pytest.mark.parametrize("dtype", [torch.int64, torch.uint8], ids=str)
def test_a_batch_of_silence_costs_its_blanks(dtype: torch.dtype) -> None:
    p = torch.tensor([[0.5, 0.2, 0.3], [0.4, 0.5, 0.1], [0.7, 0.2, 0.1]], dtype=torch.float64)
    inputs = {
        "prediction": torch.stack([p, p], 1).log(),
        "target": torch.zeros(2, 0, dtype=dtype),
        "input_lengths": torch.tensor([3, 2]),
        "target_lengths": torch.tensor([0, 0]),
    }
    answer = alone({"loss": {"name": "ctc", "reduction": "none"}}, inputs)
    assert answer.loss.tolist() == pytest.approx([-math.log(0.14), -math.log(0.2)], rel=1e-12)
    posterior = torch.tensor([1.0, 0.0, 0.0], dtype=torch.float64)
    gradient = torch.stack([p - posterior, p - posterior], 1)
    gradient[2, 1] = 0
    torch.testing.assert_close(answer.gradient(), gradient, rtol=0, atol=1e-12)
    spoken = {**inputs, "target": torch.tensor([[1], [1]])}
    assert alone({"loss": {"name": "ctc"}}, spoken).loss == alone({"loss": {"name": "ctc"}}, inputs).loss


def test_silence_that_cannot_be_is_infinite() -> None:
    inputs = {
        "prediction": torch.tensor([[[-INF, 0.0]]]),
        "target": torch.zeros(1, 0, dtype=torch.int64),
        "input_lengths": torch.tensor([1]),
        "target_lengths": torch.tensor([0]),
    }
    (answer,) = together([{"loss": {"name": "ctc"}}], [inputs])
    assert float(answer.loss) == INF
    assert answer.warnings == {"non_finite"}
    forgiven = alone({"loss": {"name": "ctc", "zero_infinity": True}}, inputs)
    assert float(forgiven.loss) == 0
    assert not forgiven.gradient().any()
