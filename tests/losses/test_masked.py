"""An entry under a mask is as if it had not been sent, whatever it holds."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

import pytest
import torch
from torch import Tensor

from evaluating import COMPILED, Evaluated, alone, layout, plan_of, together
from lossd.job import Recipe
from lossd.losses import REGISTRY
from lossd.metrics import METRICS
from lossd.request.planning import make_plan
from lossd_client.errors import DtypeMismatch, InvalidRequest, InvalidValue, Problem, ShapeMismatch, UnknownInput
from losses.case import Case, Parameters
from losses.cases import CASES
from losses.test_dropped import compare
from losses.test_values import ROWS
from metrics.measuring import NEEDED
from rows import each_row

NAN = math.nan

OF_IMAGES = (
    *("per_image_iou", "per_image_dice", "generalized_dice", "volume_difference", "relative_volume_difference"),
    *("boundary_iou", "cosine_similarity"),
    *("exact_match", "lrap", "coverage_error", "ranking_loss", "precision@k", "ndcg@k"),
)
"""Metrics of the entries of a row together."""
"""Metrics of each row by itself: entries that stand in one row are several rows once they are gathered."""


def _gathers(case: Case, parameters: Parameters) -> bool:
    """Whether entries may be gathered: not if a parameter has one number for each label, or if rows are sequences."""
    return not isinstance(parameters.get("pos_weight"), list) and REGISTRY[case.name].mask is None


OF_ROWS = [row for row in ROWS if REGISTRY[row.values[0].name].kind == "rows" and _gathers(*row.values)]


def request_of(case: Case, parameters: Parameters, **further: Any) -> dict[str, Any]:
    """Return a request with every metric for a case's first parameters, and with the default ones for its others."""
    task = make_plan({"loss": {"name": case.name, **parameters}}).task
    names = [name for name in METRICS.get(task, {}) if name not in OF_IMAGES]
    if parameters is not case.parameters[0]:
        names = [name for name in names if METRICS[task][name].default]
    loss = {"name": case.name, "reduction": "mean", **parameters, **further}
    options: dict[str, Any] = {"names": names, **NEEDED, **({"k": 1} if "top_k_accuracy" in names else {})}
    if case.name == "kl_div":  # its entries are classes, of which several make a prediction
        return {"loss": {**loss, "reduction": "mean"}, "outputs": ["loss", "gradient"]}
    return {"loss": loss, "outputs": ["loss", "gradient", "metrics"], "metrics": options}


def recipe_of(request: Mapping[str, Any], tensors: Mapping[str, Tensor]) -> Recipe:
    return plan_of(request).job(layout(tensors)).recipe


def some_of(request: Mapping[str, Any], tensors: Mapping[str, Tensor], seed: int = 5) -> Tensor:
    """A mask of the unreduced loss: some entries of a sample, all of another, none of a third."""
    shape = (len(next(iter(tensors.values()))), *recipe_of(request, tensors).value)
    keep = torch.rand(shape, generator=torch.Generator().manual_seed(seed)) < 0.6
    keep[0], keep[1] = True, False
    return keep


def gathered(tensors: Mapping[str, Tensor], recipe: Recipe, keep: Tensor) -> dict[str, Tensor]:
    """The entries that count, one after the other: (K, ...), by the axes of each input that are the mask's."""
    entries = {}
    for name, tensor in tensors.items():
        axes = recipe.axes[name]
        places = [place for place, axis in enumerate(axes) if axis < 0]
        entries[name] = tensor.permute(*(axes.index(axis) for axis in range(keep.ndim)), *places)[keep]
        if recipe.loss == "kl_div":  # whose classes are entries too
            entries[name] = entries[name].unsqueeze(1)
    return entries


