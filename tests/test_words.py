"""What errors say, read as by the one who made the mistake: the culprit, what was found, and a remedy that works."""

from __future__ import annotations

import re
from typing import Any, Literal, get_origin

import numpy as np
import pytest
import torch

import lossd
from evaluating import alone
from lossd.losses import REGISTRY
from lossd.metrics import TASKS
from lossd.request.options import MetricOptions
from lossd.request.planning import listed_inputs, make_plan
from lossd_client.errors import DtypeMismatch, InvalidRequest, MalformedBody, MissingInput, Problem, ShapeMismatch
from lossd_client.messages import INPUTS
from lossd_client.wire import json
from lossd_client.wire.quoting import digits


def refusal(request: dict[str, Any], **inputs: Any) -> str:
    """What a request is refused with."""
    tensors = {name: torch.as_tensor(t) for name, t in inputs.items()}
    with pytest.raises(Problem) as refused:
        alone(request, tensors)
    return refused.value.detail


# Numbers


@pytest.mark.parametrize(
    ("dtype", "spelled"),
    [
        (torch.float64, "1.0000000000000002"),
        (torch.float32, "1.0000001"),
        (torch.float16, "1.001"),
        (torch.bfloat16, "1.01"),
    ],
)
def test_a_number_has_as_many_digits_as_show_the_fault(dtype: torch.dtype, spelled: str) -> None:
    above = torch.tensor([1 + torch.finfo(dtype).eps], dtype=dtype)
    detail = refusal({"loss": {"name": "bce"}}, prediction=above, target=[1.0])
    assert detail.startswith(f"probabilities expected in [0, 1], found {spelled} at prediction[0]")
    assert torch.tensor(float(spelled), dtype=dtype) == above


def test_an_inverted_box_shows_which_number_is_larger() -> None:
    box = torch.tensor([[0.50000006, 0.0, 0.5, 1.0]])
    detail = refusal({"loss": {"name": "giou"}}, prediction=box, target=[[0.0, 0.0, 1.0, 1.0]])
    assert "x2 = 0.5 is less than x1 = 0.50000006" in detail


@pytest.mark.parametrize(
    ("value", "text"),
    [
        (0.1, "0.1"), (100.0, "100"), (-2.0, "-2"), (1234567.0, "1234567"), (1e22, "1e+22"), (1e-7, "1e-07"),
        (0.1 + 0.2, "0.30000000000000004"), (float("nan"), "NaN"), (float("-inf"), "-Infinity"), (0.0, "0"),
    ],
)  # fmt: skip
def test_digits_lead_back_to_the_number(value: float, text: str) -> None:
    assert digits(value) == text
    assert float(text) == pytest.approx(value, rel=0, abs=0, nan_ok=True)


def test_a_threshold_just_out_of_range_shows_it() -> None:
    request = {"task": "binary", "outputs": ["metrics"], "metrics": {"threshold": 1.0000000000000002}}
    assert "found 1.0000000000000002" in refusal(request, prediction=[0.5], target=[1.0])


@pytest.mark.parametrize(("entry", "word"), [(float("nan"), "NaN"), (float("inf"), "Infinity")])
def test_what_is_not_finite_is_spelled_as_it_is_sent(entry: float, word: str) -> None:
    assert f"found {word} at target[1]" in refusal({"loss": {"name": "mse"}}, prediction=[0.0] * 2, target=[0.0, entry])


# Shapes and dtypes

SCORES, CLASSES = np.zeros((2, 3), np.float32), np.array([0, 2])
VOLUME = np.zeros((3, 4, 5), np.float32)
ONE_HOT = np.eye(3)[[0, 2]]


