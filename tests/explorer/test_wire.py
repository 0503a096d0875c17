"""The page's own codecs against the Python ones."""

from __future__ import annotations

import base64
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
from prometheus_client.parser import text_string_to_metric_families
from safetensors.numpy import load

from lossd_client.wire import Tensor, safetensors

Run = Callable[[str, str, object], Any]

ARRAYS = {
    "F64": np.float64, "F32": np.float32, "F16": np.float16, "I64": np.int64, "I32": np.int32, "I16": np.int16,
    "I8": np.int8, "U8": np.uint8, "BOOL": np.bool_,
}  # fmt: skip


BUFFER = "Uint8Array.from(atob(argument), (c) => c.charCodeAt(0)).buffer"


@pytest.fixture
def run(visit):
    """Runs code with one of the page's modules as ``its``, and an argument."""
    page = visit("/wire", again=True)  # there is no such view, so that the page draws nothing
    address = page.evaluate("() => document.querySelector('script[type=module]').src")

    def run(module: str, code: str, argument: object) -> Any:
        load = f"const its = await import({address.replace('app.pack.js', module)!r});"
        return page.evaluate(f"async (argument) => {{ {load} {code} }}", argument)

    return run


def test_what_the_page_writes_a_safetensors_library_reads(run: Run) -> None:
    code = """
      const tensors = argument.map((dtype) => [dtype, its.tensor([0, 1, 1, 0, 1, 0], [2, 3], dtype)]);
      const file = its.encode(Object.fromEntries(tensors), { request: '{"loss":"mse"}', é: '✓' });
      return btoa(String.fromCharCode(...file));
    """
    file = base64.b64decode(run("safetensors.js", code, list(ARRAYS)))
    assert (8 + int.from_bytes(file[:8], "little")) % 64 == 0
    tensors = load(file)
    assert {name: tensor.dtype for name, tensor in tensors.items()} == {
        name: np.dtype(dtype) for name, dtype in ARRAYS.items()
    }
    for tensor in tensors.values():
        np.testing.assert_array_equal(tensor.astype(int), [[0, 1, 1], [0, 1, 0]])
    assert safetensors.decode(file)[1] == {"request": '{"loss":"mse"}', "é": "✓"}


def test_what_the_service_writes_the_page_reads(run: Run) -> None:
    values = {"F64": [0.1, -2.5e300], "F32": [0.5, -3.25], "F16": [0.5, 6.1e-5], "I64": [-1, 2**40], "U8": [0, 255]}
    arrays = {name: np.array(numbers, ARRAYS[name]) for name, numbers in values.items()}
    bf16 = Tensor("bfloat16", (2,), np.array([1.5, -2.0], np.float32).view(np.uint16)[1::2].tobytes())
    tensors = {name: Tensor.of(array) for name, array in arrays.items()} | {"BF16": bf16}
    file = b"".join(safetensors.encode(tensors, {"result": "{}"}))
    code = f"""
      const {{ tensors, metadata }} = its.decode({BUFFER});
      return [Object.fromEntries(Object.entries(tensors).map(([name, of]) => [name, its.numbers(of)])), metadata];
    """
    read, metadata = run("safetensors.js", code, base64.b64encode(file).decode())
    assert read == {name: [float(v) for v in array] for name, array in arrays.items()} | {"BF16": [1.5, -2.0]}
    assert metadata == {"result": "{}"}


@pytest.mark.parametrize("cut", [4, 40, -1])
def test_a_file_that_is_cut_short_is_refused(run: Run, cut: int) -> None:
    file = b"".join(safetensors.encode({"x": Tensor.of(np.ones(3, np.float32))}, {}))[:cut]
    code = f"try {{ its.decode({BUFFER}); return null; }} catch (error) {{ return error.name; }}"
    assert run("safetensors.js", code, base64.b64encode(file).decode()) == "RangeError"


METRICS = r"""
# HELP b about
a_total{loss="x\"y\n",outcome="ok"} 3.0
b 1e-05
c_bucket{le="0.1"} 2.0
c_bucket{le="+Inf"} 5.0
"""


def test_the_metrics_are_read_as_prometheus_reads_them(run: Run) -> None:
    code = """
      const samples = its.parse(argument);
      const counted = its.buckets(samples, 'c');
      const all = [...samples].map(([name, of]) => [name, of.map(({ labels, value }) => [labels, String(value)])]);
      const shown = counted.map(({ upTo, count }) => [String(upTo), count]);
      return [Object.fromEntries(all), shown, its.quantile(counted, 0.2)];
    """
    samples, counted, fifth = run("prometheus.js", code, METRICS)
    expected: dict[str, list[list[object]]] = {}
    for family in text_string_to_metric_families(METRICS):
        for sample in family.samples:
            expected.setdefault(sample.name, []).append([dict(sample.labels), sample.value])
    assert {name: [[labels, float(value)] for labels, value in series] for name, series in samples.items()} == expected
    assert counted == [["0.1", 2], ["Infinity", 3]]
    assert fifth == pytest.approx(0.05)
