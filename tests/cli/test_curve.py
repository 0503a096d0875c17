"""``lossd curve``, ``--plot``, ``lossd metrics`` and what a shell completes."""

from __future__ import annotations

import json
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path
from unittest.mock import Mock

import numpy as np
import pytest
from click.testing import CliRunner, Result

from lossd.cli import known, main
from lossd.losses import REGISTRY
from lossd.metrics import METRICS


def lossd(*arguments: str | Path) -> Result:
    return CliRunner().invoke(main, [str(argument) for argument in arguments])


# curve


def test_a_loss_is_drawn_into_a_file(tmp_path: Path) -> None:
    path = tmp_path / "focal.svg"
    result = lossd("curve", "focal", "--gamma", "0", "--gamma", "2", "-o", path)
    assert result.exit_code == 0, result.output
    assert f"drawn into {path}" in result.stderr
    assert {"focal, gamma 0", "focal, gamma 2"} <= set(re.findall(r">([^<]+)</text>", path.read_text()))


def test_every_point_as_json() -> None:
    words = ("curve", "huber", "--delta", "2", "--with", "mse", "--low", "-1", "--high", "1", "--points", "3", "--json")
    document = json.loads(lossd(*words).stdout)
    assert document["x"] == [-1, 0, 1]
    assert [series["loss"] for series in document["series"]] == [[0.5, 0, 0.5], [1, 0, 1]]
    assert [series["gradient"] for series in document["series"]] == [[-1, 0, 1], [-2, 0, 2]]


def test_without_a_file_some_points_are_printed() -> None:
    output = lossd("curve", "mae", "--low", "-5", "--high", "5").stdout
    assert "mae, along the error" in output
    assert re.search(r"^-5 +5 *$", output, re.MULTILINE)
    assert re.search(r"^-5 +-1 *$", output, re.MULTILINE), "the gradient"


@pytest.mark.parametrize(
    ("arguments", "status", "message"),
    [
        (["focul"], 1, "did you mean focal?"),
        (["ctc"], 1, "ctc has no curve"),
        (["focal", "--gamma", "-1"], 1, "gamma"),
        (["focal", "--gama", "1"], 2, "--gamma"),
        (["focal", "--reduction", "sum"], 2, "--reduction"),
        (["focal", "-o", "focal.pdf"], 2, "must end in .svg or .png"),
        ([], 2, "LOSS"),
    ],
)
def test_what_cannot_be_drawn(arguments: list[str], status: int, message: str) -> None:
    result = lossd("curve", *arguments)
    assert (result.exit_code, message in result.stderr) == (status, True), result.output


# --plot


@pytest.fixture
def binary(tmp_path: Path) -> list[Path]:
    random = np.random.default_rng(0)
    target = random.integers(0, 2, 200)
    paths = [tmp_path / "prediction.npy", tmp_path / "target.npy"]
    np.save(paths[0], (random.standard_normal(200) + target).astype(np.float32))
    np.save(paths[1], target.astype(np.float32))
    return paths


def test_a_task_has_its_picture(binary: list[Path], tmp_path: Path) -> None:
    from sklearn.metrics import roc_auc_score

    path = tmp_path / "roc.svg"
    assert lossd("evaluate", *binary, "--loss", "bce_with_logits", "--plot", path).exit_code == 0
    area = roc_auc_score(np.load(binary[1]), np.load(binary[0]))
    assert '<title id="title">ROC curve</title>' in path.read_text()
    assert f"area {area:.4g}" in path.read_text()


@pytest.mark.parametrize(
    ("kind", "title"),
    [
        ("roc", "ROC curve"),
        ("pr", "Precision over recall"),
        ("confusion", "Confusion matrix"),
        ("reliability", "Reliability"),
        ("curve", "bce_with_logits over"),
    ],
)
def test_a_picture_can_be_chosen(kind: str, title: str, binary: list[Path], tmp_path: Path) -> None:
    path = tmp_path / "picture.svg"
    result = lossd("evaluate", *binary, "--loss", "bce_with_logits", "--plot", path, "--plot-kind", kind)
    assert result.exit_code == 0, result.output
    assert f'<title id="title">{title}' in path.read_text()
    assert "accuracy" in result.stdout, "the answer is printed as ever"