def spread(gradient: Tensor, axes: tuple[int, ...], keep: Tensor, like: Tensor) -> Tensor:
    """The gradient of gathered entries in their places, 0 elsewhere."""
    places = [place for place, axis in enumerate(axes) if axis < 0]
    order = [*(axes.index(axis) for axis in range(keep.ndim)), *places]
    whole = torch.zeros(*keep.shape, *(like.shape[place] for place in places), dtype=gradient.dtype)
    whole[keep] = gradient.reshape(-1, *whole.shape[keep.ndim :])
    return whole.permute(*(order.index(place) for place in range(like.ndim)))


def poisoned(tensors: Mapping[str, Tensor], recipe: Recipe, keep: Tensor) -> dict[str, Tensor]:
    """The tensors with entries under the mask that no check would let pass, and that no sum survives."""
    spoiled = {}
    for name, tensor in tensors.items():
        under = ~keep
        for place, axis in enumerate(recipe.axes[name]):
            under = under.unsqueeze(place) if axis < 0 else under
        entry = (NAN, math.inf)[len(name) % 2] if tensor.is_floating_point() else -7
        spoiled[name] = tensor.masked_fill(under, entry)
    return spoiled


def same(found: Evaluated, expected: Evaluated) -> None:
    left, right = dict(found.document), dict(expected.document)
    diagnostics, of_others = dict(left.pop("diagnostics")), dict(right.pop("diagnostics"))
    if "metrics" not in left:  # a warning about distributions is none about single classes
        assert ("chance_level" in diagnostics) == ("chance_level" in of_others)  # a loss of images has none
        for each in (diagnostics, of_others):
            each.pop("warnings"), each.pop("chance_level", None)
    compare(diagnostics, of_others)
    compare(left, right)


@each_row(OF_ROWS)
def test_masked_entries_change_nothing(case: Case, parameters: Parameters) -> None:
    tensors = case.inputs(parameters, n=5)
    request = request_of(case, parameters)
    keep = some_of(request, tensors)
    recipe = recipe_of(request, {**tensors, "mask": keep})
    reference = alone(request, gathered(tensors, recipe, keep))
    sent = {**poisoned(tensors, recipe, keep), "mask": keep}
    found = alone(request, sent)
    same(found, reference)
    for name, gradient in found.gradients.items():
        expected = spread(reference.gradients[name], recipe.axes[name], keep, tensors[name])
        torch.testing.assert_close(gradient, expected, rtol=1e-12, atol=1e-300)
    if parameters is not case.parameters[0]:  # no parameter reads what follows
        return
    # A weight of 0 is a mask of 0, and so are integers; what the metrics read of integers, the batch below shows.
    of_loss = {"loss": request["loss"], "outputs": ["loss", "gradient"]}
    by_loss = alone(of_loss, sent)
    for query, other, answer in (
        (request, {"element_weight": keep.double()}, found),
        (of_loss, {"element_weight": keep.long()}, by_loss),
        (of_loss, {"mask": keep.to(torch.int8)}, by_loss),
    ):
        again = alone(query, {**poisoned(tensors, recipe, keep), **other})
        same(again, answer)
        for name, gradient in again.gradients.items():
            assert torch.equal(gradient, found.gradients[name])
    # In a batch, beside one that counts whole and one whose mask is wrong.
    whole = {**tensors, "mask": torch.ones(keep.shape, dtype=torch.int64)}
    integers = {**sent, "mask": keep.long()}
    batched, neighbour, wrong = together([request] * 3, [integers, whole, {**tensors, "mask": keep.long() * 2}])
    assert isinstance(batched, Evaluated)
    assert isinstance(neighbour, Evaluated)
    same(batched, found)
    for name, gradient in batched.gradients.items():
        assert torch.equal(gradient, found.gradients[name])
    same(neighbour, alone(request, tensors))
    assert isinstance(wrong, InvalidValue)
    assert "found 2 at mask[0" in wrong.detail


