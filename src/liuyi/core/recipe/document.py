"""YAML read safely, with the line of every value, and with the overrides of the command line laid over it.

Scalars follow YAML 1.2's core schema: `no` and `on` are words, `1e-3` is a number, `12:30` and dates are text.
"""

from __future__ import annotations

import re
from dataclasses import dataclass, field
from itertools import pairwise
from typing import Any

import yaml

from liuyi.core.errors import RecipeError, did_you_mean

Keys = tuple[str | int, ...]
"""Where a value stands: the keys and list positions from the top of the document."""

MAX_DEPTH = 50
MAX_VALUES = 100_000
QUOTE_HINT = 'inside [ ] and { } put "${step.output}" in quotes, or write a list with one dash a line'


class InvalidRecipe(RecipeError):
    """Everything that is wrong with a recipe, one RecipeError for each mistake."""

    def __init__(self, problems: list[RecipeError]) -> None:
        super().__init__("\n".join(str(problem) for problem in problems))
        self.problems = tuple(problems)


class _CoreLoader(yaml.SafeLoader):
    """SafeLoader whose plain scalars are those of YAML 1.2's core schema."""

    yaml_implicit_resolvers: dict[str, list[tuple[str, re.Pattern[str]]]] = {}  # noqa: RUF012 (PyYAML's own class state)


for _tag, _pattern, _first in (
    ("null", r"~|null|Null|NULL|", ["~", "n", "N", ""]),
    ("bool", r"true|True|TRUE|false|False|FALSE", list("tTfF")),
    ("int", r"[-+]?[0-9][0-9_]*|0o[0-7]+|0x[0-9a-fA-F]+", list("-+0123456789")),
    ("float", r"[-+]?(\.[0-9]+|[0-9][0-9_]*(\.[0-9_]*)?)([eE][-+]?[0-9]+)?", list("-+.0123456789")),
    ("float", r"[-+]?\.(inf|Inf|INF)|\.(nan|NaN|NAN)", list("-+.")),
    ("merge", r"<<", ["<"]),
):
    _CoreLoader.add_implicit_resolver(f"tag:yaml.org,2002:{_tag}", re.compile(f"^(?:{_pattern})$"), _first)


def _scalar(tag: str, text: str) -> Any:
    """The value of a scalar; ValueError for a tag that a recipe has no use for."""
    match tag.removeprefix("tag:yaml.org,2002:"):
        case "str" | "merge":
            return text
        case "null":
            return None
        case "bool":
            return text.lower() == "true"
        case "int":
            return int(text.replace("_", ""), 0) if text[:2] in ("0x", "0o") else int(text.replace("_", ""))
        case "float":
            plain = text.lower().replace("_", "")
            return float(plain.replace(".", "") if plain.endswith(("inf", "nan")) else plain)
    raise ValueError(f"the tag '{tag}' has no meaning here")


@dataclass
class Document:
    """Plain values, where each of them stands, and what is wrong so far."""

    source: str
    """The file's name, as messages give it."""
    data: Any = None
    places: dict[Keys, str] = field(default_factory=dict)
    problems: list[RecipeError] = field(default_factory=list)

    def where(self, path: Keys) -> str:
        """`recipe.yaml:12: steps.sft.epochs`: the place of the value, or of what should hold it."""
        found = next((path[:end] for end in range(len(path), -1, -1) if path[:end] in self.places), None)
        place = self.source if found is None else self.places[found]
        if not path or (found == path and place.startswith("--")):
            return place
        return f"{place}: {'.'.join(map(str, path))}"

    def problem(self, path: Keys, message: str, hint: str = "") -> None:
        """Note one mistake."""
        self.problems.append(RecipeError(message, where=self.where(path), hint=hint))

    def raise_problems(self) -> None:
        """Raises InvalidRecipe if anything is wrong: the overrides' mistakes first, then the file's by line."""
        if self.problems:
            raise InvalidRecipe(sorted(self.problems, key=self._line))

    def _line(self, problem: RecipeError) -> int:
        match = re.match(rf"{re.escape(self.source)}:(\d+)", problem.where)
        return int(match[1]) if match else 0


def read_document(text: str, source: str) -> Document:
    """Read YAML. Raises InvalidRecipe where it cannot be read at all; smaller mistakes are noted in the document."""
    document = Document(source)
    try:
        node = yaml.compose(text, Loader=_CoreLoader)
    except yaml.MarkedYAMLError as error:
        mark = error.problem_mark or error.context_mark
        place = f"{source}:{mark.line + 1}" if mark else source
        message = " ".join(part for part in (error.context, error.problem) if part)
        line = "".join(text.splitlines()[mark.line : mark.line + 1]) if mark else ""
        hint = QUOTE_HINT if "${" in line else ""
        raise InvalidRecipe([RecipeError(f"this is not YAML: {message}", where=place, hint=hint)]) from None
    except (yaml.YAMLError, RecursionError) as error:
        message = " ".join(str(error).split())
        raise InvalidRecipe([RecipeError(f"this is not YAML: {message}", where=source)]) from None
    if node is None:
        raise InvalidRecipe([RecipeError("the recipe is empty", where=source)])
    document.data = _Reader(document).read(node, ())
    return document


