from __future__ import annotations

import json
import os
import re
import subprocess
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from click.testing import CliRunner, Result

from lossd.cli import main
from lossd.configuration.settings import SECRETS, Settings
from lossd.engine import worker_process
from lossd.losses import REGISTRY
from lossd.losses.families import by_family
from lossd_client import LossClient
from lossd_client.wire import Tensor, safetensors

LOGITS = np.array([[2.0, 1.0, 0.1], [0.5, 2.5, 0.3], [0.1, 0.2, 3.0]], np.float32)
TARGET = np.array([0, 1, 2])


def lossd(*arguments: str | Path) -> Result:
    return CliRunner().invoke(main, [str(argument) for argument in arguments])


def answer(*arguments: str | Path) -> dict[str, Any]:
    result = lossd("evaluate", *arguments, "--json")
    assert result.exit_code == 0, result.output
    document: dict[str, Any] = json.loads(result.stdout)
    return document


@pytest.fixture
def files(tmp_path: Path) -> tuple[Path, Path]:
    paths = tmp_path / "prediction.npy", tmp_path / "target.npy"
    np.save(paths[0], LOGITS)
    np.save(paths[1], TARGET)
    return paths


@pytest.fixture(scope="module")
def service() -> Iterator[str]:
    """The address of a service that ``lossd serve`` started, which computes as this process does, to the last digit."""
    command = [sys.executable, "-m", "lossd.cli", "serve", "--port", "0", "--threads", "1", "--log-level", "error"]
    environment = os.environ | {"LOSSD_COMPILED": "false"}
    with worker_process.subprocess.Popen(command, stdout=subprocess.PIPE, text=True, env=environment) as process:
        assert process.stdout is not None
        line = process.stdout.readline()
        found = re.search(r"http://[\d.:]+", line)
        assert found, line
        try:
            with LossClient(found[0]) as client:
                client.wait_until_ready()
            yield found[0]
        finally:
            process.terminate()
            assert process.wait(30) == 0, "SIGTERM ends the service with status 0"


def cross_entropy(logits: np.ndarray[Any, Any], target: np.ndarray[Any, Any]) -> np.ndarray[Any, Any]:
    """Row by row, in float64."""
    logits = logits.astype(np.float64)
    return np.log(np.exp(logits).sum(1)) - logits[np.arange(len(target)), target]


# evaluate


def test_files_fill_the_inputs_in_order(files: tuple[Path, Path]) -> None:
    rows = cross_entropy(LOGITS, TARGET)
    document = answer(*files, "--loss", "cross_entropy")
    assert document["loss"] == pytest.approx(rows.mean(), abs=1e-6)
    assert document["reduction"] == pytest.approx({"numerator": rows.sum(), "denominator": 3})
    assert document["metrics"]["accuracy"] == 1.0


def test_parameters_are_options(files: tuple[Path, Path]) -> None:
    rows = cross_entropy(LOGITS, TARGET)
    weight = np.array([1.0, 2.0, 0.5])
    document = answer(*files, "--loss", "cross_entropy", "--class-weight", "1,2,0.5", "--reduction", "sum")
    assert document["loss"] == pytest.approx((weight[TARGET] * rows).sum(), abs=1e-6)
    focal = answer(*files, "--loss", "focal", "--gamma", "3")
    assert focal["loss"] == pytest.approx(((1 - np.exp(-rows)) ** 3 * rows).mean(), abs=1e-6)


def test_further_inputs_go_by_name(files: tuple[Path, Path], tmp_path: Path) -> None:
    np.save(tmp_path / "weight.npy", np.array([1.0, 0.0, 1.0], np.float32))
    document = answer(*files, "--loss", "cross_entropy", "--input", f"sample_weight={tmp_path / 'weight.npy'}")
    assert document["loss"] == pytest.approx(cross_entropy(LOGITS, TARGET)[[0, 2]].mean(), abs=1e-6)