@pytest.mark.usefixtures("compiled_passes")
@each_row(row for row in OF_ROWS if row.values[0].name in COMPILED)
def test_compiled_passes_too(case: Case, parameters: Parameters) -> None:
    request = {**request_of(case, parameters), "metrics": {"names": ["default"]}}
    dtypes, position = (torch.float32, torch.float64, torch.float16, torch.bfloat16), case.parameters.index(parameters)
    for dtype in (dtypes[position % 4],) if position else dtypes:
        tensors = case.inputs(parameters, n=5, dtype=dtype)
        keep = some_of(request, tensors)
        recipe = recipe_of(request, {**tensors, "mask": keep})
        reference = alone(request, gathered(tensors, recipe, keep))
        found = alone(request, {**poisoned(tensors, recipe, keep), "mask": keep})
        assert found.loss == pytest.approx(reference.loss, rel=1e-5), dtype
        for name, gradient in found.gradients.items():
            expected = spread(reference.gradients[name], recipe.axes[name], keep, tensors[name])
            torch.testing.assert_close(gradient, expected, rtol=1e-5, atol=1e-8)


@each_row(OF_ROWS)
def test_lengths_are_masks(case: Case, parameters: Parameters) -> None:
    tensors = case.inputs(parameters, n=5)
    request = request_of(case, parameters)
    value = recipe_of(request, tensors).value
    first = case.parameters[0]
    known = parameters is not first and recipe_of(request_of(case, first), case.inputs(first, n=5)).value == value
    if known or not value:  # of these axes the loss's first parameters are tried; or of one number a sample
        return
    lengths = torch.tensor([value[0], 0, 1, value[0] - 1, value[0]])
    keep = torch.arange(value[0]) < lengths.unsqueeze(1)
    keep = keep.reshape(*keep.shape, *(1,) * (len(value) - 1)).expand(5, *value)
    recipe = recipe_of(request, {**tensors, "mask": keep})
    sent = poisoned(tensors, recipe, keep)
    found, reference = alone(request, {**sent, "lengths": lengths}), alone(request, {**sent, "mask": keep})
    same(found, reference)
    for name, gradient in found.gradients.items():
        assert torch.equal(gradient, reference.gradients[name])


@each_row(OF_ROWS)
def test_weights_of_entries_multiply_value_and_denominator(case: Case, parameters: Parameters) -> None:
    tensors = case.inputs(parameters, n=5)
    request = {**request_of(case, parameters), "outputs": ["loss", "gradient"]}
    none = {**request, "loss": {**request["loss"], "reduction": "none"}}
    value = alone(none, tensors)
    weight = torch.rand(value.loss.shape, generator=torch.Generator().manual_seed(1), dtype=torch.float64) * 3
    found = alone(request, {**tensors, "element_weight": weight})
    # The weights of the loss itself, by which its mean is divided: those of which one entry alone is the mean.
    query = {**request, "outputs": ["loss"]}
    single = torch.eye(weight.numel(), dtype=torch.float64).reshape(-1, *weight.shape)
    answers = together([query] * len(single), [{**tensors, "element_weight": unit} for unit in single])
    denominators = [answer.denominator for answer in answers if isinstance(answer, Evaluated)]
    of_loss = torch.tensor(denominators, dtype=torch.float64).reshape(weight.shape)
    denominator = float((of_loss * weight).sum())
    assert found.denominator == pytest.approx(denominator, rel=1e-12)
    assert float(found.loss) == pytest.approx(float((value.loss * weight).sum()) / denominator, rel=1e-9, abs=1e-12)
    upstream = alone(none, {**tensors, "cotangent": weight / denominator})
    for name, gradient in found.gradients.items():
        torch.testing.assert_close(gradient, upstream.gradients[name], rtol=1e-9, atol=1e-12)


def test_all_masked() -> None:
    inputs = {"prediction": torch.full((2, 3), NAN), "target": torch.full((2, 3), NAN)}
    answer = alone({"loss": {"name": "mse"}}, {**inputs, "mask": torch.zeros(2, 3, dtype=torch.bool)})
    assert answer.loss == 0
    assert answer.denominator == 0
    assert answer.warnings == {"nothing_to_average"}
    assert not answer.gradient().any()
    assert answer.document["diagnostics"]["valid_count"] == 0
    masked = {**inputs, "lengths": torch.zeros(2, dtype=torch.int64)}
    assert alone({"loss": {"name": "mse"}, "outputs": ["metrics"]}, masked).document["metrics"]["mse"] is None


