"""A checked request without its tensors, and its job once their dtypes and shapes are known.

A :class:`Plan` is checked once and shared by all requests with the same text. :meth:`Plan.job` checks the tensors
against its :class:`Signature`.
"""

from __future__ import annotations

import itertools
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property
from typing import Any

import lossd.metrics as metrics
from lossd.cost import NOTHING, Cost
from lossd.job import Column, Job, Recipe, is_wide, model_name
from lossd.losses.registry import Input
from lossd.losses.types import TensorType
from lossd.request.costs import backward_passes, check_pairs, evaluation_cost, has_closed_hessian
from lossd.request.options import GradientOptions, HessianOptions
from lossd.request.outputs import MAX_ROW_ENTRIES
from lossd.request.recipe_cache import RECIPES, only_rows_lead, shape_key
from lossd.request.remedies import Layout
from lossd.request.shapes import resolve, show
from lossd.request.signature import Signature
from lossd_client.errors import (
    DtypeMismatch,
    Fault,
    InvalidRequest,
    Problem,
    ShapeMismatch,
    TooLarge,
    UnknownInput,
)
from lossd_client.wire.quoting import quoted
from lossd_client.wire.tensor import element_count

__all__ = ["OF_ENTRIES", "Layout", "Plan", "TermPlan"]


TEXT_BYTES = 1024
"""About how many bytes an answer without metrics has beside its tensors."""

OF_ENTRIES = ("mask", "element_weight", "lengths")
"""The inputs that say which entries of a loss count."""


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

    def with_outputs(self, gradients: Sequence[str], metrics: tuple[str, ...]) -> TermPlan:
        """Return the term with these outputs: its value, its gradients by these tensors, these metrics."""
        tensors = frozenset(gradients)  # a request may have thousands
        names = tuple(e.name for e in self.plan.inputs if e.differentiable and self.tensor(e.name) in tensors)
        return replace(self, plan=replace(self.plan, want_loss=True, gradients=names, metrics=metrics))

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


