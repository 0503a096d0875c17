"""The reference pages: every route from the OpenAPI document, every problem, and the Python interfaces' docstrings."""

from __future__ import annotations

import inspect
import re
from collections.abc import Callable, Iterator, Mapping
from typing import Any

import click

import lossd
import lossd_client
from docs.losses import laid_out, value
from docs.markdown import documented, prose, table
from docs.provoked import REQUESTS
from lossd import cli
from lossd.api.problems import describe
from lossd_client import errors
from lossd_client.errors import PROBLEMS

Document = Mapping[str, Any]

HTTP: Mapping[str, Any] = {
    "title": "HTTP",
    "intro": "Made from the service's own OpenAPI document, `GET /openapi.json`. A running service has it at `/docs` "
    "and `/redoc`, to try.",
    "begin": "/",
    "models": (
        "EvaluateRequest",
        "TensorObject",
        "GradientOptions",
        "MetricOptions",
        "Answer",
        "Reduction",
        "Diagnostics",
        "Warning_",
        "RunDefinition",
        "DataSet",
        "RunListEntry",
        "RunAnswer",
        "RunScore",
        "SliceScore",
        "Interval",
        "ComparisonAnswer",
        "ComparedRun",
        "ComparisonModel",
        "DifferenceModel",
        "SliceDifferences",
        "BatchRequest",
        "BatchAnswer",
        "BatchEntry",
        "SealFields",
        "ProblemModel",
        "FaultModel",
    ),
}
INFERENCE: Mapping[str, Any] = {
    "title": "Open Inference Protocol",
    "intro": "Under `/v2` every loss is a model of the [Open Inference Protocol](../from-any-language.md), with the "
    "binary tensor extension; every metric is an output.",
    "begin": "/v2",
    "models": (
        "InferRequest",
        "InferInput",
        "InferRequestedOutput",
        "InferResponse",
        "InferOutput",
        "InferError",
    ),
}


def routes(document: Document, title: str, intro: str, begin: str, models: tuple[str, ...]) -> str:
    """The routes whose path begins so, and the models they speak of."""
    lines = [f"# {title}", "", intro, ""]
    for path, methods in document["paths"].items():
        if not path.startswith(begin) or (begin == "/" and path.startswith("/v2")):
            continue
        for method, operation in methods.items():
            lines += [
                f"## `{method.upper()} {path}`",
                "",
                operation["summary"] + ".",
                "",
                operation.get("description", ""),
                "",
            ]
            rows = [
                (f"`{p['name']}`", p["in"], prose(p.get("description", ""))) for p in operation.get("parameters", ())
            ]
            lines += [table(("Parameter", "In", ""), rows), ""] if rows else []
            if body := operation.get("requestBody"):
                lines += ["Body: " + _contents(body) + ".", ""]
            rows = [(f"`{s}`", r["description"], _contents(r)) for s, r in operation["responses"].items()]
            lines += [table(("Status", "", "Body"), rows), ""]
    for name in models:
        lines += _model(name, document["components"]["schemas"])
    return _linked("\n".join(lines), models)


def _contents(message: Mapping[str, Any]) -> str:
    shown = []
    for media_type, content in message.get("content", {}).items():
        schema = content.get("schema", {})
        shown.append(f"`{media_type}`" + (f", {value(schema)}" if "$ref" in schema else ""))
    return "; ".join(shown)


def _model(name: str, schemas: Mapping[str, Any]) -> list[str]:
    schema = schemas[name]
    lines = [f"### {name.rstrip('_')}", "", prose(schema.get("description", "")), ""]
    rows = [
        (
            f"`{field}`",
            value(definition),
            "yes" if field in schema.get("required", ()) else "",
            prose(definition.get("description", "")),
        )
        for field, definition in schema.get("properties", {}).items()
    ]
    lines += [table(("Field", "Value", "Required", ""), rows), ""] if rows else []
    if "example" in schema:
        lines += ["For example", "", "```json", laid_out(schema["example"]), "```", ""]
    return lines


def _linked(text: str, models: tuple[str, ...]) -> str:
    for name in models:
        text = text.replace(f"[{name.rstrip('_')}]", f"[{name.rstrip('_')}](#{name.rstrip('_').lower()})")
    return text