def test_files_fill_the_inputs_of_a_composed_loss(files: tuple[Path, Path]) -> None:
    alone = [answer(*files, "--loss", name)["loss"] for name in ("cross_entropy", "dice")]
    document = answer(*files, "--loss", "ce_dice")
    assert document["loss"] == pytest.approx(sum(alone) / 2, abs=1e-6)
    assert [term["value"] for term in document["terms"]] == pytest.approx(alone, abs=1e-6)
    terms = json.dumps([{"loss": {"name": name}, "weight": 0.5} for name in ("cross_entropy", "dice")])
    assert answer(*files, "--loss", "weighted_sum", "--terms", terms)["loss"] == pytest.approx(document["loss"])


@pytest.mark.parametrize("suffix", [".npz", ".safetensors"])
def test_a_file_can_hold_all_inputs_by_name(suffix: str, tmp_path: Path) -> None:
    path = (tmp_path / "batch").with_suffix(suffix)
    if suffix == ".npz":
        np.savez(path, target=TARGET, prediction=LOGITS)
    else:
        tensors = {"prediction": Tensor.of(LOGITS), "target": Tensor.of(TARGET)}
        path.write_bytes(b"".join(safetensors.encode(tensors, {})))
    assert answer(path, "--loss", "cross_entropy")["loss"] == pytest.approx(cross_entropy(LOGITS, TARGET).mean())


@pytest.mark.parametrize("suffix", [".npy", ".npz", ".safetensors"])
def test_the_gradient_goes_into_a_file(suffix: str, files: tuple[Path, Path], tmp_path: Path) -> None:
    path = (tmp_path / "gradient").with_suffix(suffix)
    answer(*files, "--loss", "cross_entropy", "--gradient-out", path)
    exponentials = np.exp(LOGITS.astype(np.float64))
    expected = (exponentials / exponentials.sum(1, keepdims=True) - np.eye(3)) / 3
    if suffix == ".npy":
        gradient = np.load(path)
    elif suffix == ".npz":
        gradient = np.load(path)["prediction"]
    else:
        gradient = safetensors.decode(path.read_bytes())[0]["prediction"].numpy()
    assert gradient.dtype == np.float32
    np.testing.assert_allclose(gradient, expected, atol=1e-6)


def test_several_gradients_need_a_file_that_names_them(tmp_path: Path) -> None:
    anchor, positive, negative = (tmp_path / f"{name}.npy" for name in ("anchor", "positive", "negative"))
    for seed, path in enumerate((anchor, positive, negative)):
        np.save(path, np.random.default_rng(seed).standard_normal((4, 8)))
    files = (anchor, positive, negative)
    refused = lossd("evaluate", *files, "--loss", "triplet", "--gradient-out", tmp_path / "gradient.npy")
    assert refused.exit_code == 2
    assert "holds one array" in refused.stderr
    assert lossd("evaluate", *files, "--loss", "triplet", "--gradient-out", tmp_path / "g.npz").exit_code == 0
    assert set(np.load(tmp_path / "g.npz")) == {"anchor", "positive", "negative"}


def test_metrics_can_be_named_and_can_stand_alone(files: tuple[Path, Path]) -> None:
    named = answer(*files, "--loss", "cross_entropy", "--metrics", "mcc,accuracy")
    assert named["metrics"] == {"task": "multiclass", "mcc": pytest.approx(1.0), "accuracy": 1.0}
    alone = answer(*files, "--task", "multiclass", "--metrics", "accuracy")
    assert alone["metrics"] == {"task": "multiclass", "accuracy": 1.0}
    assert alone["loss"] is None


def test_options_of_metrics_can_be_set(files: tuple[Path, Path]) -> None:
    arguments = (*files, "--task", "multiclass", "--metrics", "top_k_accuracy,log_loss")
    found = answer(*arguments, "--metric-option", "k=2", "--metric-option", "from_logits=true")
    assert found["metrics"]["top_k_accuracy"] == 1.0
    refused = lossd("evaluate", *arguments, "--metric-option", "k=3")
    assert (refused.exit_code, "set --metric-option k below 3" in refused.stderr) == (1, True)
    unclear = lossd("evaluate", *arguments, "--metric-option", "k")
    assert (unclear.exit_code, "'k' is not NAME=VALUE" in unclear.stderr) == (2, True)


