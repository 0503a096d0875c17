"""``lossd evaluate --batch``: many files, their progress, and what becomes of the bad ones."""

from __future__ import annotations

import csv
import json
import re
import signal
import time
from fractions import Fraction
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from click.testing import CliRunner, Result

from cli.terminal import Terminal
from lossd.cli import main
from lossd.cli.batch import FileOutcome, FileTotals
from lossd_client import Evaluation, Reduction
from lossd_client.wire import Tensor, safetensors
from serving import running

CLASSES = 3


def lossd(*arguments: str | Path) -> Result:
    return CliRunner().invoke(main, [str(argument) for argument in arguments])


def lines(result: Result) -> list[dict[str, Any]]:
    return [json.loads(line) for line in result.stdout.splitlines()]


def rows_of(path: Path) -> list[dict[str, str]]:
    with path.open() as file:
        return list(csv.DictReader(file))


def tensors(seed: int) -> tuple[np.ndarray[Any, Any], np.ndarray[Any, Any]]:
    """Files differ in length: the mean over all is not the mean of their means."""
    random = np.random.default_rng(seed)
    rows = 4 + seed
    return random.standard_normal((rows, CLASSES)).astype(np.float32), random.integers(0, CLASSES, rows)


def expected(seed: int) -> np.ndarray[Any, Any]:
    """Cross-entropy, row by row."""
    logits, target = tensors(seed)
    wide = logits.astype(np.float64)
    return np.log(np.exp(wide).sum(1)) - wide[np.arange(len(target)), target]


def packed(seed: int) -> bytes:
    logits, target = tensors(seed)
    return b"".join(safetensors.encode({"prediction": Tensor.of(logits), "target": Tensor.of(target)}, {}))


@pytest.fixture
def directory(tmp_path: Path) -> Path:
    """Three good evaluations, in each of the forms."""
    folder = tmp_path / "batch"
    folder.mkdir()
    (folder / "a.safetensors").write_bytes(packed(0))
    logits, target = tensors(1)
    np.savez(folder / "b.npz", prediction=logits, target=target)
    for name, array in zip(("prediction", "target"), tensors(2), strict=True):
        np.save(folder / f"c_{name}.npy", array)
    (folder / "notes.txt").write_text("not a tensor")
    return folder


@pytest.fixture
def flawed(directory: Path) -> Path:
    """The same with files of which each is bad in another way."""
    (directory / "d.safetensors").write_bytes(b"\0" * 9)
    (directory / "e.npz").write_bytes(b"PK\x03\x04")
    np.save(directory / "f_prediction.npy", tensors(3)[0])
    np.savez(directory / "g.npz", prediction=tensors(4)[0], target=np.array([0, 1, 2, 3, 9, 0, 1, 2]))
    np.save(directory / "h.npy", tensors(5)[0])
    return directory


def test_a_directory_is_evaluated_file_by_file(directory: Path) -> None:
    result = lossd("evaluate", "--batch", directory, "--loss", "cross_entropy", "--json")
    assert result.exit_code == 0, result.output
    *rows, last = lines(result)
    assert [row["file"] for row in rows] == ["a.safetensors", "b.npz", "c"]
    for seed, row in enumerate(rows):
        assert row["loss"] == pytest.approx(expected(seed).mean(), abs=1e-6)
        assert row["metrics"]["task"] == "multiclass"
    everything = np.concatenate([expected(seed) for seed in range(3)])
    assert last["summary"]["mean_loss"] == pytest.approx(everything.mean(), abs=1e-6)
    assert (last["summary"]["files"], last["summary"]["failed"]) == (3, 0)
    assert last["summary"]["bytes"] == sum(row["bytes"] for row in rows) > 0


def test_bad_files_are_reported_and_the_rest_goes_on(flawed: Path) -> None:
    result = lossd("evaluate", "--batch", flawed, "--loss", "cross_entropy", "--json")
    assert result.exit_code == 1
    *rows, last = lines(result)
    assert [row["file"] for row in rows if "error" not in row] == ["a.safetensors", "b.npz", "c"]
    details = {row["file"]: row["error"]["detail"] for row in rows if "error" in row}
    assert "d.safetensors cannot be read" in details["d.safetensors"]
    assert "e.npz cannot be read" in details["e.npz"]
    assert "needs the input target, which was not sent" in details["f"]
    assert "class 3 at target[3] is out of range" in details["g.npz"]
    assert "does not say which input it is" in details["h.npy"]
    assert last["summary"]["failed"] == 5
    assert last["summary"]["mean_loss"] == pytest.approx(
        np.concatenate([expected(s) for s in range(3)]).mean(), abs=1e-6
    )


