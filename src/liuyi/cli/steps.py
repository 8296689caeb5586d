"""`liuyi steps`: what a recipe can be made of."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from inspect import get_annotations
from typing import TYPE_CHECKING, Any

import click

from liuyi.cli.common import console, print_json, table

if TYPE_CHECKING:
    from liuyi.core.step import Params, Step

LIMITS = {
    "minimum": "≥ {}",
    "exclusiveMinimum": "> {}",
    "maximum": "≤ {}",
    "exclusiveMaximum": "< {}",
    "pattern": "like {}",
    "minLength": "at least {} characters",
    "minItems": "at least {}",
    "maxItems": "at most {}",
}


@click.command()
@click.argument("name", required=False)
@click.option("--json", "as_json", is_flag=True, help="Print JSON.")
def command(name: str | None, as_json: bool) -> None:
    """List the steps, or show the step NAME with its inputs, outputs and parameters."""
    from liuyi.core.step import all_steps, get_step

    steps = all_steps().values() if name is None else [get_step(name)]
    if as_json:
        described = [_as_json(step) for step in steps]
        print_json(described if name is None else described[0])
    elif name is None:
        listing = table("step", "takes", "gives", "what it does")
        for step in steps:
            takes = ", ".join(f"{port}?" if spec.optional else port for port, spec in step.inputs.items())
            listing.add_row(step.name, takes, ", ".join(step.outputs), _first_line(step))
        console().print(listing)
    else:
        _show(*steps)


def _first_line(step: Step) -> str:
    return step.doc.partition("\n")[0]


def _as_json(step: Step) -> dict[str, Any]:
    from liuyi.core.recipe import step_schema

    return {
        "step": step.name,
        "version": step.version,
        "description": step.doc,
        "inputs": {
            name: {"kinds": port.kinds, "optional": port.optional, "many": port.many, "description": port.doc}
            for name, port in step.inputs.items()
        },
        "outputs": {name: {"kind": port.kind, "description": port.doc} for name, port in step.outputs.items()},
        "schema": step_schema(step),
    }


def _show(step: Step) -> None:
    from rich.text import Text

    out = console()
    out.print(Text.assemble((step.name, "bold"), (f"  version {step.version}", "dim")))
    out.print(Text(step.doc))
    if step.inputs:
        ports = table("input", "kind", "")
        for name, port in step.inputs.items():
            extra = ", ".join(word for word, holds in (("optional", port.optional), ("several", port.many)) if holds)
            ports.add_row(name, " or ".join(port.kinds), Text(" · ".join(filter(None, [extra, port.doc]))))
        out.print("")
        out.print(ports)
    outputs = table("output", "kind", "")
    for name, made in step.outputs.items():
        outputs.add_row(name, made.kind, Text(made.doc))
    out.print("")
    out.print(outputs)
    schema = step.params.model_json_schema()
    schema["properties"] = {name: schema["properties"][name] for name in _own_first(step.params)}
    rows = list(_parameters(schema, schema.get("$defs", {})))
    if rows:
        params = table("parameter", "type", "default", "")
        for row in rows:
            params.add_row(*(Text(cell) for cell in row))
        out.print("")
        out.print(params)


def _own_first(params: type[Params]) -> list[str]:
    """The fields, those of the step itself before those that it shares with others."""
    named = (name for each in params.__mro__ for name in get_annotations(each))
    return [name for name in dict.fromkeys(named) if name in params.model_fields]


def _parameters(
    schema: Mapping[str, Any], definitions: Mapping[str, Any], prefix: str = ""
) -> Iterator[tuple[str, str, str, str]]:
    """Name, type, default and description of every parameter; those of nested models follow it, indented."""
    required = schema.get("required", [])
    for name, field in schema.get("properties", {}).items():
        nested = definitions.get(field.get("$ref", "").rpartition("/")[2])
        default = "required" if name in required else "" if nested else _value_text(field.get("default"))
        kind = "fields:" if nested and "properties" in nested else _type_text(field, definitions)
        yield f"{prefix}{name}", kind, default, field.get("description", "")
        if nested and "properties" in nested:
            yield from _parameters(nested, definitions, prefix + "  ")


def _value_text(value: Any) -> str:
    if value is None:
        return "none"
    if isinstance(value, bool):
        return str(value).lower()
    return str(value)


def _type_text(field: Mapping[str, Any], definitions: Mapping[str, Any]) -> str:
    """A JSON Schema said in a few words: `integer ≥ 1`, `'wsd' or 'cosine'`, `list of number`."""
    if "$ref" in field:
        return _type_text(definitions[field["$ref"].rpartition("/")[2]], definitions)
    if "enum" in field or "const" in field:
        return " or ".join(repr(value) for value in field.get("enum", [field.get("const")]))
    if "anyOf" in field or "oneOf" in field:
        kinds = [_type_text(each, definitions) for each in field.get("anyOf", field.get("oneOf", []))]
        return " or ".join(dict.fromkeys("none" if kind == "null" else kind for kind in kinds))
    kind = str(field.get("type", "anything"))
    if kind == "array":
        items = field.get("items") or {"type": "anything"}
        kind = f"list of {_type_text(items, definitions)}"
    elif kind == "object" and "properties" in field:
        kind = "{" + ", ".join(field["properties"]) + "}"
    elif kind == "string":
        kind = {"path": "path"}.get(field.get("format", ""), "text")
    limits = [form.format(field[key]) for key, form in LIMITS.items() if key in field]
    return " ".join([kind, ", ".join(limits)]).strip()
