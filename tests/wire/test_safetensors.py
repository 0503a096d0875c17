"""The format's reference implementation is the oracle; what it lets pass, lossd may refuse, never the reverse."""

from __future__ import annotations

import json as stdlib
import struct
from collections.abc import Mapping
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp
from safetensors import torch as reference

from lossd_client.errors import LossdError, MalformedBody, TooLarge
from lossd_client.wire import DTYPES, Tensor, safetensors

TORCH_DTYPES = {name: getattr(torch, name) for name in DTYPES}


def file(header: str | bytes | dict[str, Any], data: bytes = b"") -> bytes:
    """A file with any header, true or not."""
    if isinstance(header, dict):
        header = stdlib.dumps(header)
    text = header.encode() if isinstance(header, str) else header
    return struct.pack("<Q", len(text)) + text + data


def entry(dtype: str = "F32", shape: Any = (1,), offsets: Any = (0, 4)) -> dict[str, Any]:
    return {"dtype": dtype, "shape": list(shape), "data_offsets": list(offsets)}


def sample(name: str, shape: tuple[int, ...]) -> torch.Tensor:
    generator = torch.Generator().manual_seed(1)
    return (torch.randn(shape, generator=generator) * 50).abs().to(TORCH_DTYPES[name])


def bits(tensor: torch.Tensor) -> bytes:
    return tensor.contiguous().view(-1).view(torch.uint8).numpy().tobytes() if tensor.numel() else b""


SHAPES = [(), (1,), (3, 5), (2, 0, 3), (0,), (1, 2, 1, 2, 1, 2, 1, 2)]


@pytest.mark.parametrize("name", DTYPES)
def test_what_the_reference_writes_is_read(name: str, parser: str) -> None:
    for shape in SHAPES:
        saved = {"a": sample(name, shape), "b": sample("uint8", (3,))}
        words = {"request": '{"loss":{"name":"mse"}}', "ü": '\\"'}
        tensors, metadata = safetensors.decode(reference.save(saved, words))
        assert metadata == words, shape
        assert tensors.keys() == saved.keys(), shape
        for key, tensor in tensors.items():
            assert (tensor.dtype, tensor.shape) == (str(saved[key].dtype).removeprefix("torch."), saved[key].shape)
            assert bytes(tensor.data) == bits(saved[key]), shape


@pytest.mark.parametrize("name", DTYPES)
def test_what_is_written_the_reference_reads(name: str, parser: str) -> None:
    small = Tensor.of(np.arange(3, dtype=np.uint8))
    for shape in SHAPES:
        original = sample(name, shape)
        pieces = safetensors.encode(
            {"small": small, "a": Tensor(name, shape, memoryview(bits(original)))}, {"request": "{}"}
        )
        loaded = reference.load(b"".join(pieces))
        assert loaded["a"].dtype == original.dtype, shape
        assert torch.equal(loaded["a"], original), shape
        assert loaded["small"].tolist() == [0, 1, 2], shape


@settings(max_examples=50)
@given(
    arrays=st.dictionaries(
        st.text(max_size=8).filter(lambda name: name != "__metadata__"),
        hnp.arrays(
            st.sampled_from([np.dtype(d.storage) for d in DTYPES.values() if d.name != "bfloat16"]),
            hnp.array_shapes(min_dims=0, max_dims=8, min_side=0, max_side=2),
        ),
        max_size=5,
    ),
    metadata=st.dictionaries(st.text(max_size=5), st.text(max_size=20), max_size=3),
)
def test_any_tensors_come_back_the_same(arrays: dict[str, np.ndarray], metadata: dict[str, str]) -> None:
    body = b"".join(safetensors.encode({name: Tensor.of(array) for name, array in arrays.items()}, metadata))
    tensors, read = safetensors.decode(body)
    assert read == metadata
    assert tensors.keys() == arrays.keys()
    for name, array in arrays.items():
        assert tensors[name].numpy().dtype == array.dtype
        assert tensors[name].numpy().tobytes() == array.tobytes()
        assert tensors[name].shape == array.shape
    (length,) = struct.unpack("<Q", body[:8])
    assert (8 + length) % safetensors.ALIGNMENT == 0


