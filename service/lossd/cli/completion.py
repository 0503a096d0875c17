"""``lossd completion``."""

from __future__ import annotations

import click

from lossd.cli.help import Command

__all__ = ["COMMANDS"]

EXAMPLES = """
echo 'eval "$(lossd completion bash)"' >> ~/.bashrc
echo 'eval "$(lossd completion zsh)"' >> ~/.zshrc
lossd completion fish > ~/.config/fish/completions/lossd.fish
"""


@click.command(cls=Command, examples=EXAMPLES, short_help="Print the script for completion.")
@click.argument("shell", metavar="SHELL", type=click.Choice(["bash", "zsh", "fish"]))
@click.pass_context
def completion(ctx: click.Context, shell: str) -> None:
    """Print a script for SHELL (bash, zsh or fish) that completes commands, losses, metrics and parameters."""
    from click.shell_completion import get_completion_class

    completer = get_completion_class(shell)
    assert completer is not None, "click knows these three"
    click.echo(completer(ctx.find_root().command, {}, "lossd", "_LOSSD_COMPLETE").source())


COMMANDS = (completion,)
