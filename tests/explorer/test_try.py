"""A reader's own request: files and pasted numbers in, the service's answer out, and commands that do the same."""

from __future__ import annotations

import base64
import io
import json
import os
import re
import shutil
import sys
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from safetensors.numpy import save

from lossd.engine import worker_process
from lossd.metrics import TASKS
from lossd_client import LossClient
from serving import Running, running

from .conftest import serious_faults, unfold

RNG = np.random.default_rng(5)
SCORES = RNG.normal(size=(64, 10)).astype(np.float32)
CLASSES = RNG.integers(0, 10, 64)
LANGUAGES = ("curl", "Python", "JavaScript")


def npy(array: np.ndarray, version: tuple[int, int] | None = None) -> bytes:
    file = io.BytesIO()
    np.lib.format.write_array(file, array, version=version)
    return file.getvalue()


def npz(save_as: Callable[..., None], **arrays: np.ndarray) -> bytes:
    file = io.BytesIO()
    save_as(file, **arrays)
    return file.getvalue()


def opened(visit: Callable, query: str = "", **options: Any):
    page = visit(f"/try{query}", again=True, **options)
    page.wait_for_selector("[data-answers]")
    return page


def answers(page) -> int:
    return int(page.locator("[data-answers]").get_attribute("data-answers"))


def after(page, act: Callable[[], object]) -> float:
    """The loss that is shown after something was done and answered."""
    before = answers(page)
    act()
    page.wait_for_function("n => document.querySelector('[data-answers]').dataset.answers > n", arg=before)
    page.wait_for_function("() => !document.querySelector('[aria-busy]')")
    return shown(page)


def shown(page) -> float:
    return float(page.locator("#loss").get_attribute("data-value"))


def drop(page, **files: bytes) -> None:
    """Drop files on the inputs, as a mouse does."""
    page.evaluate(
        """(files) => {
          const transfer = new DataTransfer();
          for (const [name, base64] of files) {
            const bytes = Uint8Array.from(atob(base64), (character) => character.charCodeAt(0));
            transfer.items.add(new File([bytes], name));
          }
          const zone = document.querySelector('.drop');
          for (const type of ['dragover', 'drop'])
            zone.dispatchEvent(new DragEvent(type, { dataTransfer: transfer, bubbles: true, cancelable: true }));
        }""",
        [[name.replace("__", "."), base64.b64encode(content).decode()] for name, content in files.items()],
    )


HEAD = ",".join([*(f"score {i}" for i in range(10)), "label"])


def table(scores: np.ndarray, classes: np.ndarray) -> bytes:
    rows = [[*map(repr, map(float, row)), str(label)] for row, label in zip(scores, classes, strict=True)]
    return "\n".join([HEAD, *map(",".join, rows)]).encode()


# Files of scores and classes. The first and the last have no names that tell which is which.
BIG: dict[str, Callable[[np.ndarray, np.ndarray], dict[str, bytes]]] = {
    "npz, neither is called anything": lambda scores, classes: {
        "batch__npz": npz(np.savez_compressed, arr_0=scores, arr_1=classes)
    },
    "npy": lambda scores, classes: {"prediction__npy": npy(scores), "target__npy": npy(classes)},
    "npy version 2, columns first": lambda scores, classes: {
        "prediction__npy": npy(np.asfortranarray(scores), (2, 0)),
        "target__npy": npy(classes.astype(np.int32)),
    },
    "npz": lambda scores, classes: {"batch__npz": npz(np.savez, logits=scores, labels=classes)},
    "npz, packed": lambda scores, classes: {"batch__npz": npz(np.savez_compressed, y_true=classes, y_pred=scores)},
    "safetensors": lambda scores, classes: {"batch__safetensors": save({"target": classes, "prediction": scores})},
    "unsigned": lambda scores, classes: {
        "prediction__npy": npy(scores), "target__npy": npy(classes.astype(np.uint16)),
    },
    "csv": lambda scores, classes: {"data__csv": table(scores, classes)},
    "npz, where inputs have files": lambda scores, classes: {"next__npz": npz(np.savez, arr_0=scores, arr_1=classes)},
}  # fmt: skip


