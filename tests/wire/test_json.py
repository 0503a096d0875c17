from __future__ import annotations

import base64
import json as stdlib
import math
import tracemalloc
from collections.abc import Iterable
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from lossd_client.errors import DtypeMismatch, InvalidValue, LossdError, MalformedBody, ShapeMismatch, TooLarge
from lossd_client.wire import DTYPES, Tensor, json


def read(value: Any, *, floats: bool = True, integers: bool = True) -> np.ndarray:
    return json.tensor_from_json("prediction", value, floats=floats, integers=integers)[0].numpy()


def misread(refused: Iterable[tuple[Any, type[LossdError], str]], *, floats: bool = True) -> list[Any]:
    """Return the values that are read, or refused with another error or another detail, with what came of them."""
    wrong = []
    for value, kind, message in refused:
        try:
            wrong.append((value, read(json.loads(json.dumps(value)), floats=floats)))
        except LossdError as error:
            if type(error) is not kind or message not in error.detail:
                wrong.append((value, error))
    return wrong


# Text


@pytest.mark.parametrize(
    ("text", "document"),
    [
        (b' {"a": [1, -2.5, true, null, "\xc3\xbc"]} ', {"a": [1, -2.5, True, None, "ü"]}),
        (b"9223372036854775808", 2**63),
        (b"18446744073709551616", 2.0**64),
        (b"-9223372036854775809", -(2.0**63)),
        (b"1" * 100, float("1" * 100)),
        (b"-0", 0),
        (b'"\\ud83d\\ude00 \\\\ud800"', "😀 \\ud800"),
        (b'{"a":1,"a":2}', {"a": 2}),
    ],
)
def test_a_text_means_the_same_to_both_parsers(text: bytes, document: Any, parser: str) -> None:
    found = json.loads(text)
    assert found == document
    assert type(found) is type(document)
    assert json.loads(memoryview(text)) == json.loads(bytearray(text)) == document


NOT_JSON = [
    b"",
    b"{",
    b"NaN",
    b"[Infinity]",
    b"-Infinity",
    b"1e400",
    b"1" * 400,
    b"1" * 5000,
    b"01",
    b"'a'",
    b"[1,]",
    b'"\xff"',
    b'"\\ud800"',
    b'{"\\uDC00":1}',
    b"\xef\xbb\xbf1",
    '"a"'.encode("utf-16-le"),
    b'"\x01"',
    b"[" * 100_000,
    b"[" * 5000 + b"]" * 5000,
]


def test_what_is_not_json_is_malformed_to_both_parsers(parser: str) -> None:
    wrong = {}
    for text in NOT_JSON:
        try:
            wrong[text[:12]] = repr(json.loads(text, what="the request"))
        except MalformedBody as error:
            if not error.detail.startswith("the request is not JSON: "):
                wrong[text[:12]] = error.detail
    assert wrong == {}