def test_without_json_a_person_can_read_it(files: tuple[Path, Path]) -> None:
    output = lossd("evaluate", *files, "--loss", "cross_entropy", "--label-smoothing", "0.1").stdout
    assert "cross_entropy label_smoothing=0.1" in output
    assert re.search(r"^loss +0\.\d+ *$", output, re.MULTILINE)
    assert re.search(r"^f1 +1 +1 +1 *$", output, re.MULTILINE)
    assert re.search(r"^2 +· +· +1 *$", output, re.MULTILINE), "the confusion matrix's last row"


def test_a_service_answers_as_this_process_does(files: tuple[Path, Path], service: str) -> None:
    arguments = (*files, "--loss", "focal", "--gamma", "1.5", "--class-weight", "[1, 2, 3]")
    here, there = answer(*arguments), answer(*arguments, "--url", service)
    assert there == here


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--loss", "focul"], "did you mean focal?"),
        (["--loss", "l1"], "did you mean mae?"),
        (["--loss", "focal", "--gamma", "-1"], "gamma"),
        (["--loss", "focal", "--class-weight", "1,2"], "3"),
        (["--loss", "cross_entropy", "--metrics", "acuracy"], "did you mean accuracy"),
        (["--loss", "mse"], "target has shape"),
    ],
)
def test_a_problem_with_the_request_is_status_1(arguments: list[str], message: str, files: tuple[Path, Path]) -> None:
    result = lossd("evaluate", *files, *arguments)
    assert result.exit_code == 1
    assert message in result.stderr
    assert result.stdout == ""


def test_unreadable_files_are_status_1(tmp_path: Path, files: tuple[Path, Path]) -> None:
    for name, content in {"a.npy": b"no array", "b.npz": b"PK\x03\x04", "c.safetensors": b"\0" * 9}.items():
        (tmp_path / name).write_bytes(content)
        result = lossd("evaluate", tmp_path / name, files[1], "--loss", "mse")
        assert (result.exit_code, "cannot be read" in result.stderr) == (1, True), result.output
    np.save(tmp_path / "complex.npy", LOGITS.astype(np.complex64))
    result = lossd("evaluate", tmp_path / "complex.npy", files[1], "--loss", "mse")
    assert (result.exit_code, "complex64" in result.stderr) == (1, True)


def test_arrays_of_objects_are_never_unpickled(tmp_path: Path, files: tuple[Path, Path]) -> None:
    np.save(tmp_path / "objects.npy", np.array([{"a": 1}], dtype=object), allow_pickle=True)
    result = lossd("evaluate", tmp_path / "objects.npy", files[1], "--loss", "mse")
    assert (result.exit_code, "never unpickled" in result.stderr) == (1, True)


@pytest.mark.parametrize(
    "content",
    [
        b"",
        b"score,other\n",
        b"not a number\n1.0\n2.0,3.0\n",
        b"\x93NUMPY\x01\x00v\x00{'descr': '<f4', 'fortran_order': False, 'shape': (99999999999999,), }\n",
        b"\x93NUMPY\x01\x00v\x00" + b"(" * 200,
        b"\x80\x04]\x94.",
        b"PK\x03\x04" + bytes(range(256)),
    ],
)
def test_a_damaged_file_is_named_and_nobody_is_told_to_trust_it(
    content: bytes, tmp_path: Path, files: tuple[Path, Path]
) -> None:
    for name in ("a.npy", "a.npz", "a.safetensors", "a.csv", "a.pt"):
        path = tmp_path / name
        path.write_bytes(content)
        result = lossd("evaluate", path, files[1], "--loss", "mse")
        assert result.exit_code == 1, result.output
        assert f"{path} cannot be read" in result.stderr
        assert not re.search("pickle|trust|unsafe", result.stderr)


def test_a_truncated_array_is_damaged(tmp_path: Path, files: tuple[Path, Path]) -> None:
    for original in files:
        cut = tmp_path / "cut.npy"
        cut.write_bytes(original.read_bytes()[:-3])
        assert "cut.npy cannot be read" in lossd("evaluate", cut, files[1], "--loss", "focal").stderr


