"""``lossd score --on`` and ``--resume`` answer what ``lossd score`` does to the last bit, whatever dies and when."""

from __future__ import annotations

import json
import random
import signal
import subprocess
import sys
from collections.abc import Callable, Generator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as arrow
import pyarrow.parquet
import pytest
from click.testing import CliRunner, Result

import lossd.files.sources as files
from lossd.cli import executing, main
from lossd.engine import worker_process
from lossd.files.sources import Source
from lossd.scoring import blocks, chunks, executors, work
from lossd.scoring.blocks import Piece
from lossd.scoring.chunks import Chunk
from lossd.scoring.executors import Failed, Here, Processes
from lossd.scoring.work import ChunkResult
from scoring.dying import CutOff, Dying
from waiting import eventually

ROWS, SMALL = 400, 2500
LONGEST_S = 120.0
LOSS = ("--loss", "cross_entropy", "--metrics", "accuracy,auroc,log_loss,confusion_matrix")
SLICES = ("--slices", "site=A,B", "--slices", "sex=f,m", "--slice", "sex=f", "--groups", "16")


def score(*arguments: str | Path) -> Result:
    return CliRunner().invoke(main, ["score", *map(str, arguments), "--json"])


def answer(*arguments: str | Path, status: int = 0) -> dict[str, Any]:
    """The answer without the seconds it took."""
    result = score(*arguments)
    assert result.exit_code == status, result.output
    found: dict[str, Any] = json.loads(result.stdout)
    del found["files"]["seconds"]
    return found


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Files of every kind, small and large, with weights, clusters and the codes of a slice."""
    folder, draw = tmp_path_factory.mktemp("data"), np.random.default_rng(7)
    target = draw.integers(0, 3, ROWS)
    inputs = {
        "prediction": draw.standard_normal((ROWS, 3)) + 1.5 * (target[:, None] == np.arange(3)),
        "target": target,
        "sample_weight": draw.random(ROWS),
        "cluster_id": np.arange(ROWS) // 3,
        "slice.site": draw.integers(-1, 2, ROWS),
    }
    for number, begin in enumerate(range(0, 80, 10)):
        save(folder / f"{number:02}.npz", inputs, begin, begin + 10)
    for name, array in inputs.items():
        fmt = "%.17g" if array.dtype.kind == "f" else "%d"
        np.savetxt(folder / f"20_{name}.csv", array[80:120], delimiter=",", fmt=fmt)
        np.save(folder / f"30_{name}.npy", array[120:180])
    save(folder / "40.safetensors", inputs, 180, 270)
    rows = {name: list(array[270:]) if array.ndim > 1 else array[270:] for name, array in inputs.items()}
    arrow.parquet.write_table(arrow.table(rows), folder / "50.parquet", row_group_size=47)
    return folder


def save(path: Path, inputs: dict[str, Any], begin: int, end: int) -> None:
    files.write(path, {name: array[begin:end] for name, array in inputs.items()})


@pytest.fixture(scope="module")
def plain(data: Path) -> dict[str, Any]:
    return answer(data, *LOSS, *SLICES)


class Shuffled(Here):
    """Scores chunks out of order, and some twice, as a cluster may that takes a worker for dead."""

    def __init__(self, seed: int) -> None:
        self._random = random.Random(seed)
        self.scored: list[Chunk] = []

    def map(
        self, function: Callable[[Chunk], ChunkResult], chunks: Sequence[Chunk]
    ) -> Generator[ChunkResult, None, None]:
        order = [*chunks, *chunks[::3]]
        self._random.shuffle(order)
        for chunk in order:
            self.scored.append(chunk)
            yield function(chunk)


def on(monkeypatch: pytest.MonkeyPatch, executor: Any, chunk_bytes: int = SMALL) -> Any:
    """Score on an executor, in small chunks."""
    monkeypatch.setattr(executing, "_executor", lambda _: executor)
    monkeypatch.setattr(chunks, "usual_bytes", lambda _: chunk_bytes)
    return executor


# The same answer


@pytest.mark.parametrize(("chunk_bytes", "block_bytes"), [(900, 600), (SMALL, 300), (1 << 30, 2000)])
def test_neither_chunks_nor_their_order_change_a_bit(
    chunk_bytes: int, block_bytes: int, data: Path, plain: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    executor = on(monkeypatch, Shuffled(chunk_bytes), chunk_bytes)
    monkeypatch.setattr(blocks, "BLOCK_BYTES", block_bytes)
    assert answer(data, *LOSS, *SLICES, "--on", "processes") == plain
    pieces = {(c.pieces[0].source.name, c.pieces[0].begin) for c in executor.scored if c.pieces[0].end is not None}
    split = {name: sorted(begin for each, begin in pieces if each == name) for name, _ in pieces}
    if chunk_bytes == SMALL:
        assert split["50.parquet"] == [0, 47, 94], "row groups are chunks"
        assert len(split["40.safetensors"]) > 1
        assert max(len(chunk.pieces) for chunk in executor.scored) > 1
    assert "20" not in split, "a table of text is read as a whole"
    assert bool(split) == (chunk_bytes < 1 << 30)


def test_processes_change_no_bit(data: Path, plain: dict[str, Any], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(chunks, "usual_bytes", lambda _: 4 * SMALL)
    assert answer(data, *LOSS, *SLICES, "--on", "processes:2") == plain


def test_a_loss_of_whole_files_is_the_same(data: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Dice over a batch compares its rows, so no file is split."""
    dense = data.parent / "dense"
    dense.mkdir()
    draw = np.random.default_rng(1)
    for number in range(9):
        target = draw.integers(0, 2, (4, 1, 8, 8)).astype(np.float32)
        inputs = {"prediction": draw.standard_normal((4, 1, 8, 8)), "target": target}
        files.write(dense / f"{number}.npz", inputs)
    loss = ("--loss", "dice", "--mode", "binary")
    expected = answer(dense, *loss)
    on(monkeypatch, Shuffled(1), 1)
    assert answer(dense, *loss, "--on", "processes") == expected


