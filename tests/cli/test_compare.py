"""``lossd compare``: what a person reads, and what a gate decides."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from typing import Any
from urllib.parse import parse_qs, urlsplit

import pytest
from click.testing import CliRunner, Result

from client.fake import FakeService, Reply, Request, problem
from lossd.cli import main

ACCURACY = {
    "baseline": 0.8, "value": 0.8124, "difference": 0.0124, "low": 0.0041, "high": 0.0203, "standard_error": 0.004,
    "p": 0.003, "p_holm": 0.006, "better": "higher", "verdict": "b",
}  # fmt: skip
LOSS = {
    "baseline": 0.5, "value": 0.51, "difference": 0.01, "low": -0.02, "high": 0.04, "standard_error": 0.01,
    "p": 0.5, "p_holm": 0.5, "better": "lower", "verdict": "undecided",
}  # fmt: skip
BIAS = {**LOSS, "better": None, "p": None, "p_holm": None, "verdict": None}
FEW = {**ACCURACY, "low": None, "high": None, "standard_error": None, "p": None, "p_holm": None, "verdict": None}


def answer(*runs: str, slices: bool = False) -> dict[str, Any]:
    metrics = {"accuracy": ACCURACY, "loss": LOSS, "bias": BIAS, "f1.per_class.2": FEW}
    return {
        "level": 0.95,
        "paired": True,
        "groups": 64,
        "rows": 50_000,
        "runs": [{"run": run, "owner": "", "provisional": False, "rows": 50_000, "values": {}} for run in runs],
        "comparisons": [
            {
                "run": run,
                "owner": "",
                "sentence": f"{run} is better than {runs[0]}",
                "metrics": metrics,
                "slices": [{"slice": {"site": "A"}, "rows": 9000, "metrics": {"accuracy": ACCURACY}}] * slices,
                "warnings": [{"code": "few_rows", "detail": "class 2 has 9 rows"}],
            }
            for run in runs[1:]
        ],
    }


@pytest.fixture
def service() -> Iterator[FakeService]:
    def answering(request: Request) -> Reply:
        query = parse_qs(urlsplit(request.path).query)
        body = json.dumps(answer(*query["run"], slices="slices" in query)).encode()
        return Reply(200, {"Content-Type": "application/json"}, body)

    fake = FakeService()
    fake.default = answering
    yield fake
    fake.stop()


def lossd(service: FakeService, *arguments: str) -> Result:
    return CliRunner().invoke(main, ["compare", *arguments, "--url", service.url])


def query(service: FakeService) -> dict[str, list[str]]:
    """The query of the only request."""
    [request] = service.requests
    return parse_qs(urlsplit(request.path).query)


GOLDEN = """\
candidate against main
50,000 rows, paired, 95 % intervals

metric          main  candidate  difference          interval      p  verdict
accuracy         0.8     0.8124      +0.012  +0.004 to +0.020  0.006  better
loss             0.5       0.51      +0.010  -0.020 to +0.040    0.5  undecided
bias             0.5       0.51      +0.010  -0.020 to +0.040      –  –
f1.per_class.2   0.8     0.8124     +0.0124                 –      –  –

site=A, 9,000 rows
metric    main  candidate  difference          interval      p  verdict
accuracy   0.8     0.8124      +0.012  +0.004 to +0.020  0.006  better

