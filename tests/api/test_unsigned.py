"""Unsigned integers of every width serve as indices in every format. Values over int64 are refused."""

from __future__ import annotations

import base64
import json
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import httpx
import numpy as np
import pytest
from click.testing import CliRunner

import lossd
from lossd.cli import main
from lossd_client import LossClient
from lossd_client.errors import InvalidValue, Problem
from lossd_client.wire import oip
from serving import Running, running

UNSIGNED = (np.uint8, np.uint16, np.uint32, np.uint64)
CODES = {np.uint8: "UINT8", np.uint16: "UINT16", np.uint32: "UINT32", np.uint64: "UINT64"}

PREDICTION = np.array([[2.0, 0.5, -1.0], [0.1, 0.2, 3.0]], np.float32)
# -log softmax by hand: log(e^2 + e^.5 + e^-1) - 2 and log(e^.1 + e^.2 + e^3) - 3, the target being 0 and 2.
LOSS = float(np.mean([np.log(np.exp([2, 0.5, -1]).sum()) - 2, np.log(np.exp([0.1, 0.2, 3]).sum()) - 3]))

Door = Callable[[Running, np.ndarray, np.ndarray, Path], float]


@pytest.fixture(scope="module")
def served() -> Iterator[Running]:
    with running(engine="inline", stream_bytes=1 << 10) as service:
        yield service


def posted(url: str, **content: Any) -> dict[str, Any]:
    answer = httpx.post(url, timeout=60, **content)
    document: dict[str, Any] = answer.json()
    if not answer.is_success:
        raise Problem(document.get("error") or document["detail"])
    return document


def by_client(service: Running, prediction: np.ndarray, target: np.ndarray, _: Path) -> float:
    with LossClient(service.url) as client:
        return float(client.evaluate("cross_entropy", prediction, target, metrics=["accuracy"]).loss)


def by_base64(service: Running, prediction: np.ndarray, target: np.ndarray, _: Path) -> float:
    def packed(array: np.ndarray) -> dict[str, Any]:
        data = base64.b64encode(array.tobytes()).decode()
        return {"dtype": array.dtype.name, "shape": array.shape, "data": data}

    inputs = {"prediction": packed(prediction), "target": packed(target)}
    return float(
        posted(f"{service.url}/v1/evaluate", json={"loss": {"name": "cross_entropy"}, "inputs": inputs})["loss"]
    )


def by_protocol(service: Running, prediction: np.ndarray, target: np.ndarray, *, binary: bool) -> float:
    entries, data = [], b""
    for name, array in {"prediction": prediction, "target": target}.items():
        kind = CODES.get(array.dtype.type, "FP32")
        fields: dict[str, Any] = {"name": name, "datatype": kind, "shape": array.shape}
        if binary:
            fields["parameters"] = {"binary_data_size": array.nbytes}
            data += array.tobytes()
        else:
            fields["data"] = array.ravel().tolist()
        entries.append(fields)
    text = json.dumps({"inputs": entries, "outputs": [{"name": "loss"}]}).encode()
    headers = {oip.HEADER_LENGTH: str(len(text))} if binary else {}
    url = f"{service.url}/v2/models/cross_entropy/infer"
    return float(posted(url, content=text + data, headers=headers)["outputs"][0]["data"][0])


def here(_: Running, prediction: np.ndarray, target: np.ndarray, __: Path) -> float:
    return float(lossd.evaluate("cross_entropy", prediction, target).loss)


def by_command(_: Running, prediction: np.ndarray, target: np.ndarray, folder: Path) -> float:
    np.save(folder / "prediction.npy", prediction)
    np.savez(folder / "both.npz", prediction=prediction, target=target)
    np.save(folder / "target.npy", target)
    found = []
    for files in (["prediction.npy", "target.npy"], ["both.npz"]):
        line = ["evaluate", *(str(folder / name) for name in files), "--loss", "cross_entropy", "--json"]
        result = CliRunner().invoke(main, line)
        if result.exit_code:
            raise Problem(result.stderr)
        found.append(float(json.loads(result.stdout)["loss"]))
    assert found[0] == found[1]
    return found[0]