@dataclass(frozen=True, eq=False, kw_only=True)
class Plan(Signature):
    """A checked request without its tensors.

    Attributes:
        reduction: How the unreduced loss is reduced.
        want_loss: Whether the loss is requested.
        gradients: The inputs whose gradients are requested.
        gradient_options: What is done to the gradients.
        metrics: The names of the requested metrics.
        hessians: The inputs by which the diagonal of the Hessian is requested.
        hessian_options: Which second derivatives these are.
        product: The input by which the Hessian's product with a direction is requested; None for none.
        terms: The terms of a composed loss.
        template: A number that plans share if they differ only in numbers which may differ within a batch.
    """

    reduction: str
    want_loss: bool
    gradients: tuple[str, ...]
    gradient_options: GradientOptions
    metrics: tuple[str, ...]
    hessians: tuple[str, ...] = ()
    hessian_options: HessianOptions = field(default_factory=HessianOptions)
    product: str | None = None
    terms: tuple[TermPlan, ...] = ()
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
            check_pairs(self, self.metrics, shapes_of(layout))
        if self._has_curves:  # a curve has a point for each entry
            self._check_text(layout)
        return Job(recipe, rows, self._numbers, self._cost(layout) if self._has_cost else NOTHING)

    def _build(self, layout: Layout) -> Job:
        """Return the job after every check, with a recipe of its own."""
        counted = self.counted(layout)
        if counted is not self:
            return counted._build(layout)
        self.check_names(layout)
        if self.by_row is None and self._keeps_rows(layout):
            return self._with_rows()._build(layout)
        try:
            dims, domains = self.bound(layout)
        except (ShapeMismatch, DtypeMismatch) as problem:
            raise type(problem)(problem.detail + self.remedy(layout)) from None
        self.check_axes(dims)
        classes = metrics.class_count(self.task, shapes_of(layout), dict(self.metric_options))
        if self.metrics:
            metrics.check_classes(self.task, self.metrics, dict(self.metric_options), classes)
        kind = self.kind
        rows = int(dims.get("N", 1))
        wide = is_wide({name: dtype for name, (dtype, _) in layout.items()}, domains)
        value = self._value_shape(dims, layout)
        if value is not None and 0 in value:
            raise ShapeMismatch(
                f"{self.subject} has nothing left of inputs of these shapes: the unreduced loss would have shape "
                f"{show(value)}"
            )
        if "cotangent" in layout:
            self._check_cotangent(layout, value)
        masking = self.masking_fields(layout, dims, domains)
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
            pairs=check_pairs(self, self.metrics, shapes_of(layout)),
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
    def _numbers(self) -> tuple[float, ...]:
        return tuple(float(self.parameters[name]) for name in self.loss.varying) if self.loss else ()

    @cached_property
    def _recipe_fields(self) -> dict[str, Any]:
        """The recipe's fields that do not depend on the tensors."""
        varying = self.loss.varying if self.loss else ()
        return {
            "loss": self.loss.name if self.loss else None,
            "task": self.task,
            "kind": self.kind,
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
        return frozenset(e.name for e in self.inputs if self.kind == "rows" and self._leads_with_rows(e))

    @cached_property
    def ignores_row_count(self) -> bool:
        """Whether its recipes are the same for any number of rows."""
        if self.kind != "rows" or (self.loss is not None and (self.loss.shape or self.loss.pairs)):
            return False
        types = [(entry.name, kind) for entry in self.inputs for kind in self.types(entry)]
        patterns = [(name in self.leading, kind.pattern) for name, kind in types]
        if (returns := self._returns) is not None:
            patterns.append((returns.pattern[:1] == ("N",), returns.pattern))
        return only_rows_lead(patterns) and not any(name.endswith(".*") for name, _ in types)

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

    def _check_second(self, layout: Layout) -> None:
        """Check that a direction has the shape of its input, and that a Hessian takes not too many passes."""
        if self.product is not None and layout["direction"][1] != layout[self.product][1]:
            raise ShapeMismatch(
                f"direction has shape {show(layout['direction'][1])}, expected {show(layout[self.product][1])} since "
                f"{self.product} is {show(layout[self.product][1])}"
            )
        form = self.hessian_options.form
        if form == "fisher" and self.hessians and not has_closed_hessian(self, form, shapes_of(layout)):
            detail = f"{self.subject} has no Fisher form with these parameters and targets; use form exact"
            raise InvalidRequest(detail, errors=[Fault(pointer="/hessian/form", detail=detail)])
        for name in self.hessians:
            if backward_passes(self, name, form, shapes_of(layout)) > MAX_ROW_ENTRIES:
                raise TooLarge(
                    f"the Hessian of {self.subject} by {name} takes a backward pass for each entry of a row, at most "
                    f"{MAX_ROW_ENTRIES}, and {name} is {show(layout[name][1])}; ask for hvp, its product with a "
                    "direction"
                )

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

    @cached_property
    def _has_cost(self) -> bool:
        """Whether a small request may be much work."""
        if (
            self.terms
            or self.hessians
            or self.product
            or self.predicted_classes
            or (self.metrics and metrics.costs(self.task, self.metrics))
        ):
            return True
        return self.loss is not None and (self.loss.pairs is not None or self.loss.cost is not None)

    def _cost(self, layout: Layout, terms: Sequence[Job] = ()) -> Cost:
        """Return the cost of the evaluation, given the terms as jobs of their own."""
        shapes, second = shapes_of(layout), (*self.hessians, *filter(None, [self.product]))
        form = self.hessian_options.form
        passes = [(name, backward_passes(self, name, form, shapes) if name in self.hessians else 1) for name in second]
        return evaluation_cost(self, shapes, self.metrics, passes, terms)

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


def shapes_of(layout: Layout) -> dict[str, tuple[int, ...]]:
    """Return the shape of each tensor."""
    return {name: shape for name, (_, shape) in layout.items()}
