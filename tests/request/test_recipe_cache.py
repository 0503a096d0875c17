"""A recipe that is found again is the one that every check would have built."""

from __future__ import annotations

from typing import Any

import pytest

from evaluating import layout
from lossd.job import Job, Recipe
from lossd.losses import REGISTRY
from lossd.request import planning
from lossd.request.plan import Layout, Plan
from lossd.request.planning import make_plan
from lossd.request.recipe_cache import RECIPES
from lossd_client.errors import InvalidRequest, Problem, ShapeMismatch, TooLarge
from losses.case import Case, Parameters
from losses.cases import CASES
from losses.test_values import ROWS
from rows import each_row

COUNTS = (4, 2, 5)
WHOLE = ["loss", "gradient", "metrics"]


def strange(request: dict[str, Any], inputs: Layout) -> Job:
    """The job, with nothing known from before."""
    planning.TEMPLATES.clear()
    RECIPES.clear()
    return make_plan(request).job(inputs)


def refusal(request: dict[str, Any], inputs: Layout) -> Problem:
    with pytest.raises(Problem) as refused:
        make_plan(request).job(inputs)
    return refused.value


@each_row(ROWS)
def test_other_rows_and_numbers_find_what_they_would_build(case: Case, parameters: Parameters) -> None:
    base_requests = [
        {"loss": {"name": case.name, **parameters, **{n: values[i % len(values)] for n, values in case.vary.items()}}}
        for i in range(len(COUNTS))
    ]
    layouts = [layout(case.inputs(parameters, n)) for n in COUNTS]
    if REGISTRY[case.name].kind == "rows":
        layouts = [{**inputs, "sample_weight": ("float32", (n,))} for n, inputs in zip(COUNTS, layouts, strict=True)]
    reductions = REGISTRY[case.name].reductions
    turn = case.parameters.index(parameters)
    for reduction in (reductions[turn % len(reductions)],) if turn else reductions:
        requests = [
            {"loss": {**request["loss"], "reduction": reduction}, "outputs": WHOLE} for request in base_requests
        ]
        built = [strange(request, inputs) for request, inputs in zip(requests, layouts, strict=True)]
        assert [Recipe.read(job.recipe.text) for job in built] == [job.recipe for job in built], (
            "a worker reads the same"
        )
        for _ in range(2):
            assert [make_plan(request).job(inputs) for request, inputs in zip(requests, layouts, strict=True)] == built


def row(name: str) -> Case:
    return next(case for case in CASES if case.name == name)