@pytest.mark.parametrize("name", ["mse", "huber", "bce_with_logits", "sigmoid_focal", "gaussian_nll"])
def test_targets_that_are_nan(name: str) -> None:
    case = next(case for case in CASES if case.name == name)
    tensors = case.inputs({}, n=5)
    keep = some_of({"loss": {"name": name}}, tensors)
    request = {"loss": {"name": name, "nan_targets": "ignore"}, "outputs": ["loss", "gradient", "metrics"]}
    lacking = {**tensors, "target": tensors["target"].masked_fill(~keep, NAN)}
    found, reference = alone(request, lacking), alone(request, {**tensors, "mask": keep})
    same(found, reference)
    torch.testing.assert_close(found.gradient(), reference.gradient(), rtol=0, atol=0)
    rest = keep & (torch.arange(keep.numel()).reshape(keep.shape) % 2 == 0)
    both = alone(request, {**lacking, "mask": rest | ~keep})
    same(both, alone(request, {**tensors, "mask": rest}))
    with pytest.raises(InvalidValue, match=r'found NaN at target\[1, 0.*nan_targets to "ignore"'):
        alone({"loss": {"name": name}}, lacking)
    with pytest.raises(InvalidValue, match="found Infinity at target"):
        alone(request, {**lacking, "target": lacking["target"].masked_fill(~keep, math.inf)})


def test_a_distribution_with_a_nan_is_a_target_that_is_missing() -> None:
    random = torch.Generator().manual_seed(2)
    prediction = torch.randn(4, 3, 2, generator=random, dtype=torch.float64)
    target = torch.randn(4, 3, 2, generator=random, dtype=torch.float64).softmax(1)
    keep = torch.tensor([[True, False], [True, True], [False, False], [False, True]])
    lacking = target.clone()
    lacking[:, 1][~keep] = NAN
    request = {"loss": {"name": "cross_entropy", "nan_targets": "ignore"}, "outputs": ["loss", "gradient", "metrics"]}
    found = alone(request, {"prediction": prediction, "target": lacking})
    same(found, alone(request, {"prediction": prediction, "target": target, "mask": keep}))


def test_a_cotangent_under_the_mask_is_not_read() -> None:
    keep = torch.tensor([[True, False]])
    inputs = {"prediction": torch.tensor([[1.0, NAN]]), "target": torch.zeros(1, 2), "mask": keep}
    found = alone({"loss": {"name": "mse", "reduction": "none"}}, {**inputs, "cotangent": torch.tensor([[3.0, NAN]])})
    assert found.loss.tolist() == [[1.0, 0.0]]
    assert found.gradient().tolist() == [[6.0, 0.0]]


SHAPE = {"prediction": torch.zeros(2, 3), "target": torch.zeros(2, 3)}


