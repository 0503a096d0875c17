"""Splitting changes no bit: a row's loss and gradient depend on the row alone.

They are the same bits in one request, in several, in any order and on any number of threads. The lengths are those at
which a CPU's code changes: the last entries that fill no vector, and the entries from which threads share the work.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager

import numpy as np
import pytest
import torch
from _pytest.mark import ParameterSet
from torch import Tensor

from evaluating import COMPILED, Evaluated, Tensors, alone, layout, plan_of, together
from lossd.compiled.passes import Passes
from lossd.losses import REGISTRY
from losses.case import Array, Case, Parameters
from losses.cases import CASES
from rows import each_row

FLOATS = (torch.float32, torch.float64)


def features(rng: np.random.Generator, n: int, _: Parameters) -> dict[str, Array]:
    shapes = {"0": (n, 2, 5), "1": (n, 3)}
    return {f"{name}.{i}": rng.normal(0, 1, shape) for name in ("prediction", "target") for i, shape in shapes.items()}


NAMED_BY_THE_REQUEST = Case("feature_matching", features, lambda: torch.empty(0), ({}, {"layer_weights": [1.0, 3.0]}))
"""The table has a row for each loss whose inputs it can name."""

OF_ROWS = [case for case in (*CASES, NAMED_BY_THE_REQUEST) if REGISTRY[case.name].kind == "rows"]
EVERY = [
    pytest.param(case, parameters, id=f"{case}-{position}")
    for case in OF_ROWS
    for position, parameters in enumerate(case.parameters)
]


def with_dtypes(rows: Iterable[ParameterSet]) -> list[ParameterSet]:
    """Return rows with the dtypes to try: both with a loss's first parameters, one in turn with each of its others."""
    turns = {id(parameters): position for case in OF_ROWS for position, parameters in enumerate(case.parameters)}
    tried = []
    for row in rows:
        case, parameters = row.values
        turn = turns[id(parameters)]
        tried.append(pytest.param(case, parameters, (FLOATS[turn % 2],) if turn else FLOATS, id=row.id))
    return tried


FIRST = [pytest.param(case, case.parameters[0], id=str(case)) for case in OF_ROWS if case.name != "perceptual"]
OUTPUTS = (("loss", "gradient"), ("loss",))


def and_value(rows: Iterable[ParameterSet]) -> list[ParameterSet]:
    """Return rows with the outputs to ask for: the gradient, and the loss alone if that is computed in another way.

    It is if the loss writes its gradient out. The other losses call one function for both, which one of them shows;
    only their sums over long rows depend on whether there is a gradient.
    """
    both = []
    for row in rows:
        name = row.values[0].name
        ways = OUTPUTS if REGISTRY[name].closed_forms or name == "pseudo_huber" else OUTPUTS[:1]
        both += [pytest.param(*row.values, way, id=f"{row.id}-{' and '.join(way)}") for way in ways]
    return both


SHARED = 1 << 15
"""From so many entries on, torch's threads share an operation."""

ROWS = 67
UNBOUNDED = ("real", "finite", "logits", "box")


@contextmanager
def threads(count: int) -> Iterator[None]:
    before = torch.get_num_threads()
    torch.set_num_threads(count)
    try:
        yield
    finally:
        torch.set_num_threads(before)


def request_of(
    case: Case, parameters: Parameters, reduction: str, outputs: Sequence[str] = ("loss", "gradient")
) -> dict[str, object]:
    return {"loss": {"name": case.name, **parameters, "reduction": reduction}, "outputs": list(outputs)}


def by_row(answers: Sequence[Evaluated], groups: Sequence[Tensor]) -> dict[str, Tensor]:
    """The rows of several answers, in the order in which they were drawn."""
    order = torch.cat(list(groups)).argsort()
    return {name: torch.cat([answer.tensors[name] for answer in answers])[order] for name in answers[0].tensors}


def one_by_one(request: Mapping[str, object], inputs: Tensors, groups: Sequence[Tensor]) -> dict[str, Tensor]:
    """Each group of rows as a request of its own, evaluated alone."""
    return by_row([alone(request, {name: t[rows] for name, t in inputs.items()}) for rows in groups], groups)


