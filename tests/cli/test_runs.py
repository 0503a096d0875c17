"""``lossd score --run`` and ``lossd runs`` with a service elsewhere: what is sent, and what a person reads."""

from __future__ import annotations

import json
import re
import signal
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from click.testing import CliRunner, Result

import lossd.files.sources as files
from cli.terminal import Terminal
from client.fake import FakeService, Reply, Request, problem
from client.fake_runs import FakeRuns
from lossd.cli import main, run_score, sending
from lossd_client import LossClient

Array = np.ndarray[Any, Any]

LENGTHS = {"a.npz": 5, "b.safetensors": 3, "c_.npy": 4, "d_.csv": 2, "e.parquet": 6, "f g.npz": 1}


@pytest.fixture
def service() -> Iterator[FakeService]:
    fake = FakeService()
    yield fake
    fake.stop()


@pytest.fixture
def fake(service: FakeService) -> FakeRuns:
    return FakeRuns(service, page=100)


@pytest.fixture
def url(service: FakeService) -> str:
    return service.url


def lossd(*arguments: str | Path, entered: str | None = None) -> Result:
    return CliRunner().invoke(main, [*map(str, arguments)], input=entered)


def words(text: str) -> str:
    """A table with one space between its words."""
    return re.sub(r" *\n", "\n", re.sub(r" +", " ", text))


def arrays(rows: int) -> dict[str, Array]:
    return {"prediction": np.linspace(0, 1, rows * 3, dtype=np.float32).reshape(rows, 3), "target": np.arange(rows) % 3}


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """A file of each kind, of different lengths."""
    import pyarrow as arrow
    import pyarrow.parquet

    path = tmp_path / "data"
    path.mkdir()
    for name, rows in LENGTHS.items():
        stem, suffix = Path(name).stem, Path(name).suffix
        if suffix == ".npy":
            for key, array in arrays(rows).items():
                np.save(path / f"{stem}{key}.npy", array)
        elif suffix == ".csv":
            for key, array in arrays(rows).items():
                np.savetxt(path / f"{stem}{key}.csv", array, delimiter=",", fmt="%g" if key == "prediction" else "%d")
        elif suffix == ".parquet":
            table = arrow.table({key: list(array) if array.ndim > 1 else array for key, array in arrays(rows).items()})
            arrow.parquet.write_table(table, path / name)
        else:
            files.write(path / name, arrays(rows))
    return path


BATCHES = ["a.npz", "b.safetensors", "c", "d", "e.parquet", "f~x20g.npz"]
FIRSTS = [0, 5, 8, 12, 14, 20]


def scored(folder: Path, url: str, *options: str) -> Result:
    return lossd("score", folder, "--task", "multiclass", "--run", "r", "--url", url, *options)


# lossd score --run


def test_files_become_batches_with_positions(folder: Path, fake: FakeRuns, url: str) -> None:
    result = scored(
        folder, url, "--dataset", "digits@2", "--tag", "commit=4f1c", "--public", "--metrics", "accuracy,f1"
    )
    assert result.exit_code == 0, result.output
    assert {name: (batch["first"], batch["counted"]["rows"]) for name, batch in fake.counted["r"].items()} == dict(
        zip(BATCHES, zip(FIRSTS, LENGTHS.values(), strict=True), strict=True)
    )
    assert fake.runs["r"]["definition"] == {
        "task": "multiclass",
        "metrics": {"names": ["accuracy", "f1"]},
        "dataset": {"name": "digits", "version": "2"},
        "identity": "position",
        "tags": {"commit": "4f1c"},
        "public": True,
    }
    assert "counted before" not in result.stderr
    shown = words(result.stdout)
    assert shown.startswith("multiclass\nrun r (open)\nfiles 6 of 6\nrows 21\n")
    assert shown.endswith("\nlossd 1|binary\n")


