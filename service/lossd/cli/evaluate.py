"""``lossd evaluate``."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

import lossd.cli.known as known
from lossd.cli.options import Address, LossCommand, api_key, as_text
from lossd.cli.plot import KINDS, Image
from lossd.request.literal import literal

if TYPE_CHECKING:
    from lossd_client import Evaluation

__all__ = ["COMMANDS"]

EXAMPLES = """
lossd evaluate prediction.npy target.npy --loss focal --gamma 2
lossd evaluate batch.safetensors --task multiclass --plot confusion.svg
lossd evaluate --batch predictions/ --loss dice --output results.csv
lossd evaluate --batch predictions/ --loss dice --url http://127.0.0.1:8000 --json
"""

Ask = Callable[..., "Evaluation"]

_FILE = click.Path(exists=True, dir_okay=False, path_type=Path)
_NEW_FILE = click.Path(dir_okay=False, writable=True, path_type=Path)
_DIRECTORY = click.Path(exists=True, file_okay=False, path_type=Path)


@click.command(cls=LossCommand, examples=EXAMPLES)
@click.argument("paths", metavar="[FILES]...", nargs=-1, type=_FILE)
@click.option(
    "--loss", metavar="NAME", shell_complete=known.losses, help="The loss. With --help, its parameters are shown too."
)
@click.option(
    "--task",
    metavar="NAME",
    shell_complete=known.tasks,
    help="Instead of a loss: the task whose metrics are wanted, such as multiclass.",
)
@click.option("--input", "named", metavar="NAME=FILE", multiple=True, help="A .npy or .csv file for that input.")
@click.option(
    "--batch",
    "directory",
    type=_DIRECTORY,
    help="Instead of FILES: evaluate everything in a directory, .safetensors, .npz, or .npy files called alike up to "
    "the input's name, as in 7_prediction.npy and 7_target.npy.",
)
@click.option(
    "--metrics",
    metavar="NAMES",
    shell_complete=known.metrics,
    help="Exactly these metrics, comma-separated, instead of the task's own.",
)
@click.option(
    "--metric-option",
    "options",
    metavar="NAME=VALUE",
    multiple=True,
    help="How metrics are computed: threshold=0.7, k=2, from_logits=false. lossd metrics lists the options.",
)
@click.option("--gradient-out", type=_NEW_FILE, help="Where to write the gradient: .npy; .npz or .safetensors by name.")
@click.option("--plot", type=Image(), help="Where to draw what the task has a picture of: .svg or .png.")
@click.option("--plot-kind", type=click.Choice([*KINDS]), help="Which picture, where the task has several.")
@click.option("--output", type=_NEW_FILE, help="Where to write a row for each evaluation: .csv or .jsonl.")
@click.option(
    "--url",
    type=Address(),
    help="Ask the service at this address instead of evaluating here, with the key in LOSSD_API_KEY if there is one.",
)
@click.option("--in-flight", type=click.IntRange(1, 256), help="How many files at a time. [default: 1; 4 with --url]")
@click.option(
    "--json", "as_json", is_flag=True, help="Print JSON, without the gradient, a line each instead of tables."
)
@click.pass_context
def evaluate(
    ctx: click.Context,
    /,
    paths: tuple[Path, ...],
    loss: str | None,
    task: str | None,
    named: tuple[str, ...],
    directory: Path | None,
    metrics: str | None,
    options: tuple[str, ...],
    gradient_out: Path | None,
    plot: Path | None,
    plot_kind: str | None,
    output: Path | None,
    url: str | None,
    in_flight: int | None,
    as_json: bool,
    **parameters: Any,
) -> None:
    """Evaluate a loss on tensors in files.

    FILES are .npy arrays (or tables of numbers, .csv) in the order of the loss's inputs, prediction first, or a .npz or
    .safetensors that holds them by name. A loss's parameters are options too.

    Exit status: 0 all is evaluated, 1 a file or the request was refused, 2 wrong usage, 3 no answer from the service,
    130 interrupted; what was done until then is reported.
    """
    if (loss is None) == (task is None):
        raise click.UsageError("name a loss with --loss, or with --task a task whose metrics are wanted alone")
    if directory is not None and (paths or named or gradient_out):
        raise click.UsageError(
            "--batch takes its files from a directory: no FILES, --input or --gradient-out beside it"
        )
    given = {name: value for name, value in parameters.items() if value is not None}
    of = {"name": loss, **given} if loss else None
    measured = _metrics(metrics, options)
    title = f"{loss or task} {as_text(given)}".strip()
    optional = _inputs_of(of, ctx.obj) if of else {"prediction": False, "target": False}
    inputs = list(optional)
    with _asking(url) as ask:
        if directory is not None:
            from lossd.cli.many import evaluate_all

            if plot_kind not in (None, "confusion"):
                raise click.UsageError(f"of many files only confusion matrices add up; {plot_kind} is for one file")
            outputs = ["loss", "metrics"] if loss else None
            if url is None:
                _check(of, task, measured, outputs)
            status = evaluate_all(
                directory,
                inputs,
                lambda tensors: ask(of, task=task, inputs=tensors, metrics=measured, outputs=outputs),
                in_flight=in_flight or (4 if url else 1),
                output=output,
                plot=plot,
                as_json=as_json,
                title=title,
            )
            ctx.exit(status)
        tensors = _inputs(paths, named, [name for name in inputs if not optional[name]])
        answer = ask(of, task=task, inputs=tensors, metrics=measured)
        if plot is not None:
            import lossd.cli.plot as pictures

            of_task = task or (answer.metrics.task if answer.metrics else ctx.obj["task"])
            kind = pictures.kind_for(of_task, plot_kind, loss=loss)

            def of_picture(names: list[str]) -> Evaluation:
                drawn = {**(measured or {}), "names": names}
                return ask(of, task=task, inputs=tensors, metrics=drawn, outputs=["metrics"])

            pictures.of_evaluation(plot, kind, of_task, of, of_picture)
    if gradient_out:
        _write_gradient(gradient_out, answer)
    _report(answer, title, output, as_json=as_json)


def _inputs_of(of: Mapping[str, Any], described: Mapping[str, Any]) -> dict[str, bool]:
    """The inputs of a loss, in its order, and whether they are optional."""
    if not described.get("inputs_of_terms"):
        return {entry["name"]: entry["optional"] for entry in described["inputs"]}
    from lossd.request.planning import make_plan

    return {entry.name: entry.optional for entry in make_plan({"loss": of}).inputs}


def _metrics(names: str | None, options: tuple[str, ...]) -> dict[str, Any] | None:
    """The request's object of metrics; None where nothing is said of them."""
    asked: dict[str, Any] = {"names": names.split(",")} if names else {}
    for item in options:
        name, equals, value = item.partition("=")
        if not equals:
            raise click.BadParameter(f"{item!r} is not NAME=VALUE", param_hint="--metric-option")
        asked[name] = literal(value)
    return asked or None


