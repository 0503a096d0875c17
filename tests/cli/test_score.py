"""``lossd score``: the files of a directory are one data set, whatever their order, their sizes and their kinds."""

from __future__ import annotations

import csv
import json
import re
import signal
import threading
import time
from collections.abc import Generator, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as arrow
import pyarrow.parquet
import pytest
from click.testing import CliRunner, Result

import lossd
import lossd.files.sources as files
from cli.terminal import Terminal
from lossd.cli import main
from lossd.runs.rows.fingerprint import Fingerprint
from lossd.scoring import blocks

Array = np.ndarray[Any, Any]

ROWS, CLASSES = 240, 3
SUFFIXES = (".safetensors", ".npz", ".npy", ".csv", ".parquet")


@pytest.fixture(scope="module")
def data() -> tuple[Array, Array]:
    random = np.random.default_rng(7)
    target = random.integers(0, CLASSES, ROWS)
    prediction = random.standard_normal((ROWS, CLASSES)) + 1.5 * (target[:, None] == np.arange(CLASSES))
    return prediction.astype(np.float32), target


def score(*arguments: str | Path) -> Result:
    return CliRunner().invoke(main, ["score", *map(str, arguments)])


def document(*arguments: str | Path) -> dict[str, Any]:
    result = score(*arguments, "--json")
    assert result.exit_code == 0, result.output
    (line,) = result.stdout.splitlines()
    found: dict[str, Any] = json.loads(line)
    return found


def save(folder: Path, name: str, suffix: str, arrays: dict[str, Array]) -> None:
    """Write the inputs of one file, or of a group of files."""
    folder.mkdir(exist_ok=True)
    if suffix == ".npy":
        for key, array in arrays.items():
            np.save(folder / f"{name}_{key}.npy", array)
    elif suffix == ".csv":
        for key, array in arrays.items():
            fmt = "%.17g" if array.dtype.kind == "f" else "%d"
            np.savetxt(folder / f"{name}_{key}.csv", array.astype(np.float64), delimiter=",", fmt=fmt)
    elif suffix == ".parquet":
        table = arrow.table({key: list(array) if array.ndim > 1 else array for key, array in arrays.items()})
        arrow.parquet.write_table(table, folder / f"{name}{suffix}")
    else:
        files.write(folder / f"{name}{suffix}", arrays)


def split(folder: Path, data: tuple[Array, Array], cuts: list[int], *suffixes: str) -> Path:
    """Write the rows between cuts into files of these kinds, one kind after the other."""
    prediction, target = data
    for number, (begin, end) in enumerate(zip([0, *cuts], [*cuts, ROWS], strict=True)):
        arrays = {"prediction": prediction[begin:end], "target": target[begin:end]}
        save(folder, f"{number:03}", suffixes[number % len(suffixes)], arrays)
    return folder


@pytest.fixture
def folder(tmp_path: Path, data: tuple[Array, Array]) -> Path:
    """Files of each kind, of different lengths."""
    return split(tmp_path / "data", data, [10, 11, 50, 120, 200], *SUFFIXES)


# The score


def test_a_directory_is_scored_as_one_data_set(folder: Path, data: tuple[Array, Array]) -> None:
    names = "default,cohen_kappa,log_loss,auroc,confusion_matrix,ece"
    found = document(folder, "--loss", "cross_entropy", "--label-smoothing", "0.1", "--metrics", names)
    metrics = {"names": names.split(",")}
    whole = lossd.evaluate("cross_entropy", *data, label_smoothing=0.1, outputs=["loss", "metrics"], metrics=metrics)
    assert found["loss"] == pytest.approx(whole.loss, rel=1e-6)
    assert found["metrics"].keys() == whole.metrics.keys()
    for name, value in whole.metrics.items():
        flat, expected = (np.array(list(_numbers(each))) for each in (found["metrics"][name], value))
        np.testing.assert_allclose(flat, expected, rtol=1e-6)
    assert found["metrics"]["confusion_matrix"] == whole.metrics.confusion_matrix, "counts are exact"
    assert found["metrics"]["accuracy"] == whole.metrics.accuracy
    assert (found["counted"]["rows"], found["missing"]) == (ROWS, [])
    assert (found["files"]["counted"], found["files"]["of"], found["files"]["bad"]) == (6, 6, [])