def test_the_bytes_are_these(parser: str) -> None:
    tensors = {
        "target": Tensor.of(np.array([1], np.uint8)),
        "prediction": Tensor.of(np.array([[1.5, -2.0]], np.float32)),
    }
    header = (
        b'{"__metadata__":{"request":"{\\"loss\\":{\\"name\\":\\"mse\\"}}"},'
        b'"prediction":{"dtype":"F32","shape":[1,2],"data_offsets":[0,8]},'
        b'"target":{"dtype":"U8","shape":[1],"data_offsets":[8,9]}}'
    )
    header += b" " * (-(len(header) + 8) % 64)
    expected = bytes([len(header), 0, 0, 0, 0, 0, 0, 0]) + header + b"\0\0\xc0\x3f\0\0\0\xc0" + b"\x01"
    assert b"".join(safetensors.encode(tensors, {"request": '{"loss":{"name":"mse"}}'})) == expected


def test_tensors_are_written_and_read_in_place() -> None:
    array = np.arange(4.0)
    head, data = safetensors.encode({"a": Tensor.of(array)}, {})
    array[0] = 9
    assert np.frombuffer(data)[0] == 9
    body = bytearray(bytes(head) + bytes(data))
    tensors, _ = safetensors.decode(body)
    body[-8:] = struct.pack("<d", 5)
    assert tensors["a"].numpy()[3] == 5
    tensors["a"].numpy()[0] = 3
    assert bytes(body).endswith(struct.pack("<4d", 3, 1, 2, 5))


