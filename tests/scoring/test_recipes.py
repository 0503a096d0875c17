"""The programs of the documentation for MPI and Spark answer what one process does, to the last bit."""

from __future__ import annotations

import importlib.util
import json
import os
import pickle
import select
import shutil
import socket
import subprocess
import sys
from collections.abc import Callable, Iterable
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from functools import reduce
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import pyarrow as arrow
import pyarrow.parquet
import pytest

import lossd
from lossd.engine import worker_process

EXAMPLES = Path(__file__).parents[2] / "service/examples"
ROWS, FILES = 90, 5
METRICS = ["default", "auroc"]


@pytest.fixture(scope="module")
def inputs() -> tuple[Any, Any]:
    random = np.random.default_rng(4)
    target = random.integers(0, 3, ROWS)
    return random.standard_normal((ROWS, 3)) + (target[:, None] == np.arange(3)), target


def whole(inputs: tuple[Any, Any], identity: Any) -> lossd.Run:
    run = lossd.Run(task="multiclass", metrics=METRICS, identity=identity)
    run.add(*inputs, **({"first": 0} if identity == "position" else {"sample_id": np.arange(ROWS)}))
    return run


# What stands for Python in the command that starts the ranks: each is forked from a process that has imported torch.
RANK = """
import json, os, socket, sys
with socket.socket(socket.AF_UNIX) as connection:
    connection.connect(sys.argv[1])
    files = [0, 1, 2, int(os.environ["PMI_FD"])]
    socket.send_fds(connection, [json.dumps(dict(os.environ)).encode()], files)
    sys.exit(int(connection.recv(8)))
"""


# MPI tells mpiexec at the end of Python and of C that a rank is finished; else the other ranks are killed. A forked
# process ends without either.
PROGRAM = f"""
import ctypes, runpy, sys
from mpi4py import MPI
runpy.run_path({str(EXAMPLES / "mpi_score.py")!r}, run_name="__main__")
sys.stdout.flush()
MPI.Finalize()
ctypes.CDLL(None).exit(0)
"""


def fork_rank(server: socket.socket, command: list[str]) -> None:
    """Run a command with the variables and files of a connection's other end, until either ends."""
    with server.accept()[0] as connection:
        text, files, _, _ = socket.recv_fds(connection, 1 << 20, 4)
        *streams, manager = files
        environment = json.loads(text) | {"PMI_FD": str(manager), "OMP_NUM_THREADS": "1"}
        rank = worker_process.subprocess.Popen(
            command, env=environment, pass_fds=[manager],
            **dict(zip(("stdin", "stdout", "stderr"), streams, strict=True)),
        )  # fmt: skip
        for file in files:
            os.close(file)
        ended = os.pidfd_open(rank.pid)
        if connection in select.select([ended, connection], [], [])[0]:
            rank.kill()
        os.close(ended)
        status = rank.wait()
        with suppress(BrokenPipeError):
            connection.send(str(status).encode())


def test_ranks_of_mpi_score_as_one_process(inputs: tuple[Any, Any], tmp_path: Path) -> None:
    mpiexec = shutil.which("mpiexec", path=f"{Path(sys.executable).parent}:{os.environ['PATH']}")
    if importlib.util.find_spec("mpi4py") is None or mpiexec is None:
        pytest.skip("mpi4py or mpiexec is not installed")
    for number in range(FILES):
        part = slice(number * ROWS // FILES, (number + 1) * ROWS // FILES)
        np.savez(tmp_path / f"{number}.npz", prediction=inputs[0][part], target=inputs[1][part])
    address = tmp_path / "forks"
    command = [mpiexec, "-n", "2", sys.executable, "-I", "-S", "-c", RANK, address]
    with socket.create_server(str(address), family=socket.AF_UNIX) as server, ThreadPoolExecutor(2) as threads:
        program = [sys.executable, "-c", PROGRAM, str(tmp_path / "*.npz")]
        ranks = [threads.submit(fork_rank, server, program) for _ in range(2)]
        run = subprocess.run(list(map(str, command)), capture_output=True, text=True, timeout=100, check=False)
        server.shutdown(socket.SHUT_RDWR)
    assert run.returncode == 0, run.stdout + run.stderr
    for rank in ranks:
        rank.result()
    result = whole(inputs, "position").result()
    assert run.stdout.split() == [result.targets, result.digest, str(ROWS)]


@pytest.fixture
def spark() -> ModuleType:
    specification = importlib.util.spec_from_file_location("spark_score", EXAMPLES / "spark_score.py")
    assert specification is not None
    assert specification.loader is not None
    module = importlib.util.module_from_spec(specification)
    specification.loader.exec_module(module)
    return module


class Frame:
    """Has what the program uses of a Spark data frame: ``rdd``, ``mapPartitions`` and ``treeReduce``.

    Spark sends what goes between processes as pickles.
    """

    def __init__(self, partitions: list[list[Any]]) -> None:
        self._partitions = partitions

    @property
    def rdd(self) -> Frame:
        return self

    def mapPartitions(self, function: Callable[[Iterable[Any]], Iterable[Any]]) -> Frame:  # noqa: N802  (as Spark's)
        return Frame([[pickle.loads(pickle.dumps(each)) for each in function(iter(p))] for p in self._partitions])

    def treeReduce(self, function: Callable[[Any, Any], Any]) -> Any:  # noqa: N802
        return reduce(function, [each for partition in reversed(self._partitions) for each in partition])


class Row:
    """A row of a data frame."""

    def __init__(self, number: int, prediction: Any, target: int) -> None:
        self.id, self.prediction, self.target = number, list(prediction), int(target)


def test_partitions_of_spark_score_as_one_process(inputs: tuple[Any, Any], spark: ModuleType) -> None:
    """On a stand-in for a data frame, with an empty partition; the next test needs Spark."""
    rows = [Row(number, *pair) for number, pair in enumerate(zip(*inputs, strict=True))]
    result = spark.score(Frame([rows[40:], [], rows[:7], rows[7:40]]))
    assert (result.digest, result.counted.rows) == (whole(inputs, "id").result().digest, ROWS)


@pytest.mark.skipif(importlib.util.find_spec("pyspark") is None, reason="pyspark is not installed: it has 450 MB")
def test_spark_scores_as_one_process(inputs: tuple[Any, Any], tmp_path: Path) -> None:
    table = {"id": np.arange(ROWS), "prediction": list(inputs[0]), "target": inputs[1]}
    arrow.parquet.write_table(arrow.table(table), tmp_path / "rows.parquet", row_group_size=20)
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(sys.path), "PYSPARK_PYTHON": sys.executable}
    command = [sys.executable, str(EXAMPLES / "spark_score.py"), str(tmp_path / "rows.parquet")]
    run = subprocess.run(command, capture_output=True, text=True, env=environment, check=False)
    assert run.returncode == 0, run.stderr
    result = whole(inputs, "id").result()
    assert run.stdout.split() == [result.targets, result.digest, str(ROWS)]