@pytest.mark.parametrize("form", ["json", "safetensors"])
def test_a_dropped_file_has_the_loss_that_the_python_client_is_answered(visit, service: Running, form: str) -> None:
    page = opened(visit, f"?as={form}")
    for i, (name, files) in enumerate(BIG.items()):
        scores, classes = SCORES + np.float32(0.1) * np.roll(SCORES, i), np.roll(CLASSES, i)  # of each file other ones
        dropped = files(scores, classes)
        loss = after(page, lambda dropped=dropped: drop(page, **dropped))
        with LossClient(service.url) as lossd:
            expected = lossd.evaluate("cross_entropy", scores, classes)
        assert page.locator("#loss-choice option").first.inner_text() == "Guessed: cross_entropy", name
        assert loss == expected.loss, name
        cells = page.locator(".heat").first.locator("tbody td").all_inner_texts()
        assert [int(cell) for cell in cells] == np.ravel(expected.metrics.confusion_matrix).tolist(), name


def test_an_array_that_may_be_any_input_s_is_left_to_the_reader(visit, service: Running) -> None:
    page = opened(visit)
    loss = after(page, lambda: drop(page, prediction__npy=npy(SCORES), target__npy=npy(CLASSES)))
    assert after(page, lambda: drop(page, second__npy=npy(2 * SCORES))) == loss
    page.get_by_text("No input has the name of second.npy: choose it as the source of one.").wait_for()
    choice = page.get_by_label("Source of prediction")
    chosen = after(page, lambda: choice.select_option("second.npy · 64 × 10 float32"))
    with LossClient(service.url) as lossd:
        assert chosen == lossd.evaluate("cross_entropy", 2 * SCORES, CLASSES).loss


def test_files_can_be_chosen_and_arrays_assigned_by_hand(visit, service: Running, tmp_path: Path) -> None:
    page = opened(visit)
    page.expected.append("422")
    file = tmp_path / "batch.npz"
    np.savez(file, first=CLASSES, second=SCORES)
    page.locator("#files").set_input_files(file)
    page.get_by_label("Source of prediction").select_option("batch.npz: second · 64 × 10 float32")
    loss = after(page, lambda: page.get_by_label("Source of target").select_option(index=1))
    with LossClient(service.url) as lossd:
        assert loss == lossd.evaluate("cross_entropy", SCORES, CLASSES).loss


def test_halves_and_doubles_keep_their_dtype(visit, service: Running) -> None:
    for dtype in (np.float16, np.float64):
        for form in ("json", "safetensors"):
            page = opened(visit, f"?loss=mse&as={form}")
            arrays = [RNG.normal(size=300).astype(dtype) for _ in range(2)]
            files = {f"{name}__npy": npy(array) for name, array in zip(("prediction", "target"), arrays, strict=True)}
            loss = after(page, lambda page=page, files=files: drop(page, **files))
            with LossClient(service.url) as lossd:
                assert loss == lossd.evaluate("mse", *arrays).loss


def rezipped(content: bytes, method: int) -> bytes:
    """The same archive, packed in another way."""
    file = io.BytesIO()
    with zipfile.ZipFile(io.BytesIO(content)) as old, zipfile.ZipFile(file, "w", method) as new:
        for name in old.namelist():
            new.writestr(name, old.read(name))
    return file.getvalue()


UNREADABLE: list[tuple[dict[str, bytes], str]] = [
    ({"x__npy": npy(SCORES.astype(">f4"))}, "big-endian"),
    ({"x__npy": npy(SCORES)[:-1]}, "another size than its header"),
    ({"x__npy": npy(np.array(["a"]))}, "is not supported"),
    ({"x__npz": b"PK nothing"}, "not a .npz file"),
    ({"x__npz": rezipped(npz(np.savez, logits=SCORES, labels=CLASSES), zipfile.ZIP_LZMA)}, "unsupported compression"),
    ({"x__safetensors": b"12345678"}, "not a safetensors file"),
    ({"x__csv": b"a,b\n1,2\n3\n"}, "Line 2 has 1 numbers"),
    ({"x__csv": b"a,b\n1,two\n"}, "“two” in row 1 is not a number"),
    ({"x__png": b"\x89PNG"}, "is none of"),
]


def test_what_is_not_read_says_why_and_the_answer_stays(visit) -> None:
    page = opened(visit)
    before = shown(page)
    for files, complaint in UNREADABLE:
        drop(page, **files)
        page.get_by_text(re.compile(re.escape(complaint))).wait_for()
        assert shown(page) == before, complaint