def _numbers(value: Any) -> Iterator[float]:
    if isinstance(value, dict | list):
        for each in value.values() if isinstance(value, dict) else value:
            yield from _numbers(each)
    elif isinstance(value, int | float):
        yield value


def test_the_split_changes_no_bit(tmp_path: Path, data: tuple[Array, Array]) -> None:
    """One file, seven, and many of one row: every digit of the answer is the same."""
    options = ("--loss", "cross_entropy", "--metrics", "default,log_loss,brier,auroc,average_precision,ece")
    found = []
    for number, cuts in enumerate(([], [1, 2, 64, 65, 128, 230], [*range(1, 100, 3)])):
        answer = document(split(tmp_path / str(number), data, cuts, ".safetensors", ".npy"), *options)
        found.append({name: answer[name] for name in ("loss", "metrics", "targets", "missing", "digest")})
    assert found[0] == found[1] == found[2]


def test_rows_are_known_by_their_position(folder: Path, data: tuple[Array, Array]) -> None:
    fingerprint = Fingerprint()
    fingerprint.add({"target": data[1]}, first=0)
    assert document(folder, "--task", "multiclass", "--metrics", "accuracy")["targets"] == str(fingerprint)


def test_a_large_file_is_counted_in_blocks(
    tmp_path: Path, data: tuple[Array, Array], monkeypatch: pytest.MonkeyPatch
) -> None:
    options = ("--task", "multiclass", "--metrics", "default,log_loss")
    folder = split(tmp_path / "data", data, [100], ".safetensors", ".parquet")
    whole = document(folder, *options)
    sizes = []
    add = lossd.Run.add

    def counted(self: lossd.Run, *arguments: Any, **keywords: Any) -> int:
        sizes.append(add(self, *arguments, **keywords))
        return sizes[-1]

    monkeypatch.setattr(lossd.Run, "add", counted)
    monkeypatch.setattr(blocks, "BLOCK_BYTES", 20 * 17)
    split_blocks = document(folder, *options)
    assert sizes == [17] * 5 + [15] + [17] * 8 + [4]
    assert (split_blocks["metrics"], split_blocks["targets"]) == (whole["metrics"], whole["targets"])


def test_a_file_that_is_one_sample_of_a_loss_is_not_split(tmp_path: Path, data: tuple[Array, Array]) -> None:
    """Inputs without rows of their own keep a file together, as does a loss that is not of rows."""
    split(tmp_path / "data", data, [], ".npz")
    (source,) = files.sources([*(tmp_path / "data").iterdir()], ["prediction", "target"])
    pieces, inputs = [blocks.Piece(source)], ["prediction", "target"]
    for by_row, splits in ((inputs, False), (["prediction"], True)):
        (block,) = blocks.blocks(pieces, by_row, splits=splits, block_bytes=1)
        assert len(block.arrays["target"]) == ROWS
    assert len([*blocks.blocks(pieces, inputs, splits=True, block_bytes=1)]) == ROWS


def test_few_blocks_are_read_ahead() -> None:
    made = []

    def items() -> Generator[int, None, None]:
        for number in range(100):
            made.append(number)
            yield number

    found = []
    with blocks.read_ahead(items(), 3) as ahead:
        for item in ahead:
            found.append(item)
            assert len(made) <= item + 5
    assert found == made == [*range(100)]


def test_reading_ahead_ends_with_the_first_error() -> None:
    """An error's traceback keeps the frame that reads; the thread must have ended, and the open files are closed."""
    drawn = threading.Event()
    threads = set(threading.enumerate())
    closed = []

    def items() -> Generator[int, None, None]:
        try:
            yield 0
            drawn.set()
            time.sleep(0.1)  # the thread is in here when the error comes
            yield 1
            yield 2
        finally:
            closed.append(True)

    kept: list[Iterator[int]] = []

    def fail() -> None:
        with blocks.read_ahead(items(), 3) as ahead:
            kept.append(ahead)
            next(ahead)
            drawn.wait()
            raise RuntimeError

    with pytest.raises(RuntimeError):
        fail()
    assert set(threading.enumerate()) <= threads
    assert closed


# What goes wrong


