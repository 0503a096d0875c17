"""The benchmark runs, its peers do the work that lossd does, and its verdicts follow from its figures."""

from __future__ import annotations

import json
import signal
import sys
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from types import ModuleType
from typing import Any

import httpx
import numpy as np
import pytest
from click.testing import CliRunner

import lossd
from benchmarks import __main__ as command
from benchmarks import (
    beside_inline,
    comparison,
    every_loss,
    first_start,
    gpu,
    load,
    page,
    run_batches,
    same_host,
    targets,
)
from benchmarks.answers import WrongAnswerError, compare, expected
from benchmarks.dialects import Json, Safetensors, StockTriton, Triton
from benchmarks.environments import PEERS, NotInstalledError
from benchmarks.goals import Verdict, of_comparison
from benchmarks.targets import TARGETS
from benchmarks.workloads import WORKLOADS, Workload, focal
from lossd.engine import worker_process
from lossd.losses import REGISTRY
from lossd.metrics import TASKS
from lossd_client.wire import Tensor, oip, safetensors
from serving import running

LOSSD = Safetensors("/v1/evaluate")
MIXED = WORKLOADS["X"]().requests


def test_a_peer_that_cannot_be_installed_is_named(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    def refuse(name: str) -> Path:
        raise NotInstalledError("no such wheel")

    monkeypatch.setattr(comparison, "python_of", refuse)
    monkeypatch.setattr(comparison, "CACHE", tmp_path)
    absent: dict[str, str] = {}
    with comparison.started(["mosec"], absent, print) as running:
        assert running == []
    assert absent == {"mosec": "no such wheel"}


# The peers


@pytest.fixture
def bodies(monkeypatch: pytest.MonkeyPatch) -> ModuleType:
    monkeypatch.syspath_prepend(str(PEERS))
    import bodies

    return bodies


def test_the_peers_job_gives_lossd_s_answers_alone_and_in_batches(bodies: ModuleType) -> None:
    requests = [*MIXED[:40], focal((64, 10)), focal((2, 5, 8, 8))]
    read = [bodies.read(bytearray(LOSSD.post(question).body)) for question in requests]
    alone = [bodies.job.evaluate([request])[0] for request in read]
    for answers in (alone, bodies.job.evaluate(read)):
        for question, answer in zip(requests, answers, strict=True):
            compare(LOSSD.read({}, bodies.write(answer)), expected(question), str(question[0]))


def test_triton_s_requests_hold_the_same_tensors() -> None:
    question = MIXED[7]
    assert question[0]["loss"]["name"] == "focal"
    post = Triton().post(question)
    assert post.path == "/v2/models/focal/infer"
    _, inputs = oip.decode_request(post.body, int(post.headers[oip.HEADER_LENGTH]))
    arrays = {name: value.numpy() for name, value in inputs.items() if isinstance(value, Tensor)}
    np.testing.assert_array_equal(arrays["prediction"], question[1]["prediction"][np.newaxis])
    np.testing.assert_array_equal(arrays["target"], question[1]["target"][np.newaxis])
    assert arrays["parameter"].tolist() == [[np.float32(question[0]["loss"]["gamma"])]]


@pytest.mark.parametrize("name", ["loss", "gradient", "f1", "confusion_matrix"])
def test_another_answer_is_noticed(name: str) -> None:
    right = expected(focal((64, 10)))
    compare(dict(right), right, "lossd")
    with pytest.raises(WrongAnswerError, match=name):
        compare(right | {name: np.asarray(right[name]) * 1.001 + 0.001}, right, "a peer")
    with pytest.raises(WrongAnswerError, match=f"no {name}"):
        compare({each: value for each, value in right.items() if each != name}, right, "a peer")


def test_triton_s_own_client_is_understood() -> None:
    question = focal((64, 10))
    dialect = StockTriton()
    with running(engine="inline") as service:
        post = dialect.post(question)
        answer = httpx.post(service.url + post.path, headers=dict(post.headers), content=post.body)
    assert answer.status_code == 200, answer.text
    compare(dialect.read(answer.headers, answer.content), expected(question), "lossd")


def test_numbers_in_json_are_understood() -> None:
    question = focal((64, 10))
    dialect = Json("/v1/evaluate")
    with running(engine="inline") as service:
        post = dialect.post(question)
        answer = httpx.post(service.url + post.path, headers=dict(post.headers), content=post.body)
    assert answer.status_code == 200, answer.text
    compare(dialect.read(answer.headers, answer.content), expected(question), "lossd")


# Without peers, and of small tensors


@pytest.fixture
def brief(monkeypatch: pytest.MonkeyPatch) -> None:
    """Start lossd by a fork, and send requests for parts of a second, of which wrk takes whole ones."""
    plain = TARGETS["lossd"]

    def command(programs: Path, port: int) -> list[str]:
        return [sys.executable, "-m", "lossd.cli", *plain.command(programs, port)[1:]]

    monkeypatch.setitem(TARGETS, "lossd", replace(plain, command=command))
    monkeypatch.setattr(targets, "subprocess", worker_process.subprocess)
    monkeypatch.setattr(load, "have_wrk", lambda: False)
    for module in (comparison, beside_inline):
        monkeypatch.setattr(module, "WARM_UP_S", 0.02)


@pytest.fixture
def uncompiled(brief: None, monkeypatch: pytest.MonkeyPatch) -> None:
    """Start lossd without compiled passes, too."""
    forked = TARGETS["lossd"]
    monkeypatch.setitem(TARGETS, "lossd", replace(forked, variables={**forked.variables, "LOSSD_COMPILED": "false"}))


@pytest.fixture
def alone(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """No peer can be installed."""

    def of_lossd_only(name: str) -> Path:
        if name:
            raise NotInstalledError("no such wheel")
        return Path(sys.executable)

    monkeypatch.setattr(comparison, "python_of", of_lossd_only)
    monkeypatch.setattr(comparison, "CACHE", tmp_path)


@pytest.fixture
def sigterm() -> Iterator[None]:
    """Take back what the command does on a signal, in this process."""
    before = signal.getsignal(signal.SIGTERM)
    yield
    signal.signal(signal.SIGTERM, before)


def test_the_command_measures_lossd_and_keeps_every_round(
    alone: None, uncompiled: None, sigterm: None, tmp_path: Path
) -> None:
    output = tmp_path / "report.json"
    options = ["--rounds", "1", "--seconds", "0.2", "--output", str(output)]
    what = ["compare", "--targets", "lossd", "--workloads", "S", "--connections", "4"]
    run = CliRunner().invoke(command.main, [*options, *what])
    assert run.exit_code == 0, run.output
    assert "S c=4" in run.output
    part = json.loads(output.read_text())["comparison"]
    assert part["absent"] == {}
    assert part["versions"]["lossd"].keys() >= {"lossd", "torch"}
    (cell,) = part["cells"]
    assert (cell["workload"], cell["connections"]) == ("S", 4)
    (taken,) = cell["rounds"]["lossd"]
    assert taken["failures"] == 0
    assert taken["requests"] >= 8
    assert 0 < taken["p50_ms"] <= taken["p99_ms"]
    assert taken["memory_mb"] > 5, "what a forked process shares counts in part"


def test_the_same_host_is_measured_three_ways(alone: None, brief: None, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(same_host, "focal", lambda _: focal((1, 21, 256, 256)))
    found = same_host.measure(1, 0.05, lambda _: None)
    assert [row[0] for row in found.rows] == ["TCP", "a Unix socket", "shared memory"]
    assert all(figure > 0 for row in found.rows for figure in row[1:4])
    assert found.absent == {"fastapi": "no such wheel"}
    assert found.verdicts == []


def test_a_device_is_measured(alone: None, brief: None, monkeypatch: pytest.MonkeyPatch) -> None:
    few = {"S": WORKLOADS["S"], "L": lambda: Workload("L", [focal((1, 21, 256, 256))], (1,))}
    monkeypatch.setattr(gpu, "WORKLOADS", few)
    monkeypatch.setattr(gpu, "COPIED_BYTES", 1 << 20)
    found = gpu.measure("cpu", 1, 0.05, lambda _: None)
    *measured, (copying, per_s, *_) = found.rows
    assert [row[0] for row in measured] == ["S, 1 at a time", "S, 16 at a time", "S, 64 at a time", "L, 1 at a time"]
    assert all(0 <= row[5] <= 1 for row in measured)
    assert copying == "copying memory on cpu, GB/s"
    assert per_s > 0.1
    assert [verdict.what for verdict in found.verdicts] == [
        "L's kernels over copying its bytes",
        "S, 64 at a time over one at a time, requests a second",
    ]


def test_a_first_start_is_timed_by_stages(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(first_start, "CACHE", tmp_path)
    stages = first_start.stages()
    (address, address_s, _), (answer, answer_s, cpu_s) = next(stages), next(stages)
    stages.close()  # the rest takes a while
    assert (address, answer) == (first_start.ADDRESS, first_start.ANSWER)
    assert 0 < address_s < answer_s
    assert cpu_s > 0.5
    assert 1 <= first_start.kernels_of_focal() <= 4


def test_the_inline_peer_gives_lossd_s_answers(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.syspath_prepend(str(PEERS))
    import inline
    import serve_inline

    questions = every_loss.requests()
    assert inline.JOBS.keys() == set(beside_inline.names())
    for name in beside_inline.names():
        request, arrays = questions[name]
        evaluation = lossd.evaluate(request["loss"], inputs=arrays, outputs=["loss", "gradient", "metrics"])
        gradients = {f"gradient.{leaf}": values for leaf, values in evaluation.gradients.items()}
        metrics = {} if REGISTRY[name].task not in TASKS else evaluation.metrics
        ours = {"loss": evaluation.loss, "metrics": metrics}
        tensors, metadata = safetensors.decode(serve_inline.answer(LOSSD.post(questions[name]).body))
        theirs = json.loads(metadata["result"]), {leaf: tensor.numpy() for leaf, tensor in tensors.items()}
        beside_inline.compare((ours, gradients), theirs, name)


def test_every_loss_is_measured_or_said_to_be_left_out() -> None:
    composed = {name for name, loss in REGISTRY.items() if loss.kind == "composed"} - {"ce_dice", "bce_dice"}
    others = {"gradnorm", "expression", "perceptual"}
    assert set(every_loss.INPUTS) == REGISTRY.keys() - composed - others
    assert set(beside_inline.LEFT_OUT) <= set(every_loss.INPUTS)


def test_losses_are_compared_and_timed(brief: None) -> None:
    rows, verdicts = beside_inline.measure(["dice"], 1, 0.1, lambda _: None)
    assert [row[0] for row in rows] == ["dice"]
    assert len(rows[0]) == len(beside_inline.HEADINGS)
    assert all(figure > 0 for figure in rows[0][1:])
    assert [verdict.found for verdict in verdicts] == [rows[0][3], rows[0][7]]
    right = {"loss": 1.0, "metrics": {"f1": {"macro": 0.5}}}, {"gradient.prediction": np.ones(2)}
    beside_inline.compare(right, ({"loss": 1.0, "metrics": {"f1": 0.5}}, right[1]), "same")
    with pytest.raises(WrongAnswerError, match=r"f1 is 0\.6"):
        beside_inline.compare(right, ({"loss": 1.0, "metrics": {"f1": 0.6}}, right[1]), "other")
    with pytest.raises(WrongAnswerError, match="gradients"):
        beside_inline.compare(right, ({"loss": 1.0, "metrics": {}}, {}), "none")


def test_batches_of_a_run_are_measured_by_process(
    alone: None, uncompiled: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    sizes = [run_batches.Size("small", "multiclass", (64, 10)), run_batches.Size("binary", "binary", (256,), 2)]
    monkeypatch.setattr(run_batches, "SIZES", sizes)
    found = run_batches.measure(1, 0.2, lambda _: None)
    assert [row[0] for row in found.rows] == ["small", "binary"]
    for _, *by_process, in_all, evaluated, ratio in found.rows:
        assert all(figure > 0 for figure in by_process)
        assert in_all == pytest.approx(sum(by_process))
        assert ratio == pytest.approx(in_all / evaluated)


# What the figures come to


CPU_MS = {"lossd": 0.25, "mosec": 0.5}


def cell(workload: str, connections: int, body_bytes: int = 1000, **rates: list[float]) -> comparison.Cell:
    def taken(name: str, rate: float) -> dict[str, Any]:
        cpu_ms = CPU_MS.get(name, 1.0)
        return {"per_second": rate, "p50_ms": 2.0, "p99_ms": 5.0, "cpu_ms": cpu_ms, "memory_mb": 100.0, "failures": 0}

    rounds = {name: [taken(name, rate) for rate in each] for name, each in rates.items()}
    return {"workload": workload, "connections": connections, "body_bytes": body_bytes, "rounds": rounds}


CELLS = [
    cell("S", 16, lossd=[300, 100, 500], mosec=[100, 100, 100], fastapi=[50, 900, 60]),
    cell("S", 64, lossd=[1000], mosec=[1000]),
    cell("X", 64, body_bytes=2000, lossd=[300], pytriton=[50]),
]


def test_ratios_are_taken_round_by_round_against_the_peer_with_the_best_median() -> None:
    verdicts = {verdict.what: verdict for verdict in of_comparison(CELLS)}
    assert [verdict.found for verdict in verdicts.values()] == [3.0, 1.0, 2.0, 6.0, 0.6, 2.5]
    assert [verdict.met for verdict in verdicts.values()] == [True, False, True, True, True, True]
    assert verdicts["S, 64 at a time, mosec's CPU time of a request over lossd's"].exceeded
    assert "S, 16 at a time, over mosec, the best peer" in verdicts
    assert verdicts["S, 16 at a time, p99 over p50"].exceeded


def test_without_peers_nothing_is_said_about_them() -> None:
    assert of_comparison([cell("S", 1, lossd=[100])]) == []


def test_the_page_has_a_place_for_everything_that_is_measured() -> None:
    about = {"date": "today", "commit": "", "machine": "m", "generator": "wrk", "rounds": 3, "seconds": 1.0}
    verdict = Verdict("how much", 1.234, 2.0, unit="×")
    found = about | {"headings": ["when", "MB"], "rows": [["now", 12.345]], "verdicts": [vars(verdict)]}
    parts: dict[str, Any] = dict.fromkeys(page.SECTIONS, found)
    absent = {"absent": {"litserve": "no such wheel"}, "versions": {"mosec": {"mosec": "1.2"}}}
    parts["comparison"] = about | absent | {"cells": CELLS, "verdicts": []}
    text = "".join(path.read_text() for path in page.PAGES)
    filled = page.filled(text, parts)
    assert "| S, 16 at a time | 300 | 100 | 60 |  | **3.00** (1.00 – 5.00) over mosec |" in filled
    assert "| S, 16 at a time | 0.25 | 0.5 | 1 |  | **2** of mosec |" in filled
    assert "| X, 64 at a time | 0.25 |  |  | 1 | **4** of pytriton |" in filled
    assert "- Not measured: litserve: no such wheel" in filled
    assert filled.count("| now | 12.3 |") == len(parts) - 1
    assert "| how much | 1.23× | at least 2× |  | missed |" in filled
    assert page.filled(filled, parts) == filled
    assert page.filled(text, {}) == text


def test_a_measurement_without_a_place_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    empty = tmp_path / "empty.md"
    empty.write_text("# Nothing is measured here\n")
    monkeypatch.setattr(page, "PAGES", (empty,))
    with pytest.raises(ValueError, match="no page has the line <!-- measured: memory -->"):
        page.write({"memory": {}})
