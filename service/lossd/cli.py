"""The command line: ``lossd serve``, ``lossd evaluate``, ``lossd losses``.

Torch takes a second to import, FastAPI another half: each command imports what it needs when it runs, so that help and
version answer at once. Exit status: 0 done, 1 a problem with the request, 2 wrong usage, 3 no answer from the service.
"""

from __future__ import annotations

try:
    import click
except ModuleNotFoundError:  # the base installation is the client's
    raise SystemExit("the lossd command needs the service's packages: pip install 'lossd[service]'") from None

import json
import os
import sys
from collections.abc import Mapping
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, get_args, get_origin

from lossd import __version__

if TYPE_CHECKING:
    from lossd_client import Evaluation

__all__ = ["main"]

REFUSED, UNANSWERED = 1, 3

# A body arrives in chunks of more than glibc's mmap threshold of 128 KiB, so each would be mapped afresh and its pages
# faulted in one by one. glibc reads these before Python starts; they can only be set for a new process.
ALLOCATOR = {
    "MALLOC_MMAP_THRESHOLD_": "268435456",
    "MALLOC_TRIM_THRESHOLD_": "536870912",
    "MALLOC_TOP_PAD_": "16777216",
}


class _Commands(click.Group):
    """The commands; what keeps one from answering becomes its exit status."""

    def invoke(self, ctx: click.Context) -> Any:
        from lossd_client.errors import LossdError, Problem, QueueFull

        try:
            return super().invoke(ctx)
        except LossdError as error:
            click.echo(f"{error.title}: {error}" if isinstance(error, Problem) else str(error), err=True)
            refused = isinstance(error, Problem) and error.status < 500 and not isinstance(error, QueueFull)
            ctx.exit(REFUSED if refused else UNANSWERED)


@click.group(cls=_Commands, context_settings={"help_option_names": ["-h", "--help"]})
@click.version_option(__version__, prog_name="lossd", message="%(prog)s %(version)s")
def main() -> None:
    """Loss as a service: losses, gradients and metrics over HTTP."""


class _Serve(click.Command):
    """``serve``, with an option for every setting."""

    def get_params(self, ctx: click.Context) -> list[click.Parameter]:
        return [*_setting_options(), *super().get_params(ctx)]


@main.command(cls=_Serve)
def serve(**given: Any) -> None:
    """Start the service; it runs until SIGTERM or Ctrl-C.

    Every option is also an environment variable, which it overrides: --port is LOSSD_PORT.
    """
    from pydantic import ValidationError

    from lossd.settings import Settings

    try:
        settings = Settings(**{name: value for name, value in given.items() if value is not None})
    except ValidationError as error:
        faults = [f"{_option_name(str(e['loc'][0]))}: {e['msg']}, found {e['input']!r}" for e in error.errors()]
        raise click.UsageError("; ".join(faults)) from None
    _tune_allocator()
    from lossd.api.server import serve

    def announce(port: int) -> None:
        reach = "from this machine only" if _is_loopback(settings.host) else "from the network, without a key"
        click.echo(f"lossd {__version__} listens on http://{_bracketed(settings.host)}:{port}, reachable {reach}")

    serve(settings, announce)


@cache
def _setting_options() -> tuple[click.Parameter, ...]:
    from pydantic import ByteSize

    from lossd.settings import Settings

    options = []
    for name, setting in Settings.model_fields.items():
        default = setting.default.human_readable() if isinstance(setting.default, ByteSize) else setting.default
        note = "" if default is None else f" [default: {default}]"
        choices = get_args(setting.annotation) if get_origin(setting.annotation) is Literal else None
        options.append(
            click.Option(
                [_option_name(name)],
                type=click.Choice(choices) if choices else str,
                metavar=None if choices else "BYTES" if setting.annotation is ByteSize else "VALUE",
                help=f"{setting.description}{note}",
            )
        )
    return tuple(options)


def _option_name(setting: str) -> str:
    return "--" + setting.replace("_", "-")


def _tune_allocator() -> None:
    """Start this very command again with the allocator set up, unless the environment already says how."""
    if not ALLOCATOR.keys() <= os.environ.keys():
        sys.stdout.flush()
        os.execve(sys.executable, [sys.executable, *sys.orig_argv[1:]], ALLOCATOR | os.environ)


def _is_loopback(host: str) -> bool:
    return host == "localhost" or host == "::1" or host.startswith("127.")


def _bracketed(host: str) -> str:
    return f"[{host}]" if ":" in host else host


_FILE = click.Path(exists=True, dir_okay=False, path_type=Path)
_NEW_FILE = click.Path(dir_okay=False, writable=True, path_type=Path)
_BOUNDS = {"minimum": "≥", "exclusiveMinimum": ">", "maximum": "≤", "exclusiveMaximum": "<"}


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
            ctx.obj = _describe(named["loss"], named["url"])
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
        return [_parameter_option(*item) for item in ctx.obj["parameters"].items()] if ctx.obj else []


@main.command(cls=_Evaluate)
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


def _describe(loss: str, url: str | None) -> Mapping[str, Any]:
    """The loss as the catalogue has it, which is that of the service where one is asked."""
    if url is not None:
        from lossd_client import LossClient

        with LossClient(url) as service:
            return service.loss(loss)
    from lossd.api.catalogue import describe_loss
    from lossd.losses.registry import find

    return describe_loss(find(loss))


def _answer(url: str | None, loss: dict[str, Any] | None, **asked: Any) -> Evaluation:
    if url is None:
        from lossd import evaluate

        return evaluate(loss, **asked)
    from lossd_client import LossClient

    with LossClient(url) as service:
        return service.evaluate(loss, **asked)


class _JsonValue(click.ParamType[Any]):
    """A number, list or object as JSON; a list of numbers may go without its brackets, a string without its quotes."""

    name = "json"

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> Any:
        for text in (value, f"[{value}]"):
            try:
                return json.loads(text)
            except ValueError:
                pass
        return value


def _parameter_option(name: str, schema: Mapping[str, Any]) -> click.Option:
    arms = schema.get("anyOf", [schema])
    types = [arm["type"] for arm in arms if "type" in arm]
    flag = types == ["boolean"]
    choices = [choice for arm in arms for choice in arm.get("enum", [arm["const"]] if "const" in arm else [])]
    bounds = [f"{sign} {arm[key]:g}" for arm in arms for key, sign in _BOUNDS.items() if key in arm]
    notes = [*bounds, f"default: {json.dumps(schema['default'])}"] if "default" in schema else [*bounds, "required"]
    option = _option_name(name)
    return click.Option(
        [f"{option}/--no-{option[2:]}" if flag else option, name],
        default=None,
        type=None if flag else click.Choice(choices) if choices else _JsonValue(),
        metavar=None if flag or choices else "|".join(dict.fromkeys(types)).upper() or "JSON",
        help=f"{schema.get('description', '').replace('``', '')} [{'; '.join(notes)}]",
    )


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


@main.command()
@click.argument("name", required=False)
@click.option("--long", "long_form", is_flag=True, help="All about each: formula, inputs, parameters, references.")
@click.option("--json", "as_json", is_flag=True, help="Print the catalogue's JSON instead of tables.")
def losses(name: str | None, long_form: bool, as_json: bool) -> None:
    """List the losses, or show all about one of them."""
    from lossd import report
    from lossd.api.catalogue import describe_loss
    from lossd.losses import REGISTRY

    if name:
        description = _describe(name, None)
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


if __name__ == "__main__":
    main()
