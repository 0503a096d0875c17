"""``lossd key``."""

from __future__ import annotations

import click

from lossd.cli.help import Command

__all__ = ["COMMANDS"]


@click.command(cls=Command, examples="lossd key alice >> keys", short_help="Make an API key for a client.")
@click.argument("name")
def key(name: str) -> None:
    """Make an API key for the client NAME, and print the key and its line for the keys file.

    The key is shown only once, on standard error. The line goes to standard output: lossd key NAME >> keys
    """
    from lossd.configuration.keys import fresh_key, key_line

    fresh = fresh_key()
    try:
        line = key_line(name, fresh)
    except ValueError as error:
        raise click.BadParameter(str(error), param_hint="NAME") from None
    click.echo(f"API key for {name}, shown only once: {fresh}", err=True)
    click.echo(line)


COMMANDS = (key,)
