"""Plan the terms of a composed loss: each as a request of its own, over the tensors of the whole request."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from typing import Any

from lossd.losses.registry import Input
from lossd.losses.types import TensorType
from lossd.request.options import Envelope
from lossd.request.plan import OF_ENTRIES, Plan, TermPlan
from lossd_client.errors import Fault, InvalidRequest, Problem, UnknownInput
from lossd_client.wire.quoting import quoted

__all__ = ["common_inputs", "composed_inputs", "own_masks", "plan_term"]

MAX_NAME = 256


def plan_term(
    position: int, fields: Mapping[str, Any], envelope: Envelope, plan_loss: Callable[[Envelope, dict[str, Any]], Plan]
) -> TermPlan:
    """Return the plan of one term, checked like a request of its own.

    Args:
        position: The term's index, for messages.
        fields: The term in the request: ``loss`` and perhaps ``inputs``.
        envelope: The whole request.
        plan_loss: Returns the plan of a loss's request.

    Raises:
        Problem: The term is invalid; the detail names its place.
    """
    envelope = Envelope(loss=fields["loss"], outputs=["loss"], metrics=envelope.metrics)
    try:
        plan = plan_loss(envelope, fields["loss"])
        if plan.terms:
            raise InvalidRequest("a composed loss cannot be a term of another")
        if plan.reduction == "none":
            raise InvalidRequest('a term is one number: its reduction cannot be "none"')
        inputs = fields.get("inputs", {})
        for name, source in inputs.items():
            if not 0 < len(source) <= MAX_NAME or not source.isprintable():
                raise InvalidRequest(f"a tensor's name is 1 to {MAX_NAME} printable characters, found {quoted(source)}")
            if name not in {entry.name for entry in plan.inputs}:
                raise UnknownInput(f"{plan.loss.name if plan.loss else ''} takes no input {quoted(name)}")
    except Problem as problem:
        place = f"/loss/terms/{position}"
        faults = [Fault(pointer=place + f["pointer"], detail=f["detail"]) for f in problem.errors]
        raise type(problem)(f"term {position}: {problem.detail}", errors=faults) from None
    return TermPlan(plan, inputs)


def own_masks(terms: Sequence[TermPlan]) -> tuple[TermPlan, ...]:
    """Return the terms without masks that a term reads as something else, such as a target that is named ``mask``."""
    taken = {source for term in terms for name, source in term.inputs.items() if name not in OF_ENTRIES}

    def without(term: TermPlan) -> TermPlan:
        kept = tuple(
            e for e in term.plan.inputs if e.name not in OF_ENTRIES or e.name in term.inputs or e.name not in taken
        )
        return term if len(kept) == len(term.plan.inputs) else replace(term, plan=replace(term.plan, inputs=kept))

    return tuple(map(without, terms))


def common_inputs(terms: Sequence[TermPlan]) -> tuple[Input, ...]:
    """Return the inputs that terms share, with the types that all their terms accept."""
    takers: dict[str, list[tuple[Plan, Input]]] = {}
    for term in terms:
        for entry in term.plan.inputs:
            takers.setdefault(term.tensor(entry.name), []).append((term.plan, entry))

    def common(name: str, taken: Sequence[tuple[Plan, Input]]) -> Input:
        (plan, entry), *others = taken
        accepted = [other.types(other_entry) for other, other_entry in others]
        types = tuple(kind for kind in plan.types(entry) if all(kind in kinds for kinds in accepted))
        names = " and ".join(plan.loss.name for plan, _ in taken if plan.loss)
        return replace(
            entry,
            name=name,
            types=types,
            optional=all(taken_entry.optional for _, taken_entry in taken),
            summary=entry.summary if len(taken) == len(terms) else f"{entry.summary} For {names} alone.",
        )

    return tuple(common(name, taken) for name, taken in takers.items())


def composed_inputs(loss_inputs: Sequence[Input], terms: Sequence[TermPlan]) -> tuple[Input, ...]:
    """Return every input of a composed loss: its own, and its terms' under the request's names."""
    inputs = {entry.name: entry for entry in loss_inputs}
    for term in terms:
        for entry in term.plan.inputs:
            name = term.tensor(entry.name)
            known = inputs.get(name)
            if known is None:
                any_shape = tuple(TensorType("term", t.kinds, ("...",)) for t in term.plan.types(entry))
                inputs[name] = replace(entry, name=name, types=any_shape)
            elif name != "cotangent":
                inputs[name] = replace(
                    known,
                    types=(*known.types, *(TensorType("term", t.kinds, ("...",)) for t in term.plan.types(entry))),
                    differentiable=known.differentiable or entry.differentiable,
                    optional=known.optional and entry.optional,
                )
    return tuple(inputs.values())
