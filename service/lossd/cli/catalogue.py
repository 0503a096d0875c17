"""``lossd losses`` and ``lossd metrics``."""

from __future__ import annotations

import json

import click

import lossd.cli.known as known
from lossd.cli.help import Command
from lossd.cli.options import describe

__all__ = ["COMMANDS"]

LOSSES = """
lossd losses
lossd losses focal
lossd losses --search imbalance
lossd losses --json | jq -r '.losses[] | select(.task == "boxes").name'
"""
METRICS = """
lossd metrics multiclass
lossd metrics --name auroc
lossd metrics --json
"""


@click.command(cls=Command, examples=LOSSES, short_help="List the losses, or show one.")
@click.argument("name", required=False, shell_complete=known.losses)
@click.option(
    "--long", "long_form", is_flag=True, help="Show each loss in full: formula, inputs, parameters, references."
)
@click.option(
    "-q", "--search", "query", metavar="WORDS", help="Only losses that a name, another library's name, or words find."
)
@click.option("--json", "as_json", is_flag=True, help="Print the catalogue's JSON instead of tables.")
def losses(name: str | None, long_form: bool, query: str | None, as_json: bool) -> None:
    """List the losses by family, or show the loss NAME in full."""
    import lossd.cli.catalogue_tables as tables
    import lossd.cli.fitting as fitting
    from lossd.api.catalogue import describe_loss, describe_loss_in_full
    from lossd.api.search import search
    from lossd.losses import REGISTRY
    from lossd.losses.families import by_family

    if name and query:
        raise click.UsageError("--search looks for losses, and NAME shows one: give only one of them")
    notes: list[str] = []
    if name:
        description = describe(name)
        document, shown = description, [tables.loss(description)]
    else:
        described = describe_loss_in_full if long_form and not as_json else describe_loss
        families = by_family()
        order = {name: at for at, name in enumerate(REGISTRY)}
        if query:
            found = search(query)
            families = {"": found.losses}
            notes = [found.note] if found.note else []
            notes += [f"the metric {metric}: lossd metrics --name {metric}" for metric in found.metrics]
            if not (found.losses or notes):
                notes = [f"nothing is found for {query!r}; lossd losses lists all losses"]
        listed = {heading: [described(loss) for loss in losses] for heading, losses in families.items()}
        descriptions = [description for texts in listed.values() for description in texts]
        pages = map(tables.loss, descriptions) if long_form else [tables.catalogue(listed)] if descriptions else []
        if not query:
            descriptions.sort(key=lambda description: order[description["name"]])
        document, shown = {"losses": descriptions}, [*pages, *notes]
    if as_json:
        click.echo(json.dumps(document))
    else:
        console = fitting.console()
        for page in shown:
            console.print(page)


@click.command(cls=Command, examples=METRICS, short_help="List the metrics by task.")
@click.argument("task", required=False, shell_complete=known.tasks)
@click.option(
    "--name", metavar="METRIC", shell_complete=known.metrics, help="Only this metric, in each task that has it."
)
@click.option("--json", "as_json", is_flag=True, help="Print the catalogue's JSON instead of a table.")
def metrics(task: str | None, name: str | None, as_json: bool) -> None:
    """List the metrics of every task, or of TASK; or show a metric in each task that has it."""
    import lossd.cli.catalogue_tables as tables
    import lossd.cli.fitting as fitting
    import lossd.metrics as known_metrics
    from lossd.api.catalogue import describe_options
    from lossd_client.errors import UnknownMetric

    if (
        name is None
        and task not in known_metrics.METRICS
        and any(task in names for names in known_metrics.METRICS.values())
    ):
        task, name = None, task
    if task is not None:
        known_metrics.check_task(task)
    tasks = list(known_metrics.METRICS)
    found = [
        entry
        for entry in sorted(known_metrics.describe(), key=lambda entry: tasks.index(entry["task"]))
        if task in (None, entry["task"]) and name in (None, entry["name"])
    ]
    if not found:
        names = {entry["name"] for entry in known_metrics.describe() if task in (None, entry["task"])}
        near = known_metrics.closest_metrics(name or "", names)
        hint = f"did you mean {' or '.join(near)}? " if near else ""
        known = f"the task {task} has" if task else "there is"
        raise UnknownMetric(f"{known} no metric named {name!r}; {hint}lossd metrics lists them all")
    if as_json:
        click.echo(json.dumps({"metrics": found}))
    else:
        console = fitting.console()
        console.print(tables.metrics(found))
        read = {option for entry in found for option in entry["options"]}
        fields = {name: field for name, field in describe_options().items() if name in read}
        console.print()
        console.print(tables.metric_options(fields))


COMMANDS = (losses, metrics)
