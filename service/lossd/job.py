"""A checked request: everything that crosses a process border.

A :class:`Recipe` is what the requests of one batch share: the loss with its fixed parameters, the requested outputs,
and the columns of its tensors. A :class:`Job` is one request of a recipe: its number of rows and its own parameters.
Neither holds a tensor.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any

import orjson

from lossd.caches import Cache
from lossd.cost import NOTHING, Cost
from lossd_client.wire import DTYPES
from lossd_client.wire.tensor import element_count

__all__ = [
    "MASKING",
    "MAX_PAIRS",
    "UNIVERSAL",
    "Column",
    "Job",
    "Recipe",
    "is_wide",
    "model_name",
]

UNIVERSAL = ("sample_weight", "cotangent", "direction")
"""The inputs that every loss may take."""

MASKING = ("kept", "length", "weight")
"""The domains of the inputs that say which entries of a loss count: ``mask``, ``lengths`` and ``element_weight``."""

MAX_PAIRS = 1 << 28
"""The most pairs of entries that a request or a batch may compare."""


# Domains of indices and of few small numbers: float32 represents them exactly.
_LONG = ("int64", "int32", "uint64", "uint32")
_EXACT_IN_FLOAT32 = ("class", "class_set", "predicted", "integer", "term", "probability", "mask", "indicator", "sign")


def is_wide(dtypes: Mapping[str, str], domains: Mapping[str, str]) -> bool:
    """Return whether inputs are computed in float64, because float32 represents integers up to 2**24 only.

    Args:
        dtypes: The dtype of each input.
        domains: The domain of each input's entries.
    """
    return any(
        dtype == "float64" or (dtype in _LONG and domains[name] not in _EXACT_IN_FLOAT32)
        for name, dtype in dtypes.items()
        if name not in UNIVERSAL and domains[name] not in MASKING
    )


def model_name(loss: str | None, task: str | None) -> str:
    """Return the name under which requests are counted: the loss's, or that of the task's metrics."""
    return loss or f"metrics.{task}"


@dataclass(frozen=True, slots=True)
class Column:
    """One named tensor of every request of a batch, one request after the other.

    Attributes:
        name: The input's name, or ``gradient.<input>``, ``hessian.<input>``, ``hvp.<input>``, or ``loss``.
        dtype: The tensor's wire dtype.
        trailing: All axes after the first if ``per_row``, else the whole shape of each request's tensor.
        per_row: Whether the first axis counts rows, whose number may differ between requests; else it counts requests.
        class_first: Whether each request's tensor has its second axis first. Its bytes take the same place.
    """

    name: str
    dtype: str
    trailing: tuple[int, ...]
    per_row: bool
    class_first: bool = False

    @property
    def unit_bytes(self) -> int:
        """Bytes of one row, or of one request's whole tensor."""
        return element_count(self.trailing) * DTYPES[self.dtype].itemsize

    def units(self, rows: int) -> int:
        """Return how many units a request with that many rows takes."""
        return rows if self.per_row else 1

    def shape(self, rows: int) -> tuple[int, ...]:
        """Return the shape of one request's tensor."""
        shape = (rows, *self.trailing) if self.per_row else self.trailing
        return (shape[1], shape[0], *shape[2:]) if self.class_first else shape