def problems(provoke: Callable[[str], Any]) -> dict[str, str]:
    """A page for each problem type; ``provoke`` has a request of that type answered."""
    pages = {}
    for slug, kind in PROBLEMS.items():
        message = describe(kind)
        pages[f"errors/{slug}.md"] = (
            f"# {message['title']}\n\n{prose(message['text'])}\n\n"
            + table(
                ("", ""),
                (
                    ("`type`", f"`/problems/{slug}`"),
                    ("Status", kind.status),
                    ("In Python", f"`lossd_client.errors.{kind.__name__}`"),
                    ("Try again?", message["retry"]),
                ),
            )
            + f"\n\n## How to fix it\n\n{prose(message['fix'].replace('(redoc)', '(../reference/http.md)'))}\n"
        )
        if slug in REQUESTS:
            method, path, _ = REQUESTS[slug]
            answer = laid_out(provoke(slug))
            pages[f"errors/{slug}.md"] += f"\nFor example, from `{method} {path}`:\n\n```json\n{answer}\n```\n"
    return pages


def counters(page: str) -> str:
    """What ``/metrics`` counts, from the page itself."""
    kinds = dict(re.findall(r"^# TYPE (\S+) (\w+)", page, re.MULTILINE))
    rows = [
        (f"`{name}`", kinds.get(name, ""), prose(about))
        for name, about in re.findall(r"^# HELP (\S+) (.*)$", page, re.MULTILINE)
        if not name.endswith("_created")
    ]
    head = "# What is counted\n\n`GET /metrics` has it for Prometheus, in its text format.\n\n"
    return head + table(("Name", "Kind", "What it is"), rows) + "\n"


def commands() -> str:
    """The command line, from what it says of itself."""
    lines = ["# Every command", "", "What `--help` says of each; `lossd serve` has an option for each setting.", ""]
    for name, command, context in _commands(cli.main, click.Context(cli.main, info_name="lossd")):
        lines += [f"## `{name}`", "", prose(inspect.cleandoc(command.help or "").replace("\b\n", "")), ""]
        rows = []
        for parameter in command.get_params(context):
            record = parameter.get_help_record(context) if isinstance(parameter, click.Option) else None
            if record and record[0] != "-h, --help":
                rows.append((f"`{record[0]}`", prose(record[1])))
        lines += ["```text", " ".join([name, *command.collect_usage_pieces(context)]), "```", ""]
        lines += [table(("Option", ""), rows), ""] if rows else []
    return "\n".join(lines)


def _commands(group: click.Group, context: click.Context) -> Iterator[tuple[str, click.Command, click.Context]]:
    for name in group.list_commands(context):
        command = group.get_command(context, name)
        assert command is not None
        inner = click.Context(command, parent=context, info_name=name)
        if isinstance(command, click.Group):
            if command.invoke_without_command:  # it does something by itself
                yield inner.command_path, command, inner
            yield from _commands(command, inner)
        else:
            yield inner.command_path, command, inner


def client() -> str:
    """What ``lossd_client`` and ``lossd`` offer to Python."""
    lines = [
        "# Python",
        "",
        "The client, `lossd_client`, needs NumPy and httpx. `lossd` has the same evaluation without a server.",
        "",
    ]
    lines += ["## `lossd`", "", documented(lossd.evaluate, "###", "`lossd.evaluate`")]
    lines += ["## `lossd_client`", ""]
    for name in lossd_client.__all__:
        thing = getattr(lossd_client, name)
        lines.append(documented(thing, "###", f"`{name}`"))
        for attribute, member in inspect.getmembers_static(thing):
            if attribute.startswith("_") or not (inspect.isfunction(member) or isinstance(member, property)):
                continue
            if member.__doc__ and attribute in vars(thing) | _inherited(thing):
                lines.append(documented(member, "####", f"`{name}.{attribute}`"))
    lines += ["## `lossd_client.errors`", "", prose(inspect.getdoc(errors) or ""), ""]
    return "\n".join(lines)


def _inherited(thing: type) -> dict[str, Any]:
    """The attributes of the bases that are ours."""
    ours = [base for base in thing.__mro__ if base.__module__.startswith("lossd")]
    return {name: member for base in ours for name, member in vars(base).items()}
