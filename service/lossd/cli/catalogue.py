"""``lossd losses``."""

from __future__ import annotations

import json

import click

from lossd.cli.options import describe

__all__ = ["COMMANDS"]


@click.command()
@click.argument("name", required=False)
@click.option("--long", "long_form", is_flag=True, help="All about each: formula, inputs, parameters, references.")
@click.option("--json", "as_json", is_flag=True, help="Print the catalogue's JSON instead of tables.")
def losses(name: str | None, long_form: bool, as_json: bool) -> None:
    """List the losses, or show all about one of them."""
    from lossd import report
    from lossd.api.catalogue import describe_loss
    from lossd.losses import REGISTRY

    if name:
        description = describe(name, None)
        document, shown = description, [report.loss(description)]
    else:
        descriptions = [describe_loss(loss) for loss in REGISTRY.values()]
        pages = map(report.loss, descriptions) if long_form else [report.catalogue(descriptions)]
        document, shown = {"losses": descriptions}, list(pages)
    if as_json:
        click.echo(json.dumps(document))
    else:
        console = report.console()
        for page in shown:
            console.print(page)


COMMANDS = (losses,)