BROKEN = {
    "nothing": (b"", "ends after 0"),
    "half a length": (b"\x10\0\0\0", "ends after 4"),
    "no header": (struct.pack("<Q", 0), "0 bytes long"),
    "a header of one byte": (file("{"), "1 bytes long"),
    "a truncated header": (file('{"a"')[:10], "ends inside the safetensors header: 10 of 12 bytes"),
    "not JSON": (file("{]"), "not JSON"),
    "not UTF-8": (file(b'{"\xff":1}'), "not JSON"),
    "UTF-16": (file("{}".encode("utf-16-le")), "not JSON"),
    "a byte order mark": (file(b"\xef\xbb\xbf{}"), "does not start with {"),
    "a blank before it": (file(" {}"), "does not start with {"),
    "a list": (file("[]"), "does not start with {"),
    "half a surrogate pair": (file('{"\\ud800":{"dtype":"F32","shape":[0],"data_offsets":[0,0]}}'), "not JSON"),
    "nested too deep": (file('{"a":' + "[" * 5000 + "]" * 5000 + "}"), "not JSON"),
    "metadata of numbers": (file({"__metadata__": {"a": 1}}), "must map strings to strings"),
    "metadata of objects": (file({"__metadata__": {"a": {}}}), "must map strings to strings"),
    "a list as metadata": (file({"__metadata__": []}), "must map strings to strings"),
    "null as metadata": (file({"__metadata__": None}), "must map strings to strings"),
    "an entry that is no object": (file({"a": 1}), "'a' must hold exactly dtype, shape and data_offsets"),
    "a missing field": (file({"a": {"dtype": "F32", "shape": [1]}}), "exactly dtype, shape and data_offsets"),
    "an extra field": (file({"a": {**entry(), "more": 1}}, bytes(4)), "exactly dtype, shape and data_offsets"),
    "an unknown dtype": (
        file({"a": entry("F8_E4M3", (4,))}, bytes(4)),
        "dtype 'F8_E4M3' of 'a' is not one lossd reads",
    ),
    "a dtype that is no string": (file({"a": {**entry(), "dtype": ["F32"]}}, bytes(4)), "is not one lossd reads"),
    "a dtype that is null": (file({"a": {**entry(), "dtype": None}}, bytes(4)), "is not one lossd reads"),
    "a negative axis": (file({"a": entry(shape=(-1,))}, bytes(4)), "shape of 'a' must be a list of integers"),
    "a fractional axis": (file({"a": entry(shape=(1.0,))}, bytes(4)), "shape of 'a' must be a list of integers"),
    "a boolean axis": (file({"a": entry(shape=(True,))}, bytes(4)), "shape of 'a' must be a list of integers"),
    "a shape that is no list": (file({"a": {**entry(), "shape": 1}}, bytes(4)), "shape of 'a' must be a list"),
    "an axis beyond 64 bits": (file({"a": entry(shape=(2**64,))}, bytes(4)), "shape of 'a' must be a list of integers"),
    "an axis of 4000 digits": (file('{"a":{"dtype":"F32","shape":[' + "9" * 4000 + '],"data_offsets":[0,4]}}'), ""),
    "a product that would wrap": (
        file({"a": entry(shape=(2**62, 4))}, bytes(4)),
        "more elements than any memory",
    ),
    "a product that wraps to 4": (
        file({"a": entry("U8", (2**32, 2**32, 1), (0, 0))}),
        "more elements than any memory",
    ),
    "a product that only a zero saves": (
        file({"a": entry("U8", (2**62, 4, 0), (0, 0))}),
        "more elements than any memory",
    ),
    "three offsets": (file({"a": entry(offsets=(0, 4, 8))}, bytes(4)), "must be [begin, end]"),
    "offsets backwards": (file({"a": entry(offsets=(4, 0))}, bytes(4)), "must be [begin, end]"),
    "negative offsets": (file({"a": entry(offsets=(-4, 0))}, bytes(4)), "must be [begin, end]"),
    "offsets beyond 64 bits": (file({"a": entry("U8", (1,), (2**64, 2**64 + 1))}), "must be [begin, end]"),
    "too few bytes for the shape": (
        file({"a": entry(offsets=(0, 3))}, bytes(3)),
        "has 4 bytes, its data_offsets span 3",
    ),
    "too many bytes for the shape": (
        file({"a": entry(offsets=(0, 5))}, bytes(5)),
        "has 4 bytes, its data_offsets span 5",
    ),
    "truncated data": (file({"a": entry()}, bytes(3)), "describes 4 bytes of tensors, 3 follow"),
    "left-over data": (file({"a": entry()}, bytes(5)), "describes 4 bytes of tensors, 5 follow"),
    "data without tensors": (file({}, b"x"), "describes 0 bytes of tensors, 1 follow"),
    "a gap at the start": (
        file({"a": entry(offsets=(4, 8))}, bytes(8)),
        "'a' start at 4: it leaves a gap before it (at 0)",
    ),
    "a gap between": (
        file({"a": entry(), "b": entry(offsets=(8, 12))}, bytes(12)),
        "'b' start at 8: it leaves a gap before it (at 4)",
    ),
    "an overlap": (
        file({"a": entry(shape=(2,), offsets=(0, 8)), "b": entry(offsets=(4, 8))}, bytes(8)),
        "'b' start at 4: it overlaps the tensor before it (at 8)",
    ),
    "the same bytes twice": (file({"a": entry(), "b": entry()}, bytes(4)), "'b' start at 0: it overlaps"),
    "an empty tensor inside another": (
        file({"a": entry(), "b": entry(shape=(0,), offsets=(2, 2))}, bytes(4)),
        "'b' start at 2: it overlaps",
    ),
}


def refusals(bodies: Mapping[str, bytes]) -> dict[str, str]:
    """Return the detail of the error that each body is refused with; "read" of one that is not."""
    found = {}
    for case, body in bodies.items():
        try:
            safetensors.decode(body)
            found[case] = "read"
        except MalformedBody as error:
            found[case] = error.detail
    return found


