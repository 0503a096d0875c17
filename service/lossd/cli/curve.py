"""``lossd curve``."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import click

import lossd.cli.known as known
from lossd.cli.options import LossCommand
from lossd.cli.plot import Image, curve_document, write

__all__ = ["COMMANDS"]

EXAMPLES = """
lossd curve focal --gamma 0 --gamma 2 -o focal.svg
lossd curve huber --delta 0.5 --delta 2 --with mse --with mae -o robust.png
lossd curve cross_entropy --x margin --json
"""


class _Curve(LossCommand):
    several = True


@click.command(cls=_Curve, examples=EXAMPLES)
@click.argument("loss", shell_complete=known.losses)
@click.option(
    "-o",
    "--output",
    type=Image(),
    help="File for the picture: .svg or .png. By default the curve is drawn on a terminal, else points are printed.",
)
@click.option(
    "--with", "others", multiple=True, metavar="NAME", shell_complete=known.losses, help="Another loss to draw."
)
@click.option("--x", metavar="AXIS", help="The axis, such as probability or margin.")
@click.option("--low", type=float, help="The lowest point of the axis.")
@click.option("--high", type=float, help="The highest point of the axis.")
@click.option("--points", type=int, help="The number of points.")
@click.option(
    "--theme",
    type=click.Choice(["auto", "light", "dark"]),
    default="auto",
    help="The picture's colours. [default: auto]",
)
@click.option("--json", "as_json", is_flag=True, help="Print every point as JSON.")
def curve(
    loss: str,
    output: Path | None,
    others: tuple[str, ...],
    x: str | None,
    low: float | None,
    high: float | None,
    points: int | None,
    theme: str,
    as_json: bool,
    **parameters: tuple[Any, ...],
) -> None:
    """Draw LOSS and its gradient along an axis.

    LOSS comes first. Its parameters are options that may be repeated: every combination is a line.
    """
    values_by_name = {name: values for name, values in parameters.items() if values}
    document = curve_document(loss, values_by_name, others=others, x=x, low=low, high=high, points=points)
    if output is not None:
        write(output, "curve", document, theme)
    if as_json:
        from lossd.cli.results import text

        click.echo(text(document))
    elif output is None:
        import lossd.cli.curve_tables as curve_tables
        import lossd.cli.fitting as fitting

        console = fitting.console()
        console.print(curve_tables.curve(document, drawn=console.is_terminal))


COMMANDS = (curve,)
