from __future__ import annotations

import io
import math
import threading
import time
from collections.abc import Iterator
from fractions import Fraction
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from client.fake import Caller, FakeService, Reply, Request, evaluation, problem
from lossd_client import LossClient, Score, progress
from lossd_client.errors import ShapeMismatch
from lossd_client.messages import Evaluation, Reduction
from lossd_client.progress import Progress
from serving import running


def batch(index: int) -> tuple[np.ndarray, np.ndarray]:
    return np.full(index + 1, float(index)), np.zeros(index + 1)


def index_of(request: Request) -> int:
    return int(request.tensors["prediction"].numpy()[0])


def mse(request: Request) -> Reply:
    """The right answer to a batch of :func:`batch`."""
    value = index_of(request) ** 2
    count = request.tensors["prediction"].shape[0]
    reduction = {"numerator": float(value * count), "denominator": float(count)}
    return evaluation({"loss": float(value), "reduction": reduction, "metrics": {"index": index_of(request)}})


def test_batches_come_back_in_order_with_their_exact_mean(ask: Caller, service: FakeService) -> None:
    service.default = mse
    result = ask(service.url, "score", [batch(i) for i in range(20)], "mse", delta=2.0, timeout_s=7)
    assert [e.metrics.index for e in result.evaluations] == list(range(20))
    errors = np.concatenate([prediction for prediction, _ in map(batch, range(20))])
    assert result.mean_loss == pytest.approx((errors**2).mean())
    assert result.mean_loss != pytest.approx(np.mean([e.loss for e in result.evaluations]))
    assert result.reduction == Reduction((errors**2).sum(), float(errors.size))
    assert repr(result) == f"Score(mean_loss={result.mean_loss!r}, batches=20)"
    assert all(
        a.document == {"loss": {"name": "mse", "delta": 2.0}, "outputs": ["loss", "metrics"]} for a in service.requests
    )
    assert len({request.headers["X-Request-ID"] for request in service.requests}) == 20
    assert all(int(request.headers["X-Request-Timeout-Ms"]) <= 7000 for request in service.requests)


def test_batches_may_name_their_inputs_and_ask_for_metrics_alone(ask: Caller, service: FakeService) -> None:
    service.default = lambda request: evaluation({"metrics": {"f1": 1.0}})
    result = ask(service.url, "score", iter([{"anchor": np.ones(1), "label": [1, 2]}]), task="binary")
    assert service.requests[0].document == {"task": "binary", "outputs": ["metrics"]}
    assert set(service.requests[0].tensors) == {"anchor", "label"}
    assert result.evaluations[0].metrics.f1 == 1.0
    assert result.mean_loss == 0.0


def test_no_batches_are_a_score(ask: Caller, service: FakeService) -> None:
    assert ask(service.url, "score", [], "mse") == Score([])


@pytest.mark.parametrize("in_flight", [1, 3])
def test_so_many_are_in_flight_and_no_more(in_flight: int, ask: Caller, service: FakeService) -> None:
    drawn = answered = most_held = at_once = most_at_once = 0
    lock = threading.Lock()

    def batches() -> Iterator[Any]:
        nonlocal drawn, most_held
        for index in range(12):
            drawn += 1
            most_held = max(most_held, drawn - answered)
            yield batch(index)

    def slow(request: Request) -> Reply:
        nonlocal answered, at_once, most_at_once
        with lock:
            at_once += 1
            most_at_once = max(most_at_once, at_once)
        time.sleep(0.03)
        with lock:
            at_once -= 1
            answered += 1
        return mse(request)

    service.default = slow
    result = ask(service.url, "score", batches(), "mse", in_flight=in_flight)
    assert [e.metrics.index for e in result.evaluations] == list(range(12))
    assert most_at_once == in_flight
    assert most_held <= in_flight + 1, "one is drawn and waits for a place"


def test_a_slow_batch_does_not_hold_up_the_others(ask: Caller, service: FakeService) -> None:
    last_answered = threading.Event()

    def first_is_last(request: Request) -> Reply:
        if index_of(request) == 0:
            assert last_answered.wait(10)
        elif index_of(request) == 7:
            last_answered.set()
        return mse(request)

    service.default = first_is_last
    result = ask(service.url, "score", [batch(i) for i in range(8)], "mse", in_flight=2)
    assert [e.metrics.index for e in result.evaluations] == list(range(8))


def test_a_failure_ends_it(ask: Caller, service: FakeService) -> None:
    service.default = lambda request: (
        problem(422, "shape-mismatch", "third") if index_of(request) == 2 else mse(request)
    )
    drawn = []

    def batches() -> Iterator[Any]:
        for index in range(1000):
            drawn.append(index)
            yield batch(index)

    with pytest.raises(ShapeMismatch, match="third"):
        ask(service.url, "score", batches(), "mse", in_flight=2)
    assert len(drawn) < 10


def test_scores_are_those_of_the_service() -> None:
    generator = np.random.default_rng(1)
    prediction = generator.normal(size=(100, 4)).astype(np.float32)
    target = generator.integers(0, 4, 100)
    parts = np.split(np.arange(100), [7, 50, 51])
    with running(engine="inline") as service, LossClient(service.url) as lossd:
        whole = lossd.evaluate("cross_entropy", prediction, target)
        result = lossd.score([(prediction[p], target[p]) for p in parts], "cross_entropy")
    assert result.mean_loss == pytest.approx(whole.loss, rel=1e-6)
    assert all(not e.gradients for e in result.evaluations)


# The progress bar


