"""A checked request without its tensors, and the checks of its tensors' names, dtypes and shapes.

A :class:`Plan` is checked once and shared by all requests with the same text. :meth:`Plan.job` checks the tensors
against the loss's signature.
"""

from __future__ import annotations

import itertools
from collections.abc import Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field, replace
from functools import cached_property
from typing import Any, get_args

import lossd.metrics as metrics
from lossd.cost import NOTHING, Cost, together
from lossd.job import MASKING, MAX_PAIRS, UNIVERSAL, Column, Job, Recipe, is_wide, model_name
from lossd.losses.registry import TARGETS, Input, Loss, Refinement
from lossd.losses.types import TensorType
from lossd.request.options import GradientOptions, HessianOptions, MetricOptions
from lossd.request.outputs import MAX_ROW_ENTRIES, series
from lossd.request.recipe_cache import RECIPES, only_rows_lead, shape_key
from lossd.request.remedies import Layout, fitting, meant
from lossd.request.shapes import axis_names, expected, is_empty, match, resolve, show
from lossd_client.errors import (
    DtypeMismatch,
    Fault,
    InvalidRequest,
    MissingInput,
    Problem,
    ShapeMismatch,
    TooLarge,
    UnknownInput,
)
from lossd_client.wire import DTYPES
from lossd_client.wire.quoting import quoted
from lossd_client.wire.tensor import element_count

__all__ = ["OF_ENTRIES", "Layout", "Plan", "TermPlan"]


TENSOR_NS = 200_000
"""The cost of each tensor of a term, measured on one core."""

ROW = Cost(200, 800)
"""The cost of each row if rows are evaluated as requests of their own, measured on one core."""

SECOND = Cost(96, 50)
"""The cost of each entry by which second derivatives are taken, and of each backward pass: twelve float64 are kept."""

TEXT_BYTES = 1024
"""About how many bytes an answer without metrics has beside its tensors."""

OF_ENTRIES = ("mask", "element_weight", "lengths")
"""The inputs that say which entries of a loss count."""

MOST_TRIED = 8
MOST_NAMED = 8
"""The most tensors for which remedies are tried, and the most that an error names."""


@dataclass(frozen=True, eq=False)
class TermPlan:
    """One term of a composed loss.

    Attributes:
        plan: The term as a request of its own.
        inputs: The names of its inputs, mapped to the request's tensors; the same name if absent.
    """

    plan: Plan
    inputs: Mapping[str, str]

    def tensor(self, name: str) -> str:
        """Return the request's tensor for one of the term's inputs."""
        return self.inputs.get(name, name)

    def takes(self, name: str) -> bool:
        """Return whether the term's loss has an input of that name."""
        return any(entry.name == name for entry in self.plan.inputs)

    def with_outputs(self, gradients: Sequence[str], wanted: tuple[str, ...]) -> TermPlan:
        """Return the term with these outputs: its value, its gradients by these tensors, these metrics."""
        names = tuple(e.name for e in self.plan.inputs if e.differentiable and self.tensor(e.name) in gradients)
        return replace(self, plan=replace(self.plan, want_loss=True, gradients=names, metrics=wanted))

    def job(self, position: int, layout: Layout) -> Job:
        """Return the term as a job of its own, given the request's tensors.

        Raises:
            Problem: The tensors do not fit the term; the detail names its place.
        """
        inputs = self.plan.counted(layout).inputs
        term_layout = {e.name: layout[self.tensor(e.name)] for e in inputs if self.tensor(e.name) in layout}
        term_layout.pop("cotangent", None)  # the request's cotangent is not the term's
        try:
            return self.plan.job(term_layout)
        except Problem as problem:
            raise type(problem)(f"{self._place(position)}: {problem.detail}", errors=problem.errors) from None

    def record(self, position: int, job: Job, *, each_row: bool) -> dict[str, Any]:
        """Return the term's entry in the recipe.

        Args:
            position: The term's index.
            job: The term as a job of its own.
            each_row: Whether each of its rows is evaluated as a request.
        """
        recipe = job.recipe
        return {
            "loss": recipe.loss, "place": self._place(position), "inputs": dict(self.inputs), "recipe": recipe.text,
            "rows": job.rows, "numbers": list(job.numbers), "each_row": each_row,
        }  # fmt: skip

    def _place(self, position: int) -> str:
        loss = self.plan.loss.name if self.plan.loss else ""
        others = "".join(f"; its {name} is {source}" for name, source in self.inputs.items() if name != source)
        return f"term {position} ({loss}{others})"


