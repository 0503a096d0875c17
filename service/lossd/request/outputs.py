"""The derivatives that a request names, and whether the loss has them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

from lossd.losses.registry import Loss
from lossd.request.options import HessianOptions
from lossd_client.errors import Fault, InvalidRequest
from lossd_client.wire.quoting import quoted

__all__ = ["MAX_ROW_ENTRIES", "Derivatives", "check_second", "has_hessian", "requested", "series"]

MAX_ROW_ENTRIES = 64
"""The most entries of a row by which a Hessian is computed entry by entry: each takes a backward pass."""

NAMES = "loss, gradient, gradient.<input>, hessian, hessian.<input>, hvp, hvp.<input> and metrics"


class Derivatives(NamedTuple):
    """The derivatives that a request names.

    Attributes:
        gradients: The inputs by which there is a gradient.
        hessians: The inputs by which there is the diagonal of the Hessian.
        product: The input by which there is the Hessian's product with a direction; None for none.
    """

    gradients: tuple[str, ...]
    hessians: tuple[str, ...]
    product: str | None


def series(name: str) -> str:
    """Return the series (``prediction.*``) to which an input of this name would belong."""
    return f"{name.rpartition('.')[0]}.*"


def requested(loss: str, differentiable: Sequence[str], outputs: Sequence[str]) -> Derivatives:
    """Return the derivatives among the outputs.

    Args:
        loss: The loss's name, for errors.
        differentiable: The inputs by which the loss has derivatives.
        outputs: The request's outputs.

    Raises:
        InvalidRequest: There is no such output; ``errors`` points at it.
    """
    names: dict[str, list[str]] = {"gradient": [], "hessian": [], "hvp": []}
    for position, output in enumerate(outputs):
        kind, dot, name = output.partition(".")
        if kind in names and not dot:
            names[kind].extend(["prediction"] if "prediction" in differentiable else differentiable)
        elif kind in names:
            if name not in differentiable and series(name) not in differentiable:
                what = {"gradient": "gradients", "hessian": "Hessians", "hvp": "products with a Hessian"}[kind]
                raise _refusal(position, f"{loss} has {what} for {', '.join(differentiable)}, not for {quoted(name)}")
            names[kind].append(name)
        elif output not in ("loss", "metrics"):
            raise _refusal(position, f"{quoted(output)} is not an output; there are {NAMES}")
    products = tuple(dict.fromkeys(names["hvp"]))
    if len(products) > 1 or any(name.endswith("*") for name in products):
        position = next(i for i, output in enumerate(outputs) if output.startswith("hvp"))
        raise _refusal(position, f"hvp is by one input; name it, as in hvp.{products[0].replace('*', '0')}")
    return Derivatives(
        tuple(dict.fromkeys(names["gradient"])),
        tuple(dict.fromkeys(names["hessian"])),
        products[0] if products else None,
    )


def check_second(loss: Loss, parameters: Mapping[str, Any], derivatives: Derivatives, options: HessianOptions) -> None:
    """Check that the loss has the second derivatives that are asked for.

    Raises:
        InvalidRequest: It has not; the detail says why, and what to ask for.
    """
    if not derivatives.hessians and derivatives.product is None:
        return
    if loss.kind == "composed":
        raise InvalidRequest(
            f"{loss.name} has no Hessian and no hvp: each term is evaluated by itself; ask for those of its terms, and "
            "add them up with the weights"
        )
    if not loss.twice:
        raise InvalidRequest(f"{loss.name} has no second derivatives here: only its value and its gradient are known")
    if not derivatives.hessians:
        return
    for name in derivatives.hessians:
        if not _is_diagonal(loss, name, parameters):
            raise InvalidRequest(
                f"the Hessian of {loss.name} by {name} is not diagonal: the gradient of an entry depends on others; "
                "ask for hvp, its product with a direction"
            )
        if options.form == "fisher" and (name != "prediction" or "fisher" not in loss.hessian_forms):
            detail = f"{loss.name} has no Fisher form by {name}: it is not a likelihood of a target; use form exact"
            raise InvalidRequest(detail, errors=[Fault(pointer="/hessian/form", detail=detail)])


def has_hessian(loss: Loss) -> bool:
    """Return whether the loss has the output ``hessian``, with its parameters' defaults."""
    parameters = {parameter.name: parameter.default for parameter in loss.parameters}
    names = requested(loss.name, loss.differentiable, ["hessian"]).hessians
    return loss.kind != "composed" and loss.twice and all(_is_diagonal(loss, name, parameters) for name in names)


def _is_diagonal(loss: Loss, name: str, parameters: Mapping[str, Any]) -> bool:
    return loss.kind == "rows" or loss.is_elementwise(name, parameters)


def _refusal(position: int, detail: str) -> InvalidRequest:
    return InvalidRequest(detail, errors=[Fault(pointer=f"/outputs/{position}", detail=detail)])