@pytest.fixture
def flawed(folder: Path, data: tuple[Array, Array]) -> Path:
    """The same, and rows 240 to 249 of which one is of no class."""
    save(folder, "998", ".npz", {"prediction": data[0][:10], "target": np.array([0, 1, 2, 9, 0, 0, 0, 0, 0, 0])})
    save(folder, "999", ".npz", {"prediction": data[0][:5], "target": data[1][:5]})
    return folder


def test_a_bad_file_is_named_and_there_is_no_score(flawed: Path, tmp_path: Path) -> None:
    for option in ("--json", "--plot-kind=confusion"):
        output = tmp_path / "score.json"
        result = score(flawed, "--task", "multiclass", option, "--output", output)
        assert (result.exit_code, result.stdout, output.exists()) == (1, "", False)
        assert re.search(
            r"^998\.npz: Invalid value: class 9 at target\[3\] is out of range", result.stderr, re.MULTILINE
        )
        assert "no score: 1 of 8 files cannot be scored; fix them, or leave them out with --skip-bad" in result.stderr


def test_bad_files_can_be_left_out(flawed: Path, data: tuple[Array, Array]) -> None:
    result = score(flawed, "--task", "multiclass", "--metrics", "confusion_matrix", "--skip-bad", "--json")
    assert result.exit_code == 1
    assert "998.npz: Invalid value" in result.stderr
    found = json.loads(result.stdout)
    both = [np.concatenate([array, array[:5]]) for array in data]
    expected = lossd.evaluate(
        task="multiclass", inputs=dict(zip(("prediction", "target"), both, strict=True)), metrics=["confusion_matrix"]
    )
    assert found["metrics"]["confusion_matrix"] == expected.metrics.confusion_matrix
    assert found["counted"]["rows"] == ROWS + 5
    assert found["files"]["bad"][0]["file"] == "998.npz"
    assert "class 9" in found["files"]["bad"][0]["detail"]


def test_what_is_missing_is_named(tmp_path: Path, data: tuple[Array, Array]) -> None:
    """The headers tell the positions of a bad file's rows, and those behind keep theirs."""
    folder = split(tmp_path / "data", data, [100], ".npz")
    save(folder, "000", ".npz", {"prediction": data[0][:100], "target": data[1][:100] + 9})
    result = score(folder, "--task", "multiclass", "--metrics", "accuracy", "--skip-bad", "--json")
    found = json.loads(result.stdout)
    assert [[*gap] for gap in found["missing"]] in ([[0, 100]], [[0, 99]])
    fingerprint = Fingerprint()
    fingerprint.add({"target": data[1][100:]}, first=100)
    assert found["targets"] == str(fingerprint)