def test_the_same_command_goes_on(folder: Path, fake: FakeRuns, url: str, monkeypatch: pytest.MonkeyPatch) -> None:
    fake.refuse = lambda name, request: None if name < "c" else problem(507, "storage-full", "the disk is full")
    result = scored(folder, url, "--in-flight", "1")
    assert (result.exit_code, set(fake.counted["r"])) == (3, {"a.npz", "b.safetensors"})
    assert "Storage full" in result.stderr
    assert "the disk is full" in result.stderr
    fake.refuse = lambda name, request: None
    fake.sent.clear()
    read: list[str] = []
    read_file = sending.Sending._read
    monkeypatch.setattr(
        sending.Sending, "_read", lambda self, batches: (read.append(batches[0].name), read_file(self, batches))[1]
    )
    result = scored(folder, url)
    assert result.exit_code == 0, result.output
    assert "2 of 6 files counted before" in result.stderr
    # Files are read in several threads at once, so the order of reading is not fixed.
    assert sorted(read) == sorted(set(fake.sent)) == BATCHES[2:], fake.sent
    result = scored(folder, url, "--json")
    assert "6 of 6 files counted before" in result.stderr
    assert len(read) == len(BATCHES[2:]), "nothing is read"
    document = json.loads(result.stdout)
    assert document["files"] == {
        "counted": 6, "of": 6, "before": 6, "bad": [], "bytes": 0, "seconds": 0, "interrupted": False,
    }  # fmt: skip
    assert (document["run"], document["status"], document["metrics"]["f1"]["macro"]) == ("r", "open", 0.25)


def test_a_run_that_exists_needs_no_task(folder: Path, fake: FakeRuns, url: str) -> None:
    assert lossd("score", folder, "--run", "r", "--url", url).exit_code == 1
    with LossClient(url) as client:
        client.run("r", loss="cross_entropy", label_smoothing=0.1)
    result = lossd("score", folder, "--run", "r", "--url", url)
    assert result.exit_code == 0, result.output
    assert list(fake.counted["r"]) == BATCHES or len(fake.counted["r"]) == 6
    assert result.stdout.startswith("cross_entropy label_smoothing=0.1\n")