@pytest.mark.parametrize(
    ("error", "message", "inputs"),
    [
        (ShapeMismatch, r"mask has shape \(2,\), expected \(2, 3\) since prediction is \(2, 3\)",
         {"mask": torch.ones(2, dtype=torch.bool)}),
        (ShapeMismatch, r"element_weight has shape \(3, 2\), expected \(2, 3\)", {"element_weight": torch.ones(3, 2)}),
        (ShapeMismatch, r"lengths has shape \(3,\), expected \(2,\)", {"lengths": torch.ones(3, dtype=torch.int64)}),
        (DtypeMismatch, r'mask of mse must be a tensor of integers, found float32; .*mask.astype\("bool"\)',
         {"mask": torch.ones(2, 3)}),
        (InvalidValue, r"1 \(counts\) or 0 \(does not count\) expected, found 2 at mask\[1, 0\]; send mask != 0",
         {"mask": torch.tensor([[1, 0, 1], [2, 1, 1]])}),
        (InvalidValue, r"finite values >= 0 expected, found -1 at element_weight\[0, 1\]",
         {"element_weight": torch.tensor([[1.0, -1.0, 1.0], [2.0, 1.0, 1.0]])}),
        (InvalidValue, r"found NaN at element_weight\[0, 0\]",
         {"element_weight": torch.full((2, 3), NAN)}),
        (InvalidValue, r"lengths from 0 to 3 expected, that of axis 1, found 4 at lengths\[1\]",
         {"lengths": torch.tensor([0, 4])}),
        (InvalidRequest, "takes mask or lengths, not both",
         {"lengths": torch.tensor([0, 3]), "mask": torch.ones(2, 3, dtype=torch.bool)}),
    ],
)  # fmt: skip
def test_wrong_masks_are_named(error: type[Problem], message: str, inputs: dict[str, Tensor]) -> None:
    with pytest.raises(error, match=message):
        alone({"loss": {"name": "mse"}}, {**SHAPE, **inputs})


def test_losses_of_one_number_a_sample_take_no_lengths() -> None:
    inputs = {"prediction": torch.zeros(2), "target": torch.zeros(2), "lengths": torch.ones(2, dtype=torch.int64)}
    with pytest.raises(
        ShapeMismatch, match=r"the loss of each sample is one number here, of shape \(2,\); send a mask"
    ):
        alone({"loss": {"name": "mse"}}, inputs)


def test_other_losses_refuse_a_mask() -> None:
    inputs = {"real": torch.zeros(2), "fake": torch.zeros(2), "mask": torch.ones(2, dtype=torch.bool)}
    with pytest.raises(UnknownInput, match="gan_discriminator takes no input 'mask'"):
        alone({"loss": {"name": "gan_discriminator"}}, inputs)
    with pytest.raises(InvalidRequest, match="nan_targets"):
        make_plan({"loss": {"name": "gan_discriminator", "nan_targets": "ignore"}})


def test_a_formula_may_call_an_input_mask() -> None:
    inputs = {"x": torch.tensor([1.0, 2.0]), "mask": torch.tensor([0.5, 3.0], dtype=torch.float64)}
    answer = alone({"loss": {"name": "expression", "formula": "sum(x * mask)"}}, inputs)
    assert answer.loss == 6.5


def test_requests_with_masks_share_a_recipe() -> None:
    plan = make_plan({"loss": {"name": "focal"}})

    def recipe(rows: int) -> str:
        return plan.job(layout({
            "prediction": torch.zeros(rows, 4), "target": torch.zeros(rows, dtype=torch.int64),
            "mask": torch.ones(rows, dtype=torch.bool),
        })).recipe.text  # fmt: skip

    assert recipe(3) == recipe(8)


REGIONS = [
    row
    for row in ROWS
    for case in row.values[:1]
    if REGISTRY[case.name].kind == "stack"
    and "element_weight" in REGISTRY[case.name].reads_masks
    and case.variant != "soft"
]


def of_regions(case: Case, parameters: Parameters) -> tuple[dict[str, Tensor], Tensor, Recipe, dict[str, Any]]:
    tensors = case.inputs(parameters, n=4)
    keep = torch.rand(tensors["target"].shape, generator=torch.Generator().manual_seed(5)) < 0.6
    request = {"loss": {"name": case.name, **parameters}, "outputs": ["loss", "gradient", "metrics"]}
    return tensors, keep, recipe_of(request, {**tensors, "mask": keep}), request


