"""The terms of a composed loss: each is planned as a request of its own, over the tensors of the whole."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from typing import Any

from lossd.losses.registry import Input
from lossd.losses.types import TensorType
from lossd.request.options import Envelope
from lossd.request.plan import Plan, Term
from lossd_client.errors import Fault, InvalidRequest, Problem, UnknownInput
from lossd_client.wire.quoting import quoted

__all__ = ["common_inputs", "composed_inputs", "plan_term"]

MAX_NAME = 256


def plan_term(
    position: int, fields: Mapping[str, Any], envelope: Envelope, plan_loss: Callable[[Envelope, dict[str, Any]], Plan]
) -> Term:
    """One term, checked as the request it would be on its own.

    Args:
        position: Its place among the terms, for messages.
        fields: What the request says of it: ``loss`` and perhaps ``inputs``.
        envelope: The whole request.
        plan_loss: How a loss's request is planned.

    Raises:
        Problem: That of the term, with its place.
    """
    own = Envelope(loss=fields["loss"], outputs=["loss"], metrics=envelope.metrics)
    try:
        plan = plan_loss(own, fields["loss"])
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
    return Term(plan, inputs)


def common_inputs(terms: Sequence[Term]) -> tuple[Input, ...]:
    """The tensors that terms take together, of the types that all who take one agree on."""
    takers: dict[str, list[tuple[Plan, Input]]] = {}
    for term in terms:
        for entry in term.plan.inputs:
            takers.setdefault(term.tensor(entry.name), []).append((term.plan, entry))

    def common(name: str, taken: Sequence[tuple[Plan, Input]]) -> Input:
        (plan, entry), *others = taken
        of_others = [other.types(like) for other, like in others]
        types = tuple(of for of in plan.types(entry) if all(of in theirs for theirs in of_others))
        names = " and ".join(of.loss.name for of, _ in taken if of.loss)
        return replace(
            entry,
            name=name,
            types=types,
            optional=all(like.optional for _, like in taken),
            summary=entry.summary if len(taken) == len(terms) else f"{entry.summary} For {names} alone.",
        )

    return tuple(common(name, taken) for name, taken in takers.items())


def composed_inputs(own: Sequence[Input], terms: Sequence[Term]) -> tuple[Input, ...]:
    """Every tensor a composed loss takes: its own, and what its terms ask for under the request's names."""
    inputs = {entry.name: entry for entry in own}
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
