"""The Open Inference Protocol's codec: golden bytes, every datatype, every fault, and anything at all."""

from __future__ import annotations

import itertools
import json
import math
import struct
from contextlib import suppress
from pathlib import Path
from typing import Any

import ml_dtypes
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as arrays
from tritonclient.http import InferResult

from lossd_client.errors import Problem
from lossd_client.wire import Tensor, oip
from wire import stock

GOLDEN = Path(__file__).parent / "golden"

FLOATS = [-0.5, 0.25, 0.25, 0, math.inf, -1]
RESPONSES: dict[str, tuple[str, str | None, list[tuple[str, oip.Value, bool]]]] = {
    "binary": (
        "focal",
        "seven",
        [
            ("loss", Tensor.of(np.array(0.75)), False),
            ("gradient", Tensor.of(np.array(FLOATS, np.float32).reshape(2, 3)), True),
            ("diagnostics", [b'{"finite":true}'], True),
            ("support", Tensor.of(np.zeros(0, np.int64)), True),
        ],
    ),
    "json": (
        "mse",
        None,
        [
            ("loss", Tensor.of(np.array(np.nan)), False),
            ("gradient.prediction", Tensor.of(np.array([[0.1, -np.inf], [np.inf, -2.5]], np.float32)), False),
            ("support", Tensor.of(np.array([1, 0, 2**53 + 1])), False),
            ("diagnostics", [b'{"finite":false}'], False),
            ("per_class", Tensor.of(np.zeros(0)), False),
        ],
    ),
}

LENGTHS = {"binary": 448, "json": None}


def golden_request(name: str) -> tuple[dict[str, str], bytes]:
    """The headers and the body of a recorded request."""
    head, _, body = (GOLDEN / f"{name}.request").read_bytes().partition(b"\r\n\r\n")
    lines = [line.decode().partition(": ") for line in head.split(b"\r\n")[1:]]
    return {header.lower(): value for header, _, value in lines}, body


def decoded(name: str) -> tuple[oip.Request, dict[str, oip.Value]]:
    headers, body = golden_request(name)
    return oip.decode_request(body, oip.header_length(headers.get(oip.HEADER_LENGTH.lower()), len(body)))


def array(value: oip.Value) -> np.ndarray:
    assert isinstance(value, Tensor)
    return value.numpy()


# Golden bytes


@pytest.mark.parametrize("name", stock.REQUESTS)
def test_the_stock_client_still_sends_the_golden_bytes(name: str) -> None:
    def without_version(message: bytes) -> list[bytes]:
        head, _, body = message.partition(b"\r\n\r\n")
        return [*sorted(line for line in head.split(b"\r\n") if not line.startswith(b"User-Agent:")), body]

    assert without_version(stock.record(name)) == without_version((GOLDEN / f"{name}.request").read_bytes())


def test_a_golden_binary_request_is_read() -> None:
    request, values = decoded("binary")
    assert request.id is None
    assert request.outputs is None
    assert request.binary is True
    assert request.parameters == {"binary_data_output": True, "gamma": 1.5}
    assert request.data_bytes == 40
    np.testing.assert_array_equal(array(values["prediction"]), stock.PREDICTION)
    np.testing.assert_array_equal(array(values["target"]), stock.TARGET)
    assert array(values["prediction"]).dtype == np.float32


def test_a_golden_json_request_is_read() -> None:
    request, values = decoded("json")
    assert request.id == "seven"
    assert request.outputs == (oip.Output("loss", False), oip.Output("gradient", True))
    assert request.parameters == {"priority": 1, "timeout": 5_000_000}
    assert request.data_bytes == 0
    np.testing.assert_array_equal(array(values["prediction"]), stock.PREDICTION)
    assert array(values["target"]).tolist() == [0, 1]


def test_a_golden_request_of_many_datatypes_is_read() -> None:
    _, values = decoded("mixed")
    np.testing.assert_array_equal(array(values["a"]), [np.nan, np.inf, -np.inf, 0.5])
    assert array(values["b"]).tolist() == [1.5, -2.0]
    assert values["c"] == [b"ab", b"", "ü".encode()]
    assert array(values["d"]).tolist() == [True, False]
    assert array(values["e"]).shape == (0, 3)
    assert array(values["f"]).tolist() == [65535]


