"""Terminals of any width: numbers stay whole, help stays short, and curves are drawn."""

from __future__ import annotations

import io
import math
import re
from pathlib import Path

import click
import numpy as np
import pytest
from click.testing import CliRunner, Result
from rich.console import Console

from lossd import cli
from lossd.cli import canvas, curve_tables, fitting, report, serve, wording
from lossd.cli.canvas import CanvasCurve, draw
from lossd.cli.fitting import FittedTable, Listing
from lossd.cli.progress import progress
from lossd.losses import REGISTRY
from lossd.losses.families import by_family

ERASED = "\x1b[2K"
"""The terminal's sequence that erases a line."""


def printed(shown: object, width: int) -> list[str]:
    console = Console(width=width, file=io.StringIO(), force_terminal=False)
    console.print(shown)
    return console.file.getvalue().splitlines()


def table() -> FittedTable:
    columns = FittedTable("file", "loss", "accuracy", "f1.macro", "iou.macro")
    columns.add_row("a-name-of-a-file-that-is-quite-long", "1064.12", "0.125", "0.122594", "0.0682566")
    columns.add_row("b", "–", "–", "–", "–")
    return columns


@pytest.mark.parametrize("width", [30, 40, 50, 60, 80, 200])
def test_columns_are_left_out_whole_and_named(width: int) -> None:
    lines = printed(table(), width)
    assert max(map(len, lines)) <= width
    hidden = re.findall(r"not shown in \d+ columns: (.*); --json", " ".join(line.strip() for line in lines))
    names = hidden[0].split(", ") if hidden else []
    numbers = {"loss": "1064.12", "accuracy": "0.125", "f1.macro": "0.122594", "iou.macro": "0.0682566"}
    for name, number in numbers.items():
        assert (number in " ".join(lines[1].split())) == (name not in names)
    assert ("…" in lines[1]) == (width < 50)
    assert bool(names) == (width < 80)


def test_a_confusion_matrix_that_does_not_fit_is_a_list_of_the_most_frequent_confusions() -> None:
    matrix = np.eye(21, dtype=int) * 50
    matrix[3, 7], matrix[18, 2] = 9, 12
    metrics = {"task": "multiclass", "confusion_matrix": matrix.tolist()}
    narrow = [line.split() for part in report._metrics(metrics) for line in printed(part, 60)]
    assert ["18", "2", "12"] in narrow
    assert narrow.index(["18", "2", "12"]) < narrow.index(["3", "7", "9"])
    wide = [line.split() for part in report._metrics(metrics) for line in printed(part, 200)]
    assert wide[-1] == ["20", *["·"] * 20, "50"]


@pytest.mark.parametrize("width", [60, 80, 200])
@pytest.mark.parametrize("group", [[], ["runs"]])
def test_every_command_has_one_whole_line_of_help(width: int, group: list[str]) -> None:
    output = CliRunner().invoke(cli.main, [*group, "--help"], terminal_width=width, max_content_width=100).output
    listed = output.partition("Commands:\n")[2].partition("\n\n")[0].splitlines()
    assert len(listed) == len((cli.main.commands["runs"] if group else cli.main).commands)  # type: ignore[union-attr]
    assert [line for line in listed if "..." in line or not re.match(r"  [a-z]+  +[A-Z]", line)] == []


def test_losses_stand_below_their_families() -> None:
    lines = CliRunner().invoke(cli.main, ["losses"]).output.splitlines()
    headings = [line.strip() for line in lines if line.strip() in by_family()]
    assert headings == list(by_family())
    names = [line.split()[0] for line in lines if line.strip() and line.split()[0] in REGISTRY]
    assert names == [loss.name for losses in by_family().values() for loss in losses]


@pytest.mark.parametrize(
    ("words", "found"),
    [("rare lesions", "focal"), ("MSELoss", "mse"), ("outliers", "huber"), ("auroc", "lossd metrics --name auroc")],
)
def test_losses_are_searched(words: str, found: str) -> None:
    run = CliRunner().invoke(cli.main, ["losses", "--search", words])
    assert run.exit_code == 0
    assert found in run.output
    assert len(run.output.splitlines()) < 40


def test_a_search_and_a_name_exclude_each_other() -> None:
    run = CliRunner().invoke(cli.main, ["losses", "focal", "--search", "focal"])
    assert (run.exit_code, "give only one" in run.output) == (2, True)


