"""The evaluation in this process."""

from __future__ import annotations

import doctest
import subprocess
import sys

import numpy as np
import pytest
import torch

import lossd
from lossd_client.errors import InvalidValue


def test_the_docstring_is_true() -> None:
    assert doctest.testmod(lossd, globs={}).failed == 0


def test_arrays_in_arrays_out() -> None:
    rng = np.random.default_rng(0)
    prediction, target = rng.standard_normal((5, 3)), rng.integers(0, 3, 5)
    result = lossd.evaluate("cross_entropy", prediction, target, label_smoothing=0.1)
    leaf = torch.tensor(prediction, requires_grad=True)
    expected = torch.nn.functional.cross_entropy(leaf, torch.tensor(target), label_smoothing=0.1)
    expected.backward()
    assert result.loss == pytest.approx(expected.item(), rel=1e-12)
    np.testing.assert_allclose(result.gradient, leaf.grad, rtol=1e-10, atol=1e-14)
    assert result.reduction.denominator == 5


def test_torch_in_torch_out_in_each_dtype() -> None:
    for dtype in (torch.float64, torch.float32, torch.float16, torch.bfloat16):
        prediction = torch.tensor([2.5, 0.0, 2.0], dtype=dtype)
        result = lossd.evaluate(
            "mse", prediction, torch.zeros(3), outputs=["loss", "gradient"], gradient={"dtype": "bfloat16"}
        )
        assert result.gradient.dtype == torch.bfloat16
        assert result.gradient.tolist() == pytest.approx([5 / 3, 0, 4 / 3], rel=1e-2)
        assert result.loss == pytest.approx(10.25 / 3)


def test_an_unreduced_loss_is_an_array() -> None:
    result = lossd.evaluate("mse", np.array([1.0, 3.0]), np.array([0.0, 0.0]), reduction="none")
    np.testing.assert_array_equal(result.loss, [1.0, 9.0])


def test_a_loss_may_be_named_by_keyword_and_be_a_parameter() -> None:
    named = lossd.evaluate(loss="mse", prediction=[2.5, 0.0], target=[3.0, -0.5])
    assert named.loss == lossd.evaluate("mse", [2.5, 0.0], [3.0, -0.5]).loss
    difficulty = {"difficulty": [0.0]}
    easy = lossd.evaluate(
        "curriculum", [[2.5, 0.0]], [0], inputs=difficulty, loss={"name": "cross_entropy"}, progress=1.0
    )
    assert easy.loss == lossd.evaluate("cross_entropy", [[2.5, 0.0]], [0]).loss


def test_problems_are_raised() -> None:
    with pytest.raises(InvalidValue, match=r"3.2 at prediction\[1\]"):
        lossd.evaluate("bce", [0.1, 3.2], [0, 1])


def test_a_device_that_cannot_be_used_is_refused_in_a_sentence() -> None:
    with pytest.raises(ValueError, match="'gpu' is not a device; write cpu, cuda, or cuda:0"):
        lossd.evaluate("mse", [1.0], [2.0], device="gpu")
    for start in (
        lambda: lossd.evaluate("mse", [1.0], [2.0], device="cuda:99"),
        lambda: lossd.Run("binary", device="cuda:99"),
    ):
        with pytest.raises(ValueError, match="cuda:99"):
            start()


@pytest.mark.parametrize("missing", ["orjson", "torch", "pydantic"])
def test_without_the_service_s_packages_it_says_what_to_install(missing: str) -> None:
    script = f"import sys; sys.modules[{missing!r}] = None; import lossd; print(lossd.__version__); lossd.evaluate"
    run = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True)
    assert run.returncode == 1
    assert run.stdout == f"{lossd.__version__}\n"
    assert f"({missing} is missing): pip install 'lossd[service]'" in run.stderr.splitlines()[-1]
    assert "During handling" not in run.stderr
