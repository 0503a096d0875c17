"""Lists of numbers are read into arrays as if each number had been an object."""

import json

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from lossd.api.http import number_lists
from lossd_client.errors import Problem
from lossd_client.wire import json as wire

pytest.importorskip("simdjson")

NUMBERS = st.one_of(
    st.integers(-(2**26), 2**26),
    st.integers(-(2**65), 2**65),
    st.floats(allow_nan=False, allow_infinity=False),
    st.floats(-10, 10, width=32),
    st.sampled_from(["NaN", True, None, -0.0, 16777216, 16777217.0, 1e39]),
)
SMALL = st.one_of(st.integers(-9, 9), st.floats(-10, 10, width=32))
LISTS = st.one_of(
    st.lists(SMALL, min_size=1, max_size=6),
    st.integers(1, 3).flatmap(lambda width: st.lists(st.lists(SMALL, min_size=width, max_size=width), min_size=1)),
    st.recursive(NUMBERS, lambda inner: st.lists(inner, max_size=3), max_leaves=12),
)


def tensors(document):
    """The tensors of a document, for every kind that an input may allow, or the problem of each."""
    found = {}
    for name, value in document["inputs"].items():
        for floats, integers in ((True, False), (False, True), (True, True)):
            try:
                tensor, form = wire.tensor_from_json(name, value, floats=floats, integers=integers)
                found[name, floats, integers] = tensor.dtype, tensor.shape, bytes(tensor.data), form
            except Problem as problem:
                found[name, floats, integers] = type(problem)
    return found


@given(st.dictionaries(st.sampled_from(["prediction", "target", "a["]), LISTS, min_size=1), st.booleans())
def test_arrays_are_the_tensors_of_the_lists(inputs, spaced):
    request = {"loss": {"name": "huber", "delta": 2.0}, "outputs": ["loss"], "note": '["\\[', "inputs": inputs}
    text = json.dumps(request, separators=None if spaced else (",", ":")).encode()
    document = number_lists.read(text)
    if document is not None:
        plain = wire.loads(text)
        assert tensors(document) == tensors(plain)
        assert list(document) == [name for name in plain if name != "inputs"] + ["inputs"]
        assert {**document, "inputs": 0} == {**plain, "inputs": 0}


def test_plain_lists_are_read():
    read = number_lists.read(
        b' { "inputs" : {"target": [[1, 2],\n[3, 4]], "prediction":[[[1.5]],[[2]]]}, "loss": "mse" } '
    )
    assert {name: (a.dtype.name, a.tolist()) for name, a in read["inputs"].items()} == {
        "target": ("int64", [[1, 2], [3, 4]]),
        "prediction": ("float64", [[[1.5]], [[2.0]]]),
    }
    assert read["loss"] == "mse"


@pytest.mark.parametrize(
    "inputs",
    [
        '{"a": [1, 2], "a": [3, 4]}',
        '{"a": [[1, 2], [3, [4]]]}',
        '{"a": [[1, 2], [3], [4, 5, 6]]}',
        '{"a": [[1, 2], [3, [4]]], "b\\u005b": [1]}',
        '{"a": [[1, 2], 3]}',
        '{"a": [1.0, 16777217]}',
        '{"a": ["NaN", 1.0]}',
        '{"a": [true, 1]}',
        '{"a": [1e400]}',
        '{"a": [9223372036854775808]}',
        '{"a": []}',
        '{"a": 1.0}',
        '{"a": {"dtype": "float32", "shape": [1], "data": "AAAAAA=="}}',
        '[]',
        '{"a": [1]}, "inputs": {"a": [2]}',
        '{"a": [1]}, "loss": "mse", "loss": "mae"',
        '{"a": [1]',
        f'{{"a": {"[" * 9}1{"]" * 9}}}',
        f'{{"a": [1]}}, "loss": {"[" * 900}{"]" * 900}',
        f'{{"a": [1]}}, "loss": {"[" * 1900}{"]" * 1900}',
    ],
)  # fmt: skip
def test_what_orjson_may_read_differently_is_left_to_it(inputs):
    assert number_lists.read(f'{{"inputs": {inputs}}}'.encode()) is None


def test_a_request_of_many_fields_is_left_to_orjson():
    """simdjson looks for each field from the first one on: 100,000 of them would take minutes."""
    fields = "".join(f', "field_{number}": 1' for number in range(number_lists.MAX_FIELDS))
    assert number_lists.read(f'{{"inputs": {{"a": [1]}}{fields}}}'.encode()) is None


def test_a_long_body_gets_the_same_answer_either_way(http, monkeypatch):
    prediction = np.random.default_rng(0).standard_normal((600, 4)).astype(np.float32)
    request = {"loss": {"name": "focal"}, "inputs": {"prediction": prediction.tolist(), "target": [0, 1, 2, 3] * 150}}
    wrong = {**request, "inputs": {**request["inputs"], "prediction": [[2**53 + 1] * 4] * 600}}
    assert len(json.dumps(request)) > number_lists.LEAST_BYTES
    assert number_lists.read(json.dumps(wrong).encode()) is not None
    answers = []
    for least in (number_lists.LEAST_BYTES, np.inf):
        monkeypatch.setattr(number_lists, "LEAST_BYTES", least)
        answers.append([http.post("/v1/evaluate", json=sent) for sent in (request, wrong)])
    (found, refused), (plain, refused_plain) = answers
    assert found.status_code == 200
    assert found.json() == plain.json()
    assert f"{2**53 + 1} at prediction[0, 0]" in refused.json()["detail"]
    assert refused.json()["detail"] == refused_plain.json()["detail"]
