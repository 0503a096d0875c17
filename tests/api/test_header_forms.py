"""A header that is found by its form is checked as if it were parsed."""

from __future__ import annotations

import json
import random
import re
from collections.abc import Callable, Iterator
from typing import Any

import pytest

from evaluating import layout
from lossd.api.evaluate import plan_of
from lossd.api.header_forms import FORMS, found_by_form, learn_form
from lossd.api.tensor_route import CheckedHeader
from lossd.losses import REGISTRY
from lossd.request.plan import Layout, Plan
from lossd_client.errors import Problem
from lossd_client.wire import DTYPES, safetensors
from lossd_client.wire.tensor import element_count
from losses.case import Case, Parameters
from losses.test_values import ROWS
from rows import gathering

SCORES: Layout = {"prediction": ("float32", (4, 3)), "target": ("int64", (4,))}
PAIR: Layout = dict.fromkeys(("prediction", "target"), ("float32", (7, 2)))


@pytest.fixture(autouse=True)
def _nothing_known() -> Iterator[None]:
    FORMS.clear()
    yield
    FORMS.clear()


def header(request: str | dict[str, Any], inputs: Layout, space: str = "") -> bytes:
    text = request if isinstance(request, str) else json.dumps(request)
    tensors = ((n, dtype, shape, element_count(shape) * DTYPES[dtype].itemsize) for n, (dtype, shape) in inputs.items())
    whole = safetensors.encode_header(tensors, {"request": text})[safetensors.PREFIX_BYTES :]
    return whole.replace(b":[", b":" + space.encode() + b"[")


def parsed(text: bytes, *, learn: bool = False) -> CheckedHeader:
    """What the usual way makes of a header."""
    read = safetensors.read_header(text)
    plan = plan_of(read.metadata["request"].encode())
    checked = CheckedHeader.of(read, plan)
    if learn:
        learn_form(text, read, plan, checked.job.recipe)
    return checked


def with_rows(inputs: Layout, rows: int) -> Layout:
    return {name: (dtype, (rows, *shape[1:])) for name, (dtype, shape) in inputs.items()}


def test_other_rows_and_numbers_are_found() -> None:
    """Of every loss whose rows may differ in number."""
    with gathering() as named:
        for row in ROWS:
            FORMS.clear()
            with named(row.id):
                check(*row.values)


def check(case: Case, parameters: Parameters) -> None:
    counts = (4, 2, 5)
    requests = [
        {"loss": {"name": case.name, **parameters, **{n: values[i % len(values)] for n, values in case.vary.items()}}}
        for i in range(len(counts))
    ]
    layouts = [layout(case.inputs(parameters, n)) for n in counts]
    if REGISTRY[case.name].kind == "rows":
        layouts = [{**inputs, "sample_weight": ("float32", (n,))} for n, inputs in zip(counts, layouts, strict=True)]
    texts = [header(request, inputs) for request, inputs in zip(requests, layouts, strict=True)]
    usual = [parsed(text, learn=text is texts[0]) for text in texts]
    plan = plan_of(json.dumps(requests[0]).encode())
    forms = [re.sub(rb"[0-9.]+", b"0", text.rstrip(b" ")) for text in texts]  # a sign or an exponent is part of it
    known = [plan.ignores_row_count and form == forms[0] for form in forms]
    assert [found_by_form(text) for text in texts] == [
        checked if is_known else None for checked, is_known in zip(usual, known, strict=True)
    ]


def test_new_numbers_parse_and_plan_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    first = header({"loss": {"name": "focal", "gamma": 0.5}}, SCORES)
    second = header({"loss": {"name": "focal", "gamma": 1.25}}, with_rows(SCORES, 200))
    parsed(first, learn=True)
    usual = parsed(second)
    monkeypatch.delattr(safetensors, "read_header")
    monkeypatch.delattr(Plan, "_build")
    found = found_by_form(second)
    assert found == usual
    assert found is not None
    assert (found.job.rows, found.job.numbers, found.data_bytes) == (200, (1.25,), 200 * 20)