DOORS: dict[str, Door] = {
    "the client, in safetensors": by_client,
    "JSON, in base64": by_base64,
    "the inference protocol, in JSON": lambda s, p, t, _: by_protocol(s, p, t, binary=False),
    "the inference protocol, in binary": lambda s, p, t, _: by_protocol(s, p, t, binary=True),
    "this process": here,
    "the command line": by_command,
}


@pytest.mark.parametrize("dtype", UNSIGNED)
@pytest.mark.parametrize("door", DOORS)
def test_classes_may_be_unsigned(served: Running, door: str, dtype: type, tmp_path: Path) -> None:
    target = np.array([0, 2], dtype)
    assert DOORS[door](served, PREDICTION, target, tmp_path) == pytest.approx(LOSS, rel=1e-6)
    many = np.tile(PREDICTION, (200, 1)), np.tile(target, 200)  # streamed, where the door does that
    assert DOORS[door](served, *many, tmp_path) == pytest.approx(LOSS, rel=1e-6)


@pytest.mark.parametrize("door", DOORS)
def test_what_int64_lacks_is_no_class_and_is_called_by_its_own_number(
    served: Running, door: str, tmp_path: Path
) -> None:
    for rows in (1, 200):
        target = np.tile(np.array([0, 2**64 - 100], np.uint64), rows)  # -100, which is a usual ignore_index
        with pytest.raises(Problem, match="18446744073709551516"):
            DOORS[door](served, np.tile(PREDICTION, (rows, 1)), target, tmp_path)


def test_neither_is_it_an_index_to_ignore() -> None:
    target = np.array([0, 2**64 - 100], np.uint64)
    with pytest.raises(InvalidValue, match=r"below 2\*\*63 expected, found 18446744073709551516 at target\[1\]"):
        lossd.evaluate("cross_entropy", PREDICTION, target, ignore_index=-100)


@pytest.mark.parametrize("dtype", [np.uint16, np.uint32, np.uint64])
@pytest.mark.parametrize("values", [[0, 1, 60_000], [0, 1, 2**24 + 1], [0, 2**53, 2**60]])
def test_in_place_of_floats_they_are_the_numbers_that_they_are(dtype: type, values: list[int]) -> None:
    if max(values) > np.iinfo(dtype).max:
        pytest.skip("beyond that width")
    target = np.array(values, dtype)
    found = lossd.evaluate("mae", np.zeros(3), target, reduction="none").loss
    assert found.tolist() == values


# 2**53 + 1 is the first integer that float64 lacks; 2**63 - 1024 the last that it holds of int64.
@pytest.mark.parametrize("value", [2**53 + 1, -(2**53) - 1, 2**62 + 1, 2**63 - 1, 2**63 - 1023])
@pytest.mark.parametrize("form", [np.int64, np.uint64, list])
def test_an_integer_with_more_digits_than_float64_is_refused(value: int, form: Any) -> None:
    if form is np.uint64 and value < 0:
        pytest.skip("negative")
    target = [value, 0] if form is list else np.array([value, 0], form)
    with pytest.raises(InvalidValue, match=rf"{value} at target\[0\] has more digits than float64"):
        lossd.evaluate("mae", np.zeros(2), target)


@pytest.mark.parametrize("value", [2**53, -(2**53), 2**53 + 2, 2**62, -(2**63), 2**63 - 1024])
@pytest.mark.parametrize("form", [np.int64, list])
def test_one_that_float64_holds_is_exact(value: int, form: Any) -> None:
    target = [value] if form is list else np.array([value], form)
    assert lossd.evaluate("mae", np.zeros(1), target, outputs=["loss"]).loss == abs(value)


def test_neighbours_in_a_batch_are_answered(served: Running) -> None:
    """Requests of one recipe share a batch."""
    with LossClient(served.url) as client:
        good = np.array([2**53], np.int64)
        assert client.evaluate("mae", np.zeros(1), good, outputs=["loss"]).loss == 2.0**53
        with pytest.raises(InvalidValue):
            client.evaluate("mae", np.zeros(1), good + 1)