def test_a_table_of_numbers_is_an_array(tmp_path: Path, files: tuple[Path, Path]) -> None:
    prediction, target = map(np.load, files)
    scores, labels = tmp_path / "scores.csv", tmp_path / "labels.csv"
    names = ",".join(f"class {number}" for number in range(prediction.shape[1]))
    np.savetxt(scores, prediction.astype(np.float64), delimiter=",", header=names, comments="", fmt="%.17g")
    labels.write_bytes("\ufefflabel\r\n".encode() + b"\r\n".join(str(label).encode() for label in target) + b"\r\n\r\n")
    answers = [
        json.loads(lossd("evaluate", *paths, "--loss", "focal", "--json").stdout) for paths in (files, (scores, labels))
    ]
    assert answers[1]["loss"] == pytest.approx(answers[0]["loss"], rel=1e-6)
    assert answers[1]["metrics"] == answers[0]["metrics"]


@pytest.mark.parametrize(
    ("text", "message"),
    [
        (",a,b\n0,1.5,2\n", "index=False"),
        ("a,b\n1,2\n3\n", "line 3 has 1 columns, the first has 2"),
        ("1,2\n3,\n", "line 2, column 2: '' is not a number"),
        ("1,2\n3,x\n", "line 2, column 2: 'x' is not a number"),
        ("1_0\n", "no row of numbers"),
        ("99999999999999999999\n", "cannot be read"),
    ],
)
def test_a_table_that_is_none_says_where(text: str, message: str, tmp_path: Path, files: tuple[Path, Path]) -> None:
    (tmp_path / "p.csv").write_text(text)
    result = lossd("evaluate", tmp_path / "p.csv", files[1], "--loss", "mse")
    assert (result.exit_code, message in result.stderr) == (1, True), result.output


ADDRESSES = ["ftp://here", "http://", "http://:80", "http://a:99999", "http://[::1", "a:99999", "http:a", "a b", ""]


@pytest.mark.parametrize("url", ADDRESSES)
def test_what_is_no_address_is_wrong_usage(url: str, files: tuple[Path, Path]) -> None:
    for which in (["--loss", "mse"], ["--task", "regression"]):
        result = lossd("evaluate", *files, *which, "--url", url)
        assert (result.exit_code, "is not an address" in result.stderr) == (2, True), result.output
    with pytest.raises(ValueError, match="is not an address"):
        LossClient(url)


def test_several_addresses_are_separated_by_commas(files: tuple[Path, Path], service: str) -> None:
    bare = service.removeprefix("http://")
    which = ["--loss", "focal", "--gamma", "3"]
    for urls in (f"127.0.0.1:9, {bare}", f"{service},http://127.0.0.1:9"):
        assert answer(*files, *which, "--url", urls) == answer(*files, *which, "--url", service)


def test_an_address_without_a_scheme_is_of_http(files: tuple[Path, Path], service: str) -> None:
    bare = service.removeprefix("http://")
    for which in (["--loss", "focal", "--gamma", "3"], ["--task", "multiclass"]):
        assert answer(*files, *which, "--url", bare) == answer(*files, *which, "--url", service)
    with pytest.raises(ValueError, match=f"as in http://{bare}"):
        LossClient(bare)


@pytest.mark.parametrize("key", ["ключ-ключ-ключ-ключ", "two words", "line\nline", " "])
def test_a_key_that_cannot_be_sent_is_wrong_usage_and_not_repeated(key: str, files: tuple[Path, Path]) -> None:
    arguments = ["evaluate", *map(str, files), "--loss", "mse", "--url", "http://127.0.0.1:9"]
    result = CliRunner(env={"LOSSD_API_KEY": key}).invoke(main, arguments)
    assert (result.exit_code, "LOSSD_API_KEY" in result.stderr) == (2, True), result.output
    assert key.strip() == "" or key not in result.output


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ([], "name a loss"),
        (["--loss", "mse", "--task", "regression"], "name a loss"),
        (["--loss", "focal", "--gama", "2"], "--gamma"),
        (["--loss", "focal", "--alpha-mode", "scaled"], "foreground"),
        (["--loss", "mse", "--input", "weights"], "NAME=FILE"),
        (["nothing.npy", "--loss", "mse"], "does not exist"),
    ],
)
def test_wrong_usage_is_status_2(arguments: list[str], message: str, files: tuple[Path, Path]) -> None:
    result = lossd("evaluate", *files, *arguments)
    assert result.exit_code == 2
    assert message in result.stderr