def assert_same_bits(found: Mapping[str, Tensor], expected: Mapping[str, Tensor], how: str) -> None:
    assert found.keys() == expected.keys()
    for name, tensor in expected.items():
        assert found[name].dtype == tensor.dtype
        bits = torch.int32 if tensor.dtype == torch.float32 else torch.int64
        differ = found[name].contiguous().view(bits) != tensor.contiguous().view(bits)
        worst = (found[name] - tensor).abs().max()
        assert not differ.any(), f"{name}, {how}: {int(differ.sum())} of {differ.numel()} differ, by {worst} at most"


def cut(rows: int, *sizes: int) -> list[Tensor]:
    """All rows in groups of these sizes, and a last one of the others."""
    rest = rows - sum(sizes)
    return list(torch.arange(rows).split([*sizes, *([rest] if rest else [])]))


def shuffled(rows: int) -> Tensor:
    return torch.randperm(rows, generator=torch.Generator().manual_seed(rows))


def test_every_loss_of_rows_is_split() -> None:
    assert {case.name for case in OF_ROWS} == {name for name, loss in REGISTRY.items() if loss.kind == "rows"}


@each_row(and_value(EVERY))
def test_a_row_is_the_same_in_any_request(case: Case, parameters: Parameters, outputs: tuple[str, ...]) -> None:
    request = request_of(case, parameters, "none", outputs)
    rows = ROWS if case.name != "perceptual" else 5
    # Other parameters of a loss compute halves as float32 too, which test_values shows.
    for dtype in (*FLOATS, torch.bfloat16) if parameters is case.parameters[0] else FLOATS:
        inputs = case.inputs(parameters, rows, dtype=dtype)
        expected = one_by_one(request, inputs, cut(rows))
        groups = cut(rows, 1, 1) if rows < 9 else cut(rows, 2, 31)
        assert_same_bits(one_by_one(request, inputs, groups), expected, f"in {len(groups)} requests, {dtype}")
        groups = list(shuffled(rows).split([2, rows - 3, 1]))
        batch = together([request] * 3, [{name: t[group] for name, t in inputs.items()} for group in groups])
        answers = [answer for answer in batch if isinstance(answer, Evaluated)]
        assert_same_bits(by_row(answers, groups), expected, f"in a batch, {dtype}")


