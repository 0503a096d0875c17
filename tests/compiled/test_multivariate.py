"""Passes of rows of several numbers, and of sums of formulas, answer as the general way does; so do ranking metrics."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any
from unittest.mock import Mock

import pytest
import torch
from torch import Tensor

from compiled.test_passes import assert_bits_equal, assert_both_ways, assert_equal, uses_a_pass
from evaluating import Tensors, generally, together
from lossd.compiled.passes import Passes
from lossd.evaluation import inputs as device_inputs

pytestmark = pytest.mark.usefixtures("compiled_passes")

Draw = Callable[[int, torch.Generator], dict[str, Tensor]]

ROWS, POSITIONS = 6, 3


def normal(*shape: int) -> Draw:
    return lambda rows, random: {"prediction": torch.randn(rows, *shape, generator=random, dtype=torch.float64)}


def classes(rows: int, random: torch.Generator) -> dict[str, Tensor]:
    return {**normal(5)(rows, random), "target": torch.randint(0, 5, (rows,), generator=random)}


def labels(rows: int, random: torch.Generator) -> dict[str, Tensor]:
    return {**normal(5)(rows, random), "target": torch.randint(0, 2, (rows, 5), generator=random)}


def taught(rows: int, random: torch.Generator) -> dict[str, Tensor]:
    return {**classes(rows, random), "teacher": normal(5)(rows, random)["prediction"]}


def shares(rows: int, random: torch.Generator) -> dict[str, Tensor]:
    prediction, target = (torch.randn(rows, 4, POSITIONS, generator=random).double() for _ in range(2))
    return {"prediction": prediction.log_softmax(1), "target": target.softmax(1)}


def several(rows: int, random: torch.Generator) -> dict[str, Tensor]:
    """Of one decimal, so that some equal the target or each other."""
    prediction = torch.randn(rows, 4, POSITIONS, generator=random).double().round(decimals=1)
    return {"prediction": prediction, "target": prediction[:, 0].roll(1, 0)}


def documents(rows: int, random: torch.Generator) -> dict[str, Tensor]:
    """Of one decimal, so that some scores are equal; the first query has nothing relevant."""
    target = torch.randint(0, 4, (rows, 7), generator=random).double()
    target[0] = 0
    return {"prediction": torch.randn(rows, 7, generator=random).double().round(decimals=1), "target": target}


def players(fakes: int) -> Draw:
    def draw(_: int, random: torch.Generator) -> dict[str, Tensor]:
        scores = (2 * torch.randn(rows, 2, generator=random).double() for rows in (4, fakes))
        return dict(zip(("real", "fake"), scores, strict=True))

    return draw


def latents(rows: int, random: torch.Generator) -> dict[str, Tensor]:
    shown = torch.rand(2, rows, 6, generator=random).double()
    names = ("mean", "log_variance")
    latent = {name: 0.1 * torch.randn(rows, 3, generator=random).double() for name in names}
    return {"prediction": shown[0], "target": shown[1], **latent}


LOSSES: list[tuple[dict[str, Any], Draw, Mapping[str, tuple[float, float]]]] = [
    ({"name": "distillation"}, taught, {"temperature": (1.0, 3.0), "alpha": (1.0, 0.3)}),
    ({"name": "distillation", "scale": "none", "reduction": "sum"}, taught, {"alpha": (0.0, 1.0)}),
    ({"name": "list_net"}, documents, {}),
    ({"name": "ranknet"}, documents, {"sigma": (1.0, 0.3)}),
    ({"name": "ranknet", "reduction": "sum"}, documents, {}),
    ({"name": "kl_div"}, shares, {}),
    ({"name": "kl_div", "reduction": "mean"}, shares, {}),
    ({"name": "quantiles", "levels": [0.1, 0.3, 0.5, 0.9]}, several, {"crossing_penalty": (0.0, 2.0)}),
    ({"name": "crps_ensemble"}, several, {}),
    ({"name": "crps_ensemble", "estimator": "fair", "reduction": "sum"}, several, {}),
    ({"name": "multi_margin"}, classes, {"margin": (1.0, 0.3)}),
    ({"name": "multi_margin", "p": 2, "class_weight": [1, 0.5, 0, 2, 1]}, classes, {"margin": (1.0, 0.3)}),
    ({"name": "multilabel_soft_margin", "class_weight": [1, 0.5, 0, 2, 1]}, labels, {}),
    *[({"name": f"{kind}_discriminator"}, players(4), {}) for kind in ("gan", "wgan", "lsgan", "hinge_gan")],
    ({"name": "lsgan_discriminator", "reduction": "sum"}, players(7), {}),
    ({"name": "wgan_discriminator"}, players(7), {}),
    ({"name": "vae"}, latents, {"beta": (1.0, 0.2)}),
    ({"name": "vae", "reconstruction": "mse", "reduction": "sum"}, latents, {"beta": (0.0, 3.0)}),
]  # fmt: skip
"""Each loss, its inputs, and two values of each parameter that may differ within a batch."""


def named(value: Any) -> str:
    """A value in the name of a test: a function without its address, which differs from process to process."""
    return value.__name__ if callable(value) else str(value)


def drawn(draw: Draw, rows: int, dtype: torch.dtype, seed: int = 0) -> dict[str, Tensor]:
    tensors = draw(rows, torch.Generator().manual_seed(seed))
    return {name: t.to(dtype) if t.is_floating_point() else t for name, t in tensors.items()}


@pytest.mark.parametrize(("dtype", "within"), [(torch.float32, 2e-6), (torch.float64, 1e-12)], ids=str)
@pytest.mark.parametrize(("loss", "draw", "varying"), LOSSES, ids=named)
def test_a_batch_answers_as_the_general_way_and_as_each_request_alone(
    loss: dict[str, Any],
    draw: Draw,
    varying: Mapping[str, tuple[float, float]],
    dtype: torch.dtype,
    within: float,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    numbers = [{name: values[position] for name, values in varying.items()} for position in (0, 1)]
    requests = [{"loss": {**loss, **parameters}, "outputs": ["loss", "gradient", "metrics"]} for parameters in numbers]
    inputs = [drawn(draw, rows, dtype, seed=rows) for rows in (ROWS, 3)]
    assert uses_a_pass(requests[0], inputs[0])
    general = Mock(wraps=device_inputs.check)
    monkeypatch.setattr(device_inputs, "check", general)
    found = together(requests, inputs)
    assert general.call_count == 0
    for answer, request, tensors in zip(found, requests, inputs, strict=True):
        (expected,) = generally([request], [tensors])
        assert_equal(answer, expected, within)
    plain = [{**request, "outputs": ["loss", "gradient"]} for request in requests]  # metrics are not the pass's alone
    for answer, request, tensors in zip(together(plain, inputs), plain, inputs, strict=True):
        assert_bits_equal(answer, *together([request], [tensors]))


@pytest.mark.parametrize("value", [torch.nan, torch.inf, -torch.inf, -1.5], ids=str)
@pytest.mark.parametrize(("loss", "draw", "_"), LOSSES, ids=named)
def test_a_doubtful_request_leaves_the_others_as_they_are(
    loss: dict[str, Any], draw: Draw, _: Any, value: float
) -> None:
    request = {"loss": loss, "outputs": ["loss", "gradient", "metrics"]}
    first = drawn(draw, 4, torch.float64)
    for name, tensor in first.items():
        changed = tensor.clone()
        changed.view(-1)[1] = value if tensor.is_floating_point() else 7
        inputs: list[Tensors] = [first, {**first, name: changed}, first]
        found = assert_both_ways([request] * 3, inputs, 1e-12)
        assert_bits_equal(found[2], *together([request], [first]))


@pytest.mark.parametrize(
    "loss",
    [
        {"name": "distillation", "divergence": "reverse"},
        {"name": "distillation", "ignore_index": 0},
        {"name": "list_net", "target_form": "proportional"},
        {"name": "kl_div", "log_target": True},
        {"name": "multilabel_soft_margin", "ignore_index": -1},
        {"name": "ranknet", "reduction": "none"},
    ],
    ids=str,
)
def test_these_have_no_pass(loss: dict[str, Any]) -> None:
    draw = next(draw for known, draw, _ in LOSSES if known["name"] == loss["name"])
    assert not uses_a_pass({"loss": loss}, drawn(draw, 3, torch.float32))


def test_metrics_alone_need_no_pass() -> None:
    assert not uses_a_pass(
        {"loss": {"name": "crps_ensemble"}, "outputs": ["metrics"]}, drawn(several, 3, torch.float32)
    )


@pytest.mark.parametrize("dtype", [torch.bool, torch.uint8, torch.int64, torch.float64, torch.float16], ids=str)
@pytest.mark.parametrize(("name", "draw"), [("multilabel_soft_margin", labels), ("ranknet", documents)], ids=named)
def test_targets_of_any_dtype_are_read(name: str, draw: Draw, dtype: torch.dtype) -> None:
    tensors = drawn(draw, 5, torch.float32)
    sent = {**tensors, "target": tensors["target"].clamp(max=1).to(dtype)}
    request = {"loss": {"name": name}, "outputs": ["loss", "gradient", "metrics"]}
    if dtype != torch.bool or name != "ranknet":  # booleans are no grades
        assert_both_ways([request], [sent], 2e-6)
        assert uses_a_pass(request, sent)


def test_rows_without_a_pair_are_known_of_one_by_one() -> None:
    tensors = drawn(documents, 3, torch.float32)
    answers = together(
        [{"loss": {"name": "ranknet"}}] * 3, [{n: t[i : i + 1] for n, t in tensors.items()} for i in range(3)]
    )
    assert [answer.warnings for answer in answers] == [{"nothing_to_average", "no_positives"}, set(), set()]


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=str)
@pytest.mark.parametrize(
    "options",
    [
        {},
        {"ties": "stable"},
        {"gain": "exponential", "k": 3},
        {"zero_division": 0},
        {"k": 40, "names": ["default", "err"]},
    ],
    ids=str,
)
def test_ranking_metrics_are_measured_by_a_kernel(
    options: dict[str, Any], dtype: torch.dtype, passes: Passes, monkeypatch: pytest.MonkeyPatch
) -> None:
    request = {"loss": {"name": "list_mle"}, "outputs": ["metrics"], "metrics": options}
    inputs = [drawn(documents, rows, dtype, seed=rows) for rows in (6, 2)]
    inputs[1]["prediction"][1, 2] = torch.inf
    kernel = Mock(wraps=passes.counting["queries"])
    monkeypatch.setattr(passes, "counting", {**passes.counting, "queries": kernel})
    assert_both_ways([request] * 2, inputs, 1e-13)
    assert kernel.call_count == 1


@pytest.mark.parametrize("length", [1, 2, 50, 300])
def test_long_and_short_lists_are_ranked(length: int) -> None:
    random = torch.Generator().manual_seed(length)
    prediction = torch.randint(0, length, (8, length), generator=random).float()
    prediction[7, 0] = torch.nan
    target = torch.randint(0, 3, (8, length), generator=random)
    request = {"task": "queries", "outputs": ["metrics"], "metrics": {"k": 5}}
    assert_both_ways([request], [{"prediction": prediction, "target": target}], 1e-13)
