"""``lossd compile``."""

from __future__ import annotations

import logging
import os
import sys
from pathlib import Path

import click

from lossd.cli.help import Command

__all__ = ["COMMANDS"]

EXAMPLES = """
lossd compile
lossd compile --cache-dir /var/cache/lossd
"""


@click.command("compile", cls=Command, examples=EXAMPLES, short_help="Compile the most used losses.")
@click.option(
    "--cache-dir",
    type=click.Path(file_okay=False, path_type=Path),
    help="Folder for the compiled code, as in lossd serve; by default the user's cache, ~/.cache/lossd.",
)
def compile_(cache_dir: Path | None) -> None:
    """Compile the most used losses once, so that the service is fast from its start.

    Otherwise a CPU worker compiles them while it works, in about 17 s of CPU time. The code is for this version and
    this processor; the command prints its folder at the end. Existing code is not compiled again.

    Exit status: 0 all passes are compiled, 1 a pass could not be compiled or stored.
    """
    from lossd.compiled.building import compile_and_keep

    logging.basicConfig(level=logging.INFO, format="%(message)s", force=True)
    if cache_dir is not None:
        os.environ["LOSSD_CACHE_DIR"] = str(cache_dir.absolute())
    sys.exit(0 if compile_and_keep() else 1)


COMMANDS = (compile_,)