@pytest.mark.parametrize(
    ("prediction", "target", "guessed"),
    [
        ("1 2 3\n3 1 0", "2\n0", "cross_entropy"),
        ("1\n-2\n0.5", "1\n0\n1", "bce_with_logits"),
        ("1,-2\n0.5,3\n1,1", "1,0\n1,1\n0,1", "multilabel_soft_margin"),
        ("1, 2.5, 3", "0.9; 2; 3.5", "mse"),
        ("[1, -2, 0.5]", "[1, -1, -1]", "soft_margin"),
        ("0 0 9 9\n1 1 5 5", "0 0 8 8\n1 2 5 5", "giou"),
        ("[[[[1, -1], [2, 0]], [[0, 1], [0.5, 3]]]]", "[[[0, 1], [0, 1]]]", "dice"),
    ],
)
def test_pasted_numbers_are_read_and_a_loss_is_guessed(
    visit, service: Running, prediction: str, target: str, guessed: str
) -> None:
    page = opened(visit)
    page.expected.append("422")
    page.get_by_label(re.compile("^prediction")).fill(prediction)
    page.wait_for_selector("[aria-invalid]")
    loss = after(page, lambda: page.get_by_label(re.compile("^target")).fill(target))
    assert page.locator("#loss-choice option").first.inner_text() == f"Guessed: {guessed}"

    def array(text: str) -> np.ndarray:
        if text.startswith("["):
            return np.array(json.loads(text))
        rows = [[float(cell) for cell in re.split(r"[\s,;]+", line)] for line in text.splitlines()]
        return np.array(rows).squeeze()

    values = array(target)
    targets = values.astype(np.float32 if guessed in ("mse", "giou") else np.int64)
    with LossClient(service.url) as lossd:
        expected = lossd.evaluate(guessed, array(prediction).astype(np.float32), targets).loss
    assert loss == expected


def test_a_refusal_is_told_beside_the_input_that_it_names(visit) -> None:
    page = opened(visit)
    page.expected.append("422")
    target = page.get_by_label(re.compile("^target"))
    target.fill("0\n1\n7")
    page.wait_for_selector("[aria-invalid]")
    assert target.get_attribute("aria-invalid") == "true"
    assert "target has shape (3,), expected (12,)" in page.locator("#input-target-fault").inner_text()
    assert page.locator(f"#{target.get_attribute('aria-describedby')}").inner_text() != ""
    assert page.locator("#input-prediction-fault").inner_text() == ""
    target.fill("0\n1\nx")
    page.get_by_text("“x” in line 3 is not a number.").wait_for()
    after(page, lambda: target.fill("\n".join("012012012012")))
    assert target.get_attribute("aria-invalid") is None


@pytest.mark.parametrize("form", ["json", "safetensors"])
def test_floats_of_a_file_are_not_turned_into_classes(visit, form: str) -> None:
    page = opened(visit, f"?loss=cross_entropy&as={form}")
    page.expected.append("422")
    drop(page, prediction__npy=npy(SCORES), target__npy=npy(CLASSES.astype(np.float32)))
    page.wait_for_selector("[aria-invalid]")
    assert "class indices are integers" in page.locator("#input-target-fault").inner_text()


def test_parameters_metrics_and_options_are_sent(visit, service: Running) -> None:
    page = opened(visit, "?loss=focal")
    page.get_by_text("Metrics, clipping").click()
    after(page, lambda: page.get_by_role("slider", name="gamma").fill("3.5"))
    after(page, lambda: page.get_by_label("auroc", exact=True).check())
    after(page, lambda: page.get_by_label("gradient.clip norm, as digits").fill("0.05"))
    with page.expect_request("**/v1/evaluate") as request:
        after(page, lambda: page.locator(".choice label", has_text="sum").click())
    body = json.loads(request.value.post_data)
    assert body["loss"] == {"name": "focal", "gamma": 3.5, "reduction": "sum"}
    assert body["gradient"] == {"clip_norm": 0.05}
    assert "auroc" in body["metrics"]["names"]
    inputs = {name: np.array(values) for name, values in body["inputs"].items()}
    with LossClient(service.url) as lossd:
        expected = lossd.evaluate(
            body["loss"], inputs=inputs | {"prediction": inputs["prediction"].astype(np.float32)},
            gradient=body["gradient"], metrics=body["metrics"],
        )  # fmt: skip
    assert shown(page) == expected.loss
    assert "auroc" in page.locator(".classes thead").inner_text()
    page.reload()
    page.wait_for_selector("[data-answers]")
    assert shown(page) == expected.loss