def test_classes_have_a_confusion_matrix_and_regression_its_loss(tmp_path: Path) -> None:
    np.savez(tmp_path / "classes.npz", prediction=np.eye(3, dtype=np.float32), target=np.array([0, 1, 1]))
    np.savez(tmp_path / "numbers.npz", prediction=np.ones(2), target=np.zeros(2))
    path = tmp_path / "picture.svg"
    assert lossd("evaluate", tmp_path / "classes.npz", "--task", "multiclass", "--plot", path).exit_code == 0
    assert "3 classes, 3 predictions, of which 0.6667 are right" in path.read_text()
    arguments = ("--loss", "huber", "--delta", "2", "--plot", path)
    assert lossd("evaluate", tmp_path / "numbers.npz", *arguments).exit_code == 0
    assert "huber, delta 2" in path.read_text()
    refused = lossd("evaluate", tmp_path / "numbers.npz", *arguments, "--plot-kind", "roc")
    assert (
        refused.exit_code,
        "the task regression has no picture of kind roc; its kinds are curve" in refused.stderr,
    ) == (2, True)


def test_labels_have_a_matrix_each_which_is_listed_and_not_drawn(tmp_path: Path) -> None:
    path = tmp_path / "labels.npz"
    np.savez(path, prediction=np.array([[1.0, -1], [1, 1], [-1, 1]]), target=np.array([[1, 0], [0, 1], [1, 1]]))
    arguments = ("evaluate", path, "--task", "multilabel", "--metrics", "confusion_matrix")
    assert re.search(r"^1 +1 +0 +0 +2 *$", lossd(*arguments).stdout, re.MULTILINE)
    refused = lossd(*arguments, "--plot", tmp_path / "out.svg", "--plot-kind", "confusion")
    assert (refused.exit_code, "the task multilabel has no picture of kind confusion" in refused.stderr) == (2, True)


def test_of_very_many_classes_the_counts_are_not_taken_for_a_matrix(tmp_path: Path) -> None:
    path = tmp_path / "classes.npz"
    np.savez(path, prediction=np.eye(300, dtype=np.float32), target=np.arange(300))
    found = lossd("evaluate", path, "--task", "multiclass")
    assert (found.exit_code, "true / predicted" in found.stdout) == (0, False)


# metrics


def test_metrics_lists_the_options_that_are_read() -> None:
    output = lossd("metrics", "multiclass").stdout
    assert re.search(r'^weights +"none" +cohen_kappa', output, re.MULTILINE)
    assert re.search(r"^k +5 +How many of the highest", output, re.MULTILINE)
    assert "error_quantiles" not in output


def test_metrics_lists_them_by_task() -> None:
    document = json.loads(lossd("metrics", "--json").stdout)
    listed = {task: [m["name"] for m in document["metrics"] if m["task"] == task] for task in METRICS}
    assert listed == {task: list(of_task) for task, of_task in METRICS.items()}
    shown = lossd("metrics", "regression").stdout
    assert all(name in shown for name in METRICS["regression"])
    only = json.loads(lossd("metrics", "--name", "auroc", "--json").stdout)["metrics"]
    assert json.loads(lossd("metrics", "auroc", "--json").stdout)["metrics"] == only  # the name of no task
    assert {entry["name"] for entry in only} == {"auroc"}


@pytest.mark.parametrize(("arguments", "message"), [(["binry"], "binary"), (["--name", "acuracy"], "no metric named")])
def test_unknown_metrics_and_tasks_are_problems(arguments: list[str], message: str) -> None:
    result = lossd("metrics", *arguments)
    assert (result.exit_code, message in result.stderr) == (1, True), result.output


# help


def commands() -> list[str]:
    return list(main.commands)


@pytest.mark.parametrize("name", commands())
def test_every_command_s_help_has_examples_that_it_takes(name: str) -> None:
    shown = lossd(name, "--help").stdout
    _, _, examples = shown.partition("Examples:\n")
    lines = [line.strip() for line in examples.splitlines() if line.strip()]
    assert lines
    for line in lines:
        assert f"lossd {name}" in line
        assert len(line) <= 98
    assert re.search(r"^Usage: ", shown, re.MULTILINE)