@dataclass
class _Reader:
    """Turns nodes into plain values and remembers their lines."""

    document: Document
    values: int = 0

    def read(self, node: yaml.Node, path: Keys) -> Any:
        self.values += 1
        self.document.places.setdefault(path, f"{self.document.source}:{node.start_mark.line + 1}")
        if len(path) > MAX_DEPTH or self.values > MAX_VALUES:
            self.document.problem(path[:3], "this is nested too deeply, or its aliases have no end")
            raise InvalidRecipe(self.document.problems)
        if isinstance(node, yaml.MappingNode):
            return self.mapping(node, path)
        if isinstance(node, yaml.SequenceNode):
            return [self.read(item, (*path, position)) for position, item in enumerate(node.value)]
        try:
            return _scalar(node.tag, node.value)
        except ValueError as error:
            self.document.problem(path, str(error))
            return None

    def mapping(self, node: yaml.MappingNode, path: Keys) -> dict[str, Any]:
        merged: dict[str, Any] = {}
        own: dict[str, Any] = {}
        lines: dict[str, int] = {}
        for key_node, value_node in node.value:
            line = key_node.start_mark.line + 1
            if key_node.tag == "tag:yaml.org,2002:merge":
                parts = value_node.value if isinstance(value_node, yaml.SequenceNode) else [value_node]
                for part in reversed(parts):
                    merged.update(self.read(part, path) if isinstance(part, yaml.MappingNode) else {})
                continue
            if not isinstance(key_node, yaml.ScalarNode):
                self.document.problem(path, "a key must be a word")
                continue
            key = key_node.value
            if key in lines:
                place = f"{self.document.source}:{line}: {'.'.join(map(str, (*path, key)))}"
                message = f"this is said twice, first in line {lines[key]}"
                self.document.problems.append(RecipeError(message, where=place))
                continue
            lines[key] = line
            self.document.places[(*path, key)] = f"{self.document.source}:{line}"
            own[key] = self.read(value_node, (*path, key))
        return merged | own


def override(document: Document, text: str) -> None:
    """Lay `seed=2` or `step.field=value` over the document; the value is read as YAML. Mistakes are noted in it."""
    option = f"--set {text}"
    name, equals, value_text = text.partition("=")
    keys: list[str | int] = [int(key) if key.isdecimal() else key for key in name.strip().split(".")]

    def wrong(message: str, hint: str = "") -> None:
        document.problems.append(RecipeError(message, where=option, hint=hint))

    if not equals or "" in keys:
        return wrong("an override is written name=value", "for example --set seed=2 or --set sft.epochs=3")
    steps = document.data.get("steps") if isinstance(document.data, dict) else None
    if len(keys) == 1 and keys[0] != "seed":
        return wrong(f"'{keys[0]}' cannot be set", "name a step and its field: --set STEP.FIELD=VALUE, or --set seed=N")
    if len(keys) > 1 and isinstance(steps, dict) and keys[0] not in steps:
        return wrong(f"the recipe has no step '{keys[0]}'", did_you_mean(str(keys[0]), map(str, steps)))
    try:
        value = read_document(value_text, option).data if value_text.strip() else None
    except InvalidRecipe as error:
        return wrong(error.problems[0].message)
    path: Keys = ("steps", *keys) if len(keys) > 1 else tuple(keys)
    if not _put(document.data, path, value):
        return wrong("there is no such place in the recipe")
    for known in [known for known in document.places if known[: len(path)] == path]:
        del document.places[known]
    document.places[path] = option
    return None


def _put(data: Any, path: Keys, value: Any) -> bool:
    """Set the value at `path`, making mappings on the way; False where something else stands in the way."""
    for key, following in pairwise(path):
        if isinstance(data, list) and isinstance(key, int) and key < len(data):
            data = data[key]
        elif isinstance(data, dict) and isinstance(following, str):
            data = data.setdefault(str(key), {})
        elif isinstance(data, dict):
            data = data.get(str(key))
        else:
            return False
    if isinstance(data, list) and isinstance(path[-1], int) and path[-1] < len(data):
        data[path[-1]] = value
    elif isinstance(data, dict):
        data[str(path[-1])] = value
    else:
        return False
    return True