# Chooses one loss or task after the other, as its reader would, and of a task each kind of predictions; hands over
# which were answered and which were not.
CHOOSE_EVERY = """
async () => {
  const picker = document.querySelector("#loss-choice");
  const { dataset } = document.querySelector("[data-answers]");
  const [answered, refused] = [[], []];
  async function choose(name, act) {
    const before = Number(dataset.answers);
    act();
    const ended = () => Number(dataset.answers) > before || dataset.refused || document.querySelector("[aria-invalid]");
    const until = performance.now() + 30_000;
    while ((!ended() || document.querySelector("[aria-busy]")) && performance.now() < until)
      await new Promise((next) => setTimeout(next, 1));
    (Number(dataset.answers) > before ? answered : refused).push(name);
    delete dataset.refused;
  }
  for (const name of [...picker.options].map((option) => option.value).filter(Boolean)) {
    await choose(name, () => {
      picker.value = name;
      picker.dispatchEvent(new Event("change"));
    });
    const readings = [...document.querySelectorAll("[name='field-predictions']:not(:checked)")].map(
      ({ value }) => value,
    );
    for (const reading of readings)
      await choose(`${name}, ${reading}`, () =>
        document.querySelector(`[name='field-predictions'][value='${reading}']`).click(),
      );
  }
  return [answered, refused];
}
"""


def test_every_loss_has_an_example_that_is_answered(visit) -> None:
    page = opened(visit, "?outputs=loss,gradient,hessian,metrics")
    answered, refused = page.evaluate(CHOOSE_EVERY)
    assert len(answered) > 55
    assert refused == []


def test_every_task_has_an_example_of_each_kind_of_predictions_that_is_answered(visit) -> None:
    page = opened(visit, "?task=")
    answered, refused = page.evaluate(CHOOSE_EVERY)
    assert {"regression", "multiclass, classes", "segmentation, probabilities", "binary, probabilities"} < set(answered)
    assert {name.partition(",")[0] for name in answered} == set(TASKS)
    assert refused == []


@pytest.mark.parametrize("form", ["json", "safetensors"])
@pytest.mark.parametrize(("task", "shape"), [("multiclass", (40,)), ("segmentation", (2, 5, 6))])
def test_dropped_classes_have_the_metrics_that_the_python_client_is_answered(
    visit, service: Running, form: str, task: str, shape: tuple[int, ...]
) -> None:
    target = RNG.integers(0, 4, shape).astype(np.uint8)
    predicted = np.where(RNG.random(shape) < 0.7, target, RNG.integers(0, 4, shape)).astype(np.uint8)
    predicted.flat[0] = 3
    page = opened(visit, f"?as={form}")
    after(page, lambda: page.get_by_text("Metrics only", exact=True).click())
    accuracy = after(page, lambda: drop(page, prediction__npy=npy(predicted), target__npy=npy(target)))
    assert page.locator("#loss-choice option").first.inner_text() == f"Guessed: {task}"
    assert page.locator("[name='field-predictions']:checked").input_value() == "classes"
    with LossClient(service.url) as lossd:
        inputs = {"prediction": predicted.astype(np.int64), "target": target.astype(np.int64)}
        expected = lossd.evaluate(task=task, inputs=inputs, metrics={"classes": 4}).metrics
    assert accuracy == expected.accuracy
    assert page.locator(".verdict h2").inner_text() == "accuracy"

    def matrix() -> list[int]:
        return [int(cell) for cell in page.locator(".heat").first.locator("tbody td").all_inner_texts()]

    assert matrix() == np.ravel(expected.confusion_matrix).tolist()
    after(page, lambda: page.get_by_role("spinbutton", name="Number of classes, as digits").fill("5"))
    assert matrix() == np.pad(expected.confusion_matrix, (0, 1)).ravel().tolist()


