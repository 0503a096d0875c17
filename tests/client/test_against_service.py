"""The client against the service itself, served over a socket."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Iterator

import httpx
import numpy as np
import pytest
import torch

from client.fake import Caller
from lossd_client import AsyncLossClient, LossClient
from lossd_client.errors import (
    DeadlineExceeded,
    DtypeMismatch,
    InvalidRequest,
    MissingInput,
    NotFound,
    ShapeMismatch,
    TooLarge,
    UnknownInput,
    UnknownLoss,
)
from lossd_client.wire import safetensors
from serving import running

MAX_BODY_BYTES = 32 << 20


@pytest.fixture(scope="module")
def url() -> Iterator[str]:
    with running(engine="inline", max_body_bytes=MAX_BODY_BYTES) as service:
        yield service.url


def logits(dtype: torch.dtype = torch.float32, rows: int = 64) -> tuple[torch.Tensor, torch.Tensor]:
    generator = torch.Generator().manual_seed(3)
    prediction = torch.randn(rows, 10, generator=generator).to(dtype)
    return prediction, torch.randint(0, 10, (rows,), generator=generator)


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.float16, torch.bfloat16])
def test_a_loss_and_its_gradient_are_torchs(dtype: torch.dtype, url: str, ask: Caller) -> None:
    prediction, target = logits(dtype)
    wide = prediction.double().requires_grad_()
    expected = torch.nn.functional.cross_entropy(wide, target)
    expected.backward()
    result = ask(url, "evaluate", "cross_entropy", prediction, target)
    assert result.loss == pytest.approx(expected.item(), rel=1e-12 if dtype == torch.float64 else 1e-6)
    assert result.gradient.dtype == (torch.float64 if dtype == torch.float64 else torch.float32)
    torch.testing.assert_close(result.gradient.double(), wide.grad, rtol=1e-5, atol=1e-7)
    assert result.reduction.numerator / result.reduction.denominator == pytest.approx(result.loss)
    assert result.diagnostics.finite is True
    assert result.warnings == []
    assert {"parse", "queue", "compute", "encode"} <= result.server_timing.keys()


def test_numpy_and_lists_do_as_well(url: str, ask: Caller) -> None:
    arrays = ask(url, "evaluate", "mse", np.array([2.5, 0.0, 2.1, 7.8]), np.array([3, -0.5, 2, 8]))
    assert arrays.loss == pytest.approx(0.1375)
    np.testing.assert_allclose(arrays.gradient, np.array([-0.5, 0.5, 0.1, -0.2]) / 2)
    lists = ask(url, "evaluate", "mse", [2.5, 0.0, 2.1, 7.8], [3, -0.5, 2, 8])
    assert lists.loss == pytest.approx(0.1375)


def test_an_unreduced_loss_is_a_tensor(url: str, ask: Caller) -> None:
    prediction, target = logits()
    result = ask(url, "evaluate", "cross_entropy", prediction, target, reduction="none", outputs="loss")
    torch.testing.assert_close(result.loss, torch.nn.functional.cross_entropy(prediction, target, reduction="none"))
    assert result.gradients == {}


def test_weights_and_cotangents_are_inputs(url: str, ask: Caller) -> None:
    prediction, target = logits(torch.float64)
    weight = torch.arange(64, dtype=torch.float64)
    leaf = prediction.clone().requires_grad_()
    losses = torch.nn.functional.cross_entropy(leaf, target, reduction="none")
    (losses * weight).sum().backward()
    result = ask(
        url, "evaluate", "cross_entropy", prediction, target, cotangent=weight, reduction="none", outputs=["gradient"]
    )
    torch.testing.assert_close(result.gradient, leaf.grad)
    weighted = ask(url, "evaluate", "cross_entropy", prediction, target, sample_weight=weight)
    assert weighted.loss == pytest.approx((losses.detach() * weight).sum().item() / weight.sum().item())


def test_metrics_come_with_the_loss_or_alone(url: str, ask: Caller) -> None:
    prediction, target = logits()
    accuracy = (prediction.argmax(1) == target).double().mean().item()
    result = ask(url, "evaluate", "cross_entropy", prediction, target, metrics=["accuracy", "f1"])
    assert set(result.metrics) >= {"accuracy", "f1"}
    assert result.metrics.accuracy == pytest.approx(accuracy)
    assert 0 <= result.metrics.f1.macro <= 1
    alone = ask(url, "metrics", "multiclass", prediction.softmax(1), target, from_logits=False)
    assert alone.accuracy == pytest.approx(accuracy)
    assert alone.f1.per_class == pytest.approx(result.metrics.f1.per_class)
    weight = np.zeros(64)
    weight[:3] = 1
    weighted = ask(url, "metrics", "multiclass", prediction, target, names="accuracy", sample_weight=weight)
    assert weighted.accuracy == pytest.approx((prediction[:3].argmax(1) == target[:3]).double().mean().item())


def test_a_sum_of_losses_tells_its_terms(url: str, ask: Caller) -> None:
    prediction, target = torch.tensor([2.5, 0.0, 2.1, 7.8]), torch.tensor([3, -0.5, 2, 8])
    terms = [{"loss": {"name": "mse"}, "weight": 2.0}, {"loss": {"name": "mae"}}]
    result = ask(url, "evaluate", {"name": "weighted_sum", "terms": terms}, prediction, target)
    assert result.loss == pytest.approx(2 * 0.1375 + 0.325)
    assert len(result.extra.terms) == 2


def test_a_body_of_many_chunks_arrives_whole(url: str, ask: Caller) -> None:
    prediction, target = logits(rows=200_000)
    result = ask(url, "evaluate", "cross_entropy", prediction, target)
    assert result.loss == pytest.approx(torch.nn.functional.cross_entropy(prediction, target).item(), rel=1e-5)
    assert result.gradient.shape == prediction.shape
    torch.testing.assert_close(result.gradient.sum(1), torch.zeros(200_000), atol=1e-9, rtol=0)


@pytest.mark.parametrize(
    ("loss", "arguments", "options", "kind", "detail"),
    [
        ("cros_entropy", logits(), {}, UnknownLoss, "did you mean cross_entropy"),
        ("cross_entropy", logits(), {"gama": 2}, InvalidRequest, "gama"),
        ("cross_entropy", logits()[:1], {}, MissingInput, "target"),
        ("cross_entropy", logits(), {"anchor": np.ones(1)}, UnknownInput, "anchor"),
        ("cross_entropy", (logits()[0], logits(rows=3)[1]), {}, ShapeMismatch, "target"),
        ("cross_entropy", (logits()[0], logits()[1].float()), {}, DtypeMismatch, "target"),
    ],
)
def test_mistakes_come_back_as_their_classes(
    loss: str, arguments: tuple[object, ...], options: dict[str, object], kind: type, detail: str, url: str, ask: Caller
) -> None:
    with pytest.raises(kind, match=detail) as caught:
        ask(url, "evaluate", loss, *arguments, request_id="r-5", **options)
    assert type(caught.value) is kind
    assert caught.value.request_id == "r-5"


@pytest.mark.parametrize("times", [2, 4])
def test_a_body_over_the_limit_is_refused_while_it_is_sent(
    times: int, url: str, ask: Caller, monkeypatch: pytest.MonkeyPatch
) -> None:
    # On a busy machine the client may not read its answer within the two seconds that it has.
    monkeypatch.setattr("lossd.api.http.refusing.READ_ANSWER_S", 60)
    monkeypatch.setattr("lossd.api.http.request.LINGER_S", 60)
    large = np.zeros(times * MAX_BODY_BYTES // 8, np.float32)
    with pytest.raises(TooLarge, match="max_body_bytes"):
        ask(url, "evaluate", "mse", large, large, client={"retries": 0})


def test_a_deadline_is_the_services_to_tell(url: str) -> None:
    prediction, target = logits(rows=600_000)
    with LossClient(url) as lossd:
        lossd.ready()  # so that a connection is there
        with pytest.raises(DeadlineExceeded):
            lossd.evaluate("cross_entropy", prediction, target, timeout_s=0.01)


def test_the_catalogue_and_the_health_are_there(url: str, ask: Caller) -> None:
    losses = ask(url, "losses")
    assert {"mse", "cross_entropy"} <= {loss.name for loss in losses}
    huber = ask(url, "loss", "huber")
    assert huber.parameters.delta.default == 1.0
    assert [entry.name for entry in huber.inputs][:2] == ["prediction", "target"]
    with pytest.raises(UnknownLoss, match="mae"):
        ask(url, "loss", "l1")
    assert ask(url, "health").status == "live"
    assert ask(url, "ready") is True
    ask(url, "wait_until_ready", 1.0)
    with pytest.raises(NotFound):
        ask(url + "/elsewhere", "losses")


def test_many_at_once_from_threads_and_tasks(url: str) -> None:
    requests = [logits(rows=rows) for rows in range(1, 33)]
    expected = [torch.nn.functional.cross_entropy(*request).item() for request in requests]

    with LossClient(url) as lossd:
        found: dict[int, float] = {}

        def evaluate(index: int) -> None:
            found[index] = lossd.evaluate("cross_entropy", *requests[index]).loss

        threads = [threading.Thread(target=evaluate, args=(index,)) for index in range(len(requests))]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
    assert [found[index] for index in range(len(requests))] == pytest.approx(expected, rel=1e-5)

    async def together() -> list[float]:
        async with AsyncLossClient(url) as lossd:
            results = await asyncio.gather(*(lossd.evaluate("cross_entropy", *request) for request in requests))
        return [result.loss for result in results]

    assert asyncio.run(together()) == pytest.approx(expected, rel=1e-5)


@pytest.mark.parametrize("depth", [40, 300, 900])
def test_no_request_nests_deeper_than_it_can_be_walked(depth: int, url: str) -> None:
    request = '{"loss":{"name":"mse","more":%s}}' % ("[" * depth + "]" * depth)
    body = request[:-1].encode() + b',"inputs":{"prediction":[1.0],"target":[1.0]}}'
    answers = [
        httpx.post(f"{url}/v1/evaluate", content=body, headers={"Content-Type": "application/json"}),
        httpx.post(
            f"{url}/v1/evaluate",
            content=b"".join(safetensors.encode({}, {"request": request})),
            headers={"Content-Type": safetensors.MEDIA_TYPE},
        ),
    ]
    for answer in answers:
        assert answer.status_code == 400
        assert "nests lists and objects more than 32 deep" in answer.json()["detail"]
