"""``lossd score --run`` and ``lossd runs`` on this user's store, with no service running."""

from __future__ import annotations

import json
import os
import re
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import httpx
import numpy as np
import pytest
from click.testing import CliRunner, Result

import lossd.files.sources as files
from cli.terminal import Terminal
from lossd.cli import main
from lossd.engine import worker_process
from serving import command

FILES, ROWS = 30, 9
OPTIONS = ("--loss", "cross_entropy", "--label-smoothing", "0.1", "--metrics", "accuracy,f1,log_loss,auroc")
KEPT = ("loss", "metrics", "targets", "missing", "bounds", "warnings")


@pytest.fixture
def store(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    path = tmp_path / "store" / "runs.db"
    path.parent.mkdir()
    monkeypatch.setenv("LOSSD_RUNS", str(path))
    return path


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    path = tmp_path / "data"
    path.mkdir()
    write(path, range(FILES))
    return path


def write(path: Path, numbers: range) -> None:
    """Write a file for each number."""
    random = np.random.default_rng(5 + numbers.start)
    for number in numbers:
        prediction = random.standard_normal((ROWS, 3)).astype(np.float32)
        files.write(path / f"{number:03}.npz", {"prediction": prediction, "target": random.integers(0, 3, ROWS)})


def lossd(*arguments: str | Path) -> Result:
    return CliRunner().invoke(main, [*map(str, arguments)])


def document(*arguments: str | Path) -> dict[str, Any]:
    result = lossd(*arguments, "--json")
    assert result.exit_code == 0, (result.output, result.exception)
    found: dict[str, Any] = json.loads(result.stdout)
    return found


def check_score(found: dict[str, Any], folder: Path) -> None:
    """The score is that of the same directory without a run, to the last digit."""
    alone = document("score", folder, *OPTIONS)
    assert {name: found[name] for name in KEPT} == {name: alone[name] for name in KEPT}


def test_a_run_begins_and_ends_with_nothing_running(store: Path, folder: Path) -> None:
    found = document("score", folder, *OPTIONS, "--run", "r", "--dataset", "digits@2", "--tag", "commit=4f1c")
    assert (found["status"], found["files"]["counted"], found["counted"]["rows"]) == ("open", FILES, FILES * ROWS)
    (listed,) = document("runs", "--dataset", "digits@2", "--tag", "commit=4f1c")["runs"]
    assert (listed["run"], listed["status"], listed["tags"]) == ("r", "open", {"commit": "4f1c"})
    sealed = document("score", folder, "--run", "r", "--seal")
    assert (sealed["status"], sealed["files"]["before"]) == ("sealed", FILES)
    check_score(sealed, folder)
    assert sealed["metrics"] == found["metrics"]
    table = lossd("runs", "--sort", "-f1.macro").stdout
    assert re.search(rf"r +digits@2 +sealed +{FILES * ROWS} ", table)
    assert f"{sealed['metrics']['f1']['macro']:.6g}" in table
    assert lossd("runs", "delete", "r", "--yes").exit_code == 0
    assert document("runs") == {"runs": []}
    lines = subprocess.run(["ps", "-eo", "ppid=,args="], capture_output=True, text=True, check=True).stdout
    assert not re.search(rf"^ *{os.getpid()} .*lossd.recorder", lines, re.MULTILINE), "no process is left"


def test_ctrl_c_and_again(store: Path, folder: Path) -> None:
    total = 5 * FILES  # so many that some are left when the signal arrives
    write(folder, range(FILES, total))
    terminal = Terminal("score", folder, *OPTIONS, "--run", "r", "--in-flight", "1", "--json")
    for shown in terminal.watch():
        if re.search(rf"[1-9]\d*/{total} files", shown):
            break
    terminal.process.send_signal(signal.SIGINT)
    status, output = terminal.close()
    assert (status, "Traceback" in terminal.shown) == (130, False), terminal.shown
    found = json.loads(output)
    counted = found["files"]["counted"]
    assert found["files"]["interrupted"]
    assert (0 < counted < total, found["counted"]["rows"]) == (True, counted * ROWS)
    result = lossd("score", folder, *OPTIONS, "--run", "r", "--seal", "--json")
    assert f"{counted} of {total} files counted before" in result.stderr
    check_score(json.loads(result.stdout), folder)


def test_killed_and_again(store: Path, folder: Path) -> None:
    """After SIGKILL the next command finds the store free, and each file is counted once."""
    line = [sys.executable, "-m", "lossd.cli", "score", str(folder), *OPTIONS, "--run", "r", "--in-flight", "1"]
    with worker_process.subprocess.Popen(line, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL) as process:
        deadline = time.monotonic() + 60
        while _batches(store) < 3:
            assert time.monotonic() < deadline
            assert process.poll() is None
            time.sleep(0.005)
        process.kill()
    deadline = time.monotonic() + 30
    while "is in use" in (result := lossd("score", folder, *OPTIONS, "--run", "r", "--seal", "--json")).stderr:
        assert time.monotonic() < deadline, "the recorder of a killed command ends"
    found = json.loads(result.stdout)
    assert found["files"]["before"] >= 3
    assert (found["counted"], found["files"]["counted"]) == (
        {"rows": FILES * ROWS, "entries": FILES * ROWS, "batches": FILES},
        FILES,
    )
    check_score(found, folder)


def _batches(store: Path) -> int:
    """How many batches the database has."""
    import sqlite3

    try:
        with sqlite3.connect(f"file:{store}?mode=ro", uri=True) as connection:
            return int(connection.execute("SELECT count(*) FROM batches").fetchone()[0])
    except sqlite3.OperationalError:  # it has no tables yet
        return 0


def test_a_store_that_a_service_holds(store: Path, folder: Path) -> None:
    with command(LOSSD_RUNS=str(store)) as (url, _, _):
        assert httpx.put(f"{url}/v1/runs/r", json={"task": "binary"}, timeout=60).status_code == 201
        for arguments in (("runs",), ("score", folder, "--task", "multiclass", "--run", "r2")):
            begin = time.monotonic()
            result = lossd(*arguments)
            assert result.exit_code == 3, result.output
            assert time.monotonic() - begin < 30, "it does not wait for the service to end"
            assert str(store) in result.stderr
            assert "a service runs on this machine: use --url http://127.0.0.1:" in result.stderr
            assert f"--url {url}" in result.stderr  # beside those of other services
        assert [run["run"] for run in document("runs", "--url", url)["runs"]] == ["r"]
    assert [run["run"] for run in document("runs")["runs"]] == ["r"]


def test_settings_of_a_service_do_not_matter(
    store: Path, folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The store is this user's: a service's key, certificate and path are not asked for."""
    monkeypatch.setenv("LOSSD_API_KEY", "a-key-of-some-service")
    monkeypatch.setenv("LOSSD_ROOT_PATH", "/loss")
    monkeypatch.setenv("LOSSD_ALLOWED_HOSTS", "loss.example")
    assert document("runs") == {"runs": []}
    monkeypatch.setenv("LOSSD_THREADS", "none")
    result = lossd("runs")
    assert (result.exit_code, "LOSSD_THREADS" in result.stderr) == (2, True)


def test_a_service_may_keep_no_runs(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("LOSSD_RUNS", "off")
    result = lossd("runs")
    assert (result.exit_code, "keeps no runs" in result.stderr) == (1, True)


def test_a_refused_file_is_named(store: Path, folder: Path) -> None:
    files.write(folder / "007.npz", {"prediction": np.ones((2, 3), np.float32), "target": np.array([0, 9])})
    result = lossd("score", folder, *OPTIONS, "--run", "r")
    assert result.exit_code == 1
    assert re.search(r"^007.npz: Invalid value: .*9", result.stderr, re.MULTILINE)
    assert "no score: 1 of 30 files cannot be scored" in result.stderr
    assert document("runs", "show", "r")["counted"] == {
        "rows": (FILES - 1) * ROWS,
        "entries": (FILES - 1) * ROWS,
        "batches": FILES - 1,
    }