def test_a_person_sees_a_table_the_failures_and_the_sum(flawed: Path) -> None:
    output = lossd("evaluate", "--batch", flawed, "--loss", "cross_entropy", "--label-smoothing", "0.1").stdout
    assert "cross_entropy label_smoothing=0.1" in output
    assert re.search(r"^file +loss +accuracy +precision.macro", output, re.MULTILINE)
    assert re.search(r"^a\.safetensors +\d", output, re.MULTILINE)
    assert re.search(r"^d\.safetensors: Unreadable file: .*cannot be read", output, re.MULTILINE)
    assert re.search(r"^8 files, 5 failed, mean loss \d", output, re.MULTILINE)


def test_a_long_table_shows_its_ends(tmp_path: Path) -> None:
    for index in range(60):
        np.savez(tmp_path / f"{index:02}.npz", prediction=np.ones(2), target=np.zeros(2))
    output = lossd("evaluate", "--batch", tmp_path, "--loss", "mse").stdout
    assert "… 20 more" in output
    assert all(f"{index:02}.npz" in output for index in (0, 19, 40, 59))
    assert not any(f"{index:02}.npz" in output for index in (20, 39))


def test_rows_go_into_a_file(flawed: Path, tmp_path: Path) -> None:
    table, objects = tmp_path / "rows.csv", tmp_path / "rows.jsonl"
    for path in (table, objects):
        assert lossd("evaluate", "--batch", flawed, "--loss", "cross_entropy", "--output", path).exit_code == 1
    rows = rows_of(table)
    by_name = {row["file"]: row for row in rows}
    assert [row["file"] for row in map(json.loads, objects.read_text().splitlines())] == [*by_name]
    for seed, name in enumerate(("a.safetensors", "b.npz", "c")):
        assert float(by_name[name]["numerator"]) == pytest.approx(expected(seed).sum(), rel=1e-5)
        assert float(by_name[name]["denominator"]) == 4 + seed
        assert 0 <= float(by_name[name]["f1.macro"]) <= 1
        assert by_name[name]["error"] == ""
    assert "cannot be read" in by_name["d.safetensors"]["error"]


def test_failures_before_the_first_answer_are_rows_too(tmp_path: Path) -> None:
    (tmp_path / "0.npz").write_bytes(b"")
    np.savez(tmp_path / "1.npz", prediction=np.ones(2), target=np.zeros(2))
    path = tmp_path / "rows.csv"
    assert lossd("evaluate", "--batch", tmp_path, "--loss", "mse", "--output", path).exit_code == 1
    assert [(row["file"], row["loss"]) for row in rows_of(path)] == [("0.npz", ""), ("1.npz", "1.0")]
    (tmp_path / "1.npz").unlink()
    assert lossd("evaluate", "--batch", tmp_path, "--loss", "mse", "--output", path).exit_code == 1
    assert [row["file"] for row in rows_of(path)] == ["0.npz"], "none was answered"


def test_one_evaluation_is_a_row_as_well(directory: Path, tmp_path: Path) -> None:
    path = tmp_path / "rows.csv"
    assert lossd("evaluate", directory / "b.npz", "--loss", "cross_entropy", "--output", path).exit_code == 0
    (row,) = rows_of(path)
    assert float(row["loss"]) == pytest.approx(expected(1).mean(), abs=1e-6)


def test_metrics_alone(directory: Path) -> None:
    result = lossd("evaluate", "--batch", directory, "--task", "multiclass", "--metrics", "accuracy", "--json")
    *rows, last = lines(result)
    for seed, row in enumerate(rows):
        logits, target = tensors(seed)
        assert row["metrics"] == {"task": "multiclass", "accuracy": pytest.approx((logits.argmax(1) == target).mean())}
    assert last["summary"]["mean_loss"] is None


def test_a_service_is_asked_for_several_at_a_time(flawed: Path) -> None:
    arguments = ("evaluate", "--batch", flawed, "--loss", "cross_entropy", "--json")
    with running(engine="inline") as service:
        there = lossd(*arguments, "--url", service.url)
    assert there.exit_code == 1, there.output
    *rows, _ = lines(there)
    *here, _ = lines(lossd(*arguments))
    for row, same in zip(rows, here, strict=True):
        assert row["file"] == same["file"]
        assert row.get("loss") == pytest.approx(same.get("loss"))
        assert row.get("error") == same.get("error")


@pytest.mark.parametrize(
    ("arguments", "status", "message"),
    [
        (["--loss", "cross_entropy", "--label-smoothing", "2"], 1, "--label-smoothing"),
        (["--loss", "cross_entropy", "--metrics", "acuracy"], 1, "did you mean accuracy"),
        (["--loss", "mse", "--plot", "out.svg"], 2, "lossd score DIR --plot draws a whole directory"),
        (["--loss", "cross_entropy", "--output", "rows.txt"], 2, "must end in .csv or .jsonl"),
        (
            ["--loss", "cross_entropy", "--gradient-out", "g.npy"],
            2,
            "leave out FILES, --input, --gradient-out and --hessian-out",
        ),
        (["--loss", "cross_entropy", "--url", "http://127.0.0.1:9"], 3, "cannot connect"),
    ],
)
def test_what_is_wrong_with_the_request_is_said_once(
    arguments: list[str], status: int, message: str, directory: Path
) -> None:
    result = lossd("evaluate", "--batch", directory, *arguments)
    assert result.exit_code == status, result.output
    assert result.stderr.count(message) == 1