@each_row(with_dtypes(EVERY), both_ways=True)
def test_a_request_of_one_row_is_the_same_in_any_batch(
    case: Case, parameters: Parameters, dtypes: tuple[torch.dtype, ...]
) -> None:
    """Numerator and denominator too: these sum up to a data set's."""
    rows = 7 if case.name != "perceptual" else 3
    for dtype in dtypes:
        reduction = "sum" if dtype == torch.float32 else REGISTRY[case.name].reductions[0]
        request = request_of(case, parameters, reduction)
        inputs = case.inputs(parameters, rows, dtype=dtype)
        single = [{name: t[row : row + 1] for name, t in inputs.items()} for row in shuffled(rows)]
        batch = together([request] * rows, single)
        for place in (rows // 2, rows - 1):
            answer, batched = alone(request, single[place]), batch[place]
            assert isinstance(batched, Evaluated)
            assert batched.document == answer.document
            assert_same_bits(batched.tensors, answer.tensors, f"request {place}, {dtype}")


@pytest.mark.usefixtures("compiled_passes")
@each_row(with_dtypes(row for row in EVERY if row.values[0].name in COMPILED))
def test_a_compiled_pass_gives_a_row_one_gradient(
    case: Case, parameters: Parameters, dtypes: tuple[torch.dtype, ...], passes: Passes, monkeypatch: pytest.MonkeyPatch
) -> None:
    """In any request, and on any number of threads."""
    request = {"loss": {"name": case.name, **parameters, "reduction": "sum"}, "outputs": ["gradient"]}
    rows = 3 * SHARED // 8
    for dtype in dtypes:
        inputs = case.inputs(parameters, rows, dtype=dtype)
        if passes.find(plan_of(request).job(layout(inputs)).recipe) is None:  # the general way, as above
            continue
        expected = one_by_one(request, inputs, cut(rows))
        found = one_by_one(request, inputs, cut(rows, 1, 2, rows // 2))
        assert_same_bits(found, expected, f"in four requests, {dtype}")
        with monkeypatch.context() as patch, ThreadPoolExecutor(3) as pool:
            patch.setattr(passes, "threads", pool)
            found = one_by_one(request, inputs, [shuffled(rows)])
            assert_same_bits(found, expected, f"in another order, three threads, {dtype}")


@each_row(FIRST)
def test_rows_that_float32_cannot_compute_change_no_other(case: Case, parameters: Parameters) -> None:
    request = request_of(case, parameters, "sum")
    inputs = case.inputs(parameters, 5, dtype=torch.float32)
    scaled = {i.name.removesuffix(".*") for i in REGISTRY[case.name].inputs if i.types[0].domain in UNBOUNDED}
    for name, tensor in inputs.items():
        if name.partition(".")[0] in scaled:
            tensor[3] *= 1e-20
            tensor[4] *= 1e20
    single = [{name: t[row : row + 1] for name, t in inputs.items()} for row in range(5)]
    for tensors, batched in zip(single, together([request] * 5, single), strict=True):
        assert isinstance(batched, Evaluated)
        expected = alone(request, tensors)
        assert (batched.numerator, batched.denominator) == (expected.numerator, expected.denominator)
        assert_same_bits(batched.tensors, expected.tensors, "beside tiny and huge numbers")


@each_row(and_value(FIRST))
def test_threads_and_many_rows_change_no_bit(case: Case, parameters: Parameters, outputs: tuple[str, ...]) -> None:
    request = request_of(case, parameters, "none", outputs)
    width = min(t[:1].numel() for t in case.inputs(parameters, 2).values())
    rows = SHARED // width + 37
    for dtype, count in zip(FLOATS, (3, 2), strict=True):
        inputs = case.inputs(parameters, rows, dtype=dtype)
        with threads(1):
            expected = one_by_one(request, inputs, cut(rows, rows // 2 + 1, 17))
        with threads(count):
            found = one_by_one(request, inputs, cut(rows))
        assert_same_bits(found, expected, f"in one request by {count} threads, {dtype}")


@each_row(FIRST)
def test_threads_and_long_rows_change_no_bit(case: Case, parameters: Parameters) -> None:
    """Rows so long that threads share one of them: a sum over it must not depend on how many rows there are."""
    for dtype, ways in ((torch.float32, OUTPUTS), (torch.float64, OUTPUTS[:1])):
        inputs = longer(case, parameters, 2, dtype)
        if inputs is None:
            return
        for outputs in ways:
            request = request_of(case, parameters, "none", outputs)
            with threads(1):
                expected = one_by_one(request, inputs, cut(2))
            with threads(3):
                found = one_by_one(request, inputs, cut(2, 1))
            assert_same_bits(found, expected, f"{outputs}, two requests, three threads, {dtype}")


def longer(case: Case, parameters: Parameters, rows: int, dtype: torch.dtype) -> dict[str, Tensor] | None:
    """Rows of more than ``SHARED`` entries along their classes, coordinates or elements; None where rows have none."""
    loss = REGISTRY[case.name]
    if loss.task == "boxes" or loss.pairs is not None:
        return None
    drawn = case.inputs(parameters, rows * (SHARED // 3 + 7), dtype=dtype)
    patterns = {i.name.removesuffix(".*"): [t.pattern for t in i.types] for i in loss.inputs}
    levels = any("Q" in pattern for of_input in patterns.values() for pattern in of_input)  # of which a row has few
    classes = any({"C", "M"} & {*pattern} for of_input in patterns.values() for pattern in of_input)

    def lengthened(name: str, tensor: Tensor) -> Tensor:
        if levels and tensor.ndim == drawn["prediction"].ndim:
            return tensor.reshape(rows, -1, *tensor.shape[1:]).movedim(1, 2).flatten(2).contiguous()
        of_classes = (
            any({"C", "M"} & {*p} for p in patterns[name.partition(".")[0]]) and tensor.ndim == drawn["prediction"].ndim
        )
        if tensor.ndim == 1 or (classes and not of_classes):
            return tensor[:rows]
        return tensor.reshape(rows, -1, *tensor.shape[2:])

    return {name: lengthened(name, tensor) for name, tensor in drawn.items()}
