"""Runs through the whole service: without a place for them, and with several fronts whose recorder is killed."""

from __future__ import annotations

import os
import signal
import sqlite3
from pathlib import Path

import httpx
import pytest

from fronts.group import group
from serving import asking, keeping_runs, running

RUN = {"task": "binary", "metrics": ["accuracy"], "identity": "position"}


def batch(number: int) -> dict[str, object]:
    return {"first": 4 * number, "inputs": {"prediction": [2.0, -1.0, 3.0, 0.5], "target": [1, 0, 1, number % 2]}}


@pytest.mark.parametrize("variable", ["XDG_DATA_HOME", "HOME"])
def test_without_a_place_for_runs_the_service_works(monkeypatch: pytest.MonkeyPatch, variable: str) -> None:
    """As in a container with a read-only file system: requests about runs say what is missing, others are answered."""
    for name in ("LOSSD_RUNS", "XDG_DATA_HOME"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv(variable, "/proc/no")
    mse = {"loss": {"name": "mse"}, "inputs": {"prediction": [1.0], "target": [2.0]}}
    with running(engine="inline") as service, httpx.Client(base_url=service.url, timeout=60) as http:
        answer = http.put("/v1/runs/a", json=RUN)
        assert answer.status_code == 503
        assert "cannot create the folder /proc/no" in answer.json()["detail"]
        assert "set LOSSD_RUNS to" in answer.json()["detail"]
        assert "retry-after" in answer.headers
        assert http.post("/v1/evaluate", json=mse).json()["loss"] == 1.0
        assert http.get("/health/ready").status_code == 200
        assert "lossd_recorder_restarts_total 0.0" in http.get("/metrics").text


def test_a_run_keeps_the_hash_of_the_version_that_began_it(tmp_path: Path) -> None:
    """A batch that was counted by SHA-256 and is sent again is the same batch; other data under its name is refused."""
    with keeping_runs(tmp_path) as service, asking(service) as http:
        assert http.put("/v1/runs/old", json=RUN).status_code == 201
    with sqlite3.connect(tmp_path / "runs.db") as database:  # as of a run of before there was another
        database.execute("UPDATE runs SET content_hash = NULL")
    sha256 = "fb6ba0140fa820f068fb32acf26f1d8e5327be381b1279312e8e74c42f035a03"  # what that version told
    with keeping_runs(tmp_path) as service, asking(service) as http:
        assert http.put("/v1/runs/new", json=RUN).status_code == 201
        for run in ("old", "new"):
            path = f"/v1/runs/{run}/batches/a"
            assert [http.put(path, json=batch(0)).status_code for _ in range(3)] == [201, 200, 200]
            assert http.put(path, json=batch(1)).status_code == 409
            assert (http.get(path).json()["digest"] == sha256) == (run == "old")
    with keeping_runs(tmp_path) as service, asking(service) as http:
        for run in ("old", "new"):
            assert http.put(f"/v1/runs/{run}", json=RUN).status_code == 200
            assert http.put(f"/v1/runs/{run}/batches/a", json=batch(0)).status_code == 200
            assert http.put(f"/v1/runs/{run}/batches/a", json=batch(1)).status_code == 409
            assert http.put(f"/v1/runs/{run}/batches/b", json=batch(1)).status_code == 201
        http.delete("/v1/runs/old")
        assert http.put("/v1/runs/old", json=RUN).status_code == 201
        assert http.put("/v1/runs/old/batches/a", json=batch(0)).status_code == 201
        assert http.get("/v1/runs/old/batches/a").json()["digest"] != sha256, "it is a new run"


def test_several_fronts_share_a_recorder_that_is_restarted(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Each front counts batches of one run, before and after the recorder is killed; each batch counts once."""
    monkeypatch.setenv("LOSSD_RUNS", str(tmp_path / "runs.db"))
    with group(tmp_path, 2) as service:
        assert not service.recorders, "no run was asked for"
        clients = list(service.client_of_each().values())
        assert clients[0].put("/v1/runs/a", json=RUN).status_code == 201
        assert clients[1].put("/v1/runs/a", json=RUN).status_code == 200
        for number in range(4):
            assert clients[number % 2].put(f"/v1/runs/a/batches/{number}", json=batch(number)).status_code == 201
        [victim] = service.recorders
        os.kill(victim, signal.SIGKILL)
        for number in range(2, 6):
            status = clients[number % 2].put(f"/v1/runs/a/batches/{number}", json=batch(number)).status_code
            assert status == (200 if number < 4 else 201)
        assert service.recorders != [victim]
        for client in clients:
            run = client.get("/v1/runs/a").json()
            assert run["counted"] == {"rows": 24, "entries": 24, "batches": 6}
            assert run["result"]["metrics"]["accuracy"] == 21 / 24, "of the last rows, three of six are wrong"
            assert "lossd_recorder_restarts_total 1.0" in client.get("/metrics").text
            client.close()
        [last] = service.recorders
    assert not Path(f"/proc/{last}").exists(), "it ended with the service"