def outcome(check: Callable[[bytes], CheckedHeader | None], text: bytes) -> object:
    try:
        return check(text)
    except Problem as problem:
        return type(problem), problem.to_json()


REQUESTS: list[tuple[str | dict[str, Any], Layout]] = [
    ({"loss": {"name": "focal", "gamma": 1.5}}, SCORES),
    ({"loss": {"name": "huber", "delta": 0.25}, "metrics": {"names": ["mse"]}}, PAIR),
    ({"loss": {"name": "quantile", "q": 0.125}}, {**PAIR, "sample_weight": ("float32", (7,))}),
    ({"loss": {"name": "smooth_l1", "beta": 2}, "gradient": {"clip_norm": 10.5}}, PAIR),
    ({"loss": {"name": "mse", "reduction": "none"}}, {**PAIR, "cotangent": ("float32", (7, 2))}),
    ({"loss": {"name": "mse"}}, {**PAIR, "cotangent": ("float32", ())}),
    ('{"loss": {"name": "huber", "delta": 3, "delta": 0.5}}', PAIR),
    ('{"loss": {"name": "hub\\u0065r", "delta": 0.5}}', PAIR),
    ('{"loss": {"name": "huber", "delta": 5e-1}}', PAIR),
    ({"task": "binary", "metrics": {"threshold": 0.5}}, dict.fromkeys(("prediction", "target"), ("float32", (7,)))),
]


@pytest.mark.parametrize("space", ["", " "])
@pytest.mark.parametrize(("request_", "inputs"), REQUESTS)
def test_whatever_is_found_is_what_the_usual_way_finds(
    request_: str | dict[str, Any], inputs: Layout, space: str
) -> None:
    """Numbers of a header are replaced, removed and moved; what is found then is what a parser would have found."""
    randomly, found = random.Random(0), 0
    first = header(request_, inputs, space)
    parsed(first, learn=True)
    for rows in (1, 9, 10, 123):
        text = header(
            request_, with_rows(inputs, rows) if "cotangent" not in inputs or inputs["cotangent"][1] else inputs, space
        )
        assert found_by_form(text) in (None, outcome(parsed, text))
    others = re.split(rb"[0-9.]+", first)
    numbers = re.findall(rb"[0-9.]+", first)
    tokens = [
        b"0",
        b"1",
        b"04",
        b"4.0",
        b"4.",
        b".5",
        b"1.5",
        b"0.5",
        b"1..5",
        b"",
        b"12345678901234567890",
        b"64",
        *numbers,
    ]
    for _ in range(1500):
        changed = list(numbers)
        for _ in range(randomly.randint(1, 3)):
            changed[randomly.randrange(len(changed))] = randomly.choice(tokens)
        text = b"".join(piece for pair in zip(others, [*changed, b""], strict=True) for piece in pair)
        if (by_form := outcome(found_by_form, text)) is not None:
            found += 1
            assert by_form == outcome(parsed, text), text
    assert found or found_by_form(first) is None


@pytest.mark.parametrize("text", [b"0" + b"{}", b"{}0", b"", b"7", b"{", b" " * 70])
def test_other_texts_are_not_found(text: bytes) -> None:
    whole = header({"loss": {"name": "mse"}}, PAIR)
    parsed(whole, learn=True)
    assert found_by_form(whole) is not None
    assert found_by_form(text) is None
    assert found_by_form(b"1" + whole) is None
    assert found_by_form(whole.rstrip(b" ") + b"1") is None


def test_long_headers_are_neither_kept_nor_found() -> None:
    whole = header({"loss": {"name": "mse"}}, PAIR) + b" " * 5000
    parsed(whole, learn=True)
    assert not len(FORMS)
    assert found_by_form(whole) is None
