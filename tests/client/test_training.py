"""A model that is trained on a remote loss becomes the model that is trained on the local one."""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterator
from typing import Any

import pytest
import torch
from sklearn.datasets import load_digits
from torch.nn import functional

from client.remote import remote_loss
from lossd_client import LossClient
from serving import running

STEPS = 50
BATCH = 64

Loss = Callable[[torch.Tensor, torch.Tensor], torch.Tensor]


@pytest.fixture(scope="module")
def lossd() -> Iterator[LossClient]:
    with running() as service, LossClient(service.url) as client:
        yield client


@pytest.fixture(scope="module")
def digits() -> tuple[torch.Tensor, torch.Tensor]:
    """1797 digits of 64 pixels, standardised as a whole, and which digit each is."""
    images, labels = load_digits(return_X_y=True)
    pixels = torch.tensor(images, dtype=torch.float32)
    return (pixels - pixels.mean()) / pixels.std(), torch.tensor(labels)


@pytest.fixture
def one_thread() -> Iterator[None]:
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


def train(model: torch.nn.Module, images: torch.Tensor, target: torch.Tensor, criterion: Loss) -> list[float]:
    """Fifty steps over batches in a fixed order; the loss of each."""
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1, momentum=0.9)
    order = torch.randperm(len(images), generator=torch.Generator().manual_seed(1))
    losses = []
    for step in range(STEPS):
        batch = order.roll(-step * BATCH)[:BATCH]
        optimizer.zero_grad()
        loss = criterion(model(images[batch]), target[batch])
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    return losses


def sigmoid_focal(prediction: torch.Tensor, target: torch.Tensor) -> torch.Tensor:
    p = prediction.sigmoid()
    p_t = p * target + (1 - p) * (1 - target)
    alpha_t = 0.25 * target + 0.75 * (1 - target)
    return (
        alpha_t * (1 - p_t) ** 2 * functional.binary_cross_entropy_with_logits(prediction, target, reduction="none")
    ).mean()


def dice(prediction: torch.Tensor, target: torch.Tensor) -> torch.Tensor:
    p, t = prediction.softmax(1), functional.one_hot(target, 10)
    return (1 - (2 * (p * t).sum(0) + 1) / (p.sum(0) + t.sum(0) + 1)).mean()


@pytest.mark.parametrize(
    ("name", "parameters", "local", "one_hot"),
    [
        ("cross_entropy", {}, functional.cross_entropy, False),
        (
            "cross_entropy",
            {"label_smoothing": 0.1},
            lambda p, t: functional.cross_entropy(p, t, label_smoothing=0.1),
            False,
        ),
        ("sigmoid_focal", {}, sigmoid_focal, True),
        ("dice", {}, dice, False),
    ],
    ids=["cross_entropy", "label_smoothing", "sigmoid_focal", "dice"],
)
@pytest.mark.usefixtures("one_thread")
def test_fifty_steps_lead_to_the_same_weights(
    name: str,
    parameters: dict[str, Any],
    local: Loss,
    one_hot: bool,
    digits: tuple[torch.Tensor, torch.Tensor],
    lossd: LossClient,
) -> None:
    images, target = digits
    if one_hot:
        target = functional.one_hot(target, 10).float()
    torch.manual_seed(0)
    model = torch.nn.Sequential(torch.nn.Linear(64, 32), torch.nn.Tanh(), torch.nn.Linear(32, 10))
    untrained, twin = copy.deepcopy(model), copy.deepcopy(model)

    remote_losses = train(model, images, target, remote_loss(name, client=lossd, **parameters))
    local_losses = train(twin, images, target, local)

    assert remote_losses == pytest.approx(local_losses, rel=1e-4, abs=1e-6)
    assert remote_losses[-1] < 0.8 * remote_losses[0]
    for found, expected, before in zip(model.parameters(), twin.parameters(), untrained.parameters(), strict=True):
        assert (expected - before).abs().max() > 0.01, "it learnt nothing"
        torch.testing.assert_close(found, expected, rtol=0, atol=1e-5)