def test_a_large_file_is_several_batches(
    folder: Path, fake: FakeRuns, url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(run_score, "BLOCK_BYTES", 2 * 20)
    assert scored(folder, url).exit_code == 0
    found = {
        name: (batch["first"], batch["counted"]["rows"]) for name, batch in fake.counted["r"].items() if name[0] in "ab"
    }
    assert found == {
        "a.npz~0": (0, 2), "a.npz~1": (2, 2), "a.npz~2": (4, 1), "b.safetensors~0": (5, 2), "b.safetensors~1": (7, 1),
    }  # fmt: skip
    assert sum(batch["counted"]["rows"] for batch in fake.counted["r"].values()) == 21
    del fake.counted["r"]["a.npz~1"]
    fake.sent.clear()
    result = scored(folder, url)
    assert "5 of 6 files counted before" in result.stderr
    assert fake.sent == ["a.npz~1"]
    assert fake.counted["r"]["a.npz~1"]["first"] == 2


def test_a_changed_directory_is_refused(folder: Path, fake: FakeRuns, url: str) -> None:
    """The rows behind a new file would have other positions than those that were counted."""
    assert scored(folder, url).exit_code == 0
    files.write(folder / "a0.npz", arrays(2))
    fake.sent.clear()
    result = scored(folder, url)
    assert (result.exit_code, fake.sent) == (1, [])
    assert "b.safetensors was counted with 3 rows from 5, and has 3 from 7 now: files were changed" in result.stderr


def test_a_file_without_positions_is_refused_before_anything_is_sent(folder: Path, fake: FakeRuns, url: str) -> None:
    (folder / "b.safetensors").write_bytes(b"broken")
    for options in ((), ("--skip-bad",)):
        result = scored(folder, url, *options)
        assert (result.exit_code, fake.sent, fake.runs) == (1, [], {})
        assert "b.safetensors cannot be read" in result.stderr
        assert "nothing was sent: 1 of 6 files cannot be read" in result.stderr


def test_a_file_without_inputs_has_no_rows(folder: Path, fake: FakeRuns, url: str) -> None:
    np.savez(folder / "z.npz", other=np.ones(3))
    result = scored(folder, url)
    assert (result.exit_code, fake.sent) == (1, [])
    assert "z.npz: Missing input: it holds none of the inputs prediction, target" in result.stderr


def test_a_refused_file_is_named_and_the_others_are_counted(folder: Path, fake: FakeRuns, url: str) -> None:
    fake.refuse = lambda name, request: problem(422, "invalid-value", "class 9") if name == "c" else None
    result = scored(folder, url)
    assert result.exit_code == 1
    assert "c: Invalid value: class 9" in result.stderr
    assert "no score: 1 of 6 files cannot be scored; fix them, or leave them out with --skip-bad" in result.stderr
    assert result.stdout == ""
    assert set(fake.counted["r"]) == {*BATCHES} - {"c"}
    result = scored(folder, url, "--skip-bad", "--json")
    assert result.exit_code == 1
    assert "5 of 6 files counted before" in result.stderr
    document = json.loads(result.stdout)
    assert document["files"]["bad"] == [{"file": "c", "title": "Invalid value", "detail": "class 9"}]
    assert document["files"]["counted"] == 5


def test_a_run_is_sealed_if_it_is_complete(folder: Path, fake: FakeRuns, url: str) -> None:
    fake.refuse = lambda name, request: problem(422, "invalid-value", "class 9") if name == "c" else None
    result = scored(folder, url, "--skip-bad", "--seal")
    assert (result.exit_code, fake.runs["r"]["status"]) == (1, "open")
    assert "Incomplete: 21 rows are expected" in result.stderr
    fake.refuse = lambda name, request: None
    result = scored(folder, url, "--seal", "--json")
    assert (result.exit_code, fake.runs["r"]["status"]) == (0, "sealed")
    assert json.loads(result.stdout)["status"] == "sealed"
    assert scored(folder, url, "--seal").exit_code == 0, "the same command may be repeated"


def test_the_score_is_written(folder: Path, fake: FakeRuns, url: str, tmp_path: Path) -> None:
    assert scored(folder, url, "--output", str(tmp_path / "s.csv")).exit_code == 0
    assert (tmp_path / "s.csv").read_text().splitlines()[0] == "files,rows,targets,loss,accuracy,f1.macro,log_loss"
    assert scored(folder, url, "--output", str(tmp_path / "s.json")).exit_code == 0
    assert json.loads((tmp_path / "s.json").read_text())["run"] == "r"


@pytest.mark.parametrize(
    ("options", "match"),
    [
        (("--url", "http://127.0.0.1:1"), "--url: only with a run"),
        (("--seal", "--tag", "a=b", "--rows", "0"), "--rows, --tag, --seal: only with a run"),
        (("--run", "r", "--tag", "a"), "'a' is not NAME=VALUE"),
        (
            ("--run", "r", "--plot", "x.svg", "--plot-kind", "reliability"),
            "draws metrics that the run does not count; add them: --metrics default,reliability",
        ),
    ],
)
def test_wrong_options(options: tuple[str, ...], match: str, folder: Path, fake: FakeRuns, url: str) -> None:
    address = ("--url", url) if "--run" in options else ()
    result = lossd("score", folder, "--task", "multiclass", *options, *address)
    assert result.exit_code == 2, result.output
    assert match in result.stderr
    assert fake.sent == []


def test_nothing_is_defined_by_a_name_alone(folder: Path, fake: FakeRuns, url: str) -> None:
    result = lossd("score", folder, "--run", "r", "--url", url, "--dataset", "a")
    assert result.exit_code == 2
    assert "name a task with --task, or a loss with --loss" in result.stderr


def test_no_service(folder: Path) -> None:
    result = scored(folder, "http://127.0.0.1:1")
    assert result.exit_code == 3
    assert "cannot connect to http://127.0.0.1:1/v1/runs/r" in result.stderr


@pytest.mark.parametrize(
    ("name", "batch"),
    [
        ("a b.npz", "a~x20b.npz"),
        ("é.npz", "~xC3~xA9.npz"),
        ("a~0", "a~x7E0"),
        ("..", "..~h" + "5ec1f7e700f37c3d0b46981d7c84f8f3"),
    ],
)
def test_names_of_batches(name: str, batch: str) -> None:
    assert sending.batch_name(name)[:4] == batch[:4]
    assert re.fullmatch(r"[A-Za-z0-9._~-]{1,200}", sending.batch_name(name))
    if not batch.startswith(".."):
        assert sending.batch_name(name) == batch


def test_long_names_stay_apart() -> None:
    names = [sending.batch_name(f"{'x' * 300}{end}.npz") for end in "ab"]
    assert len(set(names)) == 2
    assert all(len(name) + len("~1000000") <= 200 for name in names)


def test_an_interruption_says_how_to_go_on(tmp_path: Path, fake: FakeRuns, service: FakeService) -> None:
    """Ctrl-C on a terminal: what is in flight is counted, and the next command sends the others only."""
    path = tmp_path / "data"
    path.mkdir()
    for number in range(30):
        files.write(path / f"{number:03}.npz", arrays(3))

    interrupted = threading.Event()

    def slow(request: Request) -> Reply:
        if request.path.count("/") == 5:
            if len(fake.counted.get("r", {})) >= 4:  # the screen has time to say so
                interrupted.wait(60)
            time.sleep(0.2)
        return fake.answer(request)

    service.default = slow
    terminal = Terminal("score", path, "--task", "multiclass", "--run", "r", "--url", service.url, "--in-flight", "2")
    for shown in terminal.watch():
        if re.search(r"\b[4-6]/30 files", shown):  # two more may be on their way
            break
    terminal.process.send_signal(signal.SIGINT)
    interrupted.set()
    status, output = terminal.close()
    assert status == 130, terminal.shown
    counted = len(fake.counted["r"])
    assert 4 <= counted < 30
    assert f"interrupted with {counted} of 30 files counted; the same command continues" in terminal.shown
    assert f"files {counted} of 30\n" in words(output)
    service.default = fake.answer
    fake.sent.clear()
    result = lossd("score", path, "--task", "multiclass", "--run", "r", "--url", service.url)
    assert f"{counted} of 30 files counted before" in result.stderr
    assert len(fake.sent) == 30 - counted


# lossd runs


@pytest.fixture
def kept(fake: FakeRuns, url: str) -> str:
    """Two runs, one of them with rows."""
    with LossClient(url) as client:
        client.run("one", task="binary", dataset="digits@2").add([0.5, 1.5], [0, 1], first=0)
        client.run("two", loss="mse")
    return url


def test_runs_are_listed(kept: str, fake: FakeRuns, monkeypatch: pytest.MonkeyPatch) -> None:
    entry = fake._entry
    summary = {"one": {"f1.macro": 0.25, "f1.micro": 0.5, "accuracy": 0.75}}
    monkeypatch.setattr(fake, "_entry", lambda name: {**entry(name), "summary": summary.get(name)})
    lines = [line.split() for line in lossd("runs", "--url", kept).stdout.splitlines()]
    assert lines == [
        ["run", "data", "set", "status", "rows", "f1.macro", "accuracy"],
        ["one", "digits@2", "open", "2", "0.25", "0.75"],
        ["two", "open", "0", "–", "–"],
    ]
    document = json.loads(lossd("runs", "--url", kept, "--json").stdout)
    assert [run["run"] for run in document["runs"]] == ["one", "two"]


def test_the_columns_are_the_metrics_that_most_runs_have(
    kept: str, fake: FakeRuns, monkeypatch: pytest.MonkeyPatch
) -> None:
    entry = fake._entry
    summary = {"one": {"loss": 0.5, "mae": 0.25, "accuracy": 0.75}, "two": {"accuracy": 0.5}}
    monkeypatch.setattr(fake, "_entry", lambda name: {**entry(name), "summary": summary[name]})
    head = lossd("runs", "--url", kept).stdout.splitlines()[0].split()
    assert head[5:] == ["accuracy", "loss", "mae"]


def test_the_list_is_filtered(kept: str, service: FakeService) -> None:
    options = ("--dataset", "digits@2", "--task", "binary", "--status", "open", "--tag", "a=b", "--sort", "-f1.macro")
    assert lossd("runs", "--url", kept, *options).exit_code == 0
    query = "dataset=digits%402&task=binary&status=open&tag=a%3Ab&sort=-f1.macro&limit=1000"
    assert service.requests[-1].path == f"/v1/runs?{query}"


def test_a_run_is_shown(kept: str, service: FakeService) -> None:
    for arguments in (("runs", "show", "one", "--url", kept), ("runs", "--url", kept, "show", "one")):
        result = lossd(*arguments)
        assert result.exit_code == 0, result.output
        shown = words(result.stdout)
        assert shown.startswith("binary\nrun one (open)\nrows 2\nmissing 1\nloss 0.5\n")
        assert "f1.macro 0.25" in shown
        assert "accuracy 0.5" in shown
    document = json.loads(lossd("runs", "show", "one", "--url", kept, "--json").stdout)
    assert document["result"]["metrics"]["accuracy"] == 0.5
    assert document["dataset"] == {"name": "digits", "version": "2"}
    assert lossd("runs", "show", "one", "--metrics", "f1,accuracy", "--url", kept).exit_code == 0
    assert "metrics=f1%2Caccuracy" in service.requests[-1].path
    assert lossd("runs", "show", "three", "--url", kept).exit_code == 1


SHOWN = """\
binary
run   one (sealed)
rows  2,000
loss  0.5 (0.45 to 0.55)

metrics, binary, 99 % intervals
accuracy  0.8124 (0.804 to 0.820)

                   macro  micro  weighted
f1  0.7 (0.650 to 0.740)   0.75       0.8

slices
slice   rows                loss            accuracy  f1.macro
site=A   900  0.4 (0.35 to 0.45)                 0.9         –
site=B    50                   –  0.7 (0.62 to 0.77)      0.65
worst accuracy: site=B, 0.7; gap 0.2
few_rows: slice B has 50 rows

lossd 1|binary
"""


def test_intervals_and_slices_are_shown(service: FakeService) -> None:
    interval = {"low": 0.8041, "high": 0.8203, "standard_error": 0.004}
    low, high = {"low": 0.45, "high": 0.55}, {"low": 0.62, "high": 0.77}
    slices = [
        {
            "slice": {"site": "A"},
            "counted": {"rows": 900},
            "loss": 0.4,
            "metrics": {"accuracy": 0.9},
            "intervals": {"loss": {"low": 0.35, "high": 0.45}},
        },
        {
            "slice": {"site": "B"},
            "counted": {"rows": 50},
            "metrics": {"accuracy": 0.7, "f1": {"macro": 0.65}},
            "intervals": {"accuracy": high},
        },
    ]
    f1 = {"macro": 0.7, "micro": 0.75, "weighted": 0.8}
    result = {
        "provisional": False,
        "loss": 0.5,
        "metrics": {"task": "binary", "accuracy": 0.8124, "f1": f1},
        "level": 0.99,
        "intervals": {"accuracy": interval, "f1.macro": {"low": 0.65, "high": 0.74}, "loss": low},
        "slices": slices,
        "worst": {"accuracy": {"slice": {"site": "B"}, "value": 0.7}},
        "gap": {"accuracy": 0.2},
        "warnings": [{"code": "few_rows", "detail": "slice B has 50 rows"}],
    }
    entry = {"run": "one", "status": "sealed", "identity": "position", "task": "binary", "counted": {"rows": 2000}}
    document = {**entry, "signature": "lossd 1|binary", "result": result}
    body = json.dumps(document).encode()
    service.replies += [Reply(200, {"Content-Type": "application/json"}, body)] * 2
    shown = lossd("runs", "show", "one", "--level", "0.99", "--url", service.url)
    assert shown.exit_code == 0, shown.output
    assert "level=0.99" in service.requests[-1].path
    assert re.sub(r" +\n", "\n", shown.stdout) == SHOWN


def test_a_run_without_rows_is_shown(kept: str) -> None:
    result = lossd("runs", "show", "two", "--url", kept)
    assert result.exit_code == 0, result.output
    assert words(result.stdout).startswith("mse\nrun two (open)\nrows 0\n")


def test_a_run_is_sealed(kept: str, fake: FakeRuns) -> None:
    assert lossd("runs", "seal", "one", "--rows", "3", "--url", kept).exit_code == 1
    assert fake.runs["one"]["status"] == "open"
    result = lossd("runs", "seal", "one", "--rows", "2", "--url", kept)
    assert (result.exit_code, fake.runs["one"]["status"]) == (0, "sealed")
    assert "one (sealed)" in result.stdout


def test_a_run_is_deleted(kept: str, fake: FakeRuns) -> None:
    result = lossd("runs", "delete", "one", "--url", kept)
    assert (result.exit_code, "one" in fake.runs) == (2, True)
    assert "delete with --yes" in result.stderr
    result = lossd("runs", "delete", "one", "--yes", "--url", kept)
    assert (result.exit_code, "one" in fake.runs) == (0, False)
    assert lossd("runs", "delete", "one", "--yes", "--url", kept).exit_code == 1


@pytest.mark.parametrize(("answer", "deleted"), [("y\n", True), ("n\n", False), ("\n", False)])
def test_a_terminal_is_asked(
    answer: str, deleted: bool, kept: str, fake: FakeRuns, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("lossd.cli.runs._asks", lambda: True)
    result = lossd("runs", "delete", "one", "--url", kept, entered=answer)
    assert "delete one, with 2 rows in 1 batch?" in result.output
    assert ("one" not in fake.runs) is deleted
    assert result.exit_code == (0 if deleted else 1)