def dots(picture: str, width: int, height: int) -> set[tuple[int, int]]:
    """The dots of a picture, by column and row from the top left."""
    found = set()
    for line in range(height):
        cells = picture.splitlines()[line][canvas.MARGIN :]
        for position, cell in enumerate(cells):
            sign = ord(cell) - canvas.BLANK
            for column, bits in enumerate(canvas.BITS):
                found |= {(2 * position + column, 4 * line + row) for row, bit in enumerate(bits) if sign & bit}
    return found


def test_a_line_is_drawn_from_its_first_point_to_its_last() -> None:
    width, height = 30, 5
    drawn = draw([CanvasCurve([0.0, 1.0], [0.0, 1.0], "blue")], width=width, height=height).plain
    found = dots(drawn, width, height)
    assert {column for column, _ in found} == set(range(2 * (width - canvas.MARGIN)))
    assert {row for _, row in found} == set(range(4 * height))
    assert (0, 4 * height - 1) in found
    assert (2 * (width - canvas.MARGIN) - 1, 0) in found
    assert drawn.splitlines()[0].split()[0] == "1"
    assert drawn.splitlines()[height - 1].split()[0] == "0"


def test_gaps_stay_gaps() -> None:
    curve = CanvasCurve([0.0, 1.0, 2.0, 3.0, 4.0], [1.0, 1.0, None, 2.0, 2.0], "blue")
    found = dots(draw([curve], width=50, height=4).plain, 50, 4)
    columns = {column for column, _ in found}
    assert not columns & set(range(22, 58))
    assert {0, 79} <= columns


def test_a_curve_without_a_value_says_so() -> None:
    assert "no finite value" in draw([CanvasCurve([0.0, 1.0], [math.nan, None], "blue")], width=40, height=4).plain
    assert draw([CanvasCurve([0.0, 1.0], [2.0, 2.0], "blue")], width=40, height=4).plain


def test_on_a_terminal_a_curve_is_a_picture_with_a_legend() -> None:
    from lossd.cli.plot import curve_document

    document = curve_document("focal", {"gamma": [0.0, 2.0]}, others=(), x=None, low=None, high=None, points=None)
    for width in (60, 200):
        lines = printed(curve_tables.curve(document, drawn=True), width)
        assert max(map(len, lines)) <= width
        assert any("gamma 0" in line and "gamma 2" in line for line in lines)
        assert any(any(0x2800 < ord(sign) <= 0x28FF for sign in line) for line in lines)
    assert not any(sign >= "⠁" for line in printed(curve_tables.curve(document, drawn=False), 80) for sign in line)


@pytest.mark.parametrize("route", ["GET /v1/losses", "GET /v1/metrics", "GET /v1/runs"])
def test_every_route_of_a_message_has_its_command(route: str) -> None:
    assert wording.COMMANDS_OF_ROUTES[route].split()[1] in cli.main.commands


def test_messages_name_options_in_place_of_fields() -> None:
    text = wording.in_commands("set metrics.classes to 3, or name it in metrics.names; the model metrics.binary stays")
    assert text == "pass --metric-option classes=3, or name it in --metrics; the model metrics.binary stays"
    assert wording.in_commands("loss.class_weight: expected 3 numbers") == "--class-weight: expected 3 numbers"
    assert wording.in_commands("x=probability draws an example") == "--x probability draws an example"


@pytest.mark.parametrize(
    ("command", "listed_by"),
    [
        (["losses", "focul"], "did you mean focal? lossd losses lists"),
        (["metrics", "multiclas"], "did you mean multiclass? lossd metrics lists"),
        (["metrics", "--name", "acuracy"], "did you mean accuracy or top_k_accuracy or auroc? lossd metrics lists"),
        (["evaluate", "--loss", "focul"], "lossd losses lists"),
        (["score", ".", "--task", "binary", "--metrics", "acuracy"], "lossd metrics lists"),
    ],
    ids=str,
)
def test_an_unknown_name_names_the_command_that_lists_all(command: list[str], listed_by: str) -> None:
    run = CliRunner().invoke(cli.main, command)
    assert run.exit_code == 1
    assert listed_by in run.output


