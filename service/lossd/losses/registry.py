"""``@loss``: a function's signature is its schema.

One function's annotations and docstring define its validation, its JSON Schema, its page in the catalogue and its help
on the command line. :data:`REGISTRY` holds every loss by name.
"""

from __future__ import annotations

import difflib
import functools
import inspect
import textwrap
import types
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from typing import Annotated, Any, Literal, Protocol, Union, get_args, get_origin, get_type_hints

from pydantic import BaseModel, ConfigDict, Field, create_model

from lossd.cost import Cost, Pairs
from lossd.lazy_torch import Tensor
from lossd.losses.types import TensorType
from lossd_client.errors import UnknownLoss
from lossd_client.wire.quoting import quoted

__all__ = [
    "REGISTRY",
    "ClosedForm",
    "Input",
    "Kind",
    "Loss",
    "Parameter",
    "Refinement",
    "Unreduced",
    "Upstream",
    "closest",
    "find_loss",
    "loss",
    "named",
]

Kind = Literal["rows", "stack", "alone", "composed"]
Reduction = Literal["mean", "sum", "none"]

# Other libraries' names of our losses, which give the same numbers. They appear in errors only and are no aliases.
SYNONYMS: Mapping[str, str] = {
    "l1": "mae",
    "mean_squared_error": "mse",
    "mean_absolute_error": "mae",
    "binary_cross_entropy": "bce",
    "binary_crossentropy": "bce",
    "bcewithlogits": "bce_with_logits",
    "binary_cross_entropy_with_logits": "bce_with_logits",
    "ce": "cross_entropy",
    "crossentropy": "cross_entropy",
    "softmax_cross_entropy": "cross_entropy",
    "focal_loss": "focal",
    "sigmoid_focal_loss": "sigmoid_focal",
    "soft_dice": "dice",
    "gdl": "generalized_dice",
    "lovasz_softmax": "lovasz",
    "pinball": "quantile",
    "logcosh": "log_cosh",
    "smoothl1": "smooth_l1",
    "kl": "kl_div",
    "kldiv": "kl_div",
    "kullback_leibler": "kl_div",
    "negative_log_likelihood": "nll",
    "generalized_iou": "giou",
    "distance_iou": "diou",
    "complete_iou": "ciou",
    "triplet_margin": "triplet",
    "tripletmargin": "triplet",
    "dice_ce": "ce_dice",
    "dicece": "ce_dice",
    "dice_bce": "bce_dice",
    "infonce": "info_nce",
    "ntxent": "nt_xent",
    "simclr": "nt_xent",
    "supervised_contrastive": "supcon",
    "gan": "gan_discriminator",
    "elbo": "vae",
    "vgg": "perceptual",
}

_KERAS = "cross_entropy takes logits, this one probabilities: give nll their logarithms"
NOT_QUITE: Mapping[str, str] = {
    "l2": "mse is the mean of squares; optax and TensorFlow call its half, or half the sum, l2_loss",
    "categorical_crossentropy": _KERAS,
    "sparse_categorical_crossentropy": _KERAS,
    "lovasz_hinge": "it is lovasz with mode binary",
    "hinge": 'for labels of -1 and 1 write it: expression with the formula "mean(relu(1 - target * prediction))"; '
    "multi_margin is that of classes, hinge_embedding one of distances",
    "squared_hinge": 'write it: expression with the formula "mean(square(relu(1 - target * prediction)))"',
    "logistic": "it is soft_margin for labels of -1 and 1, bce_with_logits for labels of 0 and 1",
    "cosine": "cosine_embedding is 1 - cos where similar is 1; others leave out the 1",
    "cosine_similarity": "cosine_embedding is 1 - cos where similar is 1; others leave out the 1",
    "lpips": "its learned weights are not here; perceptual compares VGG-16's features without them",
    "multiple_negatives_ranking": "clip is its symmetric form, with temperature 1 / scale",
}
"""Other libraries' names for something that none of our losses computes with its defaults, and what to use."""


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

Terms = Callable[[Mapping[str, Any]], Sequence[Mapping[str, Any]]]
"""``f(parameters)`` returns the terms of a composed loss."""

ClosedForm = Callable[..., Tensor | Unreduced]
"""``f(upstream, gradient, inputs…, parameters…)`` writes ``gradient[name]`` and returns the value, without autograd."""


