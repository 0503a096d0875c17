"""``lossd evaluate``."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from lossd.cli.options import describe, parameter_option

if TYPE_CHECKING:
    from lossd_client import Evaluation

__all__ = ["COMMANDS"]

_FILE = click.Path(exists=True, dir_okay=False, path_type=Path)
_NEW_FILE = click.Path(dir_okay=False, writable=True, path_type=Path)


class _Evaluate(click.Command):
    """``evaluate``, with an option for every parameter of the loss that is named."""

    def parse_args(self, ctx: click.Context, args: list[str]) -> list[str]:
        which = click.Command(
            "which",
            params=[click.Option(["--loss"]), click.Option(["--url"])],
            context_settings={"ignore_unknown_options": True, "allow_extra_args": True},
            add_help_option=False,
        )
        named = which.make_context("which", list(args), resilient_parsing=True).params
        if named["loss"] is not None:
            ctx.obj = describe(named["loss"], named["url"])
        return super().parse_args(ctx, args)

    def get_params(self, ctx: click.Context) -> list[click.Parameter]:
        return [*super().get_params(ctx), *self._of_loss(ctx)]

    def format_options(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        sections = {"Options": super().get_params(ctx), "Parameters of the loss": self._of_loss(ctx)}
        for title, params in sections.items():
            records = [param.get_help_record(ctx) for param in params if isinstance(param, click.Option)]
            if records:
                with formatter.section(title):
                    formatter.write_dl([record for record in records if record])

    def _of_loss(self, ctx: click.Context) -> list[click.Parameter]:
        return [parameter_option(*item) for item in ctx.obj["parameters"].items()] if ctx.obj else []


@click.command(cls=_Evaluate)
@click.argument("paths", metavar="[FILES]...", nargs=-1, type=_FILE)
@click.option("--loss", metavar="NAME", help="The loss. With --help, its parameters are shown too.")
@click.option(
    "--task", metavar="NAME", help="Instead of a loss: the task whose metrics are wanted, such as multiclass."
)
@click.option("--input", "named", metavar="NAME=FILE", multiple=True, help="A .npy file for the input of that name.")
@click.option("--metrics", metavar="NAMES", help="Exactly these metrics, comma-separated, instead of the task's own.")
@click.option("--gradient-out", type=_NEW_FILE, help="Where to write the gradient: .npy; .npz or .safetensors by name.")
@click.option("--url", help="Ask the service at this address instead of evaluating here.")
@click.option("--json", "as_json", is_flag=True, help="Print JSON, without the gradient, instead of tables.")
@click.pass_context
def evaluate(
    ctx: click.Context,
    /,
    paths: tuple[Path, ...],
    loss: str | None,
    task: str | None,
    named: tuple[str, ...],
    metrics: str | None,
    gradient_out: Path | None,
    url: str | None,
    as_json: bool,
    **parameters: Any,
) -> None:
    """Evaluate a loss on tensors in files.

    FILES are .npy arrays in the order of the loss's inputs, prediction first, or a .npz or .safetensors that holds them
    by name. A loss's parameters are options too, as in: lossd evaluate p.npy t.npy --loss focal --gamma 2
    """
    if (loss is None) == (task is None):
        raise click.UsageError("name a loss with --loss, or with --task a task whose metrics are wanted alone")
    order = (
        [entry["name"] for entry in ctx.obj["inputs"] if not entry["optional"]] if loss else ["prediction", "target"]
    )
    given = {name: value for name, value in parameters.items() if value is not None}
    asked: dict[str, Any] = {
        "task": task,
        "inputs": _inputs(paths, named, order),
        "metrics": metrics.split(",") if metrics else None,
    }
    from lossd import files, report

    answer = _answer(url, {"name": loss, **given} if loss else None, **asked)
    if gradient_out:
        try:
            files.write(gradient_out, answer.gradients)
        except ValueError as error:
            raise click.BadParameter(str(error), param_hint="--gradient-out") from None
    if as_json:
        click.echo(report.as_json(answer))
    else:
        options = " ".join(f"{name}={value}" for name, value in given.items())
        report.console().print(report.render(answer, title=f"{loss or task} {options}".strip()))


def _answer(url: str | None, loss: dict[str, Any] | None, **asked: Any) -> Evaluation:
    if url is None:
        from lossd import evaluate

        return evaluate(loss, **asked)
    from lossd_client import LossClient

    with LossClient(url) as service:
        return service.evaluate(loss, **asked)


def _inputs(paths: tuple[Path, ...], named: tuple[str, ...], order: list[str]) -> dict[str, Any]:
    """The inputs by name: those given by name first, then arrays without one in the order of those still missing."""
    from lossd import files

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