def test_a_file_with_a_bad_row_in_its_last_block_leaves_nothing(
    flawed: Path, data: tuple[Array, Array], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(blocks, "BLOCK_BYTES", 40)
    result = score(flawed, "--task", "multiclass", "--metrics", "accuracy", "--skip-bad", "--json")
    found = json.loads(result.stdout)
    assert found["counted"]["rows"] == ROWS + 5
    assert [bad["file"] for bad in found["files"]["bad"]] == ["998.npz"]


def test_unreadable_files_are_named_before_anything_is_evaluated(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (folder / "a.npz").write_bytes(b"PK\x03\x04")
    (folder / "b_prediction.npy").write_bytes(b"\x93NUMPY")

    def never(*arguments: Any, **keywords: Any) -> int:
        raise AssertionError("nothing is to be evaluated")

    monkeypatch.setattr(lossd.Run, "add", never)
    result = score(folder, "--task", "multiclass")
    assert (result.exit_code, result.stdout) == (1, "")
    assert re.search(r"^a\.npz: Unreadable file: .*a\.npz cannot be read", result.stderr, re.MULTILINE)
    assert re.search(r"^b: Unreadable file: .*b_prediction\.npy cannot be read", result.stderr, re.MULTILINE)
    assert "no score: 2 of 8 files cannot be scored" in result.stderr


def test_many_bad_files_are_counted(tmp_path: Path) -> None:
    for number in range(9):
        (tmp_path / f"{number}.npz").write_bytes(b"PK\x03\x04")
    for option in ([], ["--skip-bad"]):
        result = score(tmp_path, "--task", "multiclass", *option)
        assert (result.exit_code, result.stdout) == (1, "")
        assert result.stderr.count("cannot be read") == 5
        assert "... and 4 more" in result.stderr
        assert "no score: 9 of 9 files cannot be scored\n" in result.stderr


def test_inputs_of_different_lengths_are_a_bad_file(
    tmp_path: Path, data: tuple[Array, Array], monkeypatch: pytest.MonkeyPatch
) -> None:
    save(tmp_path, "a", ".npz", {"prediction": data[0], "target": data[1][:-1]})
    for block_bytes in (40, 1 << 20):
        monkeypatch.setattr(blocks, "BLOCK_BYTES", block_bytes)
        result = score(tmp_path, "--task", "multiclass")
        assert result.exit_code == 1
        assert re.search(r"^a\.npz: Shape mismatch: .*239", result.stderr, re.MULTILINE)


@pytest.mark.parametrize(
    ("arguments", "status", "message"),
    [
        ([], 2, "name a task with --task, or a loss with --loss"),
        (["--task", "multiclas"], 1, "did you mean multiclass"),
        (["--task", "multiclass", "--metrics", "acuracy"], 1, "did you mean accuracy"),
        (["--loss", "cross_entropy", "--label-smoothing", "2"], 1, "--label-smoothing"),
        (["--task", "multiclass", "--output", "rows.txt"], 2, "must end in .json or .csv"),
        (["--task", "regression", "--plot", "a.svg"], 2, "the task regression has no picture"),
        (["--task", "multiclass", "--metric-option", "threshold"], 2, "'threshold' is not NAME=VALUE"),
    ],
)
def test_what_is_wrong_with_the_request_is_said_once(
    arguments: list[str], status: int, message: str, folder: Path
) -> None:
    result = score(folder, *arguments)
    assert result.exit_code == status, result.output
    assert result.stderr.count(message) == 1


def test_a_directory_without_inputs_is_wrong_usage(tmp_path: Path) -> None:
    (tmp_path / "score.csv").write_text("1\n")
    result = score(tmp_path, "--task", "multiclass")
    assert (result.exit_code, "or .parquet file, only score.csv" in result.stderr) == (2, True)


def test_other_files_are_left_out_and_named(folder: Path) -> None:
    (folder / "score.csv").write_text("1\n")
    (folder / "notes.md").write_text("x")
    result = score(folder, "--task", "multiclass", "--metrics", "accuracy")
    assert result.exit_code == 0
    assert "left out, as they hold no inputs: notes.md, score.csv" in result.stderr


# Slices, clusters and intervals


def of_sites(tmp_path: Path, data: tuple[Array, Array], **arrays: Array) -> Path:
    """A directory of two files: rows 0 to 99 and 100 to 239."""
    for name, part in (("a", slice(0, 100)), ("b", slice(100, ROWS))):
        inputs = {"prediction": data[0][part], "target": data[1][part]}
        save(tmp_path / "data", name, ".npz", inputs | {key: array[part] for key, array in arrays.items()})
    return tmp_path / "data"


def test_files_hold_the_codes_of_slices_and_clusters(tmp_path: Path, data: tuple[Array, Array]) -> None:
    codes = np.arange(ROWS) % 3 - 1  # a third is of no site
    folder = of_sites(tmp_path, data, **{"slice.site": codes, "cluster_id": np.arange(ROWS) // 2})
    options = ("--task", "multiclass", "--metrics", "accuracy", "--slices", "site=A,B")
    found = document(folder, *options)
    assert [each["slice"] for each in found["slices"]] == [{"site": "A"}, {"site": "B"}]
    right = data[0].argmax(1) == data[1]
    for code, each in enumerate(found["slices"]):
        assert each["counted"]["rows"] == ROWS // 3
        assert each["metrics"]["accuracy"] == right[codes == code].mean()
    rows_folder = tmp_path / "rows"
    rows_folder.mkdir()
    rows = document(of_sites(rows_folder, data, **{"slice.site": codes}), *options)
    assert rows["metrics"] == found["metrics"]
    assert rows["intervals"]["accuracy"] != found["intervals"]["accuracy"]  # clusters are not rows


def test_a_directory_is_of_one_slice(tmp_path: Path, data: tuple[Array, Array]) -> None:
    folder = of_sites(tmp_path, data, **{"slice.sex": np.arange(ROWS) % 2})
    slices = ("--slices", "site=A,B", "--slice", "site=B", "--slices", "sex=f,m", "--crossed", "site,sex")
    found = document(folder, "--task", "multiclass", "--metrics", "accuracy", *slices, "--groups", "16")
    rows = {tuple(each["slice"].values()): each["counted"]["rows"] for each in found["slices"]}
    assert rows[("B",)] == ROWS
    assert rows[("B", "f")] == rows[("f",)] == ROWS // 2
    assert rows[("A",)] == rows[("A", "m")] == 0
    assert found["groups"] == 16
    without = document(folder, "--task", "multiclass", "--metrics", "accuracy", *slices, "--groups", "0")
    assert without["intervals"] == {}


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (("--slices", "site"), "is not NAME=VALUE,VALUE"),
        (("--slices", "site=A,"), "is not NAME=VALUE,VALUE"),
        (("--slice", "site=A"), "there is no slice site; declare it: --slices site=A,..."),
        (("--slices", "site=A,B", "--slice", "site=C"), "the values of site are A, B"),
        (("--slices", "site=A,B", "--slice", "sex=f"), "there is no slice sex; the slices are site"),
        (("--groups", "8"), "'8' is not one of"),
    ],
)
def test_wrong_slices_are_refused(tmp_path: Path, data: tuple[Array, Array], options: Any, message: str) -> None:
    result = score(of_sites(tmp_path, data), "--task", "multiclass", *options)
    assert result.exit_code == 2, result.output
    assert message in result.stderr


def test_a_slice_that_no_file_says_is_told(tmp_path: Path, data: tuple[Array, Array]) -> None:
    result = score(of_sites(tmp_path, data), "--task", "multiclass", "--slices", "site=A,B")
    assert result.exit_code == 1, result.output
    assert "slice site" in result.stderr


# The report


def test_a_person_sees_tables(folder: Path) -> None:
    output = score(folder, "--loss", "cross_entropy", "--label-smoothing", "0.1").stdout
    assert output.startswith("cross_entropy label_smoothing=0.1\n")
    number = r"0\.\d+ \(0\.\d+ to 0\.\d+\)"
    facts = (r"files +6 of 6", r"rows +240", rf"loss +{number}", r"targets +t1:[0-9a-f]{32}", rf"accuracy +{number}")
    for line in (*facts, rf"f1 +{number} +{number} +{number}"):
        assert re.search(rf"^{line}\s*$", output, re.MULTILINE), line
    assert "metrics, multiclass, 95 % intervals" in output


def test_a_score_may_be_infinite(tmp_path: Path) -> None:
    folder = tmp_path / "data"
    save(folder, "a", ".npz", {"prediction": np.array([1e200, 1.0]), "target": np.array([-1e200, 1.0])})
    assert document(folder, "--loss", "mse", "--output", tmp_path / "a.csv")["loss"] == "Infinity"
    assert re.search(r"^loss +inf\s*$", score(folder, "--loss", "mse").stdout, re.MULTILINE)
    assert ",inf," in (tmp_path / "a.csv").read_text()


def test_the_score_goes_into_a_file(folder: Path, tmp_path: Path) -> None:
    outputs = [tmp_path / "score.json", tmp_path / "score.csv"]
    for output in outputs:
        found = document(folder, "--loss", "cross_entropy", "--output", output)
    stored = json.loads(outputs[0].read_text())
    assert {**stored, "files": None} == {**found, "files": None}
    with outputs[1].open() as file:
        (row,) = csv.DictReader(file)
    assert (row["rows"], row["files"], row["targets"]) == (str(ROWS), "6", found["targets"])
    assert float(row["loss"]) == found["loss"]
    assert float(row["f1.macro"]) == found["metrics"]["f1"]["macro"]


@pytest.fixture
def binary(tmp_path: Path) -> Path:
    random = np.random.default_rng(3)
    for number in range(4):
        target = random.integers(0, 2, 50)
        save(
            tmp_path / "binary",
            str(number),
            ".npz",
            {"prediction": random.standard_normal(50) + target, "target": target},
        )
    return tmp_path / "binary"


@pytest.mark.parametrize("kind", ["roc", "pr", "confusion", "reliability"])
def test_the_whole_data_set_is_drawn(kind: str, binary: Path, tmp_path: Path) -> None:
    path = tmp_path / "picture.svg"
    found = document(binary, "--task", "binary", "--metrics", "accuracy", "--plot", path, "--plot-kind", kind)
    assert found["metrics"].keys() == {"task", "accuracy"}, "what is drawn is not in the answer"
    inputs = {
        name: np.concatenate([np.load(binary / f"{number}.npz")[name] for number in range(4)])
        for name in ("prediction", "target")
    }
    summary = {"roc": "auroc", "pr": "average_precision", "reliability": "ece", "confusion": "accuracy"}[kind]
    whole = lossd.evaluate(task="binary", inputs=inputs, metrics=[summary]).metrics[summary]
    assert f"{whole:.4g}" in path.read_text()


def test_a_bound_is_told() -> None:
    from lossd.cli import fitting, report

    answer = {
        "metrics": {"task": "binary", "auroc": 0.75},
        "counted": {"rows": 10},
        "targets": None,
        "bounds": {"auroc": {"within": 3.8e-7, "bits": 26}},
        "warnings": [{"code": "mixed_devices", "detail": "two kinds"}],
        "missing": [],
        "files": {"counted": 1, "of": 2},
    }
    console = fitting.console()
    with console.capture() as capture:
        console.print(report.score(answer, title="binary"))
    output = capture.get()
    assert "auroc is within 3.8e-07 of the exact value" in output
    assert "mixed_devices: two kinds" in output
    assert "targets" not in output


# On a terminal


def many(folder: Path, data: tuple[Array, Array], count: int) -> Path:
    for number in range(count):
        begin = number % 200
        arrays = {"prediction": data[0][begin : begin + 9], "target": data[1][begin : begin + 9]}
        save(folder, f"{number:05}", ".safetensors", arrays)
    return folder


def test_a_terminal_shows_progress(tmp_path: Path, data: tuple[Array, Array]) -> None:
    terminal = Terminal("score", many(tmp_path / "data", data, 40), "--task", "multiclass", "--json")
    status, output = terminal.close()
    assert status == 0, terminal.shown
    assert len(output.splitlines()) == 1, "the bar is not among the lines"
    assert "40/40 files  360 rows" in terminal.shown
    assert re.search(r"\d MB/s", terminal.shown)
    assert re.search(r"\d:\d\d:\d\d", terminal.shown), "the time that is left"


def test_ctrl_c_says_what_was_counted(tmp_path: Path, data: tuple[Array, Array]) -> None:
    total = 2000
    terminal = Terminal("score", many(tmp_path / "data", data, total), "--task", "multiclass", "--json")
    deadline = time.monotonic() + 60
    for shown in terminal.watch():
        assert time.monotonic() < deadline
        if re.search(r"[1-9]\d*/2000 files", shown):
            break
    terminal.process.send_signal(signal.SIGINT)
    status, output = terminal.close()
    assert status == 130, (output, terminal.shown)
    found = json.loads(output)
    count = found["files"]["counted"]
    assert 0 < count < total
    assert (found["files"]["interrupted"], found["counted"]["rows"]) == (True, 9 * count)
    assert f"interrupted: this is the score of {count} of {total:,} files" in terminal.shown
    assert "Traceback" not in terminal.shown


def test_ctrl_c_does_not_cut_a_file_in_two(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """It arrives while the first of the two blocks of the third file is counted."""
    monkeypatch.setattr(blocks, "BLOCK_BYTES", 20 * 20)
    add, calls = lossd.Run.add, []

    def interrupted(self: lossd.Run, *arguments: Any, **keywords: Any) -> int:
        calls.append(1)
        if len(calls) == 3:
            signal.raise_signal(signal.SIGINT)
        return add(self, *arguments, **keywords)

    monkeypatch.setattr(lossd.Run, "add", interrupted)
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    try:
        result = score(folder, "--task", "multiclass", "--metrics", "accuracy", "--json")
    finally:
        signal.signal(signal.SIGINT, before)
    assert result.exit_code == 130
    found = json.loads(result.stdout)
    assert (found["files"]["counted"], found["counted"]["rows"]) == (2, 11)