def test_decisions_are_read_as_such_and_metrics_of_scores_are_closed_to_classes(visit) -> None:
    page = opened(visit, "?task=")
    page.expected.append("422")  # while one of the two fields is filled in
    page.get_by_label(re.compile("^prediction")).fill("0 1 1 1")
    accuracy = after(page, lambda: page.get_by_label(re.compile("^target")).fill("0 1 0 1"))
    assert page.locator("#loss-choice option").first.inner_text() == "Guessed: binary"
    assert accuracy == 0.75
    page = opened(visit, "?task=multiclass&predictions=classes")
    page.get_by_text("Metrics and their options").click()
    assert page.get_by_label("auroc", exact=True).is_disabled()
    after(page, lambda: page.get_by_label("mcc", exact=True).check())
    page.get_by_text("mcc", exact=True).first.wait_for()


def test_the_metrics_of_a_chosen_loss_s_task_are_one_click_away(visit) -> None:
    page = opened(visit, "?loss=giou")
    iou = after(page, lambda: page.get_by_text("Metrics only", exact=True).click())
    assert page.locator("#loss-choice").input_value() == "boxes"
    assert page.locator(".verdict h2").inner_text() == "mean iou"
    after(page, lambda: page.get_by_text("Loss and metrics", exact=True).click())
    assert page.locator("#loss-choice").input_value() == "giou"
    after(page, lambda: page.get_by_text("Metrics only", exact=True).click())
    page.reload()
    page.wait_for_selector("[data-answers]")
    assert shown(page) == iou


def test_results_are_beside_a_long_column_and_as_wide_as_the_page_below_it(visit) -> None:
    page = opened(visit, "?task=multiclass")

    def box(selector: str) -> dict[str, float]:
        return page.locator(selector).bounding_box()

    assert box(".verdict")["width"] == box(".desk")["width"]
    page.get_by_text("Metrics and their options").click()
    page.wait_for_selector(".side .checks")
    side, code = box(".side"), box("[aria-label='Code']")
    assert code["y"] < side["y"] + side["height"]
    assert code["x"] + code["width"] < side["x"]


def commands(page, *languages: str) -> dict[str, str]:
    found = {}
    for language in languages:
        page.locator(".choice label", has_text=language).click()
        page.context.grant_permissions(["clipboard-read", "clipboard-write"])
        page.get_by_role("button", name=re.compile("^Cop")).click()
        page.get_by_role("button", name="Copied").wait_for()
        found[language] = page.evaluate("navigator.clipboard.readText()")
    return found


def ran(language: str, command: str, folder: Path, **env: str) -> float:
    """The loss that a copied command prints."""
    out = printed(language, command, folder, **env)
    return json.loads(out)["loss"] if language == "curl" else float(out.splitlines()[0])


def printed(language: str, command: str, folder: Path, **env: str) -> str:
    tool = {"curl": "curl", "Python": sys.executable, "JavaScript": "node"}[language]
    if shutil.which(tool) is None:
        pytest.skip(f"needs {tool}")
    script = folder / {"curl": "it.sh", "Python": "it.py", "JavaScript": "it.mjs"}[language]
    script.write_text(command)
    start = ["sh"] if language == "curl" else [tool]
    ended = worker_process.subprocess.run(  # forks what is Python; see ``warm``
        [*start, script.name], cwd=folder, env=os.environ | env, capture_output=True, text=True, timeout=60
    )
    assert ended.returncode == 0, ended.stderr
    return str(ended.stdout)


@pytest.mark.parametrize("form", ["json", "safetensors"])
def test_a_copied_command_runs_and_has_the_shown_loss(visit, tmp_path: Path, form: str) -> None:
    page = opened(visit, f"?loss=expression&as={form}")
    after(page, lambda: page.get_by_label("formula", exact=True).fill("abs(prediction - target) ** 3 / c + 0.1"))
    loss = after(page, lambda: page.locator(".choice label", has_text="sum").click())
    if page.get_by_role("button", name="Save request.safetensors").count():
        with page.expect_download() as saved:
            page.get_by_role("button", name="Save request.safetensors").click()
        saved.value.save_as(tmp_path / "request.safetensors")
    for language, command in commands(page, *LANGUAGES).items():
        assert ran(language, command, tmp_path) == loss, language


