"""The command line: ``lossd serve``, ``lossd evaluate``, ``lossd curve`` and the others; one module a command.

torch takes a second to import, FastAPI half a second: each command imports what it needs when it runs, so that help
and version are quick. Exit status: 0 done, 1 a problem with the request, 2 wrong usage, 3 no answer from the service,
4 a gate of compare is not proven, 130 interrupted.
"""

from __future__ import annotations

import atexit
import gc
import os

try:
    import click
except ModuleNotFoundError:  # the base installation is the client's
    raise SystemExit("the lossd command needs the service's packages: pip install 'lossd[service]'") from None

from typing import Any

from lossd import __version__
from lossd.cli import catalogue, compare, compile, completion, curve, evaluate, health, key, runs, score, serve  # noqa: A004  (the command's name)
from lossd.cli.help import Group
from lossd.cli.wording import fitted, say

__all__ = ["main"]

REFUSED, UNANSWERED = 1, 3


class _Commands(Group):
    """The commands; an error becomes an exit status."""

    def invoke(self, ctx: click.Context) -> Any:
        from lossd_client.errors import LossdError, Problem, QueueFull

        try:
            return super().invoke(ctx)
        except LossdError as error:
            text = f"{error.title}: {error}" if isinstance(error, Problem) else str(error)
            say(text)
            refused = isinstance(error, Problem) and error.status < 500 and not isinstance(error, QueueFull)
            ctx.exit(REFUSED if refused else UNANSWERED)
        except OSError as error:
            if error.filename is None:  # a closed pipe, which click handles
                raise
            raise fitted(click.FileError(os.fsdecode(error.filename), error.strerror)) from None
        except click.ClickException as error:
            raise fitted(error) from None


@click.group(cls=_Commands, context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 100})
@click.version_option(__version__, prog_name="lossd", message="%(prog)s %(version)s")
def main() -> None:
    """Loss as a service: losses, gradients and metrics over HTTP.

    Exit status: 0 done, 1 a problem with the request, 2 wrong usage, 3 no answer from the service, 4 a gate of compare
    is not proven, 130 interrupted.
    """
    atexit.register(gc.freeze)  # to collect torch's objects at the end would take a quarter of a second


for module in (serve, compile, evaluate, score, runs, compare, curve, catalogue, key, health, completion):
    for command in module.COMMANDS:
        main.add_command(command)