def test_a_broken_file_is_refused_with_its_fault(parser: str) -> None:
    found = refusals({case: body for case, (body, _) in BROKEN.items()})
    assert {case: detail for case, detail in found.items() if BROKEN[case][1] not in detail} == {}


def test_more_tensors_than_a_message_may_have_are_too_large(parser: str) -> None:
    with pytest.raises(TooLarge, match="there are 1025 tensors; at most 1024 are read"):
        safetensors.decode(file({f"a{i}": entry("U8", (0,), (0, 0)) for i in range(1025)}))


F32 = '{"dtype":"F32","shape":[1],"data_offsets":[0,4]}'
EMPTY = '{"dtype":"F32","shape":[0],"data_offsets":[0,0]}'
DUPLICATED = {
    "of the same bytes": f'{{"a":{F32},"a":{F32}}}',
    "of the same bytes as another dtype": f'{{"a":{F32},"a":{F32.replace("F32", "I32")}}}',
    "of an empty tensor": f'{{"a":{EMPTY},"a":{F32}}}',
    "of something that is no entry": f'{{"a":null,"a":{F32}}}',
    "under an escaped name": f'{{"\\u0061":{F32},"a":{F32}}}',
    "inside an entry": '{"a":{"dtype":"I32","dtype":"F32","shape":[1],"data_offsets":[0,4]}}',
    "of the shape": '{"a":{"dtype":"F32","shape":[7],"shape":[1],"data_offsets":[0,4]}}',
    "of the metadata": f'{{"__metadata__":{{}},"a":{F32},"__metadata__":{{"request":"x"}}}}',
    "inside the metadata": f'{{"__metadata__":{{"request":"y","request":"x"}},"a":{F32}}}',
    "behind quotes and backslashes": f'{{"__metadata__":{{"\\\\\\"":"\\"\\\\"}},"a":{F32},"a":{F32}}}',
}


def test_a_name_that_occurs_twice_is_an_error(parser: str) -> None:
    found = refusals({case: file(header, bytes(4)) for case, header in DUPLICATED.items()})
    assert {case: detail for case, detail in found.items() if "twice" not in detail} == {}


@given(st.dictionaries(st.text('"\\aé{}:', max_size=6), st.text('"\\aé{}:,', max_size=12), max_size=4), st.booleans())
def test_quotes_and_backslashes_in_names_and_metadata_are_no_duplicates(words: dict[str, str], escape: bool) -> None:
    document = {"__metadata__": words} | {f"{k}{i}": entry(offsets=(4 * i, 4 * i + 4)) for i, k in enumerate(words)}
    body = file(stdlib.dumps(document, ensure_ascii=escape), bytes(4 * len(words)))
    assert safetensors.decode(body)[1] == words


@pytest.mark.parametrize("announced", [safetensors.MAX_HEADER_BYTES + 1, 2**63, 2**64 - 1])
def test_an_overlong_header_is_refused_before_it_is_read(announced: int) -> None:
    with pytest.raises(TooLarge, match=f"said to be {announced} bytes long; at most 1048576"):
        safetensors.decode(struct.pack("<Q", announced) + b"{}")


def test_the_limit_on_headers_can_be_raised() -> None:
    body = file({"__metadata__": {"result": "x" * safetensors.MAX_HEADER_BYTES}})
    with pytest.raises(TooLarge):
        safetensors.decode(body)
    assert len(safetensors.decode(body, max_header_bytes=len(body))[1]["result"]) == safetensors.MAX_HEADER_BYTES


def test_nine_axes_are_too_many() -> None:
    with pytest.raises(TooLarge, match="'a' has 9 axes; at most 8 are read"):
        safetensors.decode(file({"a": entry(shape=(1,) * 9)}, bytes(4)))