@dataclass(frozen=True)
class Recipe:
    """What the requests of a batch share. Equal recipes have equal ``text``, which is their identity.

    Attributes:
        loss: The loss's name; None if only metrics are requested.
        task: The task of the metrics.
        kind: How requests share a batch: rows, stack, alone or composed.
        parameters: Every parameter that is equal in the whole batch.
        numbers: The names of the parameters that may differ between requests, in the order of ``Job.numbers``.
        reduction: mean, sum, none or batchmean.
        want_loss: Whether the loss is requested.
        gradients: The inputs whose gradients are requested.
        gradient_options: clip_norm, clip_scope, clip_value, layout.
        metrics: The names of the requested metrics.
        metric_options: threshold, zero_division and so on.
        terms: The terms of a composed loss: each term's name in errors, recipe text, rows, numbers and inputs, and
            whether each of its rows is evaluated as a request.
        domains: The domain of each input's entries, see :class:`lossd.losses.types.TensorType`.
        classes: The length of the class axis; None without one.
        pairs: How many pairs of entries each request compares; 0 for none.
        text_bytes: About how many bytes each request's answer has without its tensors.
        value: The unreduced loss's axes: those after the first if requests are rows, else all.
        entries: The axes of a mask, likewise.
        axes: For each input, which axis of the mask each of its axes is, -1 for none; empty if every entry counts.
        nan_inputs: The inputs of which a NaN leaves its entry out.
        inputs: The columns that requests fill.
        answers: The columns that the evaluation fills.
        byte_ns: About how many nanoseconds of one core each byte of the columns takes.
        hessians: The inputs by which the diagonal of the Hessian is requested.
        hessian_options: form and floor.
        product: The input by which the product of the Hessian and a direction is requested; None for none.
        run: What a run does with the requests: ``{"count": definition}`` counts them, ``{"result": definition,
            "options": …}`` reads the result of a state, ``{"compare": {"definitions": …, "options": …}}`` compares
            states; None for an evaluation.
    """

    loss: str | None
    task: str | None
    kind: str
    parameters: Mapping[str, Any]
    numbers: tuple[str, ...]
    reduction: str
    want_loss: bool
    gradients: tuple[str, ...]
    gradient_options: Mapping[str, Any]
    metrics: tuple[str, ...]
    metric_options: Mapping[str, Any]
    terms: tuple[Mapping[str, Any], ...]
    domains: Mapping[str, str]
    classes: int | None
    pairs: int
    text_bytes: int
    value: tuple[int, ...]
    inputs: tuple[Column, ...]
    answers: tuple[Column, ...]
    byte_ns: float
    hessians: tuple[str, ...] = ()
    hessian_options: Mapping[str, Any] = field(default_factory=dict)
    product: str | None = None
    run: Mapping[str, Any] | None = None
    entries: tuple[int, ...] = ()
    axes: Mapping[str, tuple[int, ...]] = field(default_factory=dict)
    nan_inputs: tuple[str, ...] = ()

    @cached_property
    def text(self) -> str:
        """The recipe as canonical JSON: its identity, and its form in messages to a worker."""
        fields = {name: value for name, value in self.__dict__.items() if name in _RECIPE_FIELDS}
        return orjson.dumps(fields, option=orjson.OPT_SORT_KEYS).decode()

    @staticmethod
    def parse(text: str) -> Recipe:
        """Return the recipe of a text; the same object for the same text while it is cached."""
        recipe = _RECIPES.get(text)
        if recipe is None:
            recipe = Recipe.read(text)
            _RECIPES.put(text, recipe, recipe.nbytes)
        return recipe

    def shared(self) -> Recipe:
        """Return the cached recipe of the same text; if there is none, cache and return this one."""
        recipe = _RECIPES.get(self.text)
        if recipe is None:
            recipe = self
            _RECIPES.put(self.text, self, self.nbytes)
        return recipe

    @staticmethod
    def read(text: str) -> Recipe:
        """Return a new recipe, parsed from its text."""
        fields = orjson.loads(text)
        for name in ("inputs", "answers"):
            fields[name] = tuple(Column(**{**c, "trailing": tuple(c["trailing"])}) for c in fields[name])
        for name in ("numbers", "gradients", "hessians", "metrics", "value", "terms", "entries", "nan_inputs"):
            fields[name] = tuple(fields[name])
        recipe = Recipe(**fields)
        recipe.__dict__["text"] = text
        return recipe

    @property
    def nbytes(self) -> int:
        """About how many bytes the recipe takes in memory, its text included."""
        return 1024 + 6 * len(self.text)

    @cached_property
    def columns(self) -> tuple[Column, ...]:
        """The inputs, then the answers."""
        return (*self.inputs, *self.answers)

    @cached_property
    def units(self) -> tuple[tuple[int, bool], ...]:
        """Of each column: bytes of a unit, and whether a unit is a row."""
        return tuple((c.unit_bytes, c.per_row) for c in self.columns)

    @cached_property
    def bfloat16(self) -> frozenset[str]:
        """The names of the bfloat16 columns."""
        return frozenset(c.name for c in self.columns if c.dtype == "bfloat16")

    @cached_property
    def half(self) -> bool:
        """Whether any column has half precision."""
        return any(c.dtype in ("float16", "bfloat16") for c in self.columns)

    @cached_property
    def dtypes(self) -> Mapping[str, str]:
        """The dtype of each input."""
        return {c.name: c.dtype for c in self.inputs}

    @cached_property
    def wide(self) -> bool:
        """Whether the batch is computed in float64; see :func:`is_wide`."""
        return is_wide(self.dtypes, self.domains)

    @cached_property
    def row_bytes(self) -> int:
        """Bytes of a row in the columns that count rows."""
        return sum(c.unit_bytes for c in self.columns if c.per_row)

    @cached_property
    def request_bytes(self) -> int:
        """Bytes of a request in the columns that count requests."""
        return sum(c.unit_bytes for c in self.columns if not c.per_row)

    @cached_property
    def evaluates_loss(self) -> bool:
        """Whether the loss, or a derivative of it, is requested."""
        return self.want_loss or bool(self.gradients or self.hessians or self.product)

    @cached_property
    def model(self) -> str:
        """The name under which requests are counted; see :func:`model_name`."""
        return model_name(self.loss, self.task)

    @cached_property
    def alone(self) -> bool:
        """Whether each request is a batch of its own."""
        return self.kind == "alone" or any(term["each_row"] for term in self.terms)


_RECIPE_FIELDS = frozenset(Recipe.__dataclass_fields__)
_RECIPES: Cache[str, Recipe] = Cache("recipes", 16 << 20)


@dataclass(slots=True)
class Job:
    """One checked request, without its tensors. It is never changed; to freeze it would take two thirds of its time.

    Attributes:
        recipe: What the request shares with the others of its batch.
        rows: The length of its first axis.
        numbers: The request's values of ``recipe.numbers``.
        cost: The cost of its evaluation besides its tensors.
        nbytes: Bytes of its tensors, inputs and answers.
        held_bytes: Bytes that the request counts for in admission: its tensors and its temporaries.
        work_ns: About how many nanoseconds one core takes.
    """

    recipe: Recipe
    rows: int
    numbers: tuple[float, ...] = ()
    cost: Cost = NOTHING
    nbytes: int = field(init=False)
    held_bytes: int = field(init=False)
    work_ns: int = field(init=False)

    def __post_init__(self) -> None:
        nbytes = self.rows * self.recipe.row_bytes + self.recipe.request_bytes
        self.nbytes = nbytes
        self.held_bytes = nbytes + self.cost.scratch_bytes
        self.work_ns = int(self.recipe.byte_ns * nbytes) + self.cost.work_ns
