"""``@loss``: a function's signature is its schema.

One function's annotations and docstring define its validation, its JSON Schema, its page in the catalogue and its help
on the command line. :data:`REGISTRY` holds every loss by name.
"""

from __future__ import annotations

import functools
import inspect
import types
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from typing import Annotated, Any, Literal, Protocol, TypeVar, Union, get_args, get_origin, get_type_hints

from pydantic import BaseModel, ConfigDict, Field, create_model

from lossd.cost import Cost, PairCost
from lossd.lazy_torch import Tensor
from lossd.losses.docstrings import Docstring
from lossd.losses.types import PerAxis, TensorType

__all__ = [
    "REGISTRY",
    "ClosedForm",
    "HessianForm",
    "Input",
    "Kind",
    "Loss",
    "Parameter",
    "Refinement",
    "Unreduced",
    "Upstream",
    "loss",
    "loss_object",
]

Kind = Literal["rows", "stack", "alone", "composed"]
ReductionName = Literal["mean", "sum", "none"]
NanTargets = Literal["refuse", "ignore"]

MASKS = ("mask", "element_weight")
"""The parameters of a loss function that are no inputs of its own: which entries count, and their weights."""

NAN_TARGETS = 'With "refuse", a target of NaN is an error; with "ignore", it does not count, as if a mask left it out.'
TARGETS = ("target", "similar")


@dataclass(frozen=True, slots=True)
class Unreduced:
    """The result of a loss function whose mean is not over the element count.

    Attributes:
        value: The unreduced loss, multiplied by its weights.
        weight: What each entry adds to the denominator of the mean, in the shape of ``value``; constant with respect to
            every differentiable input.
        flags: Warning codes, each with the rows (R, ...) or requests (B, ...) that it concerns, as booleans.
        extras: Further fields of the answer, for losses of kind ``alone``.
    """

    value: Tensor
    weight: Tensor
    flags: Mapping[str, Tensor] = field(default_factory=dict)
    extras: Mapping[str, Any] = field(default_factory=dict)


class Upstream(Protocol):
    """Returns the upstream gradient of each entry of the value, given the denominators' weights (None: 1)."""

    def __call__(self, weight: Tensor | None) -> Tensor:
        """Return a factor for each entry, 0-d or broadcasting against the value; call it once."""


Shape = Callable[[Mapping[str, Any], Mapping[str, tuple[int, ...]]], tuple[int, ...]]
"""``f(parameters, shapes)`` returns the unreduced loss's shape; ``ValueError`` if the shapes do not fit together."""

CostOf = Callable[[Mapping[str, Any], Mapping[str, tuple[int, ...]]], Cost]
"""``f(parameters, shapes)`` returns the cost of the evaluation, if it does not grow with the tensors alone."""

KeepsRows = Callable[[Mapping[str, Any], Mapping[str, tuple[int, ...]]], bool]
"""``f(parameters, shapes)`` returns whether each row of the value depends on the same row of each input alone."""

Terms = Callable[[Mapping[str, Any]], Sequence[Mapping[str, Any]]]
"""``f(parameters)`` returns the terms of a composed loss."""

ClosedForm = Callable[..., Tensor | Unreduced]
"""``f(upstream, gradient, inputs…, parameters…)`` writes ``gradient[name]`` and returns the value, without autograd."""

HessianForm = Callable[..., Tensor]
"""``f(inputs…, parameters…)`` returns the second derivative of the value by each entry of ``prediction``, in its shape.
Inputs are float64."""

HasForm = Callable[[Mapping[str, Any], Mapping[str, tuple[int, ...]]], bool]
"""``f(parameters, shapes)`` returns whether a form of the Hessian is for these parameters and shapes."""

H = TypeVar("H", bound=HessianForm)

Elementwise = Callable[[Mapping[str, Any]], Collection[str]]
"""``f(parameters)`` returns the inputs of which each entry of the gradient depends on its own entry alone."""