@pytest.mark.parametrize("name", RESPONSES)
def test_the_golden_response_is_written(name: str, parser: str) -> None:
    model, identity, outputs = RESPONSES[name]
    pieces, length = oip.encode_response(model, outputs, id=identity)
    body = (GOLDEN / f"{name}.response").read_bytes()
    assert b"".join(pieces) == body
    assert length == LENGTHS[name]


@pytest.mark.parametrize("name", RESPONSES)
def test_the_stock_client_reads_the_golden_response(name: str) -> None:
    body = (GOLDEN / f"{name}.response").read_bytes()
    result = InferResult.from_response_body(body, header_length=LENGTHS[name])
    ours = oip.decode_response(body, LENGTHS[name])
    for output, value, _ in RESPONSES[name][2]:
        theirs = result.as_numpy(output)
        if isinstance(value, Tensor):
            np.testing.assert_array_equal(theirs, value.numpy(), strict=True)
            np.testing.assert_array_equal(array(ours.outputs[output]), value.numpy(), strict=True)
        else:
            assert [e if isinstance(e, bytes) else e.encode() for e in theirs.tolist()] == value == ours.outputs[output]
    assert (ours.id, ours.model_name, ours.model_version) == (RESPONSES[name][1], RESPONSES[name][0], "1")


def test_a_request_is_written_with_its_tensors_on_a_boundary() -> None:
    inputs: dict[str, oip.Value] = {"prediction": Tensor.of(stock.PREDICTION), "words": [b"a", b""]}
    pieces, length = oip.encode_request(inputs, parameters={"gamma": 1.5}, outputs=["loss"], id="x")
    body = b"".join(pieces)
    assert length % 64 == 0
    assert json.loads(body[:length]) == {
        "id": "x",
        "parameters": {"gamma": 1.5, "binary_data_output": True},
        "outputs": [{"name": "loss"}],
        "inputs": [
            {"name": "prediction", "datatype": "FP32", "shape": [2, 3], "parameters": {"binary_data_size": 24}},
            {"name": "words", "datatype": "BYTES", "shape": [2], "parameters": {"binary_data_size": 9}},
        ],
    }
    assert body[length:] == stock.PREDICTION.tobytes() + b"\x01\0\0\0a\0\0\0\0"


# Every datatype, both ways

EXAMPLES: dict[str, list[Any]] = {
    "BOOL": [True, False],
    "UINT8": [0, 255],
    "UINT16": [0, 65535],
    "UINT32": [0, 2**32 - 1],
    "UINT64": [0, 2**64 - 1],
    "INT8": [-128, 127],
    "INT16": [-(2**15), 2**15 - 1],
    "INT32": [-(2**31), 2**31 - 1],
    "INT64": [-(2**63), 2**63 - 1],
    "FP16": [0.5, -65504.0],
    "FP32": [0.1, math.nan],
    "FP64": [0.1, -math.inf],
    "BF16": [0.5, -3e38],
    "BYTES": ["a\0b", ""],
}


def written(datatype: str) -> bytes:
    """The elements as the specification has them in binary."""
    values = EXAMPLES[datatype]
    if datatype == "BYTES":
        return b"".join(struct.pack("<I", len(v)) + v.encode() for v in values)
    if datatype == "BF16":
        return np.array(values, ml_dtypes.bfloat16).tobytes()
    return np.array(values, oip.DATATYPES[datatype].storage).tobytes()


def document(*inputs: dict[str, Any], **fields: Any) -> bytes:
    return json.dumps({"inputs": list(inputs), **fields}).encode()


@pytest.mark.parametrize("datatype", oip.DATATYPES)
def test_every_datatype_is_read_from_binary(datatype: str) -> None:
    data = written(datatype)
    entry = {"name": "x", "shape": [2], "datatype": datatype, "parameters": {"binary_data_size": len(data)}}
    text = document(entry)
    _, values = oip.decode_request(text + data, len(text))
    if datatype == "BYTES":
        assert values["x"] == [v.encode() for v in EXAMPLES[datatype]]
    else:
        expected = EXAMPLES[datatype] if datatype != "BF16" else np.array(EXAMPLES["BF16"], ml_dtypes.bfloat16)
        np.testing.assert_array_equal(array(values["x"]), np.array(expected, array(values["x"]).dtype))


