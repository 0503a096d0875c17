"""What an address alone can ask for, of a browser's image as of a client: curves, paths, ids."""

from __future__ import annotations

import logging
import sys
import time
import tracemalloc
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace

import httpx
import pytest

from lossd.api.observability.access_log import first_shapes, log_text, short_path
from lossd.configuration.keys import fresh_key
from lossd.job import Job
from lossd.logs import JsonFormatter, TextFormatter
from lossd.pictures.curves import MAX_LINES, curve
from lossd.request.literal import literal
from lossd.request.planning import make_plan
from lossd_client.errors import InvalidRequest, MalformedBody

KIB = 1 << 10


@contextmanager
def few(*, kib: int, cpu_s: float) -> Iterator[None]:
    """What is inside takes no more memory and processor time than this."""
    tracemalloc.start()
    begin = time.thread_time()
    try:
        yield
        spent_s, peak = time.thread_time() - begin, tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    assert (peak <= kib * KIB, spent_s <= cpu_s) == (True, True), f"{peak} bytes, {spent_s} s"


def values(count: int) -> list[float]:
    return [0.001 * (i + 1) for i in range(count)]


@pytest.mark.parametrize(
    ("loss", "parameters", "others"),
    [
        ("mse", {letter: values(100) for letter in "abc"}, []),
        ("focal", {"gamma": values(1000), "alpha": values(1000)}, []),
        ("focal", {"gamma": values(3), "alpha": values(5)}, []),
        ("focal", {}, ["cross_entropy"] * 5000),
    ],
)
def test_lines_are_counted_before_any_is_made(loss: str, parameters: dict[str, list[float]], others: list[str]) -> None:
    with few(kib=512, cpu_s=0.1), pytest.raises(InvalidRequest):
        curve(loss, parameters, others=others)


def test_a_number_of_lines_is_told_short() -> None:
    with pytest.raises(InvalidRequest, match=f"millions of lines; there may be {MAX_LINES}"):
        curve("focal", {"gamma": values(10**4), "alpha": values(10**4)})


@pytest.mark.parametrize("name", ["name", "loss", "terms", "\x9b31m", "x" * 5000])
def test_a_parameter_of_a_curve_is_one_of_the_loss(name: str) -> None:
    with pytest.raises(InvalidRequest) as refused:
        curve("mse", {name: [1]})
    assert "mse has no parameter" in refused.value.detail
    assert refused.value.detail.isprintable()
    assert len(refused.value.detail) < 300


@pytest.mark.parametrize("form", ["svg", "png", "json"])
@pytest.mark.parametrize(
    ("query", "status"),
    [
        ("&".join(f"{name}={i}" for name in "abcd" for i in range(150)), 422),
        ("&".join(f"{name}=0.{i:03}1" for name in ("gamma", "alpha") for i in range(300)), 422),
        ("with=" + "&with=".join(["mse"] * 500), 422),
        ("gamma=" + "1" * (17 * KIB), 413),
    ],
    ids=["unknown names", "the loss's own", "others", "long"],
)
def test_a_short_address_is_refused_at_once(query: str, status: int, form: str, http: httpx.Client) -> None:
    answer = http.get(f"/v1/losses/focal/curve.{form}?{query}")
    assert answer.status_code == status
    assert answer.json()["detail"].isprintable()
    assert len(answer.content) < KIB


@pytest.mark.parametrize("value", ["[" * 3000, "[" * 900 + "]" * 900, '{"a":' * 40 + "1" + "}" * 40, "1," + "[" * 3000])
def test_a_value_that_nests_is_refused(value: str, http: httpx.Client) -> None:
    with pytest.raises(MalformedBody, match="32 deep"):
        literal(value)
    answer = http.get("/v1/losses/huber/curve.json", params={"delta": value})
    assert (answer.status_code, "32 deep" in answer.json()["detail"]) == (400, True)


def test_a_path_is_logged_short_and_no_key_whole() -> None:
    key = fresh_key()
    assert key not in short_path(f"/{key}")
    assert key not in short_path(f"/v2/models/{key}/infer")
    assert len(short_path("/" + "a/" * 30_000)) <= 200
    assert short_path("/v1/losses/focal/curve.svg") == "/v1/losses/focal/curve.svg"


def test_what_a_line_of_the_log_repeats_is_short_and_printable() -> None:
    """Names of tensors, an id of a trace, an error that repeats what was sent."""
    names = [f"\x9b31m{i}" + "n" * 3000 for i in range(500)]
    plan = make_plan({"loss": {"name": "expression", "formula": "a"}, "outputs": ["loss"]})
    recipe = plan.job({"a": ("float32", (4,))}).recipe
    job = Job(replace(recipe, inputs=tuple(replace(recipe.inputs[0], name=name) for name in names)), 1)
    shapes = {log_text(name): shape for name, shape in first_shapes(job)}
    assert len(shapes) <= 16
    assert all(len(name) < 80 and name.isprintable() for name in shapes)
    assert short_path("/v2/\x9b31m\u202e").isprintable()
    try:
        raise RuntimeError("\x9b31m" + "x" * (1 << 20))
    except RuntimeError:
        record = logging.LogRecord("lossd", logging.ERROR, "", 0, "failed \x9b%s", ("y" * (1 << 20),), sys.exc_info())
    for form in (JsonFormatter(), TextFormatter()):
        line = form.format(record)
        assert len(line) < 32 * KIB
        assert "\x9b" not in line


def test_a_path_below_models_is_repeated_short_and_printable(http: httpx.Client) -> None:
    answer = http.get("/v2/nothing/%C2%9B31m%E2%80%AE" + "x" * 20_000)
    assert (answer.status_code, len(answer.content) < KIB) == (404, True)
    assert answer.json()["error"].isprintable()


def test_a_path_is_repeated_short_and_printable(http: httpx.Client) -> None:
    answer = http.get("/%C2%9B31m%E2%80%AE" + "x" * 20_000)
    assert (answer.status_code, len(answer.content) < KIB) == (404, True)
    assert answer.json()["detail"].isprintable()