@dataclass(frozen=True, slots=True)
class Refinement:
    """How parameters change a signature.

    Attributes:
        inputs: Types that replace the declared ones.
        returns: The answer's type, if it differs.
        task: The task whose metrics fit, if it differs.
    """

    inputs: Mapping[str, TensorType] = field(default_factory=dict)
    returns: TensorType | None = None
    task: str | None = None


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
        refine: Returns how parameters change the inputs' types; raises ``ValueError`` for invalid combinations.
        shape: Returns the unreduced loss's shape, given parameters and shapes; None if ``returns`` determines it.
        pairs: How many pairs of entries it compares, and what each takes; None if memory and time grow with the tensors
            alone.
        cost: Returns the cost of the evaluation, if it depends on the parameters; else None.
        byte_ns: About how many nanoseconds of one core it takes for each byte of its tensors.
        terms: Returns the terms of a composed loss, given the parameters: ``{"loss": {...}, "inputs": {...}}`` each.
        per_sample: Whether a composed loss is a function of its term's value on each row rather than on all rows.
        unavailable: Returns why it cannot be evaluated here and what to do about it; None if it can.
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
    refine: Callable[[Mapping[str, Any]], Refinement]
    shape: Shape | None
    pairs: Pairs | None
    cost: CostOf | None
    byte_ns: float
    terms: Terms | None
    per_sample: bool
    unavailable: Callable[[], str | None]
    summary: str
    formula: str
    references: tuple[str, ...]
    documentation: str
    closed_forms: list[ClosedForm] = field(default_factory=list)

    def closed_form(self, function: ClosedForm) -> ClosedForm:
        """Register a function that also writes the gradient; it replaces autograd for first derivatives."""
        self.closed_forms.append(function)
        return function

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
    pairs: Pairs | None = None,
    cost: CostOf | None = None,
    byte_ns: float = 4,
    terms: Terms | None = None,
    per_sample: bool = False,
    unavailable: Callable[[], str | None] = lambda: None,
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
        pairs: How many pairs of entries it compares, if there are more pairs than entries.
        cost: Returns the cost of the evaluation, if it depends on parameters or shapes.
        byte_ns: About how many nanoseconds of one core it takes for each byte of its tensors, gradients among them.
        terms: Returns the terms of a composed loss.
        per_sample: Whether a composed loss is a function of its term's value on each row rather than on all.
        unavailable: Returns why it cannot be evaluated here and what to do about it; None if it can.
        like: The loss whose docstring describes inputs and parameters that this one's docstring leaves out.
    """
    described: dict[str, str] = {}
    if like is not None:
        described = {i.name: i.summary for i in like.inputs} | {p.name: p.summary for p in like.parameters}

    def register(function: Callable[..., Tensor | Unreduced]) -> Loss:
        name = function.__name__.rstrip("_")
        hints = get_type_hints(function, include_extras=True)
        doc = _Docstring(inspect.getdoc(function) or "")
        inputs, parameters, series, variadic, accepted_reductions = [], [], [], None, reductions
        for p in inspect.signature(function).parameters.values():
            hint = hints[p.name]
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
            refine=refine or (lambda _: Refinement()),
            shape=shape,
            pairs=pairs,
            cost=cost,
            byte_ns=byte_ns,
            terms=terms,
            per_sample=per_sample,
            unavailable=unavailable,
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


def _tensor_types(hint: Any) -> tuple[TensorType, ...]:
    if get_origin(hint) in (Union, types.UnionType):
        return tuple(t for arm in get_args(hint) for t in _tensor_types(arm))
    return tuple(m for m in getattr(hint, "__metadata__", ()) if isinstance(m, TensorType))


class _Docstring:
    """The parts of a Google-style docstring that the catalogue shows."""

    def __init__(self, text: str) -> None:
        self.text = text
        self.summary = text.partition("\n")[0]
        sections = self._sections(text)
        self.arguments = self._arguments(sections.get("Args", ""))
        self.references = tuple(_paragraphs(sections.get("References", "")))
        self.formula = self._formula(text)

    @staticmethod
    def _sections(text: str) -> dict[str, str]:
        sections: dict[str, str] = {}
        name = ""
        for line in text.splitlines():
            if line.endswith(":") and line[:-1].isalpha() and line[0] != " ":
                name = line[:-1]
            elif name:
                sections[name] = sections.get(name, "") + line + "\n"
        return {name: textwrap.dedent(body).strip("\n") for name, body in sections.items()}

    @staticmethod
    def _arguments(section: str) -> dict[str, str]:
        return {name: rest.strip() for name, _, rest in (item.partition(":") for item in _paragraphs(section)) if rest}

    @staticmethod
    def _formula(text: str) -> str:
        _, found, rest = text.partition(".. math::")
        if not found:
            return ""
        lines = rest.splitlines()
        body = [lines[0].strip()]
        for line in lines[1:]:
            if line and not line.startswith(" "):
                break
            body.append(line.strip())
        return " ".join(part for part in body if part)


def _paragraphs(section: str) -> list[str]:
    """Return the items of a section: each starts at the margin, its continuation lines are indented."""
    items: list[str] = []
    for line in section.splitlines():
        if line.startswith(" ") and items:
            items[-1] += " " + line.strip()
        elif line.strip():
            items.append(line.strip())
    return items


def named(fields: Any) -> Any:
    """Return the object of a loss; a bare name stands for the loss with its defaults."""
    return {"name": fields} if isinstance(fields, str) else fields


def find_loss(name: str, *, listed_by: str = "GET /v1/losses") -> Loss:
    """Return the loss of that name.

    Args:
        name: The loss's name.
        listed_by: The command or route that lists all names, for the error.

    Raises:
        UnknownLoss: No loss has that name; the detail names the closest ones.
    """
    if name not in REGISTRY:
        if (advice := NOT_QUITE.get(_folded(name))) is not None:
            raise UnknownLoss(f"there is no loss named {quoted(name)}; {advice}")
        near = closest(name, REGISTRY)
        hint = f"did you mean {' or '.join(near)}?" if near else f"{listed_by} lists them all"
        raise UnknownLoss(f"there is no loss named {quoted(name)}; {hint}")
    return REGISTRY[name]


def _folded(name: str) -> str:
    """Return a name without what libraries spell differently: ``HingeLoss`` and ``hinge-loss`` become ``hinge``."""
    return name.lower().replace("-", "_").removesuffix("loss").rstrip("_")


def closest(name: str, known: Mapping[str, Any] | tuple[str, ...], synonyms: Mapping[str, str] = SYNONYMS) -> list[str]:
    """Return up to three known names closest to an unknown one, a synonym's meaning first."""
    folded = name.lower().replace("-", "_").removesuffix("_loss")
    near = [synonyms[key] for key in (name.lower(), folded, _folded(name)) if key in synonyms]
    near += difflib.get_close_matches(folded, list(known), n=3, cutoff=0.6)
    return list(dict.fromkeys(n for n in near if n in known))[:3]