@dataclass(frozen=True, slots=True)
class Refinement:
    """How parameters change a signature.

    Attributes:
        inputs: Types that replace the declared ones.
        further: Types that inputs may have besides.
        returns: The answer's type, if it differs.
        task: The task whose metrics fit, if it differs.
    """

    inputs: Mapping[str, TensorType] = field(default_factory=dict)
    further: Mapping[str, TensorType] = field(default_factory=dict)
    returns: TensorType | None = None
    task: str | None = None


_UNREFINED = Refinement()


@dataclass(frozen=True, slots=True)
class Input:
    """One named tensor of a loss; ``name.*`` is a series of any length (``name.0``, ``name.1``, …).

    ``no_labels`` says why integers that are all 0 or 1 (labels) are refused although floats are not; empty if they are
    accepted.
    """

    name: str
    types: tuple[TensorType, ...]
    differentiable: bool
    optional: bool
    summary: str
    no_labels: str = ""


@dataclass(frozen=True, slots=True)
class Parameter:
    """One keyword-only parameter of a loss.

    Attributes:
        name: Its name.
        annotation: Its type with its bounds, for Pydantic.
        default: Its default; ``...`` if it is required.
        varies: Whether it is a plain number, which may differ between the requests of a batch.
        summary: Its description in the docstring.
    """

    name: str
    annotation: Any
    default: Any
    varies: bool
    summary: str

    @property
    def axis(self) -> str | None:
        """The axis that a list has one entry for each step of; None if there is none."""
        return _per_axis(self.annotation)


class _Parameters(BaseModel):
    model_config = ConfigDict(extra="forbid", strict=True, allow_inf_nan=False, frozen=True)