def test_the_bare_token_comes_with_a_remedy(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(json, "orjson", None)
    with pytest.raises(MalformedBody, match='write the string "NaN"'):
        json.loads(b"[NaN]")


JSON = st.recursive(
    st.none()
    | st.booleans()
    | st.integers(-(2**63), 2**64 - 1)
    | st.floats(allow_nan=False, allow_infinity=False)
    | st.text(),
    lambda children: st.lists(children, max_size=4) | st.dictionaries(st.text(), children, max_size=4),
    max_leaves=12,
)


@settings(max_examples=50)
@given(JSON)
def test_documents_come_back_the_same_and_both_writers_agree(document: Any) -> None:
    text = json.dumps(document)
    assert json.loads(text) == document
    with pytest.MonkeyPatch.context() as without:
        without.setattr(json, "orjson", None)
        assert json.loads(json.dumps(document)) == document
        assert json.loads(text) == document


@settings(max_examples=50)
@given(JSON)
def test_a_text_is_escaped_as_its_characters_are(document: Any) -> None:
    text = json.dumps(document)
    assert json.escaped(text) == json.dumps(text.decode())


def test_numpy_numbers_are_written_by_both(parser: str) -> None:
    document = {"a": np.float64(0.5), "b": np.int64(3), "c": np.array([[0.1, 2]], np.float32), "d": np.float32(0.1)}
    assert json.dumps(document) == b'{"a":0.5,"b":3,"c":[[0.1,2.0]],"d":0.1}'
    with pytest.raises(TypeError):
        json.dumps({"a": object()})


def test_non_finite_numbers_are_spelled_out_and_read_back(parser: str) -> None:
    document = {"a": [math.inf, -math.inf, (math.nan, 1.0)], "b": "NaN of it", "c": None, "d": True, "e": 3}
    spelled = json.finite(document)
    assert spelled == {"a": ["Infinity", "-Infinity", ["NaN", 1.0]], "b": "NaN of it", "c": None, "d": True, "e": 3}
    assert repr(json.numeric(json.loads(json.dumps(spelled)))) == repr(
        {**document, "a": [math.inf, -math.inf, [math.nan, 1.0]]}
    )


@pytest.mark.parametrize("wrap", [lambda v: [v], lambda v: {"a": v}, lambda v: [1, {"b": 2, "c": v}]])
def test_depth_is_bounded(wrap: Any) -> None:
    nested: Any = 1
    while True:
        deeper = wrap(nested)
        try:
            json.check_depth(deeper)
        except MalformedBody:
            break
        nested = deeper
    text = stdlib.dumps(deeper)
    depth = deepest = 0
    for character in text:
        depth += (character in "[{") - (character in "]}")
        deepest = max(deepest, depth)
    assert json.MAX_DEPTH < deepest <= json.MAX_DEPTH + 2  # one wrapping adds up to two levels
    with pytest.raises(MalformedBody, match="the request nests lists and objects more than 3 deep"):
        json.check_depth([[[[]]]], limit=3, what="the request")
    json.check_depth([[[]], {"a": 1}, "text"], limit=3)


# Tensors in


LISTS = [
    ([1.5, 2], True, True, np.array([1.5, 2], np.float32)),
    ([1, 2], True, True, np.array([1, 2], np.int64)),
    ([1, 2], True, False, np.array([1, 2], np.float32)),
    ([1, 2], False, True, np.array([1, 2], np.int64)),
    ([True, False], False, True, np.array([1, 0], np.int64)),
    ([True, False], True, False, np.array([1, 0], np.float32)),
    ([True, 2], True, True, np.array([1, 2], np.int64)),
    ([True, 0.5], True, True, np.array([1, 0.5], np.float32)),
    ([], True, True, np.zeros(0, np.float32)),
    ([], False, True, np.zeros(0, np.int64)),
    ([[], []], True, False, np.zeros((2, 0), np.float32)),
    ([[], []], False, True, np.zeros((2, 0), np.int64)),
    (3, True, False, np.array(3, np.float32)),
    (3, False, True, np.array(3, np.int64)),
    ("NaN", True, True, np.array(np.nan, np.float32)),
    (["NaN", 1], True, False, np.array([np.nan, 1], np.float32)),
    ([["Infinity"], ["-Infinity"]], True, True, np.array([[np.inf], [-np.inf]], np.float32)),
    ([2**63], True, False, np.array([2**63], np.float32)),
    ([-1, 2**63], True, True, np.array([-1, 2**63], np.float32)),
    ([2**63 - 1, -(2**63)], True, True, np.array([2**63 - 1, -(2**63)], np.int64)),
    ([2**63 - 1], False, True, np.array([2**63 - 1], np.int64)),
    ([[[[[[[[1]]]]]]]], True, True, np.ones((1,) * 8, np.int64)),
    ([3.4028235e38, -1e-50], True, True, np.array([3.4028235e38, 0], np.float32)),
]


def test_a_list_becomes_float32_or_int64(parser: str) -> None:
    for value, floats, integers, expected in LISTS:
        sent = json.loads(json.dumps(value))
        tensor, form = json.tensor_from_json("prediction", sent, floats=floats, integers=integers)
        assert form == "list", value
        np.testing.assert_array_equal(tensor.numpy(), expected, str(value), strict=True)


NO_TENSORS = [
    ([[1, 2], [3]], MalformedBody, "prediction is ragged: prediction[1] has 1 entries, the one before it 2"),
    ([[1], 2], MalformedBody, "prediction is ragged: there is a number at prediction[1], a list before it"),
    ([[1, [2]]], MalformedBody, "prediction is ragged: there is a list at prediction[0, 1], a number before it"),
    ([[], [1]], MalformedBody, "prediction is ragged: prediction[1] has 1 entries, the one before it 0"),
    (["NaN", ["NaN"]], MalformedBody, "prediction is ragged: there is a list at prediction[1], a number before it"),
    (None, MalformedBody, "prediction must be a (nested) list of numbers or an object"),
    ([[1.0, None]], DtypeMismatch, "found null at prediction[0, 1]"),
    (["NaN", None], DtypeMismatch, "found null at prediction[1]"),
    ([[0], ["one"]], DtypeMismatch, "found 'one' at prediction[1, 0]"),
    (["nan"], DtypeMismatch, "found 'nan' at prediction[0]"),
    (["1.5"], DtypeMismatch, "found '1.5' at prediction[0]"),
    ("one", DtypeMismatch, "found 'one' at prediction"),
    (["é" * 500], DtypeMismatch, f"found '{'é' * 60}'... at prediction[0]"),
    ([1, {"a": 1}], DtypeMismatch, "found an object at prediction[1]"),
    ([[1], {"a": 1}], DtypeMismatch, "found an object at prediction[1]"),
    ([1, 1e39], InvalidValue, "1e+39 at prediction[1] does not fit float32; send an object with dtype float64"),
    (-1e300, InvalidValue, "-1e+300 at prediction does not fit float32"),
    ([["Infinity"], [1e300]], InvalidValue, "1e+300 at prediction[1, 0] does not fit float32"),
    ([[[[[[[[[1]]]]]]]]], TooLarge, "prediction has more than 8 axes"),
    ({"dtype": "float32", "shape": [1]}, MalformedBody, "found 'dtype', 'shape'"),
    ({}, MalformedBody, "found nothing"),
]


def test_what_is_no_tensor_of_numbers_is_named_with_its_place(parser: str) -> None:
    assert misread(NO_TENSORS) == []


NO_INTEGERS = [
    ([0, 1.0], DtypeMismatch, "prediction must hold integers; found 1.0 at prediction[1]"),
    (0.5, DtypeMismatch, "prediction must hold integers; found 0.5 at prediction"),
    ([[0], ["NaN"]], DtypeMismatch, "prediction must hold integers; found NaN at prediction[1, 0]"),
    ([0, 2**63], InvalidValue, "9223372036854775808 at prediction[1] is outside the range of int64"),
    ([-1, 2**63], InvalidValue, "9223372036854775808 at prediction[1] is outside the range of int64"),
    ([0, 2.0**64], DtypeMismatch, "prediction must hold integers; found 1.8446744073709552e+19 at prediction[1]"),
]


def test_integers_are_integers(parser: str) -> None:
    assert misread(NO_INTEGERS, floats=False) == []


def test_deep_and_crooked_lists_are_no_danger(parser: str) -> None:
    deep: Any = 1
    for _ in range(900):
        deep = [deep]
    for value in (deep, [1, deep], ["NaN", deep], [[1], deep], [None, deep], [{"a": deep}]):
        with pytest.raises((MalformedBody, TooLarge, DtypeMismatch)):
            read(value)


@given(
    st.recursive(
        st.none() | st.booleans() | st.integers(-(2**64), 2**64) | st.floats() | st.sampled_from(["NaN", "x"]),
        lambda children: st.lists(children, max_size=3) | st.dictionaries(st.just("a"), children, max_size=1),
        max_leaves=12,
    ),
    st.sampled_from([(True, True), (True, False), (False, True)]),
)
def test_any_document_is_a_tensor_or_one_of_lossds_errors(value: Any, kinds: tuple[bool, bool]) -> None:
    try:
        tensor, _ = json.tensor_from_json("target", value, floats=kinds[0], integers=kinds[1])
    except LossdError:
        return
    assert tensor.dtype in (["float32", "float64"] if kinds[0] else []) + (["int64"] if kinds[1] else [])
    assert len(tensor.data) == tensor.numpy().size * DTYPES[tensor.dtype].itemsize


@settings(max_examples=50)
@given(hnp.arrays(np.float32, hnp.array_shapes(min_dims=0, max_dims=4, max_side=3)))
def test_float32_survives_the_trip_through_lists_exactly(array: np.ndarray) -> None:
    for orjson in (json.orjson, None):
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(json, "orjson", orjson)
            text = json.tensor_text(Tensor.of(array), "list")
            back, form = json.tensor_from_json("a", json.loads(text), floats=True, integers=False)
            assert form == "list"
            np.testing.assert_array_equal(back.numpy(), array)


# base64


@pytest.mark.parametrize("name", DTYPES)
def test_an_object_is_read_and_written_bit_for_bit(name: str, parser: str) -> None:
    data = bytes(range(6 * DTYPES[name].itemsize)) if name != "bool" else b"\0\1\0\0\1\1"
    value = {"dtype": name, "shape": [2, 3], "data": base64.b64encode(data).decode()}
    tensor, form = json.tensor_from_json("prediction", value, floats=True, integers=True)
    assert form == "base64"
    assert tensor == Tensor(name, (2, 3), memoryview(data))
    assert json.loads(json.tensor_text(tensor, "base64")) == value


DATA = base64.b64encode(bytes(8)).decode()


LIES = [
    ({"dtype": "float31"}, DtypeMismatch, "dtype 'float31' of prediction is not one of float64, "),
    ({"dtype": ["float32"]}, DtypeMismatch, "of prediction is not one of"),
    ({"shape": [3]}, ShapeMismatch, "prediction of dtype float32 and shape [3] has 12 bytes, its data has 8"),
    ({"shape": [2**62, 2**62]}, MalformedBody, "more elements than any memory holds"),
    ({"shape": [2**62, 4, 0]}, MalformedBody, "more elements than any memory holds"),
    ({"shape": [-2]}, MalformedBody, "shape of prediction must be a list of integers"),
    ({"shape": [2.0]}, MalformedBody, "shape of prediction must be a list of integers"),
    ({"shape": [2**63]}, MalformedBody, "shape of prediction must be a list of integers"),
    ({"shape": 2}, MalformedBody, "shape of prediction must be a list of integers"),
    ({"shape": [1] * 9}, TooLarge, "prediction has 9 axes; at most 8 are read"),
    ({"data": DATA[:-1]}, MalformedBody, "data of prediction is not a base64 string"),
    ({"data": "é" + DATA}, MalformedBody, "data of prediction is not a base64 string"),
    ({"data": DATA[:4] + "\n" + DATA[4:]}, MalformedBody, "data of prediction is not a base64 string"),
    ({"data": [0] * 8}, MalformedBody, "data of prediction is not a base64 string"),
    ({"extra": 1}, MalformedBody, "must hold exactly dtype, shape and data"),
]


def test_a_lying_object_is_refused(parser: str) -> None:
    true = {"dtype": "float32", "shape": [2], "data": DATA}
    assert misread([({**true, **changes}, *refused) for changes, *refused in LIES]) == []


@pytest.mark.parametrize("size", [1, 64])
def test_a_long_string_among_numbers_is_refused_in_no_time_and_memory(size: int) -> None:
    value = [1.0] * 100_000 + ["x" * (size << 20)]
    tracemalloc.start()
    with pytest.raises(DtypeMismatch, match=r"found 'x{60}'\.\.\. at prediction\[100000\]"):
        read(value)
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert peak < 8 << 20  # NumPy alone would make every entry as long as the longest: gigabytes


def test_an_error_repeats_little_of_what_it_is_about() -> None:
    for value in (
        ["x" * 10**6],
        {"x" * 10**6: 1},
        {str(i): i for i in range(10**5)},
        [10**4300],
        ["\x1b[31m\x85\u202e"],
    ):
        with pytest.raises((MalformedBody, DtypeMismatch, InvalidValue)) as caught:
            json.tensor_from_json("n" * 10**6, value, floats=False, integers=True)
        assert len(caught.value.detail) < 500
        assert caught.value.detail.isprintable()


def test_an_axis_of_thousands_of_digits_is_refused_not_printed() -> None:
    with pytest.raises(MalformedBody, match="shape of prediction must be"):
        read({"dtype": "float32", "shape": [10**4200] * 8, "data": DATA})


# Tensors out


@pytest.mark.parametrize(
    ("array", "text"),
    [
        (np.array([[0.1, -2.0], [1e-7, 1e30]], np.float32), b"[[0.1,-2.0],[1e-7,1e+30]]"),
        (np.array([0.1, np.nan, -np.inf], np.float32), b'[0.1,"NaN","-Infinity"]'),
        (np.array([0.1, 2.5], np.float16), b"[0.1,2.5]"),
        (np.array([0.1], np.float64), b"[0.1]"),
        (np.array([1, -(2**63)]), b"[1,-9223372036854775808]"),
        (np.array([True, False]), b"[true,false]"),
        (np.array(0.1, np.float32), b"0.1"),
        (np.array(np.inf, np.float32), b'"Infinity"'),
        (np.zeros((2, 0), np.float32), b"[[],[]]"),
        (np.array([7], np.uint8), b"[7]"),
    ],
)
def test_the_text_of_a_tensor_is_this(array: np.ndarray, text: bytes, parser: str) -> None:
    found = json.tensor_text(Tensor.of(array), "list")
    assert found.replace(b"e+", b"e").replace(b"e-0", b"e-") == text.replace(b"e+", b"e")