@each_row(REGIONS)
def test_a_mask_of_positions_is_an_ignored_target(case: Case, parameters: Parameters) -> None:
    """Ignored targets are compared with other libraries elsewhere."""
    tensors, keep, recipe, request = of_regions(case, parameters)
    ignored = parameters.get("ignore_index")
    ignored = -9 if ignored is None else ignored
    marked = {**tensors, "target": tensors["target"].masked_fill(~keep, ignored)}
    reference = alone({**request, "loss": {**request["loss"], "ignore_index": ignored}}, marked)
    spoiled = poisoned(tensors, recipe, keep)
    found = alone(request, {**spoiled, "mask": keep})
    same(found, reference)
    torch.testing.assert_close(found.gradient(), reference.gradient(), rtol=1e-12, atol=1e-15)
    batched, neighbour = together([request] * 2, [{**spoiled, "mask": keep}, {**tensors, "mask": keep | True}])
    assert isinstance(batched, Evaluated)
    assert isinstance(neighbour, Evaluated)
    same(batched, found)
    torch.testing.assert_close(batched.gradient(), found.gradient(), rtol=1e-12, atol=1e-15)
    same(neighbour, alone(request, tensors))
    same(alone(request, {**spoiled, "element_weight": keep.double()}), found)
    long = torch.tensor([keep.shape[1], 0, 1, keep.shape[1] - 1])
    begun = torch.arange(keep.shape[1]) < long.unsqueeze(1)
    begun = begun.reshape(*begun.shape, *(1,) * (keep.ndim - 2)).expand(keep.shape)
    same(alone(request, {**tensors, "lengths": long}), alone(request, {**tensors, "mask": begun}))


@pytest.mark.parametrize("name", ["dice", "jaccard", "tversky", "focal_tversky", "generalized_dice", "lovasz"])
@pytest.mark.parametrize("mode", ["multiclass", "binary"])
def test_a_weight_of_two_is_a_position_that_is_there_twice(name: str, mode: str) -> None:
    random = torch.Generator().manual_seed(4)
    scores = torch.randn(8, 3, generator=random, dtype=torch.float64)
    if mode == "binary":
        scores = scores[:, 0]
    target = torch.randint(0, scores.shape[1] if mode == "multiclass" else 2, (8,), generator=random)
    weight = torch.randint(0, 3, (8,), generator=random)
    request = {"loss": {"name": name, "mode": mode}}
    twice = {"prediction": scores.repeat_interleave(weight, 0), "target": target.repeat_interleave(weight, 0)}
    found = alone(request, {"prediction": scores, "target": target, "element_weight": weight})
    assert found.loss == pytest.approx(alone(request, twice).loss, rel=1e-12)


@pytest.mark.parametrize("name", ["dice", "jaccard", "tversky", "focal_tversky", "generalized_dice"])
def test_positions_of_class_probabilities(name: str) -> None:
    random = torch.Generator().manual_seed(8)
    scores, target = torch.randn(2, 3, 3, 5, generator=random, dtype=torch.float64)
    target = target.softmax(1)
    keep = torch.rand(3, 5, generator=random) < 0.6
    under = ~keep.unsqueeze(1)
    request = {"loss": {"name": name}, "outputs": ["loss", "gradient", "metrics"]}
    spoiled = {"prediction": scores.masked_fill(under, NAN), "target": target.masked_fill(under, NAN)}
    found = alone(request, {**spoiled, "mask": keep})
    entries = {"prediction": scores.movedim(1, -1)[keep], "target": target.movedim(1, -1)[keep]}
    reference = alone(request, entries)
    same(found, reference)
    torch.testing.assert_close(found.gradient().movedim(1, -1)[keep], reference.gradient(), rtol=1e-12, atol=1e-15)
    assert not found.gradient().movedim(1, -1)[~keep].any()
    same(alone(request, {**spoiled, "element_weight": keep.double()}), found)


IN_BATCH = [
    row
    for row in ROWS
    for loss in [REGISTRY[row.values[0].name]]
    if loss.kind == "stack" and loss.reads_masks == ("mask",)
]