def test_more_files_than_inputs_are_wrong_usage(files: tuple[Path, Path]) -> None:
    result = lossd("evaluate", *files, files[0], "--loss", "mse")
    assert (result.exit_code, "files for 2 inputs (prediction, target)" in result.stderr) == (2, True)


def test_no_service_is_status_3(files: tuple[Path, Path]) -> None:
    result = lossd("evaluate", *files, "--loss", "mse", "--url", "http://127.0.0.1:9")
    assert result.exit_code == 3
    assert "cannot connect" in result.stderr


def test_a_loss_s_parameters_are_in_its_help() -> None:
    text = lossd("evaluate", "--loss", "focal", "--help").stdout
    for parameter in REGISTRY["focal"].parameters:
        assert f"--{parameter.name.replace('_', '-')}" in text
    assert "≥ 0; default: 2.0" in text


def test_every_loss_has_options() -> None:
    helps = {name: lossd("evaluate", "--loss", name, "--help") for name in REGISTRY}
    assert {name: result.output for name, result in helps.items() if result.exit_code} == {}
    for name, loss in REGISTRY.items():
        options = {f"--{parameter.name.replace('_', '-')}" for parameter in loss.parameters}
        assert options <= set(re.findall(r"--[a-z0-9-]+", helps[name].stdout)), name


def test_losses_lists_them_all() -> None:
    shown = lossd("losses").stdout
    assert all(re.search(rf"^{name} ", shown, re.MULTILINE) for name in REGISTRY)
    assert [loss["name"] for loss in json.loads(lossd("losses", "--json").stdout)["losses"]] == list(REGISTRY)
    assert json.loads(lossd("losses", "focal", "--json").stdout)["name"] == "focal"


def test_losses_at_length_shows_the_page_of_each() -> None:
    shown = "".join(lossd("losses", "--long").output.split())
    for losses in by_family().values():  # a page is the same by itself
        page = lossd("losses", losses[0].name)
        assert page.exit_code == 0, page.output
        assert "".join(page.stdout.split()) in shown
    for loss in REGISTRY.values():
        assert "".join(loss.summary.replace("``", "").split())[:60] in shown
        assert all(parameter.name in shown for parameter in loss.parameters)
        assert "".join(loss.formula.split()) in shown
        for reference in loss.references:
            assert "".join(reference.replace("``", "").split()) in shown


# serve


def test_every_setting_is_an_option_of_serve() -> None:
    text = " ".join(lossd("serve", "--help").stdout.split())
    for name, setting in Settings.model_fields.items():
        assert (f"--{name.replace('_', '-')} " in text) == (name not in SECRETS)
        assert (str(setting.description) in text) == (name not in SECRETS)


@pytest.mark.parametrize(
    ("arguments", "environment", "message"),
    [
        (["--port", "99999"], {}, "--port"),
        (["--max-body-bytes", "lots"], {}, "--max-body-bytes"),
        (["--engine", "warp"], {}, "process"),
        ([], {"LOSSD_DEVICE": "tpu"}, "'tpu' is not a device"),
    ],
)
def test_a_setting_that_makes_no_sense_is_wrong_usage(
    arguments: Sequence[str], environment: dict[str, str], message: str
) -> None:
    result = CliRunner(env=environment).invoke(main, ["serve", *arguments])
    assert result.exit_code == 2
    assert message in result.stderr


def test_the_command_line_overrides_the_environment() -> None:
    settings = {"LOSSD_PORT": "1", "LOSSD_ENGINE": "inline", "LOSSD_LOG_LEVEL": "error", "LOSSD_COMPILED": "false"}
    environment = os.environ | settings
    command = [sys.executable, "-m", "lossd.cli", "serve", "--port", "0"]
    with worker_process.subprocess.Popen(command, env=environment, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        try:
            line = process.stdout.readline()
            listens = re.fullmatch(
                r"lossd \S+ listens on http://127\.0\.0\.1:(\d+), reachable from this machine only\n", line
            )
            assert listens, line
            assert int(listens[1]) > 1
        finally:
            process.terminate()
            assert process.wait(30) == 0