candidate is better than main
few_rows: class 2 has 9 rows
candidate, --not-worse loss:0.05: proven, the interval ends at +0.04
candidate, --better accuracy: proven, the interval begins at +0.0041
"""


def test_a_person_reads_a_table(service: FakeService) -> None:
    result = lossd(service, "main", "candidate", "--slices", "--better", "accuracy", "--not-worse", "loss:0.05")
    assert result.exit_code == 0, result.output
    assert re.sub(r" +\n", "\n", result.stdout) == GOLDEN
    assert result.stderr == ""
    assert query(service) == {"run": ["main", "candidate"], "slices": ["true"]}


@pytest.mark.parametrize(
    ("gate", "proven"),
    [
        (["--better", "accuracy"], True),
        (["--better", "loss"], False),
        (["--better", "f1.per_class.2"], False),  # no interval
        (["--not-worse", "accuracy:0"], True),
        (["--not-worse", "loss:0.04"], True),
        (["--not-worse", "loss:0.039"], False),
        (["--not-worse", "f1.per_class.2:1"], False),
        (["--better", "accuracy", "--not-worse", "loss:0.03"], False),
    ],
)
def test_a_gate_fails_unless_the_interval_proves_it(service: FakeService, gate: list[str], proven: bool) -> None:
    result = lossd(service, "main", "candidate", *gate)
    assert result.exit_code == (0 if proven else 4), result.output
    assert ("not proven" in result.stdout) is not proven
    assert query(service).get("classes") == (["true"] if "per_class" in str(gate) else None)


@pytest.mark.parametrize(
    ("low", "high", "better", "gate", "proven"),
    [
        (0.0, 0.1, "higher", ["--better", "m"], False),  # 0 is not excluded
        (1e-9, 0.1, "higher", ["--better", "m"], True),
        (-0.1, 0.0, "lower", ["--better", "m"], False),
        (-0.1, -1e-9, "lower", ["--better", "m"], True),
        (0.1, 0.2, "lower", ["--better", "m"], False),
        (-0.002, 0.1, "higher", ["--not-worse", "m:0.002"], True),
        (-0.0021, 0.1, "higher", ["--not-worse", "m:0.002"], False),
        (-0.1, 0.002, "lower", ["--not-worse", "m:0.002"], True),
        (-0.1, 0.0021, "lower", ["--not-worse", "m:0.002"], False),
    ],
)
def test_the_unfavourable_end_decides(
    service: FakeService, low: float, high: float, better: str, gate: list[str], proven: bool
) -> None:
    document = answer("main", "candidate")
    document["comparisons"][0]["metrics"] = {"m": {**ACCURACY, "low": low, "high": high, "better": better}}
    body = json.dumps(document).encode()
    service.replies.append(Reply(200, {"Content-Type": "application/json"}, body))
    assert lossd(service, "main", "candidate", *gate).exit_code == (0 if proven else 4)


def test_every_run_must_pass(service: FakeService) -> None:
    document = answer("main", "one", "two")
    document["comparisons"][1]["metrics"] = {"accuracy": {**ACCURACY, "low": -0.01}}
    service.replies.append(Reply(200, {"Content-Type": "application/json"}, json.dumps(document).encode()))
    result = lossd(service, "main", "one", "two", "--better", "accuracy", "--json")
    assert result.exit_code == 4
    printed = json.loads(result.stdout)
    assert [(gate["run"], gate["gate"], gate["proven"]) for gate in printed["gates"]] == [
        ("one", "better", True),
        ("two", "better", False),
    ]
    assert printed["comparisons"][0]["metrics"]["accuracy"] == ACCURACY
    assert result.stderr == "two, --better accuracy: not proven, the interval begins at -0.01, not above 0\n"


def test_json_is_the_services_answer(service: FakeService) -> None:
    result = lossd(service, "main", "candidate", "--json", "--level", "0.99", "--metrics", "accuracy", "--unpaired")
    assert json.loads(result.stdout) == answer("main", "candidate")
    expected = {"run": ["main", "candidate"], "level": ["0.99"], "metrics": ["accuracy"], "unpaired": ["true"]}
    assert query(service) == expected


def test_the_metric_of_a_gate_is_compared_too(service: FakeService) -> None:
    lossd(service, "main", "candidate", "--metrics", "f1,accuracy", "--better", "loss", "--better", "f1.macro")
    assert query(service)["metrics"] == ["f1,accuracy,loss"]


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["main"], "RUN"),
        (["main", "candidate", "--not-worse", "accuracy"], "is not METRIC:MARGIN"),
        (["main", "candidate", "--not-worse", "accuracy:-1"], "is not METRIC:MARGIN"),
        (["main", "candidate", "--not-worse", "accuracy:nan"], "is not METRIC:MARGIN"),
        (["main", "candidate", "--better", "auroc"], "auroc was not compared; there are accuracy, loss"),
        (["main", "candidate", "--better", "bias"], "neither more nor less of bias is better"),
        (["main", "candidate", "--level", "0.5"], "--level"),
    ],
)
def test_wrong_usage_exits_with_2(service: FakeService, arguments: list[str], message: str) -> None:
    result = lossd(service, *arguments)
    assert result.exit_code == 2, result.output
    assert message in result.stderr


def test_runs_that_cannot_be_compared_exit_with_1(service: FakeService) -> None:
    service.replies.append(problem(409, "not-comparable", "the runs cannot be compared: other targets"))
    result = lossd(service, "main", "candidate", "--better", "accuracy")
    assert result.exit_code == 1
    assert result.stderr.startswith("Not comparable: the runs cannot be compared: other targets (request ")
