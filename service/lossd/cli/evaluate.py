"""``lossd evaluate``."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

import lossd.cli.known as known
from lossd.cli.options import CACERT, METRIC_OPTION, AddressType, LossCommand, as_text, connect, metric_options
from lossd.cli.plot import KINDS, Image
from lossd.cli.progress import load_torch
from lossd.cli.wording import counted

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
    help="Instead of a loss: the task whose metrics are computed, such as multiclass.",
)
@click.option("--input", "named", metavar="NAME=FILE", multiple=True, help="A .npy, .csv or .png file for that input.")
@click.option(
    "--batch",
    "directory",
    type=_DIRECTORY,
    help="Instead of FILES: evaluate every file in a directory, .safetensors, .npz, or .npy, .csv and .png files "
    "whose names differ only in the input's name, as in 7_prediction.npy and 7_target.png.",
)
@click.option(
    "--metrics",
    metavar="NAMES",
    shell_complete=known.metrics,
    help="Only these metrics, comma-separated, instead of the task's default ones.",
)
@METRIC_OPTION
@click.option(
    "--gradient-out",
    type=_NEW_FILE,
    help="File for the gradient: .npy for one, .npz or .safetensors for several by name.",
)
@click.option(
    "--hessian-out",
    type=_NEW_FILE,
    help="File for the second derivative by each entry: .npy for one, .npz or .safetensors for several by name.",
)
@click.option(
    "--hessian-form",
    type=click.Choice(["exact", "fisher", "xgboost", "lightgbm"]),
    help="Which second derivatives; see the manual's page about gradient boosting. [default: exact]",
)
@click.option("--plot", type=Image(), help="File for a picture of the task's metrics: .svg or .png.")
@click.option("--plot-kind", type=click.Choice([*KINDS]), help="Which picture, if the task has several.")
@click.option("--output", type=_NEW_FILE, help="File for the results, a row for each evaluation: .csv or .jsonl.")
@click.option(
    "--url",
    type=AddressType(),
    help="Use the service at this address instead of evaluating here, with the key in LOSSD_API_KEY if it is set.",
)
@CACERT
@click.option(
    "--in-flight", type=click.IntRange(1, 256), help="How many files to evaluate at a time. [default: 1; 4 with --url]"
)
@click.option(
    "--json",
    "as_json",
    is_flag=True,
    help="Print one line of JSON for each evaluation, without the gradient, instead of tables.",
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
    hessian_out: Path | None,
    hessian_form: str | None,
    plot: Path | None,
    plot_kind: str | None,
    output: Path | None,
    url: str | None,
    in_flight: int | None,
    as_json: bool,
    **parameters: Any,
) -> None:
    """Evaluate a loss on tensors in files.

    FILES are .npy arrays (or tables of numbers, .csv, or label maps, .png) in the order of the loss's inputs,
    prediction first, or a .npz or .safetensors that holds them by name. A loss's parameters are options too.

    Exit status: 0 all is evaluated, 1 a file or the request was refused, 2 wrong usage, 3 no answer from the service,
    130 interrupted; results so far are reported.
    """
    if (loss is None) == (task is None):
        raise click.UsageError("name a loss with --loss, or a task with --task for metrics without a loss")
    if directory is not None and (paths or named or gradient_out or hessian_out):
        raise click.UsageError(
            "--batch reads its files from a directory: leave out FILES, --input, --gradient-out and --hessian-out"
        )
    if hessian_form is not None and hessian_out is None:
        raise click.UsageError("--hessian-form needs --hessian-out, the file that the Hessian is written to")
    chosen = {name: value for name, value in parameters.items() if value is not None}
    request_loss = {"name": loss, **chosen} if loss else None
    wanted_metrics = metric_options(metrics, options)
    title = f"{loss or task} {as_text(chosen)}".strip()
    optional = _inputs_of(request_loss, ctx.obj) if request_loss else {"prediction": False, "target": False}
    inputs = list(optional)
    with _asking(url) as ask:
        if directory is not None:
            from lossd.cli.many import evaluate_all

            if plot is not None or plot_kind is not None:
                raise click.UsageError("--plot draws one evaluation; lossd score DIR --plot draws a whole directory")
            outputs = ["loss", "metrics"] if loss else None
            if url is None:
                _check(request_loss, task, wanted_metrics, outputs)
            status = evaluate_all(
                directory,
                inputs,
                lambda tensors: ask(request_loss, task=task, inputs=tensors, metrics=wanted_metrics, outputs=outputs),
                in_flight=in_flight or (4 if url else 1),
                output=output,
                as_json=as_json,
                title=title,
            )
            ctx.exit(status)
        tensors = _inputs(paths, named, [name for name in inputs if not optional[name]])
        curved: dict[str, Any] = {}
        if hessian_out is not None:
            curved["outputs"] = ["loss", "gradient", "hessian", "metrics"]
            curved["hessian"] = {"form": hessian_form or "exact"}
        answer = ask(request_loss, task=task, inputs=tensors, metrics=wanted_metrics, **curved)
        if plot is not None:
            import lossd.cli.plot as pictures

            picture_task = task or (answer.metrics.task if answer.metrics else ctx.obj["task"])
            kind = pictures.kind_for(picture_task, plot_kind, loss=loss)

            def picture_metrics(names: list[str]) -> Evaluation:
                drawn = {**(wanted_metrics or {}), "names": names}
                return ask(request_loss, task=task, inputs=tensors, metrics=drawn, outputs=["metrics"])

            pictures.of_evaluation(plot, kind, picture_task, request_loss, picture_metrics)
    if gradient_out:
        _write(gradient_out, answer.gradients, "--gradient-out")
    if hessian_out:
        _write(hessian_out, answer.hessians, "--hessian-out")
    _report(answer, title, output, as_json=as_json)


def _inputs_of(loss: Mapping[str, Any], described: Mapping[str, Any]) -> dict[str, bool]:
    """Return the inputs of a loss in its order, and whether each is optional."""
    if not described.get("inputs_of_terms"):
        return {entry["name"]: entry["optional"] for entry in described["inputs"]}
    from lossd.request.planning import make_plan

    return {entry.name: entry.optional for entry in make_plan({"loss": loss}).inputs}


def _check(
    loss: Mapping[str, Any] | None,
    task: str | None,
    metric_options: Mapping[str, Any] | None,
    outputs: list[str] | None,
) -> None:
    """Check the request once, before it fails for every file."""
    from lossd.request.planning import make_plan

    subject = {"loss": loss, "outputs": outputs} if loss else {"task": task}
    make_plan({**subject, "metrics": metric_options} if metric_options else subject)


@contextmanager
def _asking(url: str | None) -> Iterator[Ask]:
    """Yield the function that evaluates: in this process, or by the service at an address."""
    if url is None:
        load_torch()
        from lossd import evaluate

        yield evaluate
        return
    with connect(url) as service:
        yield service.evaluate


def _write(path: Path, tensors: Mapping[str, Any], option: str) -> None:
    import lossd.files.sources as files

    try:
        files.write(path, tensors)
    except ValueError as error:
        raise click.BadParameter(str(error), param_hint=option) from None


def _report(answer: Evaluation, title: str, output: Path | None, *, as_json: bool) -> None:
    import lossd.cli.fitting as fitting
    import lossd.cli.report as report
    from lossd.cli.results import results_file, text

    with results_file(output) as rows:
        if rows is not None:
            from lossd.cli.batch import FileOutcome
            from lossd.files.sources import Source

            rows.add(FileOutcome(Source(title, {}), 0, 0.0, answer))
    if as_json:
        click.echo(text(report.document(answer)))
    else:
        fitting.console().print(report.render(answer, title=title))


def _inputs(paths: tuple[Path, ...], named: tuple[str, ...], order: list[str]) -> Mapping[str, Any]:
    """Return the inputs by name: named ones first, then arrays without a name in the order of the missing inputs."""
    import lossd.files.sources as files

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
        room = counted(len(missing), None, "input") + f" ({', '.join(missing)})" * bool(missing)
        raise click.UsageError(
            f"there are {len(nameless)} files for {room}; give the files of other inputs as --input NAME=FILE"
        )
    return inputs | dict(zip(missing, nameless, strict=False))


COMMANDS = (evaluate,)