def test_help_is_coloured_for_a_terminal_alone() -> None:
    assert "\x1b[" not in lossd("evaluate", "--help").output
    assert "\x1b[1mOptions" in CliRunner().invoke(main, ["evaluate", "--help"], color=True).output


# completion


def completed(*words: str, cache: Path) -> list[str]:
    """What a bash completes, asked as it asks."""
    environment = {
        "_LOSSD_COMPLETE": "bash_complete", "COMP_WORDS": " ".join(["lossd", *words]), "COMP_CWORD": str(len(words)),
        "XDG_CACHE_HOME": str(cache),
    }  # fmt: skip
    run = CliRunner(env=environment).invoke(main, prog_name="lossd")
    assert run.stderr == ""
    return [entry.partition(",")[2] for entry in run.stdout.splitlines()]


@pytest.fixture(scope="module")
def cache(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("cache")


def test_a_shell_completes_names(cache: Path) -> None:
    assert completed("evaluate", "--loss", "foc", cache=cache) == ["focal", "focal_tversky"]
    assert completed("curve", "hub", cache=cache) == ["huber"]
    assert completed("evaluate", "--loss", "focal", "--ga", cache=cache) == ["--gamma"]
    assert completed("evaluate", "--loss", "focal", "--alpha-mode", "", cache=cache) == ["scale", "foreground"]
    assert completed("evaluate", "--loss", "focal", "--metrics", "accuracy,mc", cache=cache) == [
        "accuracy,mcc",
        "accuracy,mce",
    ]
    assert completed("evaluate", "--task", "multic", cache=cache) == ["multiclass"]
    assert completed("metrics", "labelled", cache=cache) == ["labelled_embeddings"]
    assert set(completed("", cache=cache)) == set(commands())


def test_names_are_noted_until_the_losses_change(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    assert set(known.known()["losses"]) == set(REGISTRY)
    monkeypatch.setattr(known, "_found", lambda: {"losses": {"new": {"summary": ""}}, "metrics": {}})
    assert set(known.known()["losses"]) == set(REGISTRY), "from the note"
    monkeypatch.setattr(known, "_state", lambda: ["another version"])
    assert set(known.known()["losses"]) == {"new"}
    (tmp_path / "lossd" / "names.json").write_text("[")
    assert set(known.known()["losses"]) == {"new"}, "a broken note is no note"
    monkeypatch.setenv("XDG_CACHE_HOME", "/dev/null")
    assert set(known.known()["losses"]) == {"new"}, "nor does it need one"
    monkeypatch.delenv("XDG_CACHE_HOME")
    monkeypatch.setattr(Path, "home", Mock(side_effect=RuntimeError("Could not determine home directory.")))
    assert set(known.known()["losses"]) == {"new"}, "nor a home, as a user without a passwd entry"


@pytest.mark.parametrize("shell", ["bash", "zsh", "fish"])
def test_what_a_shell_is_to_run_is_its_language(shell: str) -> None:
    source = lossd("completion", shell).stdout
    assert f"_LOSSD_COMPLETE={shell}_complete" in source
    if shutil.which(shell):
        subprocess.run(
            [shell, "-n", "-c", source] if shell == "fish" else [shell, "-n"], input=source, text=True, check=True
        )


def test_completion_needs_no_torch(cache: Path) -> None:
    """In a process of its own, as a shell starts it."""
    completed("curve", "foc", cache=cache)  # notes the names
    script = (
        "import sys; from lossd.cli import main\n"
        "try: main(prog_name='lossd')\n"
        "except SystemExit: pass\n"
        "assert not {'torch', 'numpy', 'fastapi'} & set(sys.modules)"
    )
    environment = {
        **os.environ, "_LOSSD_COMPLETE": "bash_complete", "COMP_WORDS": "lossd curve foc", "COMP_CWORD": "2",
        "XDG_CACHE_HOME": str(cache),
    }  # fmt: skip
    run = subprocess.run([sys.executable, "-c", script], env=environment, capture_output=True, text=True, check=True)
    assert "focal" in run.stdout