@pytest.mark.parametrize("name", ["mse", "bce", "cross_entropy", "triplet", "vae", "iou"])
def test_other_rows_build_nothing(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    case = row(name)
    few, many = (layout(case.inputs(case.parameters[0], n)) for n in (2, 4))
    plan = make_plan({"loss": {"name": name, **case.parameters[0]}})
    plan.job(few)
    monkeypatch.delattr(Plan, "_build")
    assert plan.job(many).rows == 4


@pytest.mark.parametrize("name", ["huber", "quantile", "focal", "sigmoid_focal", "triplet", "vae"])
def test_other_numbers_plan_and_build_nothing(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    case = row(name)
    inputs = layout(case.inputs(case.parameters[0]))
    one, other = ({n: values[i] for n, values in case.vary.items()} for i in (0, 1))
    make_plan({"loss": {"name": name, **one}}).job(inputs)
    monkeypatch.delattr(Plan, "_build")
    monkeypatch.delattr(planning, "_loss_plan")
    job = make_plan({"loss": {"name": name, **other}}).job(inputs)
    assert dict(zip(job.recipe.numbers, job.numbers, strict=True)).items() >= other.items()


SCORES: Layout = {"prediction": ("float32", (4, 3)), "target": ("int64", (4,))}


@pytest.mark.parametrize(
    "wrong",
    [
        {**SCORES, "target": ("int64", (5,))},
        {**SCORES, "prediction": ("float32", (0, 3)), "target": ("int64", (0,))},
        {**SCORES, "prediction": ("float32", (4,))},
        {**SCORES, "prediction": ("float32", ())},
        {**SCORES, "sample_weight": ("float32", (3,))},
        {**SCORES, "sample_weight": ("float32", (4, 1))},
        {**SCORES, "weight": ("float32", (4,))},
        {"prediction": SCORES["prediction"]},
        {**SCORES, "cotangent": ("float32", (4,))},
        {**SCORES, "target": ("float32", (4,))},
    ],
    ids=lambda inputs: "-".join(f"{name}{shape}" for name, (_, shape) in inputs.items()),
)
def test_what_is_wrong_is_refused_as_before(wrong: Layout) -> None:
    request = {"loss": {"name": "focal", "gamma": 1.5}}
    RECIPES.clear()
    before = refusal(request, wrong)
    for rows in (4, 5, 3):
        make_plan(request).job({"prediction": ("float32", (rows, 3)), "target": ("int64", (rows,))})
        weighted = {
            "prediction": ("float32", (rows, 3)),
            "target": ("int64", (rows,)),
            "sample_weight": ("float32", (rows,)),
        }
        make_plan(request).job(weighted)
    after = refusal(request, wrong)
    assert (type(after), after.to_json()) == (type(before), before.to_json())


def test_a_cotangent_has_the_rows_of_the_rest() -> None:
    request = {"loss": {"name": "mse", "reduction": "none"}}

    def inputs(rows: int, cotangent: int) -> Layout:
        pair = dict.fromkeys(("prediction", "target"), ("float32", (rows, 3)))
        return {**pair, "cotangent": ("float32", (cotangent, 3))}

    for rows in (4, 5):
        assert make_plan(request).job(inputs(rows, rows)) == strange(request, inputs(rows, rows))
    make_plan(request).job(inputs(4, 4))
    with pytest.raises(ShapeMismatch, match="cotangent has shape"):
        make_plan(request).job(inputs(4, 5))


@pytest.mark.parametrize(
    ("loss", "message"),
    [
        ({"name": "focal", "gamma": -1.0}, "gamma"),
        ({"name": "focal", "gamma": "2"}, "gamma"),
        ({"name": "focal", "gamma": 2**63}, "int64"),
        ({"name": "focal", "gamma": 1.5, "gama": 1.0}, "gama"),
        ({"name": "sigmoid_focal", "gamma": 1.5, "alpha": 7.0}, "alpha"),
    ],
)
def test_numbers_are_checked_where_the_rest_is_known(loss: dict[str, Any], message: str) -> None:
    make_plan({"loss": {"name": loss["name"], "gamma": 0.5}})
    with pytest.raises(InvalidRequest, match=message) as refused:
        make_plan({"loss": loss})
    planning.TEMPLATES.clear()
    with pytest.raises(InvalidRequest) as anew:
        make_plan({"loss": loss})
    assert refused.value.to_json() == anew.value.to_json()


def test_options_that_differ_do_not_share_a_template() -> None:
    def job(**options: Any) -> Job:
        return make_plan({"loss": {"name": "focal", "gamma": 0.5}, **options}).job(SCORES)

    texts = {
        job(**options).recipe.text
        for options in (
            {}, {"outputs": ["loss"]}, {"gradient": {"clip_norm": 1.0}}, {"gradient": {"dtype": "float64"}},
            {"metrics": {"beta": 2.0}}, {"metrics": {"names": ["accuracy"]}},
        )
        for _ in range(2)
    }  # fmt: skip
    assert len(texts) == 6


def test_pairs_are_counted_for_each_request() -> None:
    plan = make_plan({"task": "labelled_embeddings"})

    def inputs(rows: int) -> Layout:
        return {"embedding": ("float32", (rows, 2)), "label": ("int64", (rows,))}

    for rows in (8, 9):
        assert plan.job(inputs(rows)).rows == rows
    with pytest.raises(TooLarge, match="pairs"):
        plan.job(inputs(100_000))


def test_no_more_are_known_than_may_be(monkeypatch: pytest.MonkeyPatch) -> None:
    plan = make_plan({"loss": {"name": "mse"}})
    RECIPES.clear()
    with monkeypatch.context() as patch:
        patch.setattr(RECIPES, "limit_bytes", 2**21)
        for width in range(1, 800):
            plan.job(dict.fromkeys(("prediction", "target"), ("float32", (2, width))))
        assert RECIPES.limit_bytes - 2**15 < RECIPES.nbytes <= RECIPES.limit_bytes
    RECIPES.clear()
    make_plan({"loss": {"name": "cross_entropy", "class_weight": [0.25] * 20_000}}).job(
        {"prediction": ("float32", (1, 20_000)), "target": ("int64", (1,))}
    )
    assert len(RECIPES) == 0, "a long one is not worth its memory"


def test_a_composed_recipe_is_what_a_worker_reads() -> None:
    terms = [{"loss": {"name": "huber", "delta": 2.0}}, {"loss": "mse", "weight": 0.5}]
    plan = make_plan({"loss": {"name": "weighted_sum", "terms": terms}})
    recipe = plan.job(dict.fromkeys(("prediction", "target"), ("float32", (4, 3)))).recipe
    assert Recipe.read(recipe.text) == recipe


def test_a_new_request_is_parsed_once(monkeypatch: pytest.MonkeyPatch) -> None:
    """Neither its template nor its recipe is read back from a text."""
    monkeypatch.delattr(planning.orjson, "loads")
    monkeypatch.delattr(Recipe, "read")
    planning.TEMPLATES.clear()
    RECIPES.clear()
    scores = {"prediction": ("float32", (7, 11)), "target": ("int64", (7,))}
    assert make_plan({"loss": {"name": "focal", "gamma": 0.625}}).job(scores).numbers == (0.625,)
