"""Loss as a service: losses, gradients and metrics over HTTP, batched onto a worker.

>>> import lossd
>>> lossd.evaluate("mse", [2.5, 0.0], [3.0, -0.5]).loss
0.25
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

__version__ = "0.1.0"
__all__ = ["Run", "__version__", "evaluate"]

if TYPE_CHECKING:
    from lossd.local import evaluate
    from lossd.runs.run import Run


def __getattr__(name: str) -> Any:
    # torch takes seconds to load; `lossd --help` and `lossd --version` must not wait for it.
    if name in ("evaluate", "Run"):
        try:
            from lossd.local import evaluate
            from lossd.runs.run import Run
        except ModuleNotFoundError as missing:  # the base installation is the client's
            if missing.name is None or missing.name.partition(".")[0] in ("lossd", "lossd_client"):
                raise
            raise ModuleNotFoundError(
                f"lossd.{name} needs the service's packages ({missing.name} is missing): pip install 'lossd[service]'"
                "; lossd_client.LossClient asks a service without them",
                name=missing.name,
            ) from None
        return evaluate if name == "evaluate" else Run
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