@dataclass(frozen=True, eq=False)
class Plan:
    """A checked request without its tensors.

    Attributes:
        loss: The loss; None if only metrics are requested.
        task: The task whose metrics are computed.
        inputs: The inputs that it takes.
        refinement: How its parameters change the inputs' types.
        parameters: Every parameter of the loss, defaults included.
        reduction: How the unreduced loss is reduced.
        want_loss: Whether the loss is requested.
        gradients: The inputs whose gradients are requested.
        gradient_options: What is done to the gradients.
        metrics: The names of the requested metrics.
        metric_options: How the metrics are computed.
        hessians: The inputs by which the diagonal of the Hessian is requested.
        hessian_options: Which second derivatives these are.
        product: The input by which the Hessian's product with a direction is requested; None for none.
        terms: The terms of a composed loss.
        ignores_nan: Whether an entry whose target is NaN does not count.
        by_row: Whether its rows are independent although its loss is of kind ``alone``; None if the shapes decide.
        template: A number that plans share if they differ only in numbers which may differ within a batch.
    """

    loss: Loss | None
    task: str
    inputs: tuple[Input, ...]
    refinement: Refinement
    parameters: Mapping[str, Any]
    reduction: str
    want_loss: bool
    gradients: tuple[str, ...]
    gradient_options: GradientOptions
    metrics: tuple[str, ...]
    metric_options: MetricOptions
    hessians: tuple[str, ...] = ()
    hessian_options: HessianOptions = field(default_factory=HessianOptions)
    product: str | None = None
    terms: tuple[TermPlan, ...] = ()
    ignores_nan: bool = False
    by_row: bool | None = None
    template: int = field(init=False, default_factory=itertools.count().__next__)

    def job(self, layout: Layout) -> Job:
        """Return the job for tensors of these dtypes and shapes.

        Raises:
            MissingInput, UnknownInput, DtypeMismatch, ShapeMismatch: A tensor does not fit; the detail names it.
        """
        found = shape_key(layout, self.leading) if self.ignores_row_count else None
        if found is None:
            return self._build(layout)
        rows, key = found
        recipe = RECIPES.get((self.template, key))
        if recipe is None:
            job = self._build(layout)
            RECIPES.put((self.template, key), job.recipe, 256 * len(key) + job.recipe.nbytes)
            return job
        return self.job_of(recipe, rows, layout)

    def job_of(self, recipe: Recipe, rows: int, layout: Layout) -> Job:
        """Return the job for tensors of a known recipe: the checks of its number of rows, and its parameters.

        Raises:
            TooLarge: There are too many pairs, or the metrics' text would be too long.
        """
        if self._has_cost:  # pairs cost
            self._pairs(layout)
        if self._has_curves:  # a curve has a point for each entry
            self._check_text(layout)
        return Job(recipe, rows, self._numbers, self._cost(layout) if self._has_cost else NOTHING)

    def _build(self, layout: Layout) -> Job:
        """Return the job after every check, with a recipe of its own."""
        counted = self.counted(layout)
        if counted is not self:
            return counted._build(layout)
        self._check_names(layout)
        if self.by_row is None and self._keeps_rows(layout):
            return self._with_rows()._build(layout)
        try:
            dims, domains = self._bound(layout)
        except (ShapeMismatch, DtypeMismatch) as problem:
            raise type(problem)(problem.detail + self._remedy(layout)) from None
        self._check_axes(dims)
        classes = metrics.class_count(self.task, shapes_of(layout), dict(self.metric_options))
        if self.metrics:
            metrics.check_classes(self.task, self.metrics, dict(self.metric_options), classes)
        kind = self._kind
        rows = int(dims.get("N", 1))
        wide = is_wide({name: dtype for name, (dtype, _) in layout.items()}, domains)
        value = self._value_shape(dims, layout)
        if value is not None and 0 in value:
            raise ShapeMismatch(
                f"{self._subject} has nothing left of inputs of these shapes: the unreduced loss would have shape "
                f"{show(value)}"
            )
        if "cotangent" in layout:
            self._check_cotangent(layout, value)
        masking = self._masking(layout, dims, domains)
        self._check_masks_of_terms(layout)
        self._check_second(layout)
        class_first = self.gradient_options.layout == "class_first"

        def column(name: str, dtype: str, shape: tuple[int, ...], per_row: bool, class_first: bool = False) -> Column:
            return Column(name, dtype, shape[1:] if per_row else shape, per_row, class_first and len(shape) > 1)

        per_row = {name: name in self.leading for name in layout}
        inputs = tuple(column(name, *layout[name], per_row[name]) for name in sorted(layout))
        derivatives = [("gradient", name) for name in self.gradients] + [("hessian", name) for name in self.hessians]
        if self.product is not None:
            derivatives.append(("hvp", self.product))
        answers = [
            column(f"{kind}.{name}", self._gradient_dtype(dtype), shape, per_row[name], class_first and kind != "hvp")
            for kind, name in derivatives
            for dtype, shape in (layout[name],)
        ]
        if self.want_loss and self.reduction == "none" and value is not None:
            answers.append(column("loss", "float64" if wide else "float32", value, kind == "rows"))
        self._check_text(layout)
        jobs = [term.job(position, layout) for position, term in enumerate(self.terms)]
        recipe_fields, text_bytes = self._recipe_fields, TEXT_BYTES
        if self.metrics:
            recipe_fields = {**recipe_fields, "metrics": self._answered(classes)}
            text_bytes = metrics.text_bytes(self.task, recipe_fields["metrics"], dict(self.metric_options), classes)
        recipe = Recipe(
            **recipe_fields,
            terms=tuple(
                term.record(position, job, each_row=self.loss is not None and self.loss.per_sample)
                for position, (term, job) in enumerate(zip(self.terms, jobs, strict=True))
            ),
            domains=domains,
            classes=dims.get("C"),
            pairs=self._pairs(layout),
            text_bytes=text_bytes,
            value=() if value is None else value[1:] if kind == "rows" else value,
            inputs=inputs,
            answers=tuple(answers),
            byte_ns=(self.loss.byte_ns if self.loss else 0.0) + metrics.byte_ns(self.task, self.metrics),
            **masking,
        )
        cost = self._cost(layout, jobs) if self._has_cost else NOTHING
        return Job(recipe.shared(), rows, self._numbers, cost)

    def with_parameters(self, parameters: Mapping[str, Any]) -> Plan:
        """Return the plan of the same template with other plain-number parameters."""
        # What the plans of a template have in common is computed once, here.
        _ = self.ignores_row_count, self.leading, self.model, self._has_cost, self._has_curves
        plan = object.__new__(Plan)  # as copy.copy does, in a third of the time
        vars(plan).update(vars(self), parameters=parameters)
        return plan

    def counted(self, layout: Layout) -> Plan:
        """Return the plan with each series of inputs (``prediction.*``) as long as in the request, at least 1.

        Raises:
            InvalidRequest: A gradient is requested by an input that was not sent.
        """
        stems = [entry.name[:-1] for entry in self.inputs if entry.name.endswith(".*")]
        if not stems:
            return self
        length = max(1, *(sum(name.startswith(stem) for name in layout) for stem in stems))

        def each(name: str) -> list[str]:
            return [f"{name[:-1]}{i}" for i in range(length)] if name.endswith(".*") else [name]

        inputs = tuple(replace(entry, name=name) for entry in self.inputs for name in each(entry.name))
        gradients, hessians = (
            tuple(dict.fromkeys(n for name in names for n in each(name))) for names in (self.gradients, self.hessians)
        )
        sent = {entry.name for entry in inputs}
        for name in (*gradients, *hessians, *filter(None, [self.product])):
            if name not in sent:
                raise InvalidRequest(f"the gradient by {quoted(name)} is requested, which was not sent")
        return replace(self, inputs=inputs, gradients=gradients, hessians=hessians)

    def _keeps_rows(self, layout: Layout) -> bool:
        """Return whether each row of the loss depends on the same row of the inputs alone."""
        if self.loss is None or self.hessians or self.product is not None:
            return False
        try:
            return self.loss.keeps_rows(self.parameters, shapes_of(layout))
        except ValueError:
            return False  # checked again where the error gets its words

    def _with_rows(self) -> Plan:
        """Return the plan with inputs whose first axis counts rows."""
        inputs = {name: replace(kind, pattern=("N", *kind.pattern)) for name, kind in self.refinement.inputs.items()}
        return replace(self, by_row=True, refinement=replace(self.refinement, inputs=inputs))

    @cached_property
    def model(self) -> str:
        """The name under which requests are counted; see :func:`lossd.job.model_name`."""
        return model_name(self.loss.name if self.loss else None, self.task)

    @property
    def _kind(self) -> str:
        return "rows" if self.loss is None or self.by_row else self.loss.kind

    @property
    def _numbers(self) -> tuple[float, ...]:
        return tuple(float(self.parameters[name]) for name in self.loss.varying) if self.loss else ()

    @cached_property
    def _recipe_fields(self) -> dict[str, Any]:
        """The recipe's fields that do not depend on the tensors."""
        varying = self.loss.varying if self.loss else ()
        return {
            "loss": self.loss.name if self.loss else None,
            "task": self.task,
            "kind": self._kind,
            "parameters": {n: v for n, v in self.parameters.items() if n not in varying},
            "numbers": varying,
            "reduction": self.reduction,
            "want_loss": self.want_loss,
            "gradients": self.gradients,
            "gradient_options": self.gradient_options.model_dump(exclude={"dtype"}),
            "hessians": self.hessians,
            "hessian_options": (
                {"form": self.hessian_options.form, "floor": self.hessian_options.least} if self.hessians else {}
            ),
            "product": self.product,
            "metrics": self.metrics,
            "metric_options": self.metric_options.model_dump(exclude={"names", "task"}) if self.metrics else {},
        }

    @cached_property
    def leading(self) -> frozenset[str]:
        """The inputs whose first axis counts the rows."""
        return frozenset(e.name for e in self.inputs if self._kind == "rows" and self._leads_with_rows(e))

    @cached_property
    def ignores_row_count(self) -> bool:
        """Whether its recipes are the same for any number of rows."""
        if self._kind != "rows" or (self.loss is not None and (self.loss.shape or self.loss.pairs)):
            return False
        types = [(entry.name, kind) for entry in self.inputs for kind in self.types(entry)]
        patterns = [(name in self.leading, kind.pattern) for name, kind in types]
        if (returns := self._returns) is not None:
            patterns.append((returns.pattern[:1] == ("N",), returns.pattern))
        return only_rows_lead(patterns) and not any(name.endswith(".*") for name, _ in types)

    @property
    def _subject(self) -> str:
        return self.loss.name if self.loss else f"the {self.task} metrics"

    def types(self, entry: Input) -> tuple[TensorType, ...]:
        """Return the types that an input may have, given the parameters."""
        refined = self.refinement.inputs.get(entry.name)
        if refined is None:
            return entry.types
        further = self.refinement.further.get(entry.name)
        return (refined,) if further is None else (refined, further)

    def kinds(self, name: str) -> frozenset[str]:
        """Return the kinds of dtype that an input may have; both for an unknown input, which :meth:`job` refuses."""
        entry = next((e for e in self.inputs if e.name in (name, series(name))), None)
        if entry is not None and entry.no_labels:  # both kinds, so that a later check can tell labels from logits
            return frozenset(("float", "integer"))
        return frozenset(("float", "integer") if entry is None else (k for t in self.types(entry) for k in t.kinds))

    def _check_names(self, layout: Layout) -> None:
        known = [entry.name for entry in self.inputs]
        missing = [e.name for e in self.inputs if not e.optional and e.name not in layout]
        if missing:
            strange = [name for name in layout if name not in known or meant(name, tuple(missing)) == missing[0]]
            near = [name for name in strange if len(strange) == 1 or meant(name, tuple(missing)) == missing[0]]
            instead = f"; you sent {quoted(near[0])}: did you mean {missing[0]}?" if near else ""
            takes = ", ".join(f"{e.name}{' (optional)' if e.optional else ''}" for e in self.inputs)
            sent = f"; you sent {', '.join(map(quoted, sorted(layout)[:MOST_NAMED]))}" if layout else ""
            constant = " (or give it a value in parameters)" if self.loss and self.loss.variadic else ""
            raise MissingInput(
                f"{self._subject} needs the input {missing[0]}, which was not sent{constant}"
                f"{instead or f'; it takes {takes}{sent}'}"
            )
        for name in layout:
            if name not in known:
                right = meant(name, tuple(known))
                hint = f"did you mean {right}?" if right else f"it takes {', '.join(known)}"
                if name == "direction":
                    hint = "hvp takes it: ask for hvp in outputs"
                elif name in self.parameters:
                    hint = "it is a parameter: send it as a number or list with the loss's name"
                raise UnknownInput(f"{self._subject} takes no input {quoted(name)}; {hint}")

    def _bound(self, layout: Layout) -> tuple[dict[str, Any], dict[str, str]]:
        """Return the lengths of the named axes, and the domain of each tensor."""
        dims: dict[str, Any] = {"C": self._predicted_classes} if self._predicted_classes is not None else {}
        shapes_from: dict[str, str] = {}
        domains = {
            entry.name: self._bind(entry, layout, dims, shapes_from) for entry in self.inputs if entry.name in layout
        }
        return dims, domains

    def _remedy(self, layout: Layout) -> str:
        """Return remedies that would make the tensors fit, as the end of a sentence."""
        if len(layout) > MOST_TRIED:
            return ""
        domains = {entry.name: {kind.domain for kind in self.types(entry)} for entry in self.inputs}
        found = fitting(layout, domains, self._fits)
        if modes := [mode for mode, other in self._other_modes() if other._fits(layout)]:
            found.append(f"set mode to {' or '.join(map(quoted, modes))}")
        return f"; {', or '.join(found)}" if found else ""

    @property
    def _predicted_classes(self) -> int | None:
        """The number of classes of which predictions are indices; None if predictions are no class indices."""
        return self.metric_options.classes if self.loss is None else None

    def _fits(self, layout: Layout) -> bool:
        try:
            self._bound(layout)
        except (ShapeMismatch, DtypeMismatch):
            return False
        return True

    def _other_modes(self) -> Iterator[tuple[str, Plan]]:
        """Yield the plan with each other value of the parameter ``mode``, which says what the axes are."""
        for parameter in self.loss.parameters if self.loss else ():
            if parameter.name == "mode" and self.loss is not None:
                for mode in (mode for mode in get_args(parameter.annotation) if mode != self.parameters["mode"]):
                    parameters = {**self.parameters, "mode": mode}
                    with suppress(ValueError):  # the mode may contradict the other parameters
                        yield mode, replace(self, parameters=parameters, refinement=self.loss.refine(parameters))

    def _bind(self, entry: Input, layout: Layout, dims: dict[str, Any], shapes_from: dict[str, str]) -> str:
        """Check one tensor, bind its axes' names, and return its domain."""
        name = entry.name
        dtype, shape = layout[name]
        if name == "cotangent":
            return "real"
        candidates = self.types(entry)
        if entry.no_labels and dtype == "bool":
            raise DtypeMismatch(f"{name} of {self._subject} is {dtype}, {entry.no_labels}")
        accepted = [t for t in candidates if t.takes(dtype)]
        if not accepted:
            kinds = " or ".join(dict.fromkeys(k for t in candidates for k in t.kinds))
            remedy = f'; send {name}.astype("bool"), or element_weight for weights' if name == "mask" else ""
            remedy += self._no_classes(entry, layout)
            raise DtypeMismatch(f"{name} of {self._subject} must be a tensor of {kinds}s, found {dtype}{remedy}")
        for candidate in accepted:
            bound = match(candidate.pattern, shape, dims)
            if bound is not None:
                for axis in bound.keys() - dims.keys():
                    shapes_from[axis] = name
                dims.update(bound)
                if is_empty(candidate.pattern, shape):
                    nothing = "loss" if self.loss else "metrics"
                    raise ShapeMismatch(f"{name} has shape {show(shape)}: an empty tensor has no {nothing}")
                return candidate.domain
        other_dtypes = [t for t in candidates if t not in accepted and match(t.pattern, shape, dims) is not None]
        if other_dtypes:
            raise DtypeMismatch(
                f"{name} has the shape {show(shape)} of {_meaning(other_dtypes[0])} and the dtype {dtype}; "
                f"{' or '.join(map(_meaning, accepted))} would have the shape "
                f"{' or '.join(expected(t.pattern, dims) for t in accepted)}"
            )
        shapes = " or ".join(expected(t.pattern, dims) for t in accepted)
        sources = dict.fromkeys(shapes_from[a] for t in accepted for a in t.pattern if a in shapes_from)
        origin = ", ".join(f"{s} is {show(layout[s][1])}" for s in sources if s != name)
        raise ShapeMismatch(
            f"{name} has shape {show(shape)}, expected {shapes}"
            + (f" since {origin}" if origin else "")
            + (self._no_classes(entry, layout) or "; shapes must match exactly, without broadcasting")
        )

    def _no_classes(self, entry: Input, layout: Layout) -> str:
        """Return a remedy if metrics without a loss got predicted classes instead of scores, or the reverse."""
        scores = next((e for e in self.inputs if e.name == "prediction"), None)
        if self._predicted_classes is not None:
            if entry is not scores and len(layout["prediction"][1]) != len(layout["target"][1]) + 1:
                return ""
            return (
                "; prediction holds class indices in the shape of target, as metrics.classes says; leave out "
                "metrics.classes if it holds a score for each class"
            )
        if scores is None or not all("C" in kind.pattern for kind in self.types(scores)):
            return ""
        dtype, shape = layout["prediction"]
        if self.loss is not None and DTYPES[dtype].kind != "integer":
            return ""
        if (entry is scores and len(shape) == 1) or (entry.name == "target" and layout["target"][1] == shape):
            return (
                "; prediction holds a score for each class along its second axis, not the predicted class; for "
                f"{'' if self.loss is None else 'metrics of '}predicted classes, "
                f"{'send integers' if self.loss is None else 'name a task in place of the loss'} and set "
                "metrics.classes to the number of classes"
            )
        return ""

    def _check_axes(self, dims: Mapping[str, Any]) -> None:
        """Check that a list with one entry per step of an axis has that axis's length."""
        for parameter in self.loss.parameters if self.loss else ():
            value = self.parameters[parameter.name]
            axis = parameter.axis if isinstance(value, list) else None
            if axis is None:
                continue
            length = dims.get(axis)
            if length is None and axis == "L":  # labels are axis 1
                trailing = dims.get("*", ())
                length = trailing[0] if trailing else 1
            if length is not None and len(value) != length:
                place = "axis 1, that of the labels" if axis == "L" else f"axis {axis}"
                detail = f"{parameter.name} has {len(value)} entries, prediction has {length} along {place}"
                raise InvalidRequest(detail, errors=[Fault(pointer=f"/loss/{parameter.name}", detail=detail)])

    def _check_cotangent(self, layout: Layout, value: tuple[int, ...] | None) -> None:
        shape = layout["cotangent"][1]
        needed = value if self.reduction == "none" else ()
        if needed is not None and shape != needed:
            raise ShapeMismatch(
                f"cotangent has shape {show(shape)}, expected {show(needed)}: the shape of the loss with "
                f"reduction {self.reduction}"
            )

    def _check_masks_of_terms(self, layout: Layout) -> None:
        """Check that entries are left out of every term, or of those for which the request names a mask.

        Raises:
            UnknownInput: A term takes no such input.
        """
        for name in OF_ENTRIES:
            if name not in layout or not any(term.takes(name) and term.tensor(name) == name for term in self.terms):
                continue
            for position, term in enumerate(self.terms):
                if not term.takes(name):
                    raise UnknownInput(
                        f"term {position} ({term.plan.model}) takes no input {name}, so that it would count what the "
                        f'others leave out; send {name} under another name, such as "{name}_0", and give it to the '
                        f'terms that take it: "inputs": {{"{name}": "{name}_0"}}'
                    )

    def _masking(self, layout: Layout, dims: Mapping[str, Any], domains: Mapping[str, str]) -> dict[str, Any]:
        """Return the recipe's fields about entries that do not count; empty if every entry counts."""
        sent = [name for name in layout if domains[name] in MASKING]
        own = [
            entry
            for entry in self.inputs
            if entry.name in layout and entry.name not in UNIVERSAL and domains[entry.name] not in MASKING
        ]
        nan_inputs = [
            entry.name
            for entry in own
            if self.ignores_nan
            and entry.name.partition(".")[0] in TARGETS
            and DTYPES[layout[entry.name][0]].kind == "float"
        ]
        mask = next((entry for entry in self.inputs if entry.name == "mask"), None)
        if mask is None or not (sent or nan_inputs):
            return {}
        [kind] = self.types(mask)
        shape = resolve(kind.pattern, dims)
        if "lengths" in sent:
            if "mask" in sent:
                raise InvalidRequest(f"{self._subject} takes mask or lengths, not both; send the mask of the lengths")
            if len(shape) < 2:
                raise ShapeMismatch(
                    f"lengths count entries along axis 1, and the loss of each sample is one number here, of shape "
                    f"{show(shape)}; send a mask of that shape"
                )
        names = axis_names(kind.pattern, len(shape))

        def axes(entry: Input) -> tuple[int, ...]:
            dtype, shape = layout[entry.name]
            of_input = next(
                t.pattern
                for t in self.types(entry)
                if t.domain == domains[entry.name] and t.takes(dtype) and match(t.pattern, shape, dims) is not None
            )
            return tuple(names.index(n) if n in names else -1 for n in axis_names(of_input, len(shape)))

        return {
            "entries": shape[1:] if self._kind == "rows" else shape,
            "axes": {entry.name: axes(entry) for entry in own},
            "nan_inputs": tuple(nan_inputs),
        }

    def _check_second(self, layout: Layout) -> None:
        """Check that a direction has the shape of its input, and that a Hessian takes not too many passes."""
        if self.product is not None and layout["direction"][1] != layout[self.product][1]:
            raise ShapeMismatch(
                f"direction has shape {show(layout['direction'][1])}, expected {show(layout[self.product][1])} since "
                f"{self.product} is {show(layout[self.product][1])}"
            )
        for name in self.hessians:
            if self._passes(name, layout) > MAX_ROW_ENTRIES:
                raise TooLarge(
                    f"the Hessian of {self._subject} by {name} takes a backward pass for each entry of a row, at most "
                    f"{MAX_ROW_ENTRIES}, and {name} is {show(layout[name][1])}; ask for hvp, its product with a "
                    "direction"
                )

    def _passes(self, name: str, layout: Layout) -> int:
        """Return how many backward passes the Hessian by an input takes."""
        loss = self.loss
        if loss is None or loss.is_elementwise(name, self.parameters):
            return 1
        closed = name == "prediction" and "exact" in loss.hessian_forms
        return 1 if closed else element_count(layout[name][1][1:])

    @cached_property
    def _has_curves(self) -> bool:
        return any(name.endswith("_curve") for name in self.metrics)

    def _answered(self, classes: int) -> tuple[str, ...]:
        """Return the metrics that are returned for so many classes or labels."""
        options = self.metric_options
        if options.names is None:
            return metrics.listed_by_default(self.metrics, dict(options), classes)
        return self.metrics

    def _check_text(self, layout: Layout) -> None:
        """Check that the metrics' text is not too long."""
        if not self.metrics:
            return
        shapes = shapes_of(layout)
        classes = metrics.class_count(self.task, shapes, dict(self.metric_options))
        entries = element_count(shapes["target"]) // classes if "target" in shapes and classes else None
        names, options = self._answered(classes), dict(self.metric_options)
        nbytes = metrics.text_bytes(self.task, names, options, classes, entries)
        if nbytes > metrics.MAX_TEXT_BYTES:
            raise TooLarge(
                f"the {self.task} metrics of {classes} classes or labels would be a text of about {nbytes} bytes, at "
                f"most {metrics.MAX_TEXT_BYTES} are written; name fewer in metrics.names, set metrics.per_class to "
                "false, or ask for fewer points of curves (metrics.points)"
            )

    def _pairs(self, layout: Layout) -> int:
        shapes = shapes_of(layout)
        metric_pairs = metrics.pairs(self.task, shapes) if self.metrics else 0
        loss_pairs = self.loss.pairs(shapes) if self.loss and self.loss.pairs else 0
        if max(loss_pairs, metric_pairs) > MAX_PAIRS:
            raise TooLarge(
                f"{self._subject if loss_pairs > MAX_PAIRS else f'the {self.task} metrics'} would compare "
                f"{max(loss_pairs, metric_pairs)} pairs of entries, at most {MAX_PAIRS} are compared; send smaller "
                "batches"
            )
        return (
            loss_pairs if self.loss and self.loss.kind == "stack" else 0
        )  # the number differs between requests of rows

    @cached_property
    def _has_cost(self) -> bool:
        """Whether a small request may be much work."""
        if (
            self.terms
            or self.hessians
            or self.product
            or self._predicted_classes
            or (self.metrics and metrics.costs(self.task, self.metrics))
        ):
            return True
        return self.loss is not None and (self.loss.pairs is not None or self.loss.cost is not None)

    def _cost(self, layout: Layout, terms: Sequence[Job] = ()) -> Cost:
        """Return the cost of the evaluation, as the loss, its terms and the metrics state it."""
        shapes = {name: shape for name, (_, shape) in layout.items()}
        parts = [metrics.cost(self.task, self.metrics, shapes, self._predicted_classes)] if self.metrics else []
        if self.loss is not None and self.loss.pairs is not None:
            parts.append(self.loss.pairs.cost(shapes))
        if self.loss is not None and self.loss.cost is not None:
            parts.append(self.loss.cost(self.parameters, shapes))
        for name in (*self.hessians, *filter(None, [self.product])):
            elements = element_count(shapes[name])
            passes = self._passes(name, layout) if name in self.hessians else 1
            parts.append(Cost(SECOND.scratch_bytes * elements, SECOND.work_ns * elements * passes))
        if not terms:
            return together(parts)
        rows = terms[0].rows if self.loss is not None and self.loss.per_sample else 0
        parts += [term.cost for term in terms]
        parts += [Cost(0, TENSOR_NS * len(term.recipe.columns) + term.work_ns - term.cost.work_ns) for term in terms]
        peak_bytes, work_ns = together(parts)
        # Each term's gradients are kept, and then summed in float64.
        kept = sum(column.unit_bytes * column.units(term.rows) for term in terms for column in term.recipe.answers)
        return Cost(peak_bytes + 3 * kept + ROW.scratch_bytes * rows, work_ns + ROW.work_ns * rows)

    def _gradient_dtype(self, dtype: str) -> str:
        return self.gradient_options.dtype or ("float64" if dtype == "float64" else "float32")

    def _leads_with_rows(self, entry: Input) -> bool:
        if entry.name == "cotangent":
            return self.reduction == "none"
        return all(t.pattern[:1] == ("N",) for t in self.types(entry))

    @property
    def _returns(self) -> TensorType | None:
        return self.refinement.returns or self.loss.returns if self.loss else None

    def _value_shape(self, dims: Mapping[str, Any], layout: Layout) -> tuple[int, ...] | None:
        returns = self._returns
        if self.loss is None or returns is None:
            return None
        if self.loss.shape is not None:
            try:
                return self.loss.shape(self.parameters, {name: shape for name, (_, shape) in layout.items()})
            except ValueError as error:
                raise ShapeMismatch(f"{self.loss.name}: {error}") from None
        return resolve(returns.pattern, dims)


def _meaning(kind: TensorType) -> str:
    """Return the name of a type's entries, for an input of several types."""
    return {"class": "class indices", "probability": "probabilities"}.get(kind.domain, f"{' or '.join(kind.kinds)}s")


def shapes_of(layout: Layout) -> dict[str, tuple[int, ...]]:
    """Return the shape of each tensor."""
    return {name: shape for name, (_, shape) in layout.items()}
