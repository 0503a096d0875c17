"""A page for every loss and every metric task, from the registries; the examples' answers are the service's."""

from __future__ import annotations

import inspect
import json
import re
from collections.abc import Callable, Collection, Mapping
from typing import Any

from docs import examples
from docs.markdown import formula, prose, sections, table
from lossd import metrics
from lossd.api.catalogue import describe_loss_in_full
from lossd.losses import REGISTRY
from lossd.losses.registry import Loss
from lossd.request.options import MetricOptions

Ask = Callable[[Mapping[str, Any]], Any]
"""Posts a request to ``/v1/evaluate`` and returns the answer."""

KINDS = {
    "rows": "Requests are concatenated: every row is on its own.",
    "stack": "Requests of one shape are stacked: the samples of a request interact.",
    "alone": "Requests are evaluated one at a time.",
    "composed": "Its terms are evaluated with it, as one request.",
}


def pages(ask: Ask, drawn: Collection[str]) -> dict[str, str]:
    """Markdown by path; ``drawn`` names the losses that have a picture."""
    written = {f"losses/{loss.name}.md": _loss(loss, ask, loss.name in drawn) for loss in REGISTRY.values()}
    return written | {f"metrics/{task}.md": _task(task, ask) for task in metrics.TASKS}


def _task_page(loss: Loss) -> str:
    return f"../metrics/{loss.task}.md"


def _loss(loss: Loss, ask: Ask, drawn: bool) -> str:
    described, parts = describe_loss_in_full(loss), sections(loss.documentation)
    intro = prose(parts[""].removeprefix(loss.summary))
    lines = [f"# `{loss.name}`", "", prose(loss.summary), "", intro, ""]
    if loss.task in metrics.TASKS:
        lines += [f"Metrics of the task [{loss.task}]({_task_page(loss)}) come with it. {KINDS[loss.kind]}", ""]
    else:
        lines += [KINDS[loss.kind], ""]
    lines += [f"![How `{loss.name}` and its gradient run]({loss.name}.svg)", ""] if drawn else []
    lines += _guide(described["guide"])
    rows = [_input(entry) for entry in described["inputs"]]
    if described["named_by_parameters"] is not None:
        rows.append(["any name", *_types([described["named_by_parameters"]]), "yes", "As the parameters name them."])
    if described["inputs_of_terms"]:
        rows.append(["those of the terms", "", "", "yes", "Under the names that the terms' inputs give them."])
    lines += ["## Inputs", "", table(("Name", "Entries", "Shape", "Gradient", ""), rows), ""]
    rows = [_parameter(name, schema) for name, schema in described["parameters"].items()]
    lines += ["## Parameters", "", table(("Name", "Value", "Default", ""), rows), ""]
    lines += ["## Value and gradient", "", prose(parts.get("Returns", "")), "", prose(parts.get("Gradient", "")), ""]
    if (request := examples.request(loss.name, loss.task)) is not None:
        lines += ["## Example", "", *_exchange(request, ask)]
    else:
        lines += ["## Example", "", "Too large for a page: it takes pictures, and a network's weights."]
    if loss.references:
        lines += ["", "## References", "", *(f"- {reference}" for reference in loss.references)]
    return "\n".join(lines) + "\n"


def _guide(guide: Mapping[str, Any]) -> list[str]:
    lines = ["## Guide", "", guide["idea"], ""]
    headings = ("When to use it", "use"), ("When not to", "avoid"), ("The common mistake", "mistake")
    for heading, name in headings:
        lines += [f"**{heading}:** {guide[name]}", ""]
    rows = [[formula(_symbol(symbol), "inline"), text] for symbol, text in guide["symbols"].items()]
    return [*lines, "## Symbols", "", table(("Symbol", "Meaning"), rows), ""]


def _symbol(symbol: str) -> str:
    """A symbol in LaTeX: words upright, and what follows the underscore below."""
    letters, below, index = symbol.partition("_")
    shown = rf"\text{{{letters}}}" if len(letters.rstrip("'")) > 1 else letters
    return shown + (rf"_\text{{{index}}}" if len(index) > 2 else f"_{{{index}}}" if below else "")


def _input(entry: Mapping[str, Any]) -> list[str]:
    name = f"`{entry['name']}`" + (" (optional)" if entry["optional"] else "")
    return [name, *_types(entry["types"]), "yes" if entry["differentiable"] else "", prose(entry["summary"])]


