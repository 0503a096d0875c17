"""Triplets mined among ties and near copies, and rows without a direction among others that have one."""

from __future__ import annotations

from typing import Any

import mpmath
import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from evaluating import alone
from losses.cases_embedding import mined_triplet

MINING = ("hard", "semi_hard", "all")


@given(
    points=st.lists(st.tuples(st.integers(-2, 2), st.integers(0, 2)), min_size=1, max_size=8),
    margin=st.sampled_from([0.0, 0.3, 1.0, 2.0]),
    mining=st.sampled_from(MINING),
    squared=st.booleans(),
    active_only=st.booleans(),
)
@settings(max_examples=100, deadline=None)
def test_ties_are_counted_as_one_by_one(
    points: list[tuple[int, int]], margin: float, mining: str, squared: bool, active_only: bool
) -> None:
    embedding = torch.tensor([[float(x)] for x, _ in points], dtype=torch.float64)
    label = torch.tensor([y for _, y in points])
    parameters: dict[str, Any] = {"margin": margin, "mining": mining, "squared": squared, "active_only": active_only}
    value, weight = mined_triplet(embedding, label, **parameters)
    answer = alone({"loss": {"name": "mined_triplet", **parameters}}, {"embedding": embedding, "label": label})
    assert answer.numerator == pytest.approx(float(value.sum()), abs=1e-12)
    assert answer.denominator == float(weight.sum())


@pytest.mark.parametrize("mining", MINING)
def test_embeddings_far_from_the_origin_keep_their_distances(mining: str) -> None:
    rng = np.random.default_rng(0)
    embedding = torch.tensor(1e3 + rng.normal(0, 1, (24, 8)), dtype=torch.float32)
    label = torch.tensor(rng.integers(0, 6, 24))
    leaf = embedding.double().requires_grad_()
    value, weight = mined_triplet(leaf, label, mining=mining)
    (value.sum() / weight.sum()).backward()
    answer = alone({"loss": {"name": "mined_triplet", "mining": mining}}, {"embedding": embedding, "label": label})
    assert answer.loss == pytest.approx(float(value.detach().sum() / weight.sum()), rel=1e-12)
    assert leaf.grad is not None
    torch.testing.assert_close(answer.gradient("embedding"), leaf.grad.float(), rtol=1e-6, atol=1e-9)


def rows(*pairs: tuple[list[float], list[float]]) -> tuple[Tensor, Tensor]:
    first, second = zip(*pairs, strict=True)
    return torch.tensor(first), torch.tensor(second)


@pytest.mark.parametrize(
    ("loss", "degenerate"),
    [("contrastive", ([1.0, 2.0], [1.0, 2.0])), ("cosine_embedding", ([0.0, 0.0], [1.0, 2.0]))],
)
@pytest.mark.parametrize("scale", [1.0, 1e-25, 1e25])
def test_a_row_without_direction_leaves_the_others_theirs(
    loss: str, degenerate: tuple[list[float], list[float]], scale: float
) -> None:
    one = ([3.0 * scale, 1.0 * scale], [1.0 * scale, -2.0 * scale])
    parameters = {"margin": 5 * scale} if loss == "contrastive" else {"margin": -0.5}
    request = {"loss": {"name": loss, "reduction": "none", **parameters}}
    unlike = 0 if loss == "contrastive" else -1

    def answer(*pairs: tuple[list[float], list[float]]) -> dict[str, Tensor]:
        first, second = rows(*pairs)
        similar = torch.full((len(pairs),), unlike)
        return alone(request, {"first": first, "second": second, "similar": similar}).gradients

    single, among = answer(one), answer(degenerate, one)
    for name in ("first", "second"):
        assert not among[name][0].any()
        assert single[name].isfinite().all()
        assert single[name].any()
        torch.testing.assert_close(among[name][1:], single[name], rtol=1e-5, atol=0)