def _check(
    of: Mapping[str, Any] | None, task: str | None, measured: Mapping[str, Any] | None, outputs: list[str] | None
) -> None:
    """Say what is wrong with the request itself once, not once a file."""
    from lossd.request.planning import make_plan

    subject = {"loss": of, "outputs": outputs} if of else {"task": task}
    make_plan({**subject, "metrics": measured} if measured else subject)


@contextmanager
def _asking(url: str | None) -> Iterator[Ask]:
    """Whom to ask: this process, or the service at an address."""
    if url is None:
        from lossd import evaluate

        yield evaluate
        return
    from lossd_client import LossClient

    with LossClient(url, api_key=api_key()) as service:
        yield service.evaluate


def _write_gradient(path: Path, answer: Evaluation) -> None:
    import lossd.cli.files as files

    try:
        files.write(path, answer.gradients)
    except ValueError as error:
        raise click.BadParameter(str(error), param_hint="--gradient-out") from None


def _report(answer: Evaluation, title: str, output: Path | None, *, as_json: bool) -> None:
    import lossd.cli.report as report
    from lossd.cli.results import results_file, text

    with results_file(output) as rows:
        if rows is not None:
            from lossd.cli.batch import Outcome
            from lossd.cli.files import Source

            rows.add(Outcome(Source(title, {}), 0, 0.0, answer))
    if as_json:
        click.echo(text(report.document(answer)))
    else:
        report.console().print(report.render(answer, title=title))


def _inputs(paths: tuple[Path, ...], named: tuple[str, ...], order: list[str]) -> Mapping[str, Any]:
    """The inputs by name: those given by name first, then arrays without one in the order of those still missing."""
    import lossd.cli.files as files

    inputs: dict[str, Any] = {}
    for item in named:
        name, equals, path = item.partition("=")
        if not equals:
            raise click.BadParameter(f"{item!r} is not NAME=FILE", param_hint="--input")
        found = files.read(_FILE.convert(path, None, None))
        if isinstance(found, dict):
            raise click.BadParameter(f"{path} holds arrays by name; give it without NAME=", param_hint="--input")
        inputs[name] = found
    nameless = []
    for found in map(files.read, paths):
        if isinstance(found, dict):
            inputs |= found
        else:
            nameless.append(found)
    missing = [name for name in order if name not in inputs]
    if len(nameless) > len(missing):
        taken = f"{', '.join(order)}, and {len(order) - len(missing)} of them by name"
        raise click.UsageError(f"{len(nameless)} arrays are too many: the inputs are {taken}; name others with --input")
    return inputs | dict(zip(missing, nameless, strict=False))


COMMANDS = (evaluate,)