@dataclass(frozen=True)
class Loss:
    """The definition of a loss.

    Attributes:
        name: Its unique name.
        task: The task whose metrics fit its inputs.
        kind: How requests share a batch: ``rows`` are concatenated (rows are independent), ``stack`` are stacked and
            vmapped (samples of one request interact), ``alone`` are evaluated one at a time, ``composed`` are functions
            of other losses' values.
        function: The function from tensors and keyword parameters to the unreduced loss.
        inputs: Its tensors, in order.
        variadic: The type of any further tensors (``**inputs``), which ``refine`` names; None if there are none.
        parameters: Its keyword parameters, without ``reduction``.
        returns: The type of the unreduced loss.
        reductions: The reductions that it takes, the default first.
        reads_reduction: Whether its value depends on the reduction, which is then a keyword of the function.
        reads_masks: Which of ``MASKS`` the function takes: ``mask`` as bool, ``element_weight`` as floats, in the shape
            of a mask and None if all entries count alike. For all others, the evaluation leaves entries out.
        mask: The type of a mask; None if it has the shape of the unreduced loss.
        refine: Returns how parameters change the inputs' types; raises ``ValueError`` for invalid combinations.
        shape: Returns the unreduced loss's shape, given parameters and shapes; None if ``returns`` determines it.
        keeps_rows: Returns whether each row of the value depends on the same row of each input alone, given parameters
            and shapes, for losses of kind ``alone``; such requests are evaluated as those of kind ``rows``.
        pairs: How many pairs of entries it compares, and what each takes; None if memory and time grow with the tensors
            alone.
        cost: Returns the cost of the evaluation, if it depends on the parameters; else None.
        byte_ns: About how many nanoseconds of one core it takes for each byte of its tensors.
        terms: Returns the terms of a composed loss, given the parameters: ``{"loss": {...}, "inputs": {...}}`` each.
        linear: Whether a composed loss is the sum of its terms' values times factors that only parameters affect.
        per_sample: Whether a composed loss is a function of its term's value on each row rather than on all rows.
        unavailable: Returns why it cannot be evaluated here and what to do about it; None if it can.
        elementwise: Returns the inputs of which each entry of the gradient depends on its own entry alone, given the
            parameters.
        twice: Whether autograd has its second derivatives.
        probabilistic: Whether it makes probabilities of logits; a margin loss compares them as they are.
        summary: The docstring's first line.
        formula: The docstring's formula, LaTeX.
        references: The docstring's references, a line each.
        documentation: The whole docstring.
    """

    name: str
    task: str
    kind: Kind
    function: Callable[..., Tensor | Unreduced]
    inputs: tuple[Input, ...]
    variadic: TensorType | None
    parameters: tuple[Parameter, ...]
    returns: TensorType
    reductions: tuple[str, ...]
    reads_reduction: bool
    reads_masks: tuple[str, ...]
    mask: TensorType | None
    refine: Callable[[Mapping[str, Any]], Refinement]
    shape: Shape | None
    keeps_rows: KeepsRows
    pairs: PairCost | None
    cost: CostOf | None
    byte_ns: float
    terms: Terms | None
    linear: bool
    per_sample: bool
    unavailable: Callable[[], str | None]
    elementwise: Elementwise
    twice: bool
    probabilistic: bool
    summary: str
    formula: str
    references: tuple[str, ...]
    documentation: str
    closed_forms: list[ClosedForm] = field(default_factory=list)
    hessian_forms: dict[str, tuple[HessianForm, HasForm | None]] = field(default_factory=dict)

    def closed_form(self, function: ClosedForm) -> ClosedForm:
        """Register a function that also writes the gradient; it replaces autograd for first derivatives."""
        self.closed_forms.append(function)
        return function

    def hessian(self, function: H) -> H:
        """Register a function of the exact second derivatives; it replaces autograd for them."""
        return self.hessian_form("exact")(function)

    def hessian_form(self, *forms: str, when: HasForm | None = None) -> Callable[[H], H]:
        """Return a decorator that registers a function for these forms of the Hessian.

        Args:
            *forms: exact, fisher, xgboost, lightgbm.
            when: Returns whether the function is for a request's parameters and shapes; None if it is for all.
        """

        def register(function: H) -> H:
            self.hessian_forms.update(dict.fromkeys(forms, (function, when)))
            return function

        return register

    def closed_hessian(
        self, form: str, parameters: Mapping[str, Any], shapes: Mapping[str, tuple[int, ...]]
    ) -> HessianForm | None:
        """Return the function of this form of the Hessian by ``prediction``; None if there is none for these.

        Args:
            form: exact, fisher, xgboost or lightgbm.
            parameters: The loss's parameters; those that may differ within a batch are not read.
            shapes: The shapes of its inputs.
        """
        function, when = self.hessian_forms.get(form, (None, None))
        return function if when is None or when(parameters, shapes) else None

    def is_elementwise(self, name: str, parameters: Mapping[str, Any]) -> bool:
        """Return whether each entry of the gradient by an input depends on its own entry of the input alone."""
        names = self.elementwise(parameters)
        return name in names or name.partition(".")[0] in names

    @cached_property
    def model(self) -> type[BaseModel]:
        """The Pydantic model of the request's ``loss`` object: name, reduction and the parameters, typed."""
        fields: dict[str, Any] = {
            "name": (Literal[self.name], Field(description=self.summary)),
            "reduction": (
                Literal[self.reductions],
                Field(self.reductions[0], description="How the unreduced loss becomes the answer."),
            ),
        }
        if self.may_lack_targets:
            fields["nan_targets"] = (NanTargets, Field("refuse", description=NAN_TARGETS))
        for parameter in self.parameters:
            fields[parameter.name] = (
                parameter.annotation,
                Field(parameter.default, description=parameter.summary),
            )
        title = "".join(word.capitalize() for word in self.name.split("_"))
        return create_model(title, __base__=_Parameters, __doc__=self.summary, **fields)

    @cached_property
    def request_inputs(self) -> tuple[Input, ...]:
        """The inputs that a request sends: all except the values of a composed loss's terms."""
        from_terms = () if self.terms is None else ("losses", "weight") if self.per_sample else ("losses",)
        return tuple(i for i in self.inputs if i.name not in from_terms)

    @property
    def masked(self) -> bool:
        """Whether a request may say which entries count."""
        return self.kind == "rows" or "mask" in self.reads_masks

    @property
    def may_lack_targets(self) -> bool:
        """Whether entries may be left out because a target is NaN."""
        return self.masked and any(
            not entry.differentiable and entry.name.partition(".")[0] in TARGETS for entry in self.inputs
        )

    @property
    def preset(self) -> bool:
        """Whether it is composed of the same losses in every request."""
        return self.terms is not None and all(p.default is not ... for p in self.parameters)

    @cached_property
    def varying(self) -> tuple[str, ...]:
        """The parameters that may differ between the requests of a batch."""
        return tuple(p.name for p in self.parameters if p.varies and self.kind in ("rows", "stack"))

    @cached_property
    def differentiable(self) -> tuple[str, ...]:
        """The declared inputs that have a gradient; all further ones (``variadic``) have one."""
        return tuple(i.name for i in self.inputs if i.differentiable)


