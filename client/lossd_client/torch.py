"""A torch module whose loss a service computes; its backward uses the gradient from the service."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from lossd_client.client import LossClient
from lossd_client.messages import Evaluation

__all__ = ["RemoteLoss"]


class RemoteLoss(torch.nn.Module):
    """A loss like those of ``torch.nn``, computed by a lossd service.

    A reduced loss takes one round trip, which also returns the gradient if one is needed. With reduction ``none`` it
    takes two: the gradient depends on the upstream gradient, so ``backward`` requests it.

    >>> criterion = RemoteLoss("focal", client=lossd, gamma=2.0)  # doctest: +SKIP
    >>> criterion(model(images), labels).backward()  # doctest: +SKIP

    Args:
        loss: The loss's name; for composed losses the request's ``loss`` object.
        client: The client to use; it is not closed here.
        gradient: Options of the gradient: clip_norm, clip_value, … For reduced losses they apply before the
            multiplication by the upstream gradient.
        metrics: Options of the metrics, or the names of the metrics. Each forward requests them; the default is none.
        timeout_s: Seconds each round trip may take; the default is the client's.
        **parameters: Parameters of the loss.

    Attributes:
        evaluation: The service's answer to the last forward without its tensors: metrics, diagnostics, warnings.
    """

    evaluation: Evaluation | None

    def __init__(
        self,
        loss: str | Mapping[str, Any],
        *,
        client: LossClient,
        gradient: Mapping[str, Any] | None = None,
        metrics: Mapping[str, Any] | Sequence[str] | str | None = None,
        timeout_s: float | None = None,
        **parameters: Any,
    ) -> None:
        super().__init__()
        fields = {"name": loss} if isinstance(loss, str) else dict(loss)
        self.loss = {**fields, **parameters}
        self.client = client
        self.gradient = gradient
        self.metrics = metrics
        self.timeout_s = timeout_s
        self.evaluation = None

    # torch.compile cannot trace a socket.
    @torch.compiler.disable  # type: ignore[untyped-decorator]  # torch leaves it untyped
    def forward(self, prediction: Tensor | None = None, target: Tensor | None = None, **inputs: Tensor) -> Tensor:
        """Return the loss.

        Args:
            prediction: The input of that name, if the loss has one.
            target: The input of that name, if the loss has one.
            **inputs: All other inputs by name: ``anchor``, ``sample_weight``, …

        Returns:
            A scalar, or the unreduced loss; float64 if an input is, else float32; on the device of the first input.

        Raises:
            LossdError: As for :meth:`LossClient.evaluate`.
            TypeError: ``cotangent`` is among the inputs.
        """
        named = {"prediction": prediction, "target": target, **inputs}
        tensors = {name: tensor for name, tensor in named.items() if tensor is not None}
        if "cotangent" in tensors:
            raise TypeError("cotangent is not an input of a RemoteLoss: backward supplies it")
        loss: Tensor = _Remote.apply(  # type: ignore[no-untyped-call]  # torch leaves it untyped
            self, torch.is_grad_enabled(), tuple(tensors), *tensors.values()
        )
        return loss

    def ask(self, inputs: Mapping[str, Tensor], outputs: Sequence[str], *, metrics: bool = False) -> Evaluation:
        """Return the evaluation of one round trip."""
        return self.client.evaluate(
            self.loss,
            inputs=inputs,
            outputs=[*outputs, "metrics"] if metrics else outputs,
            gradient=self.gradient,
            metrics=self.metrics if metrics else None,
            timeout_s=self.timeout_s,
        )

    def extra_repr(self) -> str:
        """Return the loss and its parameters."""
        return ", ".join([repr(self.loss["name"]), *(f"{n}={v!r}" for n, v in self.loss.items() if n != "name")])


class _Remote(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, module: RemoteLoss, differentiate: bool, names: tuple[str, ...], *tensors: Tensor) -> Tensor:
        inputs = dict(zip(names, tensors, strict=True))
        requested = [n for n, needed in zip(names, ctx.needs_input_grad[3:], strict=True) if needed and differentiate]
        one_trip = module.loss.get("reduction") != "none"
        outputs = ["loss", *(f"gradient.{name}" for name in requested if one_trip)]
        evaluation = module.ask(inputs, outputs, metrics=module.metrics is not None)
        scalar = not isinstance(evaluation.loss, Tensor)
        module.evaluation = replace(evaluation, loss=evaluation.loss if scalar else None, gradients={})
        ctx.module, ctx.names, ctx.requested, ctx.one_trip = module, names, requested, one_trip
        ctx.save_for_backward(*((evaluation.gradients[name] for name in requested) if one_trip else tensors))
        if isinstance(evaluation.loss, Tensor):
            return evaluation.loss
        double = any(tensor.dtype == torch.float64 for tensor in tensors)
        return torch.tensor(evaluation.loss, dtype=torch.float64 if double else torch.float32, device=tensors[0].device)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, upstream: Tensor) -> tuple[Tensor | None, ...]:
        if ctx.one_trip:
            gradients = {n: upstream * gradient for n, gradient in zip(ctx.requested, ctx.saved_tensors, strict=True)}
        else:
            inputs = dict(zip(ctx.names, ctx.saved_tensors, strict=True))
            outputs = [f"gradient.{name}" for name in ctx.requested]
            gradients = dict(ctx.module.ask({**inputs, "cotangent": upstream}, outputs).gradients)
        return None, None, None, *(gradients.get(name) for name in ctx.names)