@pytest.mark.parametrize("datatype", [d for d in oip.DATATYPES if d not in ("FP16", "BF16")])
def test_every_datatype_is_read_from_json(datatype: str, parser: str) -> None:
    values = EXAMPLES[datatype]
    for shape, nested in itertools.product(([2], [2, 1], [1, 2]), (False, True)):
        data = np.array(values, object).reshape(shape).tolist() if nested else values
        _, read = oip.decode_request(document({"name": "x", "shape": shape, "datatype": datatype, "data": data}), None)
        if datatype == "BYTES":
            assert read["x"] == [v.encode() for v in values], (shape, nested)
        else:
            actual = array(read["x"])
            np.testing.assert_array_equal(
                actual, np.array(values, actual.dtype).reshape(shape), f"{nested}", strict=True
            )


@pytest.mark.parametrize("datatype", ["FP16", "BF16"])
def test_half_precision_has_no_json(datatype: str) -> None:
    with pytest.raises(Problem, match="binary"):
        oip.decode_request(document({"name": "x", "shape": [1], "datatype": datatype, "data": [1.0]}), None)
    value = Tensor(oip.DATATYPES[datatype].dtype, (1,), memoryview(b"\0\0"))
    with pytest.raises(Problem, match="binary"):
        oip.encode_response("mse", [("x", value, False)])


def test_scalars_and_empty_tensors_are_read_in_each_form() -> None:
    text = document(
        {"name": "a", "shape": [], "datatype": "FP32", "data": [1.5]},
        {"name": "b", "shape": [], "datatype": "FP32", "data": 1.5},
        {"name": "c", "shape": [0, 3], "datatype": "INT64", "data": []},
        {"name": "d", "shape": [2, 0], "datatype": "FP64", "data": [[], []]},
        {"name": "e", "shape": [0], "datatype": "BYTES", "data": []},
        {"name": "f", "shape": [], "datatype": "INT8", "parameters": {"binary_data_size": 1}},
    )
    _, values = oip.decode_request(text + b"\xff", len(text))
    assert [array(values[n]).shape for n in "abcdf"] == [(), (), (0, 3), (2, 0), ()]
    assert values["e"] == []
    assert int(array(values["f"])) == -1


# Faults

X = {"name": "x", "shape": [2], "datatype": "FP32", "data": [1, 2]}
SHARED = {"name": "x", "shape": [2], "datatype": "FP32",
          "parameters": {"shared_memory_region": "r", "shared_memory_byte_size": 8}}  # fmt: skip
BINARY = {"name": "x", "shape": [2], "datatype": "FP32", "parameters": {"binary_data_size": 8}}
WORDS = {"name": "x", "shape": [1], "datatype": "BYTES", "parameters": {"binary_data_size": 5}}