class Terminal(io.StringIO):
    def isatty(self) -> bool:
        return True


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> list[float]:
    now = [100.0]
    monkeypatch.setattr(progress.time, "monotonic", lambda: now[0])
    return now


def test_a_bar_is_drawn_in_place(clock: list[float]) -> None:
    terminal = Terminal()
    with Progress(4, "batches", stream=terminal) as bar:
        for note in ("mean loss 0.123456", "mean loss 0.5", "mean loss 1"):
            clock[0] += 0.5
            bar.advance(note)
    assert terminal.getvalue() == (
        "\r██████░░░░░░░░░░░░░░░░░░ 1/4 batches  2.0 batches/s  0:02 left  mean loss 0.123456"
        "\r████████████░░░░░░░░░░░░ 2/4 batches  2.0 batches/s  0:01 left  mean loss 0.5     "
        "\r██████████████████░░░░░░ 3/4 batches  2.0 batches/s  0:01 left  mean loss 1  "
        "\r██████████████████░░░░░░ 3/4 batches  2.0 batches/s  0:01 left  mean loss 1\n"
    )


def test_what_took_no_work_does_not_count_in_the_rate(clock: list[float]) -> None:
    """After an interruption 7,000 batches are skipped at once; the other 3,000 take as long as they do."""
    terminal = Terminal()
    with Progress(10_000, "batches", stream=terminal) as bar:
        for _ in range(7000):
            bar.advance("7,000 counted before", skipped=True)
        clock[0] += 1
        bar.advance("7,000 counted before")
        clock[0] += 1
        bar.advance("7,000 counted before")
    assert "7002/10000 batches  1.0 batches/s  49:58 left  7,000 counted before" in terminal.getvalue()


def test_hours_are_left(clock: list[float]) -> None:
    terminal = Terminal()
    with Progress(7200, "batches", stream=terminal) as bar:
        clock[0] += 1.5
        bar.advance()
    assert "2:59:59 left" in terminal.getvalue(), "7,199 steps of 1.5 s"


def test_an_unknown_total_is_counted(clock: list[float]) -> None:
    terminal = Terminal()
    with Progress(None, "batches", stream=terminal) as bar:
        clock[0] += 2
        bar.advance()
    assert terminal.getvalue().endswith("\r1 batches  0.5 batches/s\n")


def test_it_is_not_drawn_more_often_than_it_can_be_read(clock: list[float]) -> None:
    terminal = Terminal()
    with Progress(1000, "batches", stream=terminal) as bar:
        for _ in range(1000):
            clock[0] += 0.001
            bar.advance()
    assert 9 <= terminal.getvalue().count("\r") <= 12
    assert "1000/1000" in terminal.getvalue()


@pytest.mark.parametrize(
    ("stream", "shown", "drawn"),
    [(io.StringIO, None, False), (io.StringIO, True, True), (Terminal, None, True), (Terminal, False, False)],
)
def test_it_is_drawn_on_terminals_unless_told_otherwise(
    stream: type[io.StringIO], shown: bool | None, drawn: bool, clock: list[float]
) -> None:
    target = stream()
    with Progress(1, "batches", shown=shown, stream=target) as bar:
        clock[0] += 1
        bar.advance()
    assert bool(target.getvalue()) is drawn


def test_scoring_draws_on_standard_error(ask: Caller, service: FakeService, capsys: pytest.CaptureFixture[str]) -> None:
    service.default = mse
    ask(service.url, "score", [batch(i) for i in range(3)], "mse", progress=True)
    captured = capsys.readouterr()
    assert captured.out == ""
    assert "3/3 batches" in captured.err
    assert "mean loss 2.33333" in captured.err
    ask(service.url, "score", [batch(0)], "mse")
    assert capsys.readouterr().err == ""


def test_a_score_without_losses_has_none_to_average() -> None:
    assert Score([Evaluation(), Evaluation(reduction=Reduction(3.0, 2.0))]).mean_loss == 1.5


def scored(*parts: tuple[float, float]) -> Score:
    return Score([Evaluation(reduction=Reduction(*part)) for part in parts])


@given(
    st.lists(st.tuples(st.floats(allow_nan=False, allow_infinity=False), st.floats(0, 1e6))),
    st.randoms(use_true_random=False),
)
def test_sums_and_mean_are_exact_and_rounded_once(parts: list[tuple[float, float]], random: Any) -> None:
    """A mean of rounded sums is rounded three times: its last digit is wrong for four in ten of such means."""
    numerator, denominator = (
        sum(map(Fraction, column), Fraction()) for column in zip(*[*parts, (0.0, 0.0)], strict=True)
    )
    score = scored(*random.sample(parts, len(parts)))
    assert score.reduction == Reduction(nearest(numerator), float(denominator))
    assert score.mean_loss == (nearest(numerator / denominator) if denominator else 0)


def nearest(value: Fraction) -> float:
    try:
        return float(value)
    except OverflowError:
        return math.inf if value > 0 else -math.inf


def test_sums_of_numbers_that_are_not_finite() -> None:
    """None of these has a sum by math.fsum."""
    assert scored((1e308, 1.0), (1e308, 1.0), (-1e308, 0.0)).mean_loss == 5e307
    assert scored((1e308, 1.0), (1e308, 1.0)).mean_loss == 1e308
    assert scored((1e308, 1.0), (1e308, 1.0)).reduction == (math.inf, 2.0)
    assert scored((math.inf, 1.0), (1.0, 1.0)).mean_loss == math.inf
    assert math.isnan(scored((math.inf, 1.0), (-math.inf, 1.0)).mean_loss)
    assert math.isnan(scored((math.nan, 1.0), (1.0, 1.0)).mean_loss)