@pytest.mark.parametrize(
    ("loss", "inputs", "remedy"),
    [
        ("cross_entropy", (SCORES, np.array([0.0, 2.0])), 'class indices are integers: send target.astype("int64")'),
        ("focal", (SCORES, np.array([0.0, 2.0])), 'class indices are integers: send target.astype("int64")'),
        ("multi_margin", (SCORES, np.array([0.0, 2.0])), 'class indices are integers: send target.astype("int64")'),
        ("nll", (SCORES, np.array([0.0, 2.0])), 'class indices are integers: send target.astype("int64")'),
        ("dice", (SCORES, np.array([0.0, 2.0])), 'class indices are integers: send target.astype("int64")'),
        ("ce_dice", (SCORES, np.array([0.0, 2.0])), 'class indices are integers: send target.astype("int64")'),
        ("multi_margin", (SCORES, ONE_HOT), "send target.argmax(axis=1) if it is one-hot"),
        ("multi_margin", (SCORES, ONE_HOT.astype(int)), "send target.argmax(axis=1) if it is one-hot"),
        ("nll", (SCORES, ONE_HOT.astype(bool)), "send target.argmax(axis=1) if it is one-hot"),
        ("dice", (VOLUME, np.zeros((4, 5), int)), "add it: send prediction[None] and target[None]"),
        ("ce_dice", (VOLUME, np.zeros((4, 5), int)), "add it: send prediction[None] and target[None]"),
        ("cross_entropy", (VOLUME, np.zeros((4, 5), int)), "add it: send prediction[None] and target[None]"),
        ("mse", (SCORES[:1], SCORES[0]), "add it: send target[None]"),
        ("giou", (np.zeros(4), np.zeros(4)), "add it: send prediction[None] and target[None]"),
        ("cross_entropy", (np.zeros((2, 4, 3)), np.zeros((2, 4), int)), "send numpy.moveaxis(prediction, -1, 1)"),
        ("mse", (SCORES[:, :1], SCORES[:, 0]), "drop the axis of length 1: send prediction.squeeze(1)"),
        ("focal", (SCORES, CLASSES[:, None]), "drop the axis of length 1: send target.squeeze(1)"),
        ("mse", (SCORES, SCORES.T), "the axes may be exchanged: send prediction.T"),
    ],
)
def test_a_remedy_makes_the_tensors_fit(loss: str, inputs: tuple[np.ndarray, np.ndarray], remedy: str) -> None:
    tensors = dict(zip(("prediction", "target"), inputs, strict=True))
    with pytest.raises((ShapeMismatch, DtypeMismatch)) as refused:
        lossd.evaluate(loss, **tensors)
    assert refused.value.detail.partition("; set mode")[0].partition(", or set mode")[0].endswith(remedy)
    (sent,) = re.findall(r"send (.*?)(?: if it is one-hot)?$", remedy)
    for expression in sent.split(" and "):
        name = re.search("prediction|target", expression)
        assert name is not None
        tensors[name[0]] = eval(expression, {"numpy": np, **tensors})
    assert lossd.evaluate(loss, **tensors).loss is not None


FLAT = {"prediction": np.full(6, 0.5), "target": np.zeros(6)}
MAPS = {"prediction": np.zeros((2, 4, 4)), "target": np.ones((2, 4, 4))}


@pytest.mark.parametrize(
    ("loss", "inputs", "modes"),
    [
        *((loss, FLAT, {"binary"}) for loss in ("dice", "jaccard", "tversky", "focal_tversky", "lovasz")),
        ("lovasz", MAPS, {"binary"}),  # the others take class probabilities
    ],
)
def test_another_mode_that_fits_is_named(loss: str, inputs: dict[str, np.ndarray], modes: set[str]) -> None:
    with pytest.raises((ShapeMismatch, DtypeMismatch)) as refused:
        lossd.evaluate(loss, **inputs)
    named = set(re.findall(r"'(\w+)'", refused.value.detail.partition("set mode to ")[2]))
    assert named == modes
    for mode in named:
        assert lossd.evaluate(loss, mode=mode, **inputs).loss is not None


def test_floats_for_classes_are_not_called_a_wrong_shape() -> None:
    with pytest.raises(DtypeMismatch) as refused:
        lossd.evaluate("cross_entropy", SCORES, np.array([1.0, 0.0], np.float32))
    assert refused.value.detail == (
        "target has the shape (2,) of class indices and the dtype float32; probabilities would have the shape (2, 3); "
        'class indices are integers: send target.astype("int64")'
    )


def test_no_remedy_is_invented() -> None:
    with pytest.raises(ShapeMismatch) as refused:
        lossd.evaluate("mse", SCORES, np.zeros((2, 4)))
    assert refused.value.detail.endswith("without broadcasting")


# Names


@pytest.mark.parametrize(
    ("loss", "names", "words"),
    [
        ("mse", ("pred", "target"), "you sent 'pred': did you mean prediction?"),
        ("mse", ("y_pred", "y_true"), "you sent 'y_pred': did you mean prediction?"),
        ("mse", ("prediction", "labels"), "you sent 'labels': did you mean target?"),
        ("mse", ("prediction", "whatever"), "you sent 'whatever': did you mean target?"),
        ("triplet", ("anchor", "pos", "neg"), "you sent 'pos': did you mean positive?"),
    ],
)
def test_a_missing_input_is_looked_for_among_the_strangers(loss: str, names: tuple[str, ...], words: str) -> None:
    with pytest.raises(MissingInput) as refused:
        lossd.evaluate(loss, inputs=dict.fromkeys(names, SCORES))
    assert refused.value.detail.endswith(words)


