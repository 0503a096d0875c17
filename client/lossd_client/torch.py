"""A loss that a service computes, as a module for torch: its backward uses the gradient the service returns."""

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

    A reduced loss takes one round trip, which brings the gradient along where one is needed. With reduction ``none``
    it takes two: the gradient depends on what follows the loss, and is asked for on the way back.

    >>> criterion = RemoteLoss("focal", client=lossd, gamma=2.0)  # doctest: +SKIP
    >>> criterion(model(images), labels).backward()  # doctest: +SKIP

    Args:
        loss: Its name; for composed losses the request's ``loss`` object.
        client: Whom to ask; it is not closed here.
        gradient: Options of the gradient: clip_norm, clip_value, …; for reduced losses, before what follows the loss.
        metrics: Options of the metrics, or the names of those wanted, which come with each forward; none by default.
        timeout_s: Seconds each round trip may take, where not the client's.
        **parameters: Parameters of the loss.

    Attributes:
        evaluation: The service's answer to the last forward, its tensors aside: metrics, diagnostics, warnings.
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

    # What goes over a socket cannot be traced.
    @torch.compiler.disable  # type: ignore[untyped-decorator]  # torch leaves it untyped
    def forward(self, prediction: Tensor | None = None, target: Tensor | None = None, **inputs: Tensor) -> Tensor:
        """The loss.

        Args:
            prediction: The input of that name, if the loss has one.
            target: The input of that name, if the loss has one.
            **inputs: All others, by name: ``anchor``, ``sample_weight``, …

        Returns:
            A scalar, or the unreduced loss; float64 where an input is, else float32; on the device of the first input.

        Raises:
            LossdError: As :meth:`LossClient.evaluate` does.
        """
        named = {"prediction": prediction, "target": target, **inputs}
        given = {name: tensor for name, tensor in named.items() if tensor is not None}
        if "cotangent" in given:
            raise TypeError("cotangent is what a RemoteLoss gets from backward; it is no input of it")
        loss: Tensor = _Remote.apply(  # type: ignore[no-untyped-call]  # torch leaves it untyped
            self, torch.is_grad_enabled(), tuple(given), *given.values()
        )
        return loss

    def ask(self, inputs: Mapping[str, Tensor], outputs: Sequence[str], *, metrics: bool = False) -> Evaluation:
        """One round trip."""
        return self.client.evaluate(
            self.loss,
            inputs=inputs,
            outputs=[*outputs, "metrics"] if metrics else outputs,
            gradient=self.gradient,
            metrics=self.metrics if metrics else None,
            timeout_s=self.timeout_s,
        )

    def extra_repr(self) -> str:
        """The loss and its parameters."""
        return ", ".join([repr(self.loss["name"]), *(f"{n}={v!r}" for n, v in self.loss.items() if n != "name")])


class _Remote(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, module: RemoteLoss, differentiate: bool, names: tuple[str, ...], *tensors: Tensor) -> Tensor:
        inputs = dict(zip(names, tensors, strict=True))
        wanted = [n for n, needed in zip(names, ctx.needs_input_grad[3:], strict=True) if needed and differentiate]
        at_once = module.loss.get("reduction") != "none"
        outputs = ["loss", *(f"gradient.{name}" for name in wanted if at_once)]
        evaluation = module.ask(inputs, outputs, metrics=module.metrics is not None)
        scalar = not isinstance(evaluation.loss, Tensor)
        module.evaluation = replace(evaluation, loss=evaluation.loss if scalar else None, gradients={})
        ctx.module, ctx.names, ctx.wanted, ctx.at_once = module, names, wanted, at_once
        ctx.save_for_backward(*((evaluation.gradients[name] for name in wanted) if at_once else tensors))
        if isinstance(evaluation.loss, Tensor):
            return evaluation.loss
        double = any(tensor.dtype == torch.float64 for tensor in tensors)
        return torch.tensor(evaluation.loss, dtype=torch.float64 if double else torch.float32, device=tensors[0].device)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, upstream: Tensor) -> tuple[Tensor | None, ...]:
        if ctx.at_once:
            gradients = {n: upstream * gradient for n, gradient in zip(ctx.wanted, ctx.saved_tensors, strict=True)}
        else:
            inputs = dict(zip(ctx.names, ctx.saved_tensors, strict=True))
            outputs = [f"gradient.{name}" for name in ctx.wanted]
            gradients = dict(ctx.module.ask({**inputs, "cotangent": upstream}, outputs).gradients)
        return None, None, None, *(gradients.get(name) for name in ctx.names)