def test_tensors_may_lie_unaligned_and_in_any_order() -> None:
    header = {
        "late": entry("F64", (1,), (3, 11)),
        "empty": entry("F32", (0, 5), (3, 3)),
        "early": entry("U8", (3,), (0, 3)),
    }
    tensors, metadata = safetensors.decode(file(header, b"\1\2\3" + struct.pack("<d", 0.5)))
    assert metadata == {}
    assert tensors["late"].numpy().tolist() == [0.5]
    assert tensors["early"].numpy().tolist() == [1, 2, 3]
    assert tensors["empty"].numpy().shape == (0, 5)


def test_a_file_without_tensors_is_a_file() -> None:
    assert safetensors.decode(file("{}")) == ({}, {})
    assert safetensors.decode(b"".join(safetensors.encode({}, {"result": "{}"}))) == ({}, {"result": "{}"})


def test_no_tensor_can_be_named_as_the_metadata() -> None:
    with pytest.raises(ValueError, match="cannot be named __metadata__"):
        safetensors.encode({"__metadata__": Tensor.of(np.zeros(1))}, {})


VALID = b"".join(
    safetensors.encode(
        {"prediction": Tensor.of(np.ones((2, 3), np.float32)), "target": Tensor.of(np.array([0, 1]))},
        {"request": '{"loss":{"name":"focal","gamma":2.0}}'},
    )
)


def decodes_like_the_reference(body: bytes) -> None:
    """Whatever the bytes, the answer is tensors or one of lossd's errors; what is read, the reference reads alike."""
    try:
        tensors, _ = safetensors.decode(body)
    except LossdError:
        return
    loaded = reference.load(body)
    assert loaded.keys() == tensors.keys()
    for name, tensor in tensors.items():
        tensor.numpy()
        assert tuple(loaded[name].shape) == tensor.shape
        assert bits(loaded[name]) == bytes(tensor.data)


@given(st.binary(max_size=200))
def test_random_bytes_raise_only_lossd_errors(body: bytes) -> None:
    decodes_like_the_reference(body)
    decodes_like_the_reference(struct.pack("<Q", len(body)) + body)


@given(st.data())
def test_mutated_files_raise_only_lossd_errors(data: st.DataObject) -> None:
    body = bytearray(VALID)
    for _ in range(data.draw(st.integers(1, 4))):
        at = data.draw(st.integers(0, len(body) - 1))
        match data.draw(st.sampled_from(["set", "cut", "insert", "swap digit"])):
            case "set":
                body[at] = data.draw(st.integers(0, 255))
            case "cut":
                del body[at : at + data.draw(st.integers(1, 8))]
            case "insert":
                body[at:at] = data.draw(st.binary(min_size=1, max_size=8))
            case _:
                digits = [i for i, byte in enumerate(body[8:]) if byte in b"0123456789"]
                body[8 + data.draw(st.sampled_from(digits))] = ord(data.draw(st.sampled_from("0123456789-.e")))
        if len(body) < 10:
            break
    decodes_like_the_reference(bytes(body))


HEADERS = st.dictionaries(
    st.sampled_from(["a", "b", "c", "__metadata__"]),
    st.one_of(
        st.none(),
        st.fixed_dictionaries(
            {
                "dtype": st.sampled_from(["F32", "U8", "BOOL", "X", None]),
                "shape": st.lists(st.integers(-1, 3), max_size=3),
                "data_offsets": st.lists(st.integers(-1, 12), min_size=1, max_size=3),
            }
        ),
        st.dictionaries(st.text(max_size=2), st.one_of(st.text(max_size=2), st.integers()), max_size=2),
    ),
    max_size=3,
)


@given(HEADERS, st.binary(max_size=12))
def test_lying_headers_raise_only_lossd_errors(header: dict[str, Any], data: bytes) -> None:
    decodes_like_the_reference(file(header, data))