FAULTS: list[tuple[str, bytes, bytes, str]] = [
    ("not JSON", b"{", b"", "JSON"),
    ("not an object", b"[]", b"", "object"),
    ("no inputs", b"{}", b"", "inputs must be a list"),
    ("unknown field", document(X, input=1), b"", "unknown field 'input'"),
    ("id is a number", document(X, id=7), b"", "id"),
    ("a parameter is a list", document(X, parameters={"alpha": [1]}), b"", "JSON text"),
    ("a parameter is NaN", document(X, parameters={"alpha": math.nan}), b"", "finite"),
    ("binary_data_output is no boolean", document(X, parameters={"binary_data_output": 1}), b"", "true or false"),
    ("outputs is an object", document(X, outputs={}), b"", "outputs must be a list"),
    ("an output is a string", document(X, outputs=["loss"]), b"", "object"),
    ("an output twice", document(X, outputs=[{"name": "a"}] * 2), b"", "twice"),
    ("classification", document(X, outputs=[{"name": "a", "parameters": {"classification": 1}}]), b"", "classif"),
    ("an input twice", document(X, X), b"", "twice"),
    ("a long string among numbers", document({**X, "data": ["x" * 10**6, 1]}), b"", "found 'xxx"),
    ("an axis only a zero saves", document({**X, "shape": [2**62, 4, 0], "data": []}), b"", "memory"),
    ("a name of control characters", document({**X, "name": "a\x85b"}), b"", "printable"),
    ("a name of any length", document({**X, "name": "a" * 257}), b"", "256"),
    ("too many inputs", document(*({**X, "name": str(i)} for i in range(1025))), b"", "1025 tensors"),
    ("one of a thousand twice", document(*({**X, "name": str(i % 1000)} for i in range(1001))), b"", "0 is listed"),
    ("no name", document({**X, "name": ""}), b"", "name"),
    ("unknown datatype", document({**X, "datatype": "FP8"}), b"", "FP8"),
    ("negative axis", document({**X, "shape": [-1]}), b"", "shape"),
    ("shape of floats", document({**X, "shape": [2.0]}), b"", "shape"),
    ("too many axes", document({**X, "shape": [1] * 9}), b"", "axes"),
    ("neither data nor size", document({"name": "x", "shape": [2], "datatype": "FP32"}), b"", "neither"),
    ("both data and size", document({**X, **BINARY}), b"\0" * 8, "both"),
    ("too few numbers", document({**X, "data": [1]}), b"", "shape"),
    ("nested otherwise", document({**X, "shape": [4], "data": [[1, 2], [3, 4]]}), b"", "shape"),
    ("ragged", document({**X, "data": [[1], 2]}), b"", "ragged"),
    ("a string among numbers", document({**X, "data": [1, "NaN"]}), b"", "numbers"),
    ("null among numbers", document({**X, "data": [1, None]}), b"", "numbers"),
    ("too large for FP32", document({**X, "data": [1, 1e39]}), b"", "FP32"),
    ("floats as integers", document({**X, "datatype": "INT64", "data": [1, 2.5]}), b"", "integers"),
    ("too large for INT8", document({**X, "datatype": "INT8", "data": [1, 128]}), b"", "INT8"),
    ("negative for UINT32", document({**X, "datatype": "UINT32", "data": [1, -1]}), b"", "UINT32"),
    ("2 as BOOL", document({**X, "datatype": "BOOL", "data": [1, 2]}), b"", "BOOL"),
    ("numbers as BYTES", document({**X, "datatype": "BYTES"}), b"", "strings"),
    ("too few strings", document({**X, "datatype": "BYTES", "data": ["a"]}), b"", "shape"),
    ("size is not the shape's", document({**BINARY, "shape": [3]}), b"\0" * 8, "12 bytes"),
    ("size is a string", document({**BINARY, "parameters": {"binary_data_size": "8"}}), b"\0" * 8, "number of bytes"),
    ("negative size", document({**BINARY, "parameters": {"binary_data_size": -8}}), b"", "number of bytes"),
    ("short", document(BINARY), b"\0" * 7, "describes 8 bytes"),
    ("a negative UINT64", document({"name": "x", "shape": [1], "datatype": "UINT64", "data": [-1]}), b"",
     "-1 at data of x[0] is outside the range of uint64"),
    ("a UINT64 beyond its range", document({"name": "x", "shape": [1], "datatype": "UINT64", "data": [2**64]}), b"",
     "must hold integers"),
    ("left-over", document(BINARY), b"\0" * 9, "describes 8 bytes"),
    ("left-over of nothing", document(X), b"\0", "describes 0 bytes"),
    ("half a place in shared memory", document({**X, "parameters": {"shared_memory_region": "r"}}), b"",
     "shared_memory_byte_size of x must be a number of bytes"),
    ("shared memory", document(SHARED), b"", "x is in shared memory, not in the message"),
    ("a string's length cut off", document({**WORDS, "parameters": {"binary_data_size": 3}}), b"\1\0\0", "length"),
    ("a string longer than its bytes", document(WORDS), b"\2\0\0\0a", "are left"),
    ("more strings than the shape", document({**WORDS, "shape": [0]}), b"\1\0\0\0a", "strings"),
]  # fmt: skip


def test_a_fault_is_refused_with_its_reason(parser: str) -> None:
    wrong = {}
    for case, text, data, reason in FAULTS:
        try:
            oip.decode_request(text + data, len(text))
            wrong[case] = "read"
        except Problem as refused:
            if reason not in refused.detail or refused.status not in (400, 413, 422):
                wrong[case] = f"{refused.status} {refused.detail}"
    assert wrong == {}


@pytest.mark.parametrize("value", ["x", "-1", "1.5", "", "11", "9" * 30, "²"])
def test_a_stated_length_that_cannot_be_is_refused(value: str) -> None:
    with pytest.raises(Problem, match="Inference-Header-Content-Length"):
        oip.header_length(value, 10)


def test_a_stated_length_of_everything_is_all_json() -> None:
    assert oip.header_length("10", 10) == 10
    assert oip.header_length(None, 10) is None
    text = document(X)
    assert oip.decode_request(text, len(text))[0].data_bytes == 0


# Anything at all


@st.composite
def tensors(draw: st.DrawFn) -> oip.Value:
    if draw(st.booleans()) and draw(st.booleans()):
        return draw(st.lists(st.binary(max_size=9), max_size=5))
    dtype = draw(st.sampled_from(sorted(oip.BY_DTYPE)))
    storage = oip.BY_DTYPE[dtype].storage
    drawn = draw(arrays.arrays(np.dtype(storage), arrays.array_shapes(min_dims=0, min_side=0, max_side=4)))
    return Tensor.of(drawn, dtype)


