"""``lossd serve``."""

from __future__ import annotations

import os
import sys
from functools import cache
from typing import Any, Literal, get_args, get_origin

import click

from lossd import __version__
from lossd.cli.help import Command
from lossd.cli.options import option_name

__all__ = ["ALLOCATOR", "COMMANDS"]

EXAMPLES = """
lossd serve
lossd serve --port 9000 --device cuda:0,cuda:1
LOSSD_QUEUE_BYTES=8GiB lossd serve --host 0.0.0.0 --api-keys-file keys
"""

# A body arrives in chunks of more than glibc's mmap threshold of 128 KiB, so each would be mapped afresh and its pages
# faulted in one by one. glibc reads these before Python starts; they can only be set for a new process.
ALLOCATOR = {
    "MALLOC_MMAP_THRESHOLD_": "268435456",
    "MALLOC_TRIM_THRESHOLD_": "536870912",
    "MALLOC_TOP_PAD_": "16777216",
}


class _Serve(Command):
    """``serve``, with an option for every setting."""

    def get_params(self, ctx: click.Context) -> list[click.Parameter]:
        return [*_setting_options(), *super().get_params(ctx)]


@click.command(cls=_Serve, examples=EXAMPLES)
def serve(**given: Any) -> None:
    """Start the service; it runs until SIGTERM or Ctrl-C.

    Every option is also an environment variable, which it overrides: --port is LOSSD_PORT. A secret is no option, since
    others can read a command line: LOSSD_API_KEY is a variable only.
    """
    from pydantic import ValidationError

    from lossd.settings import Settings

    try:
        settings = Settings(**{name: value for name, value in given.items() if value is not None})
    except ValidationError as error:
        raise click.UsageError("; ".join(map(_fault, error.errors()))) from None
    _tune_allocator()

    def announce(port: int) -> None:
        network = f"from the network, {'with' if settings.has_keys else 'without'} a key"
        reach = "from this machine only" if settings.is_local else network
        url = f"{'http' if settings.tls_cert is None else 'https'}://{_bracketed(settings.host)}:{port}"
        click.echo(f"lossd {__version__} listens on {url}, reachable {reach}")

    from lossd.fronts import Place

    place = Place.given()
    if settings.fronts > 1 and place is None:
        from lossd.fronts.parent import keep

        sys.exit(keep(settings, announce))
    from lossd.api.server import serve

    serve(settings, announce, place)


def _fault(fault: Any) -> str:
    from lossd.settings import SECRETS

    name = str(fault["loc"][0])
    if name in SECRETS:
        return f"LOSSD_{name.upper()}: {fault['msg']}"
    return f"{option_name(name)}: {fault['msg']}, found {fault['input']!r}"


@cache
def _setting_options() -> tuple[click.Parameter, ...]:
    from pydantic import ByteSize

    from lossd.settings import SECRETS, Settings

    options = []
    for name, setting in Settings.model_fields.items():
        if name in SECRETS:
            continue
        default = setting.default.human_readable() if isinstance(setting.default, ByteSize) else setting.default
        note = "" if default is None else f" [default: {default}]"
        choices = get_args(setting.annotation) if get_origin(setting.annotation) is Literal else None
        options.append(
            click.Option(
                [option_name(name)],
                type=click.Choice(choices) if choices else str,
                metavar=None if choices else "BYTES" if setting.annotation is ByteSize else "VALUE",
                help=f"{setting.description}{note}",
            )
        )
    return tuple(options)


def _tune_allocator() -> None:
    """Start this very command again with the allocator set up, unless the environment already says how."""
    if not ALLOCATOR.keys() <= os.environ.keys():
        sys.stdout.flush()
        os.execve(sys.executable, [sys.executable, *sys.orig_argv[1:]], ALLOCATOR | os.environ)


def _bracketed(host: str) -> str:
    return f"[{host}]" if ":" in host else host


COMMANDS = (serve,)
