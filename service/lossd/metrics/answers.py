"""Metrics of preferences between answers, and of sampled tokens."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from functools import cached_property
from typing import Any

import numpy as np

from lossd.lazy_torch import Tensor, torch
from lossd.losses.policy import BOUNDS, divergence, ratio_bounds, sequence_means
from lossd.losses.preference import gains
from lossd.losses.registry import Input
from lossd.metrics.entries import Entries
from lossd.metrics.parts import Mean
from lossd.metrics.registry import Task, metric, task
from lossd.metrics.signature import SAMPLE_WEIGHT, constant_input, floats

__all__ = ["Policies", "Preferences"]


@task("preferences")
class Preferences(Task):
    """The rewards of the chosen and of the rejected answers.

    With the loss they are β times the log-ratio to the reference, β times the log-probability if there is no reference,
    and the rewards themselves for bradley_terry.
    """

    @cached_property
    def entries(self) -> Entries:
        """The pairs that count."""
        return Entries(self.view)

    @cached_property
    def rewards(self) -> tuple[Tensor, Tensor]:
        """Those of the chosen and of the rejected answers, (R, 1) each."""
        tensors, beta = self.view.tensors, self.view.number("beta", 1.0, 1)
        chosen, rejected = tensors["chosen"].double(), tensors["rejected"].double()
        if "reference_chosen" in tensors:
            references = (tensors["reference_chosen"], tensors["reference_rejected"])
            lengths = (tensors.get("chosen_length"), tensors.get("rejected_length"))
            chosen, rejected = gains(chosen, rejected, *references, *lengths)
        return (beta * chosen).unsqueeze(1), (beta * rejected).unsqueeze(1)

    @Mean
    def right(self) -> Tensor:
        """Whether each chosen answer has the higher reward."""
        return (self.rewards[0] > self.rewards[1]).double()

    @Mean
    def margins(self) -> Tensor:
        """The differences of the rewards."""
        return self.rewards[0] - self.rewards[1]

    @Mean
    def of_chosen(self) -> Tensor:
        """The rewards of the chosen answers."""
        return self.rewards[0]

    @Mean
    def of_rejected(self) -> Tensor:
        """The rewards of the rejected answers."""
        return self.rewards[1]

    @classmethod
    def inputs(cls, options: Mapping[str, Any]) -> tuple[Input, ...]:
        """Return the inputs: two rewards a row."""
        return (
            constant_input("chosen", "Rewards of the preferred answers.", floats("real", "N")),
            constant_input("rejected", "Rewards of the other answers.", floats("real", "N")),
            SAMPLE_WEIGHT,
        )


@metric("preferences", default=True, reads=("right",), better="higher", interval="unit")
def preference_accuracy(task: Preferences) -> Sequence[Any]:
    """The fraction of pairs in which the chosen answer has the higher reward. Ties count as wrong."""
    return task.quotients("preference_accuracy", *task.right)


@metric("preferences", default=True, reads=("margins",), better="higher", interval="real")
def mean_margin(task: Preferences) -> Sequence[Any]:
    """The mean reward of the chosen answer minus that of the rejected one."""
    return task.quotients("mean_margin", *task.margins)


@metric("preferences", default=True, reads=("of_chosen",), interval="real")
def mean_chosen_reward(task: Preferences) -> Sequence[Any]:
    """The mean reward of the chosen answers."""
    return task.quotients("mean_chosen_reward", *task.of_chosen)


@metric("preferences", default=True, reads=("of_rejected",), interval="real")
def mean_rejected_reward(task: Preferences) -> Sequence[Any]:
    """The mean reward of the rejected answers."""
    return task.quotients("mean_rejected_reward", *task.of_rejected)


@task("policy")
class Policies(Task):
    """Ratios of the tokens' probabilities to those when they were sampled, and divergences; means over tokens.

    A metric is null if an input that it needs is missing. Without a loss the bounds are those of the form "ppo".
    """

    @cached_property
    def entries(self) -> Entries:
        """The tokens that count."""
        return Entries(self.view)

    @cached_property
    def p(self) -> Tensor:
        """Log-probabilities under the model, (R, T)."""
        return self.view.tensors["prediction"].double()

    @cached_property
    def log_ratio(self) -> Tensor | None:
        """Of each token, (R, T); of each sequence for the form "gspo". None without ``sampled``."""
        sampled = self.view.tensors.get("sampled")
        if sampled is None:
            return None
        log_ratio = self.p - sampled.double()
        if self.form != "gspo":
            return log_ratio
        ignored = self.view.ignored
        return sequence_means(log_ratio, None if ignored is None else ~ignored).unsqueeze(1).expand_as(self.p)

    @property
    def form(self) -> str:
        """The form of the loss."""
        form: str = self.view.parameters.get("form", "ppo")
        return form

    def clipped(self, name: str, *, high: bool) -> Sequence[Any]:
        """Return the fraction of tokens whose ratio is clipped at one end."""
        advantage = self.view.tensors.get("advantage")
        if self.log_ratio is None or advantage is None or self.form not in BOUNDS:
            return self.mean(name, None)
        parameters = self.view.parameters
        bounds = ratio_bounds(self.form, parameters.get("ratio_min"), parameters.get("ratio_max"))
        ratio = self.log_ratio.exp()
        beyond = ratio > bounds[1] if high else ratio < bounds[0]
        a = advantage.unsqueeze(1) if advantage.ndim == 1 else advantage
        if self.form != "cispo":
            beyond = beyond & ((a > 0) if high else (a < 0))
        return self.mean(name, beyond.double())

    def mean(self, name: str, values: Tensor | None) -> Sequence[Any]:
        """Return means over the tokens, given their values (R, T); undefined for None."""
        if values is None:
            return self.numbers(name, np.zeros(self.count), np.ones(self.count, bool))
        return self.quotients(name, *self.entries.mean_of(values))

    @classmethod
    def inputs(cls, options: Mapping[str, Any]) -> tuple[Input, ...]:
        """Return the inputs: log-probabilities and advantages of tokens."""
        tokens = floats("finite", "N T")
        return (
            constant_input("prediction", "Log-probability of each token under the model.", floats("real", "N T")),
            constant_input("sampled", "Log-probability of each token when it was sampled.", tokens, optional=True),
            constant_input(
                "advantage", "Advantage of each token or sequence.", tokens, floats("finite", "N"), optional=True
            ),
            constant_input("reference", "Log-probability of each token under the reference.", tokens, optional=True),
            SAMPLE_WEIGHT,
        )


@metric("policy", default=True, reads=None, interval=None)
def clip_low(task: Policies) -> Sequence[Any]:
    """The fraction of tokens whose ratio is clipped at the lower limit; with "cispo" at any advantage."""
    return task.clipped("clip_low", high=False)


@metric("policy", default=True, reads=None, interval=None)
def clip_high(task: Policies) -> Sequence[Any]:
    """The fraction of tokens whose ratio is clipped at the upper limit; with "cispo" at any advantage."""
    return task.clipped("clip_high", high=True)


@metric("policy", default=True, reads=None, interval=None)
def mean_ratio(task: Policies) -> Sequence[Any]:
    """The mean ratio; 1 if the model is the policy that sampled."""
    return task.mean("mean_ratio", None if task.log_ratio is None else task.log_ratio.exp())


@metric("policy", default=True, reads=None, interval=None)
def max_ratio(task: Policies) -> Sequence[Any]:
    """The largest ratio."""
    if task.log_ratio is None:
        return task.mean("max_ratio", None)
    ignored = task.view.ignored
    kept = task.log_ratio if ignored is None else task.log_ratio.masked_fill(ignored, -torch.inf)
    [largest] = task.entries.largest(kept.amax(1)).T
    return task.numbers("max_ratio", np.exp(largest), np.isneginf(largest))


@metric("policy", default=True, reads=None, interval=None)
def sampling_kl_k1(task: Policies) -> Sequence[Any]:
    """The divergence KL(q‖p) of the policy that sampled from the model, estimated by the mean of q − p."""
    return task.mean("sampling_kl_k1", None if task.log_ratio is None else -task.log_ratio)


@metric("policy", default=True, reads=None, interval=None)
def sampling_kl_k3(task: Policies) -> Sequence[Any]:
    """The divergence KL(q‖p) of the policy that sampled from the model, by the mean of r − 1 − log r, >= 0."""
    return task.mean("sampling_kl_k3", None if task.log_ratio is None else torch.expm1(task.log_ratio) - task.log_ratio)


@metric("policy", default=True, reads=None, interval=None)
def reference_kl_k1(task: Policies) -> Sequence[Any]:
    """The divergence KL(p‖ref) of the model from the reference, estimated by the mean of p less the reference's."""
    return _from_reference(task, "reference_kl_k1", "k1")


@metric("policy", default=True, reads=None, interval=None)
def reference_kl_k3(task: Policies) -> Sequence[Any]:
    """The divergence KL(p‖ref) of the model from the reference, by the mean of e^d − d − 1 with d = ref − p, >= 0."""
    return _from_reference(task, "reference_kl_k3", "k3")


def _from_reference(task: Policies, name: str, estimator: str) -> Sequence[Any]:
    reference = task.view.tensors.get("reference")
    return task.mean(name, None if reference is None else divergence(task.p, reference.double(), estimator))