@each_row(IN_BATCH)
def test_masked_samples_are_no_negatives(case: Case, parameters: Parameters) -> None:
    tensors = case.inputs(parameters, n=7)
    keep = torch.tensor([1, 1, 0, 1, 1, 0, 1], dtype=torch.bool)
    loss = REGISTRY[case.name]
    names = list(METRICS[loss.task])
    request = {
        "loss": {"name": case.name, **parameters, "reduction": "mean"},
        "outputs": ["loss", *(f"gradient.{name}" for name in loss.differentiable), "metrics"],
        "metrics": {"names": names},
    }
    recipe = recipe_of(request, {**tensors, "mask": keep})
    reference = alone(request, {name: tensor[keep] for name, tensor in tensors.items()})
    spoiled = {**poisoned(tensors, recipe, keep), "mask": keep}
    found = alone(request, spoiled)
    same(found, reference)
    for name, gradient in found.gradients.items():
        torch.testing.assert_close(gradient[keep], reference.gradients[name], rtol=1e-12, atol=1e-14)
        assert not gradient[~keep].any()
    whole = {**tensors, "mask": torch.ones(7, dtype=torch.bool)}
    batched, neighbour = together([request] * 2, [spoiled, whole])
    assert isinstance(batched, Evaluated)
    assert isinstance(neighbour, Evaluated)
    same(batched, found)
    same(neighbour, alone(request, tensors))
    nothing = alone(request, {**spoiled, "mask": torch.zeros(7, dtype=torch.bool)})
    assert nothing.loss == 0
    assert "nothing_to_average" in nothing.warnings
    assert all(nothing.document["metrics"][name] is None for name in names)


def composed(*terms: Any) -> dict[str, Any]:
    return {"loss": {"name": "weighted_sum", "terms": list(terms)}}


OTHERS = {"scores": torch.zeros(2, 3), "class": torch.tensor([0, 1])}


def test_a_composed_loss_gives_its_mask_to_every_term() -> None:
    inputs = {"prediction": torch.tensor([[1.0, NAN]]), "target": torch.tensor([[0.0, NAN]])}
    keep = torch.tensor([[True, False]])
    answer = alone(composed({"loss": "mse"}, {"loss": "mae", "weight": 2.0}), {**inputs, "mask": keep})
    assert answer.loss == 3.0
    assert answer.gradient().tolist() == [[4.0, 0.0]]
    # One of them takes no mask: it would count what the other leaves out.
    of_classes = {"loss": "soft_f1", "inputs": {"prediction": "scores", "target": "class"}}
    with pytest.raises(UnknownInput, match=r'term 1 \(soft_f1\) takes no input mask.*"inputs": {"mask": "mask_0"}'):
        alone(composed({"loss": "mse"}, of_classes), {**inputs, **OTHERS, "mask": keep})
    request = composed({"loss": "mse", "inputs": {"mask": "mask_0"}}, of_classes)
    alone(request, {**inputs, **OTHERS, "mask_0": keep})
    with pytest.raises(ShapeMismatch, match=r"term 1 \(mae; its prediction is p; its target is t\): mask has shape"):
        alone(
            composed({"loss": "mse"}, {"loss": "mae", "inputs": {"prediction": "p", "target": "t"}}),
            {**inputs, "p": torch.zeros(3), "t": torch.zeros(3), "mask": keep},
        )


def test_a_tensor_of_a_term_may_be_called_mask() -> None:
    term = {"loss": "mse", "inputs": {"target": "mask"}}
    assert alone(composed(term), {"prediction": torch.tensor([3.0]), "mask": torch.tensor([1.0])}).loss == 4.0