@pytest.fixture
def flawed(tmp_path: Path, data: Path) -> Path:
    """Files of which one cannot be read, one has a bad row in its last block, and some have another number of classes.

    A refused .csv file keeps its positions, as does every other file whose rows are known.
    """
    folder, draw = tmp_path / "flawed", np.random.default_rng(5)
    folder.mkdir()

    def write(name: str, rows: int, classes: int, bad: int | None = None) -> dict[str, Any]:
        inputs = {"prediction": draw.standard_normal((rows, classes)), "target": draw.integers(0, classes, rows)}
        if bad is not None:
            inputs["target"][bad] = 99
        files.write(folder / name, inputs)
        return inputs

    (folder / "00.npz").write_bytes(b"PK\x03\x04")
    write("01.npz", 10, 3, bad=4)
    for number in range(2, 8):
        write(f"{number:02}.npz", 10, 4 if number in (3, 6) else 3)
    inputs = write("x.npz", 10, 3, bad=9)
    (folder / "x.npz").unlink()
    for name, array in inputs.items():
        np.savetxt(folder / f"10_{name}.csv", array, delimiter=",", fmt="%.17g" if array.ndim > 1 else "%d")
    write("20.safetensors", 200, 3, bad=190)
    write("30.safetensors", 200, 3)
    write("40.safetensors", 200, 4)
    write("50.npz", 10, 3)
    return folder


