"""Several classes: which is predicted, and that every way of counting gives the same counts."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as arrays

from lossd.compiled.passes import Passes
from lossd.metrics import classes as module
from lossd.metrics import entries
from lossd.metrics.combinations import Combinations
from lossd.metrics.entries import blocks, most_likely
from metrics.measuring import Array, Request, alike, measure

SHAPES = [(4096, 5, 1), (7, 1, 3), (3, 2, 1000), (1, 21, 30_000), (2, 300, 900), (500, 3, 17), (1, 40_000, 8)]


@pytest.mark.parametrize("shape", SHAPES, ids=str)
@pytest.mark.parametrize("kind", ["normal", "ties", "nan", "infinite"])
def test_the_predicted_class_is_argmax_lowest_index_first_nan_highest(shape, kind):
    rng = np.random.default_rng(0)
    scores = rng.normal(size=shape).astype(np.float32)
    if kind == "ties":
        scores = scores.round()
    if kind == "nan":
        scores[rng.random(shape) < 1e-3] = np.nan
    if kind == "infinite":
        scores[rng.random(shape) < 0.5] = -np.inf
        scores[:, :, 0] = -np.inf
    # NumPy documents both: the first of several, and NaN above all.
    assert np.array_equal(most_likely(torch.from_numpy(scores)).numpy(), scores.argmax(1))


@pytest.mark.parametrize("shape", [(9, 2, 1), (40, 10, 1), (3, 48, 1), (2, 60, 1), (3, 4, 600), (2, 1, 7), (1, 3, 0)])
@pytest.mark.parametrize("dtype", ["float32", "float64"])
def test_a_kernel_finds_the_same_most_likely_class(shape: tuple[int, ...], dtype: str, passes: Passes) -> None:
    scores = np.random.default_rng(1).integers(-2, 3, shape).astype(dtype)  # most of the highest are not alone
    scores[scores == -2] = np.nan
    scores[scores == 2] = np.inf
    found = most_likely(torch.from_numpy(scores), passes.counting)
    assert np.array_equal(found.numpy(), scores.argmax(1))


@pytest.mark.parametrize("cells", [1, 7, 100, 5000])
@pytest.mark.parametrize("width", [1, 5])
@pytest.mark.parametrize("masked", [False, True])
def test_a_kernel_counts_combinations_as_numpy_does(cells: int, width: int, masked: bool, passes: Passes) -> None:
    rng = np.random.default_rng(cells + width)
    lengths, slots = [4, 1, 30, 2], 6
    rows = sum(lengths)
    index = np.repeat(np.arange(4) * slots, lengths) + rng.integers(0, slots, rows)
    key, upper = (torch.from_numpy(rng.integers(0, cells, (rows, width))) for _ in range(2))
    ignored = torch.from_numpy(rng.random((rows, width)) < 0.3) if masked else None
    general = Combinations(index, 4 * slots)
    compiled = Combinations(index, 4 * slots, np.array([0, 4, 5, 35, 37]), passes.counting["tally"])
    for more in ({}, {"upper": upper, "factor": cells}):
        size = cells**2 if more else cells
        if more and cells == 5000:
            continue
        places = index[:, None] * size + key.numpy() + (cells * upper.numpy() if more else 0)
        used, times = np.unique(places if ignored is None else places[~ignored.numpy()], return_counts=True)
        for combinations in (general, compiled):
            found = combinations.tally(key, size, ignored, **more)
            assert [column.tolist() for column in found] == [used.tolist(), times.tolist()]
    used, times = np.unique(index, return_counts=True)
    for combinations in (general, compiled):
        assert [column.tolist() for column in combinations.tally_rows()] == [used.tolist(), times.tolist()]


@given(rows=st.integers(1, 40), width=st.integers(1, 700), length=st.integers(1, 3000))
def test_blocks_cover_every_entry_once(rows, width, length):
    seen = np.zeros((rows, length), int)
    for row, column in blocks(rows, width, length):
        seen[row, column] += 1
        assert width * (row.stop - row.start) * (column.stop - column.start) <= max(entries.BLOCK, width)
    assert (seen == 1).all()


@st.composite
def batches(draw: st.DrawFn) -> tuple[list[Request], int | None]:
    """Ragged requests of whole-numbered scores, so that ties are common, some targets ignored."""
    count = draw(st.integers(2, 6))
    ignore_index = draw(st.sampled_from([None, -100, 0, 1]))
    requests = []
    for _ in range(draw(st.integers(1, 5))):
        n = draw(st.integers(1, 8))
        scores = draw(arrays.arrays(np.float32, (n, count), elements=st.integers(-2, 2).map(float)))
        target = draw(arrays.arrays(np.int64, n, elements=st.integers(0, count - 1)))
        if ignore_index is not None:
            target = np.where(draw(arrays.arrays(bool, n)), ignore_index, target)
        requests.append({"prediction": scores, "target": target})
    return requests, ignore_index


@settings(max_examples=40)
@given(batches())
def test_counts_agree_with_each_other_and_with_counting_by_hand(batch):
    requests, ignore_index = batch
    names = ["default", "tp", "fp", "fn", "tn"]
    for request, answer in zip(
        requests, measure("multiclass", requests, names, ignore_index=ignore_index), strict=True
    ):
        matrix = np.zeros((request["prediction"].shape[1],) * 2, int)
        for scores, target in zip(request["prediction"], request["target"], strict=True):
            if target != ignore_index:
                matrix[target, scores.tolist().index(scores.max())] += 1
        assert answer["confusion_matrix"] == matrix.tolist()
        assert answer["support"] == matrix.sum(1).tolist()
        assert answer["tp"] == matrix.diagonal().tolist()
        assert (np.array([answer[n] for n in ("tp", "fp", "fn", "tn")]).sum(0) == matrix.sum()).all()
        (alone,) = measure("multiclass", [request], names, ignore_index=ignore_index)
        assert answer == alone


def drawn(rng: np.random.Generator, n: int, count: int) -> dict[str, Array]:
    return {"prediction": rng.normal(size=(n, count)).astype(np.float32), "target": rng.integers(0, count, n)}


@pytest.mark.parametrize("weighted", [False, True])
def test_without_room_for_all_matrices_the_answers_are_the_same(monkeypatch, weighted):
    rng = np.random.default_rng(0)
    requests = [drawn(rng, n, 12) for n in (3, 1, 9)]
    for request in requests:
        request["target"][-1:] = -100
        if weighted:
            request["sample_weight"] = rng.random(len(request["target"]))
    at_once = measure("multiclass", requests, ["default", "mcc"], ignore_index=-100)
    monkeypatch.setattr(module, "FREE_CELLS", 0)
    assert measure("multiclass", requests, ["default", "mcc"], ignore_index=-100) == at_once


def test_many_small_requests_of_many_classes_take_memory_by_their_size(monkeypatch):
    """A matrix for each of 2,000 requests of one row and 256 classes would take a gigabyte."""
    cells = []
    bincount = torch.bincount
    monkeypatch.setattr(
        torch, "bincount", lambda *a, minlength: cells.append(minlength) or bincount(*a, minlength=minlength)
    )
    measure("multiclass", [drawn(np.random.default_rng(0), 1, 256)] * 2000, ["f1"])
    assert max(cells) <= 2000 * 257 + 1


def test_beyond_256_classes_the_matrix_gives_way_to_counts():
    request = drawn(np.random.default_rng(0), 400, 257)
    (answer,) = measure("multiclass", [request], ["confusion_matrix", "tp", "fp", "fn", "tn"])
    assert answer["confusion_matrix"] == {name: answer[name] for name in ("tp", "fp", "fn", "tn")}
    assert sum(answer["tp"]) + sum(answer["fn"]) == 400


def test_a_target_of_probabilities_stands_for_its_most_likely_class():
    rng = np.random.default_rng(0)
    request = drawn(rng, 20, 4)
    soft = rng.dirichlet(np.ones(4), 20)
    hard = {**request, "target": soft.argmax(1)}
    assert measure("multiclass", [{**request, "target": soft}]) == measure("multiclass", [hard])


@pytest.mark.parametrize("dtype", [np.uint8, np.int8, np.int16, np.int32, np.int64])
def test_every_width_of_integer_target(dtype):
    request = drawn(np.random.default_rng(0), 300, 120)
    narrow = {**request, "target": request["target"].astype(dtype)}
    assert measure("multiclass", [narrow, narrow]) == measure("multiclass", [request, request])


def test_weighted_counts_are_floats_and_others_integers():
    request = drawn(np.random.default_rng(0), 10, 3)
    (plain,) = measure("multiclass", [request])
    (weighted,) = measure("multiclass", [{**request, "sample_weight": np.full(10, 0.5)}])
    assert all(type(n) is int for n in plain["support"])
    assert weighted["support"] == [n / 2 for n in plain["support"]]
    assert all(type(n) is float for n in weighted["support"])
    assert weighted["f1"] == plain["f1"]


def test_images_are_averaged_one_by_one():
    """Worked by hand: one image all right, one with half of class 1 missed, one without anything that counts."""
    target = np.array([[0, 0, 1, 1], [1, 1, 0, 0], [-1, -1, -1, -1]])
    prediction = np.array([[0, 0, 1, 1], [1, 0, 0, 0], [0, 0, 0, 0]])
    request = {
        "prediction": np.ascontiguousarray(np.moveaxis(np.eye(3, dtype=np.float32)[prediction], -1, 1)),
        "target": target,
    }
    (answer,) = measure("segmentation", [request], ["per_image_iou", "per_image_dice"], ignore_index=-1)
    iou = answer["per_image_iou"]
    assert iou["per_class"] == [pytest.approx((1 + 2 / 3) / 2), pytest.approx((1 + 1 / 2) / 2), None]
    assert iou["macro"] == pytest.approx((1 + (2 / 3 + 1 / 2) / 2) / 2)
    assert iou["micro"] == pytest.approx((1 + 3 / 5) / 2)
    assert answer["per_image_dice"]["per_class"][1] == pytest.approx((1 + 2 / 3) / 2)
    assert answer["undefined"] == {"per_image_iou": [2], "per_image_dice": [2]}


def test_top_k_prefers_the_lower_of_equal_classes():
    request = {"prediction": np.zeros((4, 4), np.float32), "target": np.arange(4)}
    (answer,) = measure("multiclass", [request], ["top_k_accuracy"], k=3)
    assert answer["top_k_accuracy"] == 0.75


def test_log_loss_of_logits_has_no_bound():
    request = {"prediction": np.array([[-1e4, 1e4, 0]]), "target": np.array([0])}
    (answer,) = measure("multiclass", [request], ["log_loss"])
    assert answer["log_loss"] == 2e4


@pytest.mark.parametrize("activation", ["logits", "log_probability", "probability"])
def test_scores_in_any_form_give_the_same_metrics(activation):
    request = drawn(np.random.default_rng(0), 30, 4)
    logits = torch.from_numpy(request["prediction"]).double()
    forms = {"logits": logits, "log_probability": logits.log_softmax(1), "probability": logits.softmax(1)}
    names = ["default", "log_loss", "brier", "ece", "auroc", "top_k_accuracy"]
    (expected,) = measure("multiclass", [request], names)
    (found,) = measure(
        "multiclass", [{**request, "prediction": forms[activation].numpy()}], names, activation=activation
    )
    alike(found, expected, within=1e-6)