REGISTRY: dict[str, Loss] = {}
"""Every loss, by name, in the order of definition."""


def loss(
    *,
    task: str,
    kind: Kind,
    differentiable: tuple[str, ...] = ("prediction",),
    reductions: tuple[str, ...] = ("mean", "sum", "none"),
    refine: Callable[[Mapping[str, Any]], Refinement] | None = None,
    shape: Shape | None = None,
    keeps_rows: KeepsRows = lambda *_: False,
    pairs: PairCost | None = None,
    cost: CostOf | None = None,
    byte_ns: float = 4,
    terms: Terms | None = None,
    linear: bool = False,
    per_sample: bool = False,
    unavailable: Callable[[], str | None] = lambda: None,
    elementwise: bool | Elementwise = False,
    twice: bool = True,
    probabilistic: bool = True,
    like: Loss | None = None,
) -> Callable[[Callable[..., Tensor | Unreduced]], Loss]:
    """Register a loss under its function's name.

    Args:
        task: The task whose metrics fit its inputs.
        kind: How requests share a batch, see :class:`Loss`.
        differentiable: The inputs that have a gradient.
        reductions: The reductions that it takes, the default first; ignored if the function has a keyword
            ``reduction``.
        refine: Returns how the parameters change the inputs' types.
        shape: Returns the unreduced loss's shape, if the return annotation does not determine it.
        keeps_rows: Returns whether each row of the value depends on the same row of each input alone, given parameters
            and shapes, for losses of kind ``alone``.
        pairs: How many pairs of entries it compares, if there are more pairs than entries.
        cost: Returns the cost of the evaluation, if it depends on parameters or shapes.
        byte_ns: About how many nanoseconds of one core it takes for each byte of its tensors, gradients among them.
        terms: Returns the terms of a composed loss.
        linear: Whether a composed loss is the sum of its terms' values times factors that only parameters affect.
        per_sample: Whether a composed loss is a function of its term's value on each row rather than on all.
        unavailable: Returns why it cannot be evaluated here and what to do about it; None if it can.
        elementwise: Whether each entry of a gradient depends on its own entry of that input alone, or a function that
            returns the inputs of which this holds. The Hessian is then diagonal.
        twice: Whether autograd has its second derivatives.
        probabilistic: Whether it makes probabilities of logits, if it takes any. A margin loss does not: it compares
            them as they are, and scores from 0 to 1 are no mistake.
        like: The loss whose docstring describes inputs and parameters that this one's docstring leaves out.
    """
    described: dict[str, str] = {}
    if like is not None:
        described = {i.name: i.summary for i in like.inputs} | {p.name: p.summary for p in like.parameters}

    def register(function: Callable[..., Tensor | Unreduced]) -> Loss:
        name = function.__name__.rstrip("_")
        hints = get_type_hints(function, include_extras=True)
        doc = Docstring(inspect.getdoc(function) or "")
        inputs, parameters, series, variadic, accepted_reductions = [], [], [], None, reductions
        reads_masks: list[str] = []
        mask: TensorType | None = None
        for p in inspect.signature(function).parameters.values():
            hint = hints[p.name]
            if p.name in MASKS:
                reads_masks.append(p.name)
                mask = next(iter(_tensor_types(hint)), mask)
                continue
            summary = doc.arguments.get(p.name) or described.get(p.name)
            if not summary:
                raise TypeError(f"{name}: the docstring says nothing about {p.name}")
            if p.name == "reduction":
                accepted_reductions = get_args(hint)
            elif p.kind is inspect.Parameter.KEYWORD_ONLY:
                base = get_args(hint)[0] if get_origin(hint) is Annotated else hint
                default = ... if p.default is inspect.Parameter.empty else p.default
                parameters.append(Parameter(p.name, hint, default, base is float, summary))
            elif p.kind is inspect.Parameter.VAR_KEYWORD:
                (variadic,) = _tensor_types(hint)
            elif get_origin(hint) is list:
                series.append(p.name)
                types = _tensor_types(get_args(hint)[0])
                inputs.append(Input(f"{p.name}.*", types, p.name in differentiable, False, summary))
            else:
                optional = p.default is not inspect.Parameter.empty
                inputs.append(Input(p.name, _tensor_types(hint), p.name in differentiable, optional, summary))
        if name in REGISTRY:
            raise TypeError(f"a loss named {name} is registered already")
        REGISTRY[name] = Loss(
            name=name,
            task=task,
            kind=kind,
            function=_gathering(function, series) if series else function,
            inputs=tuple(inputs),
            variadic=variadic,
            parameters=tuple(parameters),
            returns=_tensor_types(hints["return"])[0],
            reductions=accepted_reductions,
            reads_reduction="reduction" in hints,
            reads_masks=tuple(reads_masks),
            mask=mask,
            refine=refine or (lambda _: _UNREFINED),
            shape=shape,
            keeps_rows=keeps_rows,
            pairs=pairs,
            cost=cost,
            byte_ns=byte_ns,
            terms=terms,
            linear=linear,
            per_sample=per_sample,
            unavailable=unavailable,
            elementwise=elementwise if callable(elementwise) else lambda _: differentiable if elementwise else (),
            twice=twice,
            probabilistic=probabilistic,
            summary=doc.summary,
            formula=doc.formula,
            references=doc.references,
            documentation=doc.text,
        )
        return REGISTRY[name]

    return register