def test_a_service_that_goes_away_ends_it_and_what_was_done_is_shown(
    directory: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from lossd_client import LossClient
    from lossd_client.errors import ConnectionFailed

    original, answered = LossClient.evaluate, []

    def once(self: LossClient, *arguments: Any, **keywords: Any) -> Any:
        if answered:
            raise ConnectionFailed("the service is gone")
        answered.append(original(self, *arguments, **keywords))
        return answered[0]

    monkeypatch.setattr(LossClient, "evaluate", once)
    with running(engine="inline") as service:
        result = lossd(
            "evaluate",
            "--batch",
            directory,
            "--loss",
            "cross_entropy",
            "--url",
            service.url,
            "--in-flight",
            "1",
            "--json",
        )
    assert result.exit_code == 3
    assert "the service is gone" in result.stderr
    first, summary = lines(result)
    assert first["loss"] == pytest.approx(expected(0).mean(), abs=1e-6)
    assert (summary["summary"]["files"], summary["summary"]["of"]) == (1, 3)


def test_an_empty_directory_is_wrong_usage(tmp_path: Path) -> None:
    result = lossd("evaluate", "--batch", tmp_path, "--loss", "mse")
    assert (result.exit_code, "holds no .safetensors, .npz, .npy, .csv or .png file of inputs" in result.stderr) == (
        2,
        True,
    )


# On a terminal


def test_a_terminal_shows_progress(tmp_path: Path) -> None:
    for index in range(40):
        (tmp_path / f"{index:02}.safetensors").write_bytes(packed(index))
    terminal = Terminal("evaluate", "--batch", tmp_path, "--loss", "cross_entropy", "--json")
    status, output = terminal.close()
    assert status == 0, terminal.shown
    assert len(output.splitlines()) == 41, "the bar is not among the lines"
    assert "40/40 files" in terminal.shown
    assert re.search(r"\d MB/s +mean loss \d", terminal.shown)
    assert re.search(r"\d:\d\d:\d\d", terminal.shown), "the time that is left"


def test_the_mean_of_many_files_is_rounded_once() -> None:
    """In any order, and where a sum is beyond float64."""
    parts = [(0.1 * index, 0.3 * index + 0.7) for index in range(9)]
    exact = sum(Fraction(n) for n, _ in parts) / sum(Fraction(d) for _, d in parts)
    huge = [(1e308, 1.0), (1e308, 1.0), (1e308, 1.0)]
    source: Any = None  # is not read
    for of_files, mean in ((parts, float(exact)), (parts[::-1], float(exact)), (huge, 1e308)):
        tally = FileTotals()
        for reduction in of_files:
            tally.add(FileOutcome(source, 0, 0.0, Evaluation(reduction=Reduction(*reduction))))
        assert tally.mean_loss == mean


def test_ctrl_c_while_an_outcome_is_recorded_loses_no_row(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """It arrives between the count and the row, wherever that is."""
    for index in range(3):
        (tmp_path / f"{index}.safetensors").write_bytes(packed(index))
    path = tmp_path / "rows.csv"
    counted = FileTotals.add

    def interrupted(tally: FileTotals, outcome: FileOutcome) -> None:
        counted(tally, outcome)
        signal.raise_signal(signal.SIGINT)

    monkeypatch.setattr(FileTotals, "add", interrupted)
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    try:
        result = lossd("evaluate", "--batch", tmp_path, "--loss", "cross_entropy", "--output", path)
    finally:
        signal.signal(signal.SIGINT, before)
    assert result.exit_code == 130
    assert "1 of 3 files" in result.output
    assert len(path.read_text().splitlines()) == 2


def test_ctrl_c_prints_what_is_done(tmp_path: Path) -> None:
    total = 2000
    contents = [packed(seed) for seed in range(8)]
    for index in range(total):
        (tmp_path / f"{index:04}.safetensors").write_bytes(contents[index % 8])
    path = tmp_path / "rows.csv"
    terminal = Terminal("evaluate", "--batch", tmp_path, "--loss", "cross_entropy", "--output", path)
    deadline = time.monotonic() + 200
    for shown in terminal.watch():
        assert time.monotonic() < deadline
        if re.search(r"[1-9]\d*/2000 files", shown):
            break
    terminal.process.send_signal(signal.SIGINT)
    status, output = terminal.close()
    assert status == 130, (output, terminal.shown)
    found = re.search(r"^(\d+) of 2,000 files, mean loss \d", output, re.MULTILINE)
    assert found, output
    assert 0 < int(found[1]) < total
    assert len(path.read_text().splitlines()) == int(found[1]) + 1
    assert "Traceback" not in terminal.shown