def test_wrong_usage_ends_its_lines_between_words(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("sys.stderr.isatty", lambda: True)
    monkeypatch.setenv("COLUMNS", "40")
    with pytest.raises(click.UsageError) as caught:
        cli.main.main(["evaluate", "--loss", "mse", "--hessian-form", "exact"], standalone_mode=False)
    lines = f"Error: {caught.value.message}".splitlines()
    assert max(map(len, lines)) <= 40 < len(caught.value.message)
    assert " ".join(lines) == "Error: --hessian-form needs --hessian-out, the file that the Hessian is written to"
    assert caught.value.exit_code == 2
    assert caught.value.ctx is not None


def test_numbers_of_things_have_the_right_ending() -> None:
    assert wording.counted(1, None, "file") == "1 file"
    assert wording.counted(1_000, None, "batch") == "1,000 batches"
    assert wording.counted(1, 2, "file") == "1 of 2 files"
    assert wording.counted(0, 1, "file") == "0 of 1 file"


def test_a_bar_that_never_moved_is_erased(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    monkeypatch.setenv("FORCE_COLOR", "1")
    with progress(0, shown=True):
        pass
    assert capsys.readouterr().err.endswith(ERASED)
    with progress(1, shown=True) as advance:
        advance(1, "1/1 files", "")
    assert not capsys.readouterr().err.endswith(ERASED)


def test_a_message_on_a_terminal_ends_its_lines_between_words(monkeypatch: pytest.MonkeyPatch) -> None:
    text = "the class indices of " + "somewhere/" * 8 + " are out of range, as many as prediction has"
    assert wording.on_terminal(text) == text
    monkeypatch.setattr("sys.stderr.isatty", lambda: True)
    monkeypatch.setenv("COLUMNS", "40")
    lines = wording.on_terminal(text).splitlines()
    assert " ".join(lines) == text
    assert [line for line in lines if len(line) > 40] == ["somewhere/" * 8]


@pytest.mark.parametrize(
    "command", [["losses"], ["losses", "focal"], ["metrics"], ["metrics", "segmentation"]], ids=str
)
def test_lists_fit_and_keep_every_word(command: list[str], monkeypatch: pytest.MonkeyPatch) -> None:
    def listed(width: int) -> list[str]:
        monkeypatch.setattr(fitting, "console", lambda: Console(width=width))
        return CliRunner().invoke(cli.main, command).output.splitlines()

    words = sorted("".join("".join(listed(400)).split()))
    for width in (60, 80, 200):
        lines = listed(width)
        assert max(map(len, lines)) <= width
        assert sorted("".join("".join(lines).split())) == words


def test_the_address_of_a_service_is_not_broken(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr("sys.stdout.isatty", lambda: True)
    monkeypatch.setenv("COLUMNS", "40")
    serve._say("lossd listens on http://127.0.0.1:8000, reachable from this machine only")
    lines = capsys.readouterr().out.splitlines()
    assert lines == ["lossd listens on http://127.0.0.1:8000,", "reachable from this machine only"]


def test_a_text_stands_below_its_name_where_there_is_no_room_beside() -> None:
    listing = Listing("loss", "task")
    listing.add_row("a-long-name-of-a-loss", "multiclass", text="It is computed from scores of classes.")
    assert printed(listing, 80)[1].split() == [
        "a-long-name-of-a-loss",
        "multiclass",
        *["It", "is", "computed", "from", "scores", "of", "classes."],
    ]
    assert [line.rstrip() for line in printed(listing, 50)] == [
        "loss                   task",
        "a-long-name-of-a-loss  multiclass",
        "    It is computed from scores of classes.",
    ]


def test_messages_about_runs_name_commands(tmp_path: Path) -> None:
    def runs(*arguments: str) -> Result:
        return CliRunner().invoke(cli.main, ["runs", *arguments], env={"LOSSD_RUNS": str(tmp_path / "runs.db")})

    shown = runs("show", "nothing")
    assert shown.exit_code == 1
    assert "lossd runs lists yours" in shown.output
    assert "GET" not in shown.output
    assert "(request " not in shown.output
    assert "lossd score --run NAME keeps one" in runs().output
    assert "no run matches" in runs("--task", "binary").output
    copied = runs("copy", str(tmp_path / "absent.db"), str(tmp_path / "new.db"))
    assert (copied.exit_code, "there is no database" in copied.output) == (2, True)
    assert not (tmp_path / "absent.db").exists()