def test_the_client_knows_what_losses_and_tasks_call_their_inputs() -> None:
    declared = {entry.name for loss in REGISTRY.values() for entry in listed_inputs(loss)}
    declared |= {entry.name for loss in REGISTRY.values() for entry in loss.request_inputs}
    declared |= {entry.name for task in TASKS.values() for entry in task.inputs(MetricOptions().model_dump())}
    assert {name.removesuffix(".*") for name in declared} | {"cotangent", "direction"} == INPUTS
    parameters = [parameter for loss in REGISTRY.values() for parameter in loss.parameters]
    assert not INPUTS & {p.name for p in parameters if get_origin(p.annotation) is not Literal}


def test_a_list_under_an_inputs_name_is_that_input() -> None:
    prediction, target = np.array([1.0, 5.0]), np.array([0.0, 0.0])
    assert lossd.evaluate("mse", prediction, target, sample_weight=[1, 0]).loss == 1.0
    assert lossd.evaluate("mse", prediction, target, sample_weight=(0.0, 1.0)).loss == 25.0
    triplet = {"anchor": [[0.0, 0.0]], "positive": [[0.0, 3.0]], "negative": [[4.0, 0.0]]}
    assert lossd.evaluate("triplet", margin=2.0, **triplet).loss == pytest.approx(1.0, rel=1e-5)
    weighted = lossd.evaluate("cross_entropy", SCORES, CLASSES, class_weight=[1, 2, 3])
    assert weighted.reduction.denominator == 4.0


@pytest.mark.parametrize(
    ("request_", "pointer", "words"),
    [
        ({"loss": {"name": "mse", "sample_weight": [1]}}, "/loss/sample_weight", "it is an input, not a parameter"),
        ({"loss": {"name": "triplet", "anchor": [1]}}, "/loss/anchor", "put it into inputs"),
        ({"loss": {"name": "focal", "threshold": 0.5}}, "/loss/threshold", "put it into metrics"),
        ({"loss": "focal", "gamma": 2}, "/gamma", "it is a parameter of focal: put it into loss, beside the name"),
        ({"loss": "focal", "target": [1]}, "/target", "it is an input: put it into inputs"),
        ({"loss": "focal", "clip_norm": 1}, "/clip_norm", "it is an option of gradient: put it into gradient"),
        ({"name": "mse"}, "/name", 'a loss is named in loss: {"loss": {"name": ...}}'),
        ({"loss": "mse", "metrics": {"k": 20000}}, "/metrics/k", "metrics.k: input should be less than or equal to"),
        ({"loss": "mse", "metrics": {"quantiles": [0.5, 2]}}, "/metrics/quantiles/1", "metrics.quantiles.1: input"),
        ({"loss": {"name": "focal", "alpha": "x"}}, "/loss/alpha", "should be a valid number or a valid list, found"),
        ({"loss": {"name": "focal", "alpha": [1, "x"]}}, "/loss/alpha/1", "should be a valid number, found 'x'"),
        ({"loss": 3}, "/loss", "should be an object, found 3"),
        ({"loss": "mse", "metrics": {"names": [3]}}, "/metrics/names/0", "should be a valid string, found 3"),
        (
            {"loss": {"name": "weighted_sum", "terms": [{"loss": "mse", "wieght": 1}]}},
            "/loss/terms/0/wieght",
            "did you mean weight?",
        ),
    ],
)
def test_a_field_that_is_wrong_has_its_own_pointer(request_: dict[str, Any], pointer: str, words: str) -> None:
    with pytest.raises(InvalidRequest) as refused:
        make_plan(request_)
    (fault,) = refused.value.errors
    assert fault["pointer"] == pointer
    assert words in fault["detail"]


@pytest.mark.parametrize(
    ("short", "whole"),
    [
        ({"loss": "dice"}, {"loss": {"name": "dice"}}),
        ({"loss": "mse", "outputs": "loss"}, {"loss": {"name": "mse"}, "outputs": ["loss"]}),
        ({"loss": "mse", "metrics": "r2"}, {"loss": {"name": "mse"}, "metrics": {"names": ["r2"]}}),
        ({"loss": "mse", "metrics": ["r2"]}, {"loss": {"name": "mse"}, "metrics": {"names": ["r2"]}}),
        ({"loss": "mse", "metrics": {"names": "r2"}}, {"loss": {"name": "mse"}, "metrics": {"names": ["r2"]}}),
        (
            {"loss": {"name": "curriculum", "loss": "mse", "progress": 0.5}},
            {"loss": {"name": "curriculum", "loss": {"name": "mse"}, "progress": 0.5}},
        ),
        (
            {"loss": {"name": "weighted_sum", "terms": [{"loss": "mse"}]}},
            {"loss": {"name": "weighted_sum", "terms": [{"loss": {"name": "mse"}}]}},
        ),
    ],
)
def test_a_name_alone_stands_for_what_it_names(short: dict[str, Any], whole: dict[str, Any]) -> None:
    def fields(request: dict[str, Any]) -> dict[str, Any]:
        return {name: value for name, value in vars(make_plan(request)).items() if name not in ("template", "terms")}

    assert fields(short) == fields(whole)