def same(a: oip.Value, b: oip.Value) -> bool:
    if isinstance(a, Tensor) and isinstance(b, Tensor):
        return (a.dtype, a.shape, bytes(a.data)) == (b.dtype, b.shape, bytes(b.data))
    return a == b


NAMES = st.text(st.characters(exclude_categories=["Cs"]), min_size=1, max_size=5).filter(str.isprintable)
SCALARS = st.text(st.characters(exclude_categories=["Cs"])) | st.integers(-(2**63), 2**63) | st.booleans()


@settings(max_examples=50)
@given(inputs=st.dictionaries(NAMES, tensors(), max_size=4), identity=st.none() | NAMES)
def test_what_is_written_is_read(inputs: dict[str, oip.Value], identity: str | None) -> None:
    pieces, length = oip.encode_request(inputs, id=identity)
    body = b"".join(pieces)
    request, read = oip.decode_request(body, length)
    assert request.id == identity
    assert list(read) == list(inputs)
    assert all(same(read[name], inputs[name]) for name in inputs)
    answer, length_or_none = oip.encode_response("m", [(n, v, True) for n, v in inputs.items()], id=identity)
    response = oip.decode_response(b"".join(answer), length_or_none)
    assert response.id == identity
    assert all(same(response.outputs[name], inputs[name]) for name in inputs)
    stock_client = InferResult.from_response_body(b"".join(answer), header_length=length_or_none)
    for name, value in inputs.items():
        if isinstance(value, Tensor) and value.dtype != "bfloat16":
            np.testing.assert_array_equal(stock_client.as_numpy(name), value.numpy(), strict=True)


@settings(max_examples=50)
@given(value=tensors())
def test_what_is_written_as_json_is_read(value: oip.Value) -> None:
    if isinstance(value, Tensor) and not oip.BY_DTYPE[value.dtype].as_json:
        return
    try:
        pieces, length = oip.encode_response("m", [("x", value, False)])
    except Problem:
        assert not isinstance(value, Tensor)  # bytes that are no text
        return
    assert length is None
    read = oip.decode_response(b"".join(pieces), None).outputs["x"]
    if isinstance(value, Tensor):
        np.testing.assert_array_equal(array(read), value.numpy(), strict=True)  # any NaN for a NaN
    else:
        assert read == value


JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=5),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(max_size=5), inner, max_size=3),
    max_leaves=12,
)


@settings(max_examples=50)
@given(
    fields=st.fixed_dictionaries(
        {},
        optional={
            "name": JSON | st.just("x"),
            "shape": JSON | st.lists(st.integers(0, 3), max_size=3),
            "datatype": JSON | st.sampled_from(sorted(oip.DATATYPES)),
            "data": JSON | st.lists(st.floats(width=32) | st.integers(-2, 2), max_size=4),
            "parameters": JSON | st.fixed_dictionaries({"binary_data_size": st.integers(-1, 16)}),
        },
    ),
    outputs=st.none() | JSON,
    parameters=st.none() | st.dictionaries(st.text(max_size=5), JSON, max_size=3),
    data=st.binary(max_size=16),
)
def test_any_request_is_read_or_refused(fields: dict, outputs: Any, parameters: Any, data: bytes) -> None:
    text = document(fields, outputs=outputs, parameters=parameters)
    with suppress(Problem):
        _, values = oip.decode_request(text + data, len(text))
        assert set(values) == {fields["name"]}


@given(body=st.binary(max_size=200), length=st.none() | st.integers(0, 250))
def test_any_bytes_are_read_or_refused(body: bytes, length: int | None) -> None:
    for decode in (oip.decode_request, oip.decode_response):
        with pytest.raises(Problem):
            decode(body, length)


@given(at=st.integers(0, 10**6), byte=st.integers(0, 255), name=st.sampled_from(sorted(stock.REQUESTS)))
def test_a_golden_request_with_one_byte_changed_is_read_or_refused(at: int, byte: int, name: str) -> None:
    headers, body = golden_request(name)
    changed = bytearray(body)
    changed[at % len(body)] = byte
    with suppress(Problem):
        oip.decode_request(changed, oip.header_length(headers.get(oip.HEADER_LENGTH.lower()), len(body)))