@pytest.mark.parametrize("chunk_bytes", [1, 1 << 30])
def test_bad_files_are_left_out_alike(chunk_bytes: int, flawed: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    options = (flawed, "--task", "multiclass", "--skip-bad")
    monkeypatch.setattr(blocks, "BLOCK_BYTES", 32 * 40)
    expected = answer(*options, status=1)
    assert [bad["file"] for bad in expected["files"]["bad"]] == [
        "00.npz", "01.npz", "03.npz", "06.npz", "10", "20.safetensors", "40.safetensors"
    ]  # fmt: skip
    assert expected["counted"]["rows"] == 4 * 10 + 200 + 10
    missing = [[0, 10], [20, 30], [50, 60], [70, 280], [480, 680]]
    assert expected["missing"] == missing, "a refused file keeps its positions, a table of text too"
    on(monkeypatch, Shuffled(chunk_bytes), chunk_bytes)
    assert answer(*options, "--on", "processes", status=1) == expected


def test_a_bad_file_is_named_and_there_is_no_score(flawed: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (flawed / "00.npz").unlink()
    expected = score(flawed, "--task", "multiclass")
    on(monkeypatch, Shuffled(1))
    found = score(flawed, "--task", "multiclass", "--on", "ray")
    assert (found.exit_code, found.stdout, found.stderr) == (1, "", expected.stderr)
    assert "no score: 6 of 12 files cannot be scored; fix them, or leave them out with --skip-bad" in found.stderr


# What dies


def dying(monkeypatch: pytest.MonkeyPatch, folder: Path, numbers: set[int], times: int) -> Processes:
    """Two processes, and chunks of which some kill theirs."""

    class Killed(Processes):
        def map(self, function: Any, chunks: Sequence[Chunk]) -> Generator[ChunkResult, None, None]:
            ids = frozenset(chunk.id for number, chunk in enumerate(chunks) if number in numbers)
            return super().map(Dying(function, folder, ids, times), chunks)

    folder.mkdir()
    found: Processes = on(monkeypatch, Killed(2))
    return found


def test_a_killed_process_loses_nothing(
    data: Path, plain: dict[str, Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    dying(monkeypatch, tmp_path / "tries", {2, 5}, executors.TRIES - 1)
    assert answer(data, *LOSS, *SLICES, "--on", "processes") == plain
    tries = [path.stem for path in (tmp_path / "tries").iterdir()]
    assert len(tries) == len({*tries}) + 2 * (executors.TRIES - 1), "the other chunks are scored once"


def test_a_chunk_that_kills_every_process_is_named(data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    ledger = tmp_path / "ledger"
    dying(monkeypatch, tmp_path / "tries", {1}, 99)
    result = score(data, *LOSS, *SLICES, "--on", "processes", "--resume", ledger)
    assert (result.exit_code, result.stdout) == (3, ""), result.output
    assert "the process that scored 04.npz to 07.npz died 3 times" in result.stderr
    assert f"files counted; they are in {ledger}: the same command continues" in result.stderr


@pytest.mark.timeout(60)
def test_a_process_that_dies_while_it_sends_is_noticed() -> None:
    """The rest of what it sent is not awaited."""
    chunk = Chunk("a", (Piece(Source("a.npz", {})),), (1,), 0, 8)
    with pytest.raises(Failed, match="died 3 times"):
        next(Processes(2).map(CutOff(), [chunk]))


@pytest.fixture
def large(tmp_path: Path) -> Path:
    """Eight files, each of which is a chunk of its own."""
    folder, draw = tmp_path / "large", np.random.default_rng(2)
    folder.mkdir()
    for number in range(8):
        target = draw.standard_normal(270_000)
        files.write(folder / f"{number:02}.npz", {"prediction": target + draw.random(270_000), "target": target})
    (folder / "05.npz").write_bytes((folder / "04.npz").read_bytes())  # files of equal content are two
    return folder


def test_a_killed_command_goes_on_where_it_was(large: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Its processes end too; a line that was cut off is dropped; what is finished is not evaluated again."""
    ledger, options = tmp_path / "ledger", (large, "--task", "regression", "--metrics", "mae")
    command = [
        sys.executable,
        "-m",
        "lossd.cli",
        "score",
        *map(str, options),
        "--on",
        "processes:2",
        "--resume",
        ledger,
    ]
    started = worker_process.subprocess.Popen(list(map(str, command)), stderr=subprocess.DEVNULL)
    eventually(lambda: ledger.exists() and ledger.read_bytes().count(b"\n") >= 3, LONGEST_S)
    processes = descendants(started.pid)
    started.kill()
    started.wait()
    assert len(processes) >= 3, "a server of forks and two processes"
    eventually(lambda: not any(map(runs, processes)), LONGEST_S)
    kept = ledger.read_bytes()
    kept = kept[: kept.rindex(b"\n") + 1]
    ledger.write_bytes(kept + kept.splitlines()[1][:-7])  # as if the machine had stopped while a line was written

    executor = Shuffled(3)
    monkeypatch.setattr(executing, "_executor", lambda _: executor)
    assert answer(*options, "--resume", ledger) == answer(*options)
    finished = {json.loads(line)["chunk"] for line in kept.splitlines()[1:]}
    scored = {chunk.id for chunk in executor.scored}
    assert len(finished) >= 2
    assert not finished & scored, "what is finished is not evaluated again"
    lines = [json.loads(line) for line in ledger.read_bytes().splitlines()[1:]]
    assert sorted(line["chunk"] for line in lines) == sorted(finished | scored), "each chunk once"
    executor.scored.clear()
    result = score(*options, "--resume", ledger)
    assert executor.scored == []
    assert "8 of 8 files counted before" in result.stderr


def descendants(pid: int) -> list[int]:
    """The processes that a process has started, and that those have."""
    children = [
        int(child) for path in Path(f"/proc/{pid}/task").glob("*/children") for child in path.read_text().split()
    ]
    return [*children, *(each for child in children for each in descendants(child))]


def runs(pid: int) -> bool:
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(") ")[2][0] != "Z"
    except OSError:
        return False


# The ledger


@pytest.mark.parametrize("rows", [10, 90])
def test_a_mended_file_is_scored_again_and_the_others_are_not(
    rows: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A large file is several chunks, of which one is bad: all are scored again."""
    folder, ledger, draw = tmp_path / "data", tmp_path / "ledger", np.random.default_rng(1)
    folder.mkdir()
    for number in range(6):
        found = {"prediction": draw.standard_normal((rows, 3)), "target": draw.integers(0, 3, rows)}
        found["target"][3] = 9 if number == 4 else 0
        files.write(folder / f"{number}.npz", found)
        if number == 4:
            mended = found
    monkeypatch.setattr(blocks, "BLOCK_BYTES", 32 * 40)
    executor = on(monkeypatch, Shuffled(1), 1)
    options = ("--task", "multiclass", "--resume", ledger)
    assert "class 9 at target[3] is out of range" in score(folder, *options).stderr
    mended["target"][3] = 0
    files.write(folder / "4.npz", mended)
    executor.scored.clear()
    assert answer(folder, *options) == answer(folder, "--task", "multiclass")
    assert {chunk.pieces[0].source.name for chunk in executor.scored} == {"4.npz"}
    assert len({chunk.id for chunk in executor.scored}) == (1 if rows == 10 else 3)


def test_another_ledger_is_refused(data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder, ledger = tmp_path / "data", tmp_path / "ledger"
    folder.mkdir()
    for number in range(4):
        with np.load(data / f"{number:02}.npz") as found:
            files.write(folder / f"{number}.npz", {name: found[name] for name in ("prediction", "target")})
    on(monkeypatch, Shuffled(1), 1)
    task = (folder, "--task", "multiclass", "--resume", ledger)

    def refused(*options: Any) -> str:
        before = ledger.read_bytes()
        result = score(*task, *options)
        assert (result.exit_code, result.stdout) == (2, ""), result.output
        assert ledger.read_bytes() == before
        return " ".join(result.stderr.split())

    answer(*task)
    lines = ledger.read_bytes().splitlines(keepends=True)
    assert "of another score: /request/metrics/names differ" in refused("--metrics", "accuracy")
    assert "of another score: /slice" in refused("--slices", "a=b,c", "--slice", "a=b")
    (folder / "4.npz").write_bytes((folder / "1.npz").read_bytes())
    assert "of another score: /rows differ; give the same options and files as before" in refused()
    (folder / "4.npz").unlink()
    with monkeypatch.context() as patch:
        patch.setattr(work, "__version__", "9.9")
        assert "/lossd differ" in refused()
    ledger.write_bytes(b"".join([*lines[:2], lines[2][:-9] + b"\n", *lines[3:]]))
    assert "line 3 of" in refused()
    ledger.write_bytes(b"notes\nof mine\n")
    assert "is not a ledger of lossd score" in refused()
    ledger.write_bytes(b"notes")
    assert "is not a ledger of lossd score" in refused()


def test_one_command_at_a_time_writes_a_ledger(data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    import fcntl

    ledger = tmp_path / "ledger"
    with ledger.open("w") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        result = score(data, *LOSS, *SLICES, "--resume", ledger)
    assert result.exit_code == 2
    assert "is in use by another process" in " ".join(result.stderr.split())


def test_ctrl_c_says_what_was_counted_and_how_to_go_on(
    data: Path, plain: dict[str, Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    class Interrupted(Shuffled):
        def map(self, function: Any, chunks: Sequence[Chunk]) -> Generator[ChunkResult, None, None]:
            for chunk in chunks[:4]:
                yield function(chunk)
            signal.raise_signal(signal.SIGINT)

    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    try:
        for options, message in (
            ((), "with --resume LEDGER"),
            (("--resume", tmp_path / "l"), "the same command continues"),
        ):
            on(monkeypatch, Interrupted(1))
            result = score(data, *LOSS, *SLICES, "--on", "ray", *options)
            assert result.exit_code == 130
            found = json.loads(result.stdout)
            assert 0 < found["files"]["counted"] < 12
            assert found["files"]["interrupted"]
            assert f"this is the score of {found['files']['counted']} of 12 files" in result.stderr
            assert message in result.stderr
    finally:
        signal.signal(signal.SIGINT, before)
    on(monkeypatch, Shuffled(1))
    assert answer(data, *LOSS, *SLICES, "--resume", tmp_path / "l") == plain


# Usage


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (("--on", "processes:0"), "is not processes:N"),
        (("--on", "cluster"), "is not processes, processes:N, ray, ray=ADDRESS or dask=ADDRESS"),
        (("--on", "ray="), "is not processes"),
        (("--on", "dask"), "dask needs the address of the scheduler: dask=tcp://HOST:8786"),
        (("--on", "ray", "--run", "a"), "leave them out, or score without --run"),
        (("--resume", "x", "--run", "a"), "leave them out, or score without --run"),
    ],
)
def test_wrong_usage_is_refused(options: tuple[str, ...], message: str, data: Path) -> None:
    result = score(data, "--task", "multiclass", *options)
    assert result.exit_code == 2
    assert message in " ".join(result.stderr.split())


@pytest.mark.parametrize(
    ("on", "missing", "extra"),
    [("ray", "ray", "ray"), ("dask=tcp://127.0.0.1:1", "distributed", "dask")],
)
def test_a_missing_engine_is_named(on: str, missing: str, extra: str, data: Path, monkeypatch: Any) -> None:
    monkeypatch.setitem(sys.modules, missing, None)
    monkeypatch.delitem(sys.modules, f"lossd.scoring.{extra}_tasks", raising=False)
    result = score(data, *LOSS, *SLICES, "--on", on)
    assert result.exit_code == 3
    assert f"--on {extra} needs the package {missing}: pip install 'lossd[{extra}]'" in result.stderr


def test_another_version_on_a_worker_is_named(data: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    scorer = work.Scorer(b"", (), True, {}, {"lossd": "0.0", "torch": "1.0"})
    with pytest.raises(work.OtherVersion, match=r"a worker has lossd .*, and this command lossd 0\.0, torch 1\.0"):
        scorer(Chunk("", (), (), 0, 0))


def test_a_plain_score_loads_no_engine(data: Path, plain: dict[str, Any], monkeypatch: pytest.MonkeyPatch) -> None:
    for module in ("ray", "dask", "distributed", "fsspec", "lossd.scoring.executors", "lossd.scoring.ledger"):
        monkeypatch.setitem(sys.modules, module, None)  # to import it is an error
    assert answer(data, *LOSS, *SLICES) == plain