@pytest.mark.parametrize("name", ["ce_dice", "bce_dice"])
def test_presets_take_masks_and_missing_targets(name: str) -> None:
    random = torch.Generator().manual_seed(6)
    shape = (3, 4, 5) if name == "ce_dice" else (3, 5)
    prediction = torch.randn(shape, generator=random, dtype=torch.float64)
    target = torch.randint(0, 2, (3, 5), generator=random)
    keep = torch.rand(3, 5, generator=random) < 0.6
    request = {"loss": {"name": name}, "outputs": ["loss", "gradient", "metrics"]}
    under = ~keep.unsqueeze(1) if name == "ce_dice" else ~keep
    spoiled = {"prediction": prediction.masked_fill(under, NAN), "target": target.masked_fill(~keep, -7)}
    found = alone(request, {**spoiled, "mask": keep})
    entries = prediction.movedim(1, -1)[keep] if name == "ce_dice" else prediction[keep]
    reference = alone(request, {"prediction": entries, "target": target[keep]})
    same(found, reference)
    gradient = found.gradient().movedim(1, -1) if name == "ce_dice" else found.gradient()
    torch.testing.assert_close(gradient[keep], reference.gradient(), rtol=1e-12, atol=1e-15)
    assert not gradient[~keep].any()
    ignored = alone({**request, "loss": {"name": name, "ignore_index": -7}}, {**spoiled, "prediction": prediction})
    same(ignored, reference)


def test_curriculum_leaves_out_entries_of_its_samples() -> None:
    inputs = {
        "prediction": torch.tensor([[1.0, 2.0], [3.0, 4.0]]), "target": torch.tensor([[0.0, NAN], [NAN, 0.0]]),
        "difficulty": torch.tensor([0.0, 0.5]), "mask": torch.tensor([[True, False], [False, True]]),
    }  # fmt: skip
    answer = alone({"loss": {"name": "curriculum", "loss": "mse", "progress": 1.0}}, inputs)
    assert answer.loss == 8.5
    assert answer.gradient().tolist() == [[1.0, 0.0], [0.0, 4.0]]


@pytest.mark.parametrize("name", ["mse", "log_cosh", "bce_with_logits", "cross_entropy", "focal"])
def test_hessians_of_masked_entries_are_zero(name: str) -> None:
    case = next(case for case in CASES if case.name == name)
    tensors = case.inputs({}, n=5)
    request = {"loss": {"name": name}, "outputs": ["loss", "hessian"]}
    keep = some_of(request, tensors)
    recipe = recipe_of(request, {**tensors, "mask": keep})
    reference = alone(request, gathered(tensors, recipe, keep)).tensors["hessian.prediction"]
    found = alone(request, {**poisoned(tensors, recipe, keep), "mask": keep}).tensors["hessian.prediction"]
    expected = spread(reference, recipe.axes["prediction"], keep, tensors["prediction"])
    torch.testing.assert_close(found, expected, rtol=1e-12, atol=1e-300)


@pytest.mark.parametrize(
    ("name", "reduction"),
    [
        (name, reduction)
        for name, loss in REGISTRY.items()
        if "batchmean" in loss.reductions
        for reduction in loss.reductions
    ],
)
def test_weights_of_entries_count_alike_where_single_precision_does_not_reach(name: str, reduction: str) -> None:
    tiny = 1e-17
    drawn = torch.tensor([[0.25, 0.5], [0.5, 0.125], [0.75, 0.25]])
    tensors = {
        "kl_div": {"prediction": torch.zeros(3, 2), "target": drawn * tiny**2},
        "vae": {
            "prediction": drawn * tiny,
            "target": torch.zeros(3, 2),
            **dict.fromkeys(("mean", "log_variance"), torch.zeros(3, 2)),
        },
    }[name]
    loss = {"name": name, "reduction": reduction} | ({"reconstruction": "mse"} if name == "vae" else {})
    request = {"loss": loss, "outputs": ["loss", "gradient.prediction"]}
    shape = (3, *recipe_of(request, tensors).value)
    weight = torch.tensor([0.5, 3.0, 0.0]).reshape(3, *(1,) * (len(shape) - 1)).expand(shape)
    found = alone(request, {**tensors, "element_weight": weight})
    reference = alone(request, {**{n: t.double() for n, t in tensors.items()}, "element_weight": weight})
    assert found.denominator == reference.denominator
    values, expected = (torch.as_tensor(answer.loss, dtype=torch.float64) for answer in (found, reference))
    torch.testing.assert_close(values, expected, rtol=1e-6, atol=0)
    torch.testing.assert_close(found.gradient().double(), reference.gradient(), rtol=1e-6, atol=0)