def test_a_degenerate_triplet_leaves_the_others_theirs() -> None:
    generator = torch.Generator().manual_seed(0)
    inputs = {name: torch.randn(3, 4, generator=generator) for name in ("anchor", "positive", "negative")}
    request = {"loss": {"name": "triplet", "margin": 9.0, "reduction": "sum"}}
    reference = alone(request, {name: tensor[1:] for name, tensor in inputs.items()})
    inputs["positive"][0] = inputs["negative"][0] = inputs["anchor"][0]
    among = alone(request, inputs)
    assert among.warnings == {"zero_vector"}
    for name in inputs:
        assert not among.gradient(name)[0].any()
        torch.testing.assert_close(among.gradient(name)[1:], reference.gradient(name), rtol=1e-5, atol=1e-6)


def surprise(logits: list[Any], target: int) -> Any:
    """Minus the logarithm of a softmax's share, in fifty digits."""
    return mpmath.log(mpmath.fsum(mpmath.exp(z - logits[target]) for z in logits))


def exact(name: str, a: Tensor, b: Tensor, temperature: float) -> float:
    """The mean loss of two clear views; for supcon, their rows are the two embeddings of each label."""
    units = []
    for row in torch.cat([a, b]).double().tolist():
        length = mpmath.sqrt(mpmath.fsum(mpmath.mpf(x) ** 2 for x in row))
        units.append([x / length for x in row])
    n, both = len(a), range(2 * len(a))
    score = [[mpmath.fdot(u, v) / mpmath.mpf(temperature) for v in units] for u in units]
    if name == "clip":
        rows = [surprise(score[i][n:], i) for i in range(n)]
        columns = [surprise([score[j][n + i] for j in range(n)], i) for i in range(n)]
        return float(mpmath.fsum(rows + columns) / (2 * n))
    others = [[score[i][j] for j in both if j != i] for i in both]
    positives = [(i + n) % (2 * n) for i in both]
    return float(mpmath.fsum(surprise(others[i], positives[i] - (positives[i] > i)) for i in both) / (2 * n))


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=str)
@pytest.mark.parametrize("temperature", [0.07, 0.05, 0.035])
@pytest.mark.parametrize("name", ["supcon", "clip", "info_nce", "nt_xent"])
def test_losses_of_certain_embeddings_keep_their_digits(name: str, temperature: float, dtype: torch.dtype) -> None:
    """Of losses from 1e-6 to 1e-12, which a log_softmax in float32 rounds to multiples of 1e-7."""
    generator = torch.Generator().manual_seed(0)
    a, b = (3 * torch.eye(4) + 0.05 * torch.randn(4, 4, generator=generator) for _ in range(2))
    a, b = a.to(dtype), b.to(dtype)
    inputs = {"first": a, "second": b}
    if name == "supcon":
        inputs = {"embedding": torch.cat([a, b]), "label": torch.arange(4).repeat(2)}
    with mpmath.workdps(50):
        expected = exact(name, a, b, temperature)
    answer = alone({"loss": {"name": name, "temperature": temperature}}, inputs)
    assert 1e-14 < expected < 1e-4
    assert answer.loss == pytest.approx(expected, rel=3e-5 if dtype == torch.float32 else 1e-12, abs=0)
    doubled = alone({"loss": {"name": name, "temperature": temperature}},
                    {n: t.double() if t.is_floating_point() else t for n, t in inputs.items()})  # fmt: skip
    for input_name, gradient in answer.gradients.items():
        scale = float(doubled.gradients[input_name].abs().max())
        torch.testing.assert_close(gradient.double(), doubled.gradients[input_name], rtol=0, atol=1e-4 * scale)


@pytest.mark.parametrize("far", [1e12, 1e19, 3e38])
@pytest.mark.parametrize("mining", MINING)
def test_an_embedding_far_from_all_others_takes_no_digit_of_their_gradient(mining: str, far: float) -> None:
    """It is a negative of all, too far to count."""
    near = torch.randn(6, 3, generator=torch.Generator().manual_seed(0))
    label = torch.tensor([0, 0, 1, 1, 0, 1])
    request = {"loss": {"name": "mined_triplet", "mining": mining, "reduction": "sum"}}
    expected = alone(request, {"embedding": near, "label": label}).gradient("embedding")
    embedding = torch.cat([near, torch.tensor([[0.0, far, 0.0]])])
    found = alone(request, {"embedding": embedding, "label": torch.tensor([*label.tolist(), 2])}).gradient("embedding")
    torch.testing.assert_close(found[:-1], expected, rtol=1e-6, atol=1e-7)
    assert not found[-1].any()