@pytest.mark.parametrize("form", ["json", "safetensors"])
def test_a_hessian_and_a_mask_are_asked_for_and_are_in_the_commands(visit, tmp_path: Path, form: str) -> None:
    page = opened(visit, f"?loss=mse&as={form}")
    whole = shown(page)
    after(page, lambda: page.get_by_label("hessian", exact=True).check())
    assert after(page, lambda: page.get_by_label("Add an input").select_option("mask")) == pytest.approx(whole)
    mask = page.get_by_label(re.compile("^mask"))
    kept = json.loads(mask.input_value())
    assert set(kept) == {1}
    masked = after(page, lambda: mask.fill(json.dumps([0, *kept[1:]])))
    assert masked != pytest.approx(whole)
    page.get_by_role("heading", name="Hessian diagonal of prediction").wait_for()
    page.get_by_text("Metrics, clipping, Hessian").click()
    after(page, lambda: page.get_by_label("hessian.floor, as digits").fill("5"))
    if form == "safetensors":
        with page.expect_download() as saved:
            page.get_by_role("button", name="Save request.safetensors").click()
        saved.value.save_as(tmp_path / "request.safetensors")
    found = commands(page, *LANGUAGES)
    answer = json.loads(printed("curl", found["curl"], tmp_path))
    expected = [0, *[5 / (len(kept) - 1)] * (len(kept) - 1)]
    assert answer["loss"] == pytest.approx(masked)
    assert answer["hessian"]["prediction"] == pytest.approx(expected)
    assert ran("JavaScript", found["JavaScript"], tmp_path) == pytest.approx(masked)
    out = printed("Python", found["Python"], tmp_path)
    assert float(out.splitlines()[0]) == pytest.approx(masked)
    assert out.count("{'prediction': array(") == 2  # the gradients and the Hessians
    page.reload()
    page.wait_for_selector("[data-answers]")
    assert shown(page) == pytest.approx(masked)


def test_the_box_of_a_hessian_that_a_loss_lacks_is_closed(visit) -> None:
    page = opened(visit, "?loss=dice")
    box = page.get_by_label("hessian", exact=True)
    assert box.is_disabled()
    page.get_by_label("hessian").hover()
    assert "not diagonal" in page.locator("label:has(:disabled)", has_text="hessian").get_attribute("title")


def test_what_is_too_long_for_a_command_is_saved_and_sent_from_the_file(visit, tmp_path: Path) -> None:
    page = opened(visit)
    scores, classes = RNG.normal(size=(500, 10)).astype(np.float32), RNG.integers(0, 10, 500)
    loss = after(page, lambda: drop(page, prediction__npy=npy(scores), target__npy=npy(classes)))
    found = commands(page, *LANGUAGES)
    assert all(len(command) < 1500 for command in found.values())
    with page.expect_download() as saved:
        page.get_by_role("button", name="Save request.safetensors").click()
    saved.value.save_as(tmp_path / "request.safetensors")
    for language, command in found.items():
        assert ran(language, command, tmp_path) == loss, language


def test_a_copied_command_of_metrics_only_has_the_shown_metric(visit, tmp_path: Path) -> None:
    page = opened(visit, "?task=multiclass&predictions=classes")
    for language, command in commands(page, *LANGUAGES).items():
        out = printed(language, command, tmp_path)
        assert re.findall(r"accuracy\W+([\d.]+)", out)[0] == str(shown(page)), language


def test_commands_take_the_key_from_the_environment_and_never_show_it(visit, tmp_path: Path) -> None:
    key = "open-sesame-0123456789"
    with running(engine="inline", api_key=key) as locked:
        page = visit("/try", url=locked.url)
        page.expected.append("401")
        page.wait_for_selector("#key-dialog[open]")
        page.get_by_label("API key").fill(key)
        page.get_by_role("button", name="Use this key").click()
        page.wait_for_selector("[data-answers]")
        for language, command in commands(page, *LANGUAGES).items():
            assert key not in command
            assert ran(language, command, tmp_path, LOSSD_API_KEY=key) == shown(page)


@pytest.mark.parametrize(
    "query",
    [
        "",
        "?loss=dice",
        "?loss=mse&outputs=loss,gradient",
        "?loss=giou&as=safetensors",
        "?task=multiclass&predictions=classes",
    ],
)
def test_it_has_no_serious_fault_and_fits_a_phone(visit, query: str) -> None:
    page = opened(visit, query, theme="dark")
    unfold(page)
    page.wait_for_selector(".side details[open] .field")
    assert serious_faults(page) == []
    page.set_viewport_size({"width": 390, "height": 844})
    page.wait_for_function("() => document.documentElement.scrollWidth === 390")
