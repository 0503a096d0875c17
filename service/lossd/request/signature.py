"""The tensors that a request takes: their names, dtypes and shapes; checks and remedies.

A request without a loss has the signature of its task's metrics.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, replace
from typing import Any, Self, get_args

from lossd.job import MASKING, UNIVERSAL
from lossd.losses.registry import TARGETS, Input, Loss, Refinement
from lossd.losses.types import TensorType
from lossd.request.options import MetricOptions
from lossd.request.outputs import series
from lossd.request.remedies import Layout, fitting_remedies, meant
from lossd.request.shapes import axis_names, expected_shape, is_empty, match, resolve, show
from lossd_client.errors import DtypeMismatch, Fault, InvalidRequest, MissingInput, ShapeMismatch, UnknownInput
from lossd_client.wire import DTYPES
from lossd_client.wire.quoting import quoted

__all__ = ["Signature"]

MOST_TRIED = 8
MOST_LISTED = 64
"""The most inputs that an error lists."""

MOST_COMPARED = 24
"""The most names that are compared with as many others to find what was meant; a formula may have thousands."""

MOST_NAMED = 8
"""The most tensors for which remedies are tried, and the most that an error names."""


@dataclass(frozen=True, eq=False, kw_only=True)
class Signature:
    """The tensors that a request takes.

    Attributes:
        loss: The loss; None if only metrics are requested.
        task: The task whose metrics are computed.
        inputs: The inputs that it takes.
        refinement: How its parameters change the inputs' types.
        parameters: Every parameter of the loss, defaults included.
        metric_options: How the metrics are computed.
        ignores_nan: Whether an entry whose target is NaN does not count.
        by_row: Whether its rows are independent although its loss is of kind ``alone``; None if the shapes decide.
    """

    loss: Loss | None
    task: str
    inputs: tuple[Input, ...]
    refinement: Refinement
    parameters: Mapping[str, Any]
    metric_options: MetricOptions
    ignores_nan: bool = False
    by_row: bool | None = None

    @property
    def kind(self) -> str:
        """How requests share a batch, see :class:`lossd.losses.registry.Loss`; metrics alone are of kind ``rows``."""
        return "rows" if self.loss is None or self.by_row else self.loss.kind

    @property
    def subject(self) -> str:
        """The name of the loss or of the metrics, for errors."""
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

    def check_names(self, layout: Layout) -> None:
        """Check that every required input was sent, and that every tensor is an input.

        Raises:
            MissingInput, UnknownInput: An input is missing, or unknown; the detail names it.
        """
        known = {entry.name: entry for entry in self.inputs}
        missing = [e.name for e in self.inputs if not e.optional and e.name not in layout]
        if missing:
            first, sent_names = tuple(missing[:MOST_COMPARED]), [*layout][:MOST_COMPARED]
            strange = [name for name in sent_names if name not in known or meant(name, first) == missing[0]]
            near = [name for name in strange if len(strange) == 1 or meant(name, first) == missing[0]]
            instead = f"; you sent {quoted(near[0])}: did you mean {missing[0]}?" if near else ""
            takes = _listed([f"{e.name}{' (optional)' if e.optional else ''}" for e in self.inputs])
            sent = f"; you sent {', '.join(map(quoted, sorted(layout)[:MOST_NAMED]))}" if layout else ""
            constant = " (or give it a value in parameters)" if self.loss and self.loss.variadic else ""
            raise MissingInput(
                f"{self.subject} needs the input {missing[0]}, which was not sent{constant}"
                f"{instead or f'; it takes {takes}{sent}'}"
            )
        for name in layout:
            if name not in known:
                right = meant(name, tuple(known)[: MOST_COMPARED**2])
                hint = f"did you mean {right}?" if right else f"it takes {_listed([*known])}"
                if name == "direction":
                    hint = "hvp takes it: ask for hvp in outputs"
                elif name in self.parameters:
                    hint = "it is a parameter: send it as a number or list with the loss's name"
                raise UnknownInput(f"{self.subject} takes no input {quoted(name)}; {hint}")

    def bound(self, layout: Layout) -> tuple[dict[str, Any], dict[str, str]]:
        """Return the lengths of the named axes, and the domain of each tensor.

        Raises:
            DtypeMismatch, ShapeMismatch: A tensor does not fit; the detail names it.
        """
        dims: dict[str, Any] = {"C": self.predicted_classes} if self.predicted_classes is not None else {}
        shapes_from: dict[str, str] = {}
        domains = {
            entry.name: self._bind(entry, layout, dims, shapes_from) for entry in self.inputs if entry.name in layout
        }
        return dims, domains

    def remedy(self, layout: Layout) -> str:
        """Return remedies that would make the tensors fit, as the end of a sentence."""
        if len(layout) > MOST_TRIED:
            return ""
        domains = {entry.name: {kind.domain for kind in self.types(entry)} for entry in self.inputs}
        found = fitting_remedies(layout, domains, self._fits)
        if modes := [mode for mode, other in self._other_modes() if other._fits(layout)]:
            found.append(f"set mode to {' or '.join(map(quoted, modes))}")
        return f"; {', or '.join(found)}" if found else ""

    @property
    def predicted_classes(self) -> int | None:
        """The number of classes if predictions are class indices; else None."""
        return self.metric_options.classes if self.loss is None else None

    def _fits(self, layout: Layout) -> bool:
        try:
            self.bound(layout)
        except (ShapeMismatch, DtypeMismatch):
            return False
        return True

    def _other_modes(self) -> Iterator[tuple[str, Self]]:
        """Yield the signature with each other value of the parameter ``mode``, which says what the axes are."""
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
            raise DtypeMismatch(f"{name} of {self.subject} is {dtype}, {entry.no_labels}")
        accepted = [t for t in candidates if t.takes(dtype)]
        if not accepted:
            kinds = " or ".join(dict.fromkeys(k for t in candidates for k in t.kinds))
            remedy = f'; send {name}.astype("bool"), or element_weight for weights' if name == "mask" else ""
            remedy += self._no_classes(entry, layout)
            raise DtypeMismatch(f"{name} of {self.subject} must be a tensor of {kinds}s, found {dtype}{remedy}")
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
                f"{' or '.join(expected_shape(t.pattern, dims) for t in accepted)}"
            )
        shapes = " or ".join(expected_shape(t.pattern, dims) for t in accepted)
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
        if self.predicted_classes is not None:
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

    def check_axes(self, dims: Mapping[str, Any]) -> None:
        """Check that a list with one entry per step of an axis has that axis's length.

        Raises:
            InvalidRequest: A list has another length; ``errors`` points at it.
        """
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

    def masking_fields(self, layout: Layout, dims: Mapping[str, Any], domains: Mapping[str, str]) -> dict[str, Any]:
        """Return the recipe's fields about entries that do not count; empty if every entry counts."""
        sent = [name for name in layout if domains[name] in MASKING]
        counted = [
            entry
            for entry in self.inputs
            if entry.name in layout and entry.name not in UNIVERSAL and domains[entry.name] not in MASKING
        ]
        nan_inputs = [
            entry.name
            for entry in counted
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
                raise InvalidRequest(f"{self.subject} takes mask or lengths, not both; send the mask of the lengths")
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
            "entries": shape[1:] if self.kind == "rows" else shape,
            "axes": {entry.name: axes(entry) for entry in counted},
            "nan_inputs": tuple(nan_inputs),
        }


def _listed(names: Sequence[str]) -> str:
    """Return the first names, for an error."""
    return ", ".join([*names[:MOST_LISTED], *(["..."] if len(names) > MOST_LISTED else [])])


def _meaning(kind: TensorType) -> str:
    """Return the name of a type's entries, for an input of several types."""
    return {"class": "class indices", "probability": "probabilities"}.get(kind.domain, f"{' or '.join(kind.kinds)}s")
