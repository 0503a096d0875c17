"""The client of lossd, the loss service. It needs NumPy and httpx only.

>>> from lossd_client import LossClient
>>> with LossClient("http://localhost:8000") as lossd:  # doctest: +SKIP
...     lossd.evaluate("mse", [2.5, 0.0], [3.0, -0.5]).loss
0.25
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

from lossd_client.errors import ConnectionFailed, LossdError, Problem, UnreadableAnswer

if TYPE_CHECKING:
    from lossd_client.async_client import AsyncLossClient
    from lossd_client.client import LossClient
    from lossd_client.comparisons import Comparison, Comparisons, Difference
    from lossd_client.messages import Evaluation, Record, Reduction
    from lossd_client.run_batches import RunScore
    from lossd_client.run_messages import RunResult
    from lossd_client.runs import AsyncRemoteRun, RemoteRun
    from lossd_client.score import Score

__all__ = [
    "AsyncLossClient",
    "AsyncRemoteRun",
    "Comparison",
    "Comparisons",
    "ConnectionFailed",
    "Difference",
    "Evaluation",
    "LossClient",
    "LossdError",
    "Problem",
    "Record",
    "Reduction",
    "RemoteRun",
    "RunResult",
    "RunScore",
    "Score",
    "UnreadableAnswer",
]

_HOMES = {
    "AsyncLossClient": "async_client",
    "AsyncRemoteRun": "runs",
    "LossClient": "client",
    "Comparison": "comparisons",
    "Comparisons": "comparisons",
    "Difference": "comparisons",
    "Evaluation": "messages",
    "Record": "messages",
    "Reduction": "messages",
    "RemoteRun": "runs",
    "RunResult": "run_messages",
    "RunScore": "run_batches",
    "Score": "score",
}


def __getattr__(name: str) -> Any:
    # httpx takes longer to load than everything else; the service imports the wire and the errors without it.
    if name not in _HOMES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(import_module(f"{__name__}.{_HOMES[name]}"), name)
