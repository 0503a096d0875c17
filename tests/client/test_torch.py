"""A model trained by a remote loss gets the gradients of a local one."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
import torch
from torch.nn import functional

from client.fake import FakeService, Request, evaluation
from client.remote import remote_loss
from lossd_client import LossClient
from lossd_client.errors import InvalidRequest, UnknownLoss
from serving import running


@pytest.fixture(scope="module")
def lossd() -> Iterator[LossClient]:
    with running(engine="inline") as service, LossClient(service.url) as client:
        yield client


def logits(dtype: torch.dtype = torch.float64) -> tuple[torch.Tensor, torch.Tensor]:
    generator = torch.Generator().manual_seed(5)
    prediction = torch.randn(12, 4, generator=generator, dtype=torch.float64).to(dtype).requires_grad_()
    return prediction, torch.randint(0, 4, (12,), generator=generator)


@pytest.mark.parametrize("reduction", ["mean", "sum", "none"])
def test_value_and_gradient_are_those_of_the_local_loss(reduction: str, lossd: LossClient) -> None:
    prediction, target = logits()
    remote = remote_loss("cross_entropy", client=lossd, reduction=reduction)(prediction, target)
    local = functional.cross_entropy(prediction, target, reduction=reduction)
    torch.testing.assert_close(remote, local)
    # What follows the loss differs from entry to entry, so that a forgotten cotangent shows.
    upstream = torch.linspace(-1, 3, local.numel(), dtype=torch.float64).reshape(local.shape)
    (remote_gradient,) = torch.autograd.grad((remote**2 * upstream).sum(), prediction)
    (local_gradient,) = torch.autograd.grad((local**2 * upstream).sum(), prediction)
    torch.testing.assert_close(remote_gradient, local_gradient)


@pytest.mark.parametrize("reduction", ["mean", "none"])
def test_gradcheck_agrees(reduction: str, lossd: LossClient) -> None:
    prediction, target = logits()
    criterion = remote_loss("cross_entropy", client=lossd, reduction=reduction, label_smoothing=0.1)
    assert torch.autograd.gradcheck(lambda p: criterion(p, target[:3]), prediction[:3].detach().requires_grad_())


def test_many_inputs_get_their_gradients(lossd: LossClient) -> None:
    generator = torch.Generator().manual_seed(7)
    prediction, target, variance = (torch.rand(5, generator=generator, dtype=torch.float64) + 0.5 for _ in range(3))
    prediction.requires_grad_()
    variance.requires_grad_()
    for reduction in ("mean", "none"):
        remote = remote_loss("gaussian_nll", client=lossd, reduction=reduction)(prediction, target, variance=variance)
        local = functional.gaussian_nll_loss(prediction, target, variance, reduction=reduction)
        torch.testing.assert_close(remote, local)
        found = torch.autograd.grad(remote.sum(), [prediction, variance])
        torch.testing.assert_close(found, torch.autograd.grad(local.sum(), [prediction, variance]))
        (only,) = torch.autograd.grad(
            remote_loss("gaussian_nll", client=lossd, reduction=reduction)(
                prediction.detach(), target, variance=variance
            ).sum(),
            [variance],
        )
        torch.testing.assert_close(only, found[1])


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16])
def test_gradients_have_the_dtype_of_their_input(dtype: torch.dtype, lossd: LossClient) -> None:
    prediction, target = logits(dtype)
    for reduction in ("mean", "none"):
        loss = remote_loss("cross_entropy", client=lossd, reduction=reduction)(prediction, target)
        assert loss.dtype == torch.float32
        (gradient,) = torch.autograd.grad(loss.mean(), prediction)
        assert gradient.dtype == dtype
        wide = prediction.detach().double().requires_grad_()
        functional.cross_entropy(wide, target).backward()
        tolerance = {torch.float32: 1e-6, torch.float16: 2e-3, torch.bfloat16: 1e-2}[dtype]
        torch.testing.assert_close(gradient.double(), wide.grad, rtol=tolerance, atol=1e-6)


def test_mixed_precision_trains(lossd: LossClient) -> None:
    torch.manual_seed(0)
    model = torch.nn.Linear(6, 3)
    twin = torch.nn.Linear(6, 3)
    twin.load_state_dict(model.state_dict())
    data, target = torch.randn(8, 6), torch.randint(0, 3, (8,))
    scaler = torch.amp.GradScaler("cpu", init_scale=1024.0)
    criterion = remote_loss("cross_entropy", client=lossd)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        output = model(data)
        assert output.dtype == torch.bfloat16
        loss = criterion(output, target)
        local = functional.cross_entropy(twin(data), target)
    scaler.scale(loss).backward()
    (local * 1024).backward()
    assert loss.item() == pytest.approx(local.item(), rel=1e-6)
    torch.testing.assert_close(model.weight.grad, twin.weight.grad, rtol=2e-2, atol=1.0)


def test_a_model_learns(lossd: LossClient) -> None:
    torch.manual_seed(0)
    data = torch.randn(64, 2)
    target = (data[:, 0] > data[:, 1]).long()
    model = torch.nn.Linear(2, 2)
    criterion = remote_loss("focal", client=lossd, gamma=1.0)
    optimizer = torch.optim.SGD(model.parameters(), lr=5.0)
    losses = []
    for _ in range(30):
        optimizer.zero_grad()
        loss = criterion(model(data), target)
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    assert losses[-1] < losses[0] / 4
    assert (model(data).argmax(1) == target).float().mean() > 0.95


def test_no_gradient_is_asked_for_where_none_is_needed(service: FakeService) -> None:
    outputs: list[list[str]] = []

    def answer(request: Request) -> object:
        outputs.append(request.document["outputs"])
        tensors = {
            name.replace(".", "__"): torch.zeros(2).numpy() for name in outputs[-1] if name.startswith("gradient.")
        }
        return evaluation({"loss": 0.5, "metrics": {"accuracy": 1.0}}, **tensors)

    service.default = answer  # type: ignore[assignment]
    leaf, plain = torch.ones(2, requires_grad=True), torch.ones(2)
    with LossClient(service.url) as client:
        criterion = remote_loss("mse", client=client)
        assert criterion(leaf, plain).requires_grad
        assert not criterion(plain, plain).requires_grad
        with torch.no_grad():
            assert not criterion(leaf, plain).requires_grad
        measured = remote_loss("mse", client=client, metrics=["accuracy"])
        measured(plain, plain)
        unreduced = remote_loss({"name": "mse", "reduction": "none"}, client=client)
        unreduced(leaf, plain)
    assert outputs == [["loss", "gradient.prediction"], ["loss"], ["loss"], ["loss", "metrics"], ["loss"]]
    assert measured.evaluation is not None
    assert measured.evaluation.metrics.accuracy == 1.0
    assert service.requests[3].document["metrics"] == {"names": ["accuracy"]}


def test_the_answer_is_kept_without_its_tensors(lossd: LossClient) -> None:
    criterion = remote_loss("cross_entropy", client=lossd)
    assert criterion.evaluation is None
    loss = criterion(*logits())
    assert criterion.evaluation.loss == pytest.approx(loss.item())
    assert criterion.evaluation.gradients == {}
    assert criterion.evaluation.diagnostics.finite is True


def test_gradient_options_are_obeyed(lossd: LossClient) -> None:
    prediction, target = logits()
    remote_loss("cross_entropy", client=lossd, gradient={"clip_norm": 1e-3})(prediction, target).backward()
    assert prediction.grad is not None
    assert prediction.grad.norm().item() == pytest.approx(1e-3)


def test_mistakes_are_raised_where_they_are_made(lossd: LossClient) -> None:
    prediction, target = logits()
    with pytest.raises(UnknownLoss, match="did you mean"):
        remote_loss("cros_entropy", client=lossd)(prediction, target)
    with pytest.raises(InvalidRequest, match="not for 'target'"):
        remote_loss("mse", client=lossd)(prediction, prediction.detach().clone().requires_grad_())
    with pytest.raises(TypeError, match="cotangent is not an input of a RemoteLoss: backward supplies it"):
        remote_loss("cross_entropy", client=lossd)(prediction, target, cotangent=torch.ones(()))
    loss = remote_loss("cross_entropy", client=lossd)(prediction, target)
    (gradient,) = torch.autograd.grad(loss**2, prediction, create_graph=True)
    with pytest.raises(RuntimeError, match="once_differentiable"):
        gradient.sum().backward()


def test_it_shows_what_it_computes(lossd: LossClient) -> None:
    assert repr(remote_loss("focal", client=lossd, gamma=2.0)) == "RemoteLoss('focal', gamma=2.0)"
    assert remote_loss("focal", client=lossd).state_dict() == {}


# The compiler looks at what every tensor has for .grad when it goes on after the loss.
@pytest.mark.filterwarnings("ignore:The .grad attribute of a Tensor that is not a leaf")
def test_a_compiled_model_goes_around_it(lossd: LossClient) -> None:
    prediction, target = logits()
    criterion = remote_loss("cross_entropy", client=lossd)
    compiled = torch.compile(lambda p: criterion(p * 2, target) + 1, backend="eager")
    loss = compiled(prediction)
    loss.backward()
    leaf = prediction.detach().requires_grad_()
    functional.cross_entropy(leaf * 2, target).backward()
    torch.testing.assert_close(prediction.grad, leaf.grad)