# JSON


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ('{"a": [1, NaN]}', 'NaN at line 1 column 11; in a tensor, write the string "NaN"'),
        ('{"a": [1,\n-Infinity]}', '-Infinity at line 2 column 1; in a tensor, write the string "-Infinity"'),
        ('{"gamma": Infinity}', "anything else takes finite numbers only"),
        ('{"a": [nan]}', 'write the string "NaN"'),
        ('{"a": [-inf]}', 'write the string "-Infinity"'),
        ('{"a": None}', "None at line 1 column 7; write null"),
        ('{"a": True}', "write true"),
        ("{'a': 1}", "write strings in double quotes"),
    ],
)
def test_what_other_languages_spell_otherwise_is_said_in_json(text: str, words: str) -> None:
    with pytest.raises(MalformedBody) as refused:
        json.loads(text.encode())
    assert refused.value.detail.startswith("the body is not JSON: ")
    assert words in refused.value.detail


def test_a_whole_number_with_a_point_is_told_how_to_be_an_integer() -> None:
    with pytest.raises(DtypeMismatch, match=r"found 2\.0 at target\[1\]; write it as 2$"):
        json.tensor_from_json("target", [0, 2.0], floats=False, integers=True)
    with pytest.raises(DtypeMismatch, match=r"found 1\.5 at target\[0\]$"):
        json.tensor_from_json("target", [1.5], floats=False, integers=True)


# Entries, and the rest


@pytest.mark.parametrize(
    ("request_", "inputs", "words"),
    [
        ({"loss": "bce"}, {"prediction": [1.0001], "target": [1.0]}, "; clip to [0, 1] what rounding took out of it"),
        ({"loss": "bce"}, {"prediction": [-1e-7], "target": [1.0]}, "; clip to [0, 1] what rounding took out of it"),
        ({"loss": "bce"}, {"prediction": [3.5], "target": [1.0]}, "; use bce_with_logits for logits"),
        ({"loss": "focal"}, {"prediction": [[0.0] * 3], "target": [3]}, "; the first class is 0"),
        (
            {"loss": "hinge_embedding"},
            {"prediction": [0.3], "target": [0]},
            "; send 2 * target - 1 for labels of 0 and 1",
        ),
        (
            {"loss": {"name": "giou", "format": "xywh"}},
            {"prediction": [[0.0, 0.0, -1.0, 1.0]], "target": [[0.0, 0.0, 1.0, 1.0]]},
            "has the negative width -1; set format to xyxy",
        ),
        (
            {"task": "regression", "outputs": "metrics"},
            {"prediction": np.zeros(0), "target": np.zeros(0)},
            "no metrics",
        ),
        ({"loss": {"name": "expression", "formula": "x ^ 2"}}, {"x": [1.0]}, "powers are written **"),
        ({"loss": {"name": "focal", "alpha_mode": "foreground"}}, {}, "found null"),
        (
            {"loss": {"name": "weighted_sum", "terms": [{"loss": "mse", "inputs": {"target": "depth"}}]}},
            {"prediction": [1.0, 2.0], "depth": [1.0]},
            "term 0 (mse; its target is depth): target has shape (1,)",
        ),
        (
            {"loss": {"name": "weighted_sum", "terms": [{"loss": "mse", "inputs": {"target": "depth"}}]}},
            {"prediction": [1.0], "depth": [float("nan")]},
            "term 0 (mse; its target is depth): finite values expected, found NaN at target[0]",
        ),
    ],
)
def test_the_remedy_is_for_the_mistake_that_was_made(
    request_: dict[str, Any], inputs: dict[str, Any], words: str
) -> None:
    assert words in refusal(request_, **inputs)


@pytest.mark.parametrize(
    ("loss", "target", "ignored"),
    [("bce_with_logits", [[float("nan"), 1.0]], [[-1.0, 1.0]]), ("bce", [[float("nan"), 1.0]], [[-1.0, 1.0]])],
)
def test_a_missing_label_may_be_nan_or_a_number_that_is_ignored(loss: str, target: Any, ignored: Any) -> None:
    inputs = {"prediction": [[0.5, 0.25]]}
    words = refusal({"loss": {"name": loss}}, **inputs, target=target)
    assert 'set nan_targets to "ignore" to leave out targets that are NaN, or send a mask' in words
    lacking = {name: torch.tensor(t) for name, t in {**inputs, "target": target}.items()}
    alone({"loss": {"name": loss, "nan_targets": "ignore"}}, lacking)  # the remedy works
    tensors = {name: torch.tensor(t) for name, t in {**inputs, "target": ignored}.items()}
    alone({"loss": {"name": loss, "ignore_index": -1}}, tensors)  # the remedy works