def _gathering(function: Callable[..., Tensor | Unreduced], series: Sequence[str]) -> Callable[..., Tensor | Unreduced]:
    """Return a function of single tensors ``name.0``, ``name.1``, … that passes them on as the list ``name``."""

    @functools.wraps(function)
    def gathered(**arguments: Any) -> Tensor | Unreduced:
        for name in series:
            length = sum(argument.startswith(f"{name}.") for argument in arguments)
            arguments[name] = [arguments.pop(f"{name}.{i}") for i in range(length)]
        return function(**arguments)

    return gathered


def _per_axis(annotation: Any) -> str | None:
    for marker in getattr(annotation, "__metadata__", ()):
        if isinstance(marker, PerAxis):
            return marker.axis
    return next((axis for arm in get_args(annotation) if (axis := _per_axis(arm))), None)


def _tensor_types(hint: Any) -> tuple[TensorType, ...]:
    if get_origin(hint) in (Union, types.UnionType):
        return tuple(t for arm in get_args(hint) for t in _tensor_types(arm))
    return tuple(m for m in getattr(hint, "__metadata__", ()) if isinstance(m, TensorType))


def loss_object(fields: Any) -> Any:
    """Return the object of a loss; a bare name stands for the loss with its defaults."""
    return {"name": fields} if isinstance(fields, str) else fields