def _types(types: list[Mapping[str, Any]]) -> tuple[str, str]:
    entries = [f"{type_['domain'].replace('_', ' ')}, {' or '.join(type_['dtypes'])}" for type_ in types]
    return " or ".join(dict.fromkeys(entries)), " or ".join(dict.fromkeys(f"`{type_['shape']}`" for type_ in types))


def _parameter(name: str, schema: Mapping[str, Any]) -> list[str]:
    default = f"`{json.dumps(schema['default'])}`" if "default" in schema else "required"
    return [f"`{name}`", value(schema), default, prose(schema.get("description", ""))]


def value(schema: Mapping[str, Any]) -> str:
    """What a JSON Schema lets through, in words."""
    for key in ("anyOf", "oneOf"):
        if key in schema and len(schema[key]) < 8:
            return " or ".join(dict.fromkeys(value(arm) for arm in schema[key]))
    if "enum" in schema:
        return ", ".join(f"`{json.dumps(choice)}`" for choice in schema["enum"])
    if "const" in schema:
        return f"`{json.dumps(schema['const'])}`"
    if "$ref" in schema:
        return f"[{schema['$ref'].rpartition('/')[2].rstrip('_')}]"
    kind = schema.get("type", "any")
    signs = {"minimum": "≥", "exclusiveMinimum": ">", "maximum": "≤", "exclusiveMaximum": "<"}
    bounds = " and ".join(f"{sign} {schema[key]:g}" for key, sign in signs.items() if key in schema)
    if kind == "array" and "items" in schema:
        return "list of " + re.sub(r"^(number|integer|string|object)\b", r"\1s", value(schema["items"]))
    return f"{kind} {bounds}".strip()


def _task(task: str, ask: Ask) -> str:
    parts = sections(inspect.getdoc(metrics.TASKS[task]) or "")
    losses = [loss.name for loss in REGISTRY.values() if loss.task == task]
    lines = [f"# {task}", "", prose(parts[""]), ""]
    if losses:
        lines += ["The task of " + ", ".join(f"[`{name}`](../losses/{name}.md)" for name in losses) + ".", ""]
    rows = [_input(_described_input(entry)) for entry in metrics.TASKS[task].inputs({"from_logits": True})]
    lines += [
        "## Inputs of metrics without a loss",
        "",
        table(("Name", "Entries", "Shape", "Gradient", ""), rows),
        "",
    ]
    described = metrics.describe(task)
    lines += ["## Metrics", ""]
    lines.append(
        table(
            ("Metric", "By default", "Options", "What it is"),
            (
                (
                    f"`{m['name']}`",
                    "yes" if m["default"] else "",
                    ", ".join(f"`{o}`" for o in m["options"]),
                    prose(m["documentation"]),
                )
                for m in described
            ),
        )
    )
    used = {option for m in described for option in m["options"]}
    fields = MetricOptions.model_json_schema()["properties"]
    rows = [_parameter(name, schema) for name, schema in fields.items() if name in used]
    lines += ["", "## Options", "", table(("Name", "Value", "Default", ""), rows), ""]
    request = {"task": task, "inputs": dict(examples.BY_TASK[task])}
    return "\n".join([*lines, "## Example", "", *_exchange(request, ask)]) + "\n"


def _described_input(entry: Any) -> dict[str, Any]:
    types = [{"domain": type_.domain, "dtypes": list(type_.kinds), "shape": str(type_)} for type_ in entry.types]
    return {
        "name": entry.name,
        "types": types,
        "summary": entry.summary,
        "optional": entry.optional,
        "differentiable": False,
    }


def _exchange(request: Mapping[str, Any], ask: Ask) -> list[str]:
    question, answer = laid_out(request), laid_out(ask(request))
    return ["`POST /v1/evaluate` with", "", "```json", question, "```", "", "is answered", "", "```json", answer, "```"]


def laid_out(document: Any, depth: int = 0, before: int = 0) -> str:
    """JSON, with what fits into a line in one line; ``before`` it stand so many characters."""
    short = json.dumps(document, ensure_ascii=False)
    if not isinstance(document, (dict, list)) or not document or len(short) + before < 100:
        return short
    margin = "  " * (depth + 1)
    if isinstance(document, dict):
        keys = [f"{json.dumps(name)}: " for name in document]
        items = [
            key + laid_out(v, depth + 1, len(margin + key)) for key, v in zip(keys, document.values(), strict=True)
        ]
    else:
        items = [laid_out(v, depth + 1, len(margin)) for v in document]
    begin, end = "{}" if isinstance(document, dict) else "[]"
    return f"{begin}\n" + ",\n".join(margin + item for item in items) + f"\n{'  ' * depth}{end}"
