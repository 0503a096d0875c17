"""``lossd serve``."""

from __future__ import annotations

import logging
import os
import signal
import sys
from collections.abc import Mapping
from contextlib import closing, nullcontext
from functools import cache
from typing import TYPE_CHECKING, Any, Literal, get_args, get_origin

import click

from lossd import __version__
from lossd.cli.help import Command
from lossd.cli.options import option_name
from lossd.cli.wording import on_terminal
from lossd.configuration.machine import tune_allocator

if TYPE_CHECKING:
    from lossd.configuration.settings import Settings

__all__ = ["COMMANDS", "read_settings"]

log = logging.getLogger("lossd.cli")

WRONG = 2

EXAMPLES = """
lossd serve
lossd serve --port 9000 --device cuda:0,cuda:1
LOSSD_QUEUE_BYTES=8GiB lossd serve --host 0.0.0.0 --api-keys-file keys
"""


class _Serve(Command):
    """``serve``, with an option for every setting."""

    def get_params(self, ctx: click.Context) -> list[click.Parameter]:
        return [*_setting_options(), *super().get_params(ctx)]


@click.command(cls=_Serve, examples=EXAMPLES, short_help="Start the service.")
def serve(**options: Any) -> None:
    """Start the service; it runs until SIGTERM or Ctrl-C.

    Every option overrides an environment variable: --port is LOSSD_PORT. Secrets are variables only, such as
    LOSSD_API_KEY, because other users can read a command line.
    """
    _hold_descriptors()
    signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGHUP})  # pending until there are files to read again
    from lossd.configuration.preflight import StartError

    try:
        status = _serve({name: value for name, value in options.items() if value is not None})
    except StartError as error:
        raise _CannotStart(str(error)) from None
    if status:
        sys.exit(status)


class _CannotStart(click.ClickException):
    """An error of one line, with the exit status of wrong usage."""

    exit_code = WRONG


def _serve(options: dict[str, Any]) -> int:
    """Check the settings, serve, and return the exit status."""
    from lossd.configuration.preflight import check_needs, variable
    from lossd.fronts import FrontConfig
    from lossd.fronts.port import listen, take
    from lossd.fronts.unix_socket import UnixSocket
    from lossd.recorder.place import check

    settings, links = read_settings(options)
    if not FrontConfig.in_environment():
        check_needs(settings)
        check(settings)
        sockets = take(settings.host, settings.port, shared=settings.fronts > 1)
    else:
        sockets = []
    tune_allocator()
    front = FrontConfig.from_environment()
    if front is None:
        _say(f"lossd {__version__} is starting …", err=True)
        if settings.fronts == 1:
            listen(sockets)
    local = None
    if settings.uds is not None and front is None:  # a front shares the socket of its parent
        local = UnixSocket(settings.uds, int(settings.uds_mode, 8))

    def announce(port: int) -> None:
        network = f"from the network, {'with' if settings.has_keys else 'without'} a key"
        reach = "from this machine only" if settings.is_local else network
        url = f"{'http' if settings.tls_cert is None else 'https'}://{_bracketed(settings.host)}:{port}"
        if variable("port") in links and "port" not in options:
            log.warning("%s is a Service's address, which Kubernetes set (enableServiceLinks: false prevents it); "
                        "it is ignored, and the port is %d", variable("port"), port)  # fmt: skip
        beside = "" if settings.uds is None else f", and on unix://{settings.uds.absolute()}"
        _say(f"lossd {__version__} listens on {url}, reachable {reach}{beside}")

    with nullcontext() if local is None else closing(local):
        if settings.fronts > 1 and front is None:
            from lossd.fronts.parent import keep

            return keep(settings, announce, sockets, local)
        from lossd.api.server import serve

        serve(settings, announce, front, sockets, local)
        return 0


def read_settings(options: Mapping[str, Any]) -> tuple[Settings, list[str]]:
    """Return the settings of the environment and of a command, and variables of Kubernetes that look like settings.

    Raises:
        StartError: A setting is invalid, or a variable is unknown.
    """
    from pydantic import ValidationError

    from lossd.configuration.preflight import StartError, check_variables, sentence, variable
    from lossd.configuration.settings import Settings

    links = check_variables(os.environ)
    try:
        return Settings(**options), links
    except ValidationError as error:
        source = lambda name: option_name(name) if name in options else variable(name)  # noqa: E731
        raise StartError("; ".join(sentence(fault, source) for fault in error.errors())) from None


def _say(text: str, *, err: bool = False) -> None:
    """Print a message; a closed stream or a full disk is no reason to end."""
    try:
        click.echo(on_terminal(text, err=err), err=err)
    except OSError as error:
        if err:  # the log goes there too
            return
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())  # flushing the rest at exit would fail again
        log.warning("standard output cannot be written (%s): %s", error.strerror, text)


def _hold_descriptors() -> None:
    """Open descriptors 0, 1 and 2 if they are closed; else a socket would get such a number and be inherited."""
    missing = False
    for number in range(3):
        try:
            os.fstat(number)
        except OSError:
            missing = True
            os.set_inheritable(os.open(os.devnull, os.O_RDWR), True)  # the lowest free number is this one
    if missing:
        for number, name in enumerate(("stdin", "stdout", "stderr")):
            if getattr(sys, name) is None:
                setattr(sys, name, os.fdopen(number, "r" if number == 0 else "w"))


@cache
def _setting_options() -> tuple[click.Parameter, ...]:
    from pydantic import ByteSize

    from lossd.configuration.settings import SECRETS, Settings

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


def _bracketed(host: str) -> str:
    return f"[{host}]" if ":" in host else host


COMMANDS = (serve,)
