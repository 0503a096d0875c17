"""``lossd score --on ray`` and ``--on dask``: what dies in the middle changes no bit of the score."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from click.testing import CliRunner

import lossd.files.sources as files
from lossd.cli import main
from lossd.engine import worker_process
from ray_nodes import FIRST, PATIENT, compiled

ROOT = Path(__file__).parents[2]
FILES, FREE = 8, 4
OPTIONS = ("--task", "regression", "--metrics", "mae,mse", "--json")
PACKAGES = {"ray": "ray", "dask": "distributed"}
LONGEST_S = 240
STARTS = 3
"""A node of Ray has 30 s to start, on a busy machine too."""


class Cluster:
    """A cluster in a process of its own."""

    def __init__(self, kind: str, held: Path) -> None:
        folders = [str(Path(__file__).parent / "held"), str(ROOT / "tests"), *sys.path]
        environment = {
            **os.environ,
            "PYTHONPATH": os.pathsep.join(folders),
            "HELD": str(held),
            "RAY_USAGE_STATS_ENABLED": "0",
            **PATIENT,
        }
        compiled()
        for attempt in reversed(range(STARTS)):
            self.process = subprocess.Popen(
                [*FIRST, sys.executable, "-m", "scoring.clusters", kind],
                stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True, env=environment,
                start_new_session=True,
            )  # fmt: skip
            try:
                self.address = self._heard()["address"]
                return
            except AssertionError:
                self.close()
                if not attempt:
                    raise

    def kill_a_worker(self) -> None:
        assert self.process.stdin is not None
        self.process.stdin.write("kill\n")
        self.process.stdin.flush()
        assert self._heard()["killed"]

    def close(self) -> None:
        assert self.process.stdin is not None
        assert self.process.stdout is not None
        self.process.stdin.close()
        self.process.stdout.close()
        self.process.wait(120)

    def _heard(self) -> dict[str, Any]:
        assert self.process.stdout is not None
        for line in self.process.stdout:
            if line.startswith("{"):
                found: dict[str, Any] = json.loads(line)
                return found
        raise AssertionError("the cluster ended")


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Files of which each is a chunk."""
    folder, draw = tmp_path_factory.mktemp("data"), np.random.default_rng(2)
    for number in range(FILES):
        target = draw.standard_normal(270_000)
        files.write(folder / f"{number:02}.npz", {"prediction": target + draw.random(270_000), "target": target})
    return folder


@pytest.mark.timeout(2 * LONGEST_S)
@pytest.mark.parametrize("kind", PACKAGES)
def test_what_dies_changes_no_bit(kind: str, data: Path, tmp_path: Path) -> None:
    """A worker process and, on Ray, a node too are killed while they evaluate; each chunk counts once."""
    if find_spec(PACKAGES[kind]) is None:
        pytest.skip(f"{PACKAGES[kind]} is not installed")
    plain = CliRunner().invoke(main, ["score", str(data), *OPTIONS])
    assert plain.exit_code == 0, plain.output
    (data / "go").unlink(missing_ok=True)
    cluster, ledger = Cluster(kind, data), tmp_path / "ledger"
    try:
        command = ["score", str(data), *OPTIONS, "--on", f"{kind}={cluster.address}", "--resume", str(ledger)]
        started = worker_process.subprocess.Popen(
            [sys.executable, "-m", "lossd.cli", *command], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
        )
        wait_for_chunks(ledger, FREE, started)
        cluster.kill_a_worker()
        (data / "go").touch()
        output, errors = started.communicate(timeout=LONGEST_S)
    finally:
        cluster.close()
    assert started.returncode == 0, errors
    expected, found = json.loads(plain.stdout), json.loads(output)
    for each in (expected, found):
        del each["files"]["seconds"]
    assert found == expected
    assert (found["files"]["counted"], found["missing"]) == (FILES, [])
    lines = ledger.read_bytes().splitlines()[1:]
    assert len({json.loads(line)["chunk"] for line in lines}) == len(lines) == FILES


def wait_for_chunks(ledger: Path, count: int, command: Any) -> None:
    """Wait until so many chunks are finished, and not all."""
    deadline = time.monotonic() + LONGEST_S
    while not ledger.exists() or ledger.read_bytes().count(b"\n") <= count:
        assert time.monotonic() < deadline
        assert command.poll() is None, command.communicate()
        time.sleep(0.01)


@pytest.mark.parametrize("on", ["ray=127.0.0.1:9", "dask=tcp://127.0.0.1:9"])
def test_a_cluster_that_is_not_there_is_named(on: str, data: Path) -> None:
    kind, _, address = on.partition("=")
    if find_spec(PACKAGES[kind]) is None:
        pytest.skip(f"{PACKAGES[kind]} is not installed")
    environment = {**os.environ, "DASK_DISTRIBUTED__COMM__TIMEOUTS__CONNECT": "1s"}
    started = worker_process.subprocess.Popen(
        [sys.executable, "-m", "lossd.cli", "score", str(data), *OPTIONS, "--on", on],
        stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, env=environment,
    )  # fmt: skip
    output, errors = started.communicate(timeout=LONGEST_S)
    assert (started.returncode, output) == (3, ""), errors
    assert f"cannot be reached at {address}" in errors
    assert f"no score: 0 of {FILES} files counted; --resume LEDGER would keep them" in errors
