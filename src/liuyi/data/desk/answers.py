"""The desk's answer: compact JSON with sorted keys, and the JSON Schema that every right answer meets."""

from __future__ import annotations

import json
from collections import defaultdict
from collections.abc import Iterable, Mapping
from typing import Any

from liuyi.core.digest import canonical_json
from liuyi.data.desk.facility import Facility
from liuyi.data.desk.templates import HERE, Grammar

HAND_OFF = "HandOff"
"""The intent of a request that the desk does not serve: a person takes it."""
_FREE_TEXT_CHARS = 80


def answer(intent: str, slots: Mapping[str, Any]) -> str:
    """`{"intent":…,"slots":{…}}` with sorted keys and no spaces; whole numbers are written as integers."""
    return canonical_json({"intent": intent, "slots": {key: _plain(value) for key, value in slots.items()}})


def hand_off() -> str:
    """The answer to a request outside the task."""
    return answer(HAND_OFF, {})


def parse_answer(text: str) -> tuple[str, dict[str, Any]] | None:
    """Intent and slots of an answer; None if `text` is not an answer's JSON."""
    try:
        value = json.loads(text)
    except (ValueError, RecursionError):
        return None
    if not isinstance(value, dict) or set(value) != {"intent", "slots"}:
        return None
    if not isinstance(value["intent"], str) or not isinstance(value["slots"], dict):
        return None
    return value["intent"], value["slots"]


def _plain(value: Any) -> Any:
    if isinstance(value, float) and value.is_integer():
        return int(value)
    return value.strip() if isinstance(value, str) else value


def answer_schema(grammars: Iterable[Grammar], facility: Facility) -> dict[str, Any]:
    """JSON Schema (draft 2020-12) of one answer: one alternative for each intent.

    Slot values are enumerations where the facility or a word list knows them, numbers within the range that may be
    said, and short strings for free text. A slot that every template of an intent fills is required.
    """
    from hassil.parse_expression import parse_sentence

    values: dict[str, dict[str, list[dict[str, Any]]]] = defaultdict(lambda: defaultdict(list))
    always: dict[str, set[str]] = {}
    for grammar in grammars:
        rules = {name: parse_sentence(body) for name, body in grammar.rules.items()}
        for template in grammar.templates:
            slots: dict[str, dict[str, Any]] = {}
            for reference in parse_sentence(template.text).expression.list_references(rules):  # type: ignore[attr-defined]
                name = reference.list_name
                slots[reference.slot_name] = (
                    {"enum": sorted(_named(facility, template.domains))}
                    if name == "name"
                    else _list_values(grammar.lists[name])
                )
            slots |= {slot: {"enum": [value]} for slot, value in template.slots.items()}
            for slot, schema in slots.items():
                if schema not in values[template.intent][slot]:
                    values[template.intent][slot].append(schema)
            always[template.intent] = always.get(template.intent, set(slots)) & set(slots)
    alternatives = [
        _object(intent, {slot: _union(found) for slot, found in sorted(slots.items())}, sorted(always[intent]))
        for intent, slots in sorted({intent: values[intent] for intent in always}.items())
    ]
    alternatives.insert(0, _object(HAND_OFF, {}, []))
    return {
        "$schema": "https://json-schema.org/draft/2020-12/schema",
        "title": f"Answer of the desk of {facility.name}",
        "description": f"Ids are those of the facility; the area '{HERE}' is the room where the request was made.",
        "anyOf": sorted(alternatives, key=lambda item: item["properties"]["intent"]["const"]),
    }


def _named(facility: Facility, domains: tuple[str, ...]) -> list[str]:
    return [key for key, device in facility.devices.items() if not domains or device.domain in domains]


def _object(intent: str, slots: dict[str, Any], required: list[str]) -> dict[str, Any]:
    inner: dict[str, Any] = {"type": "object", "properties": slots, "required": required, "additionalProperties": False}
    return {
        "type": "object",
        "properties": {"intent": {"const": intent}, "slots": inner},
        "required": ["intent", "slots"],
        "additionalProperties": False,
    }


def _list_values(slot_list: Mapping[str, Any]) -> dict[str, Any]:
    if "values" in slot_list:
        found = [_plain(v["out"] if isinstance(v, dict) else v) for v in slot_list["values"]]
        return {"enum": sorted(set(found), key=str)}
    if "range" in slot_list:
        bounds = slot_list["range"]
        low, high = sorted(bound * bounds.get("multiplier", 1) for bound in (bounds["from"], bounds["to"]))
        step = 0.5 if bounds.get("fractions") == "halves" else bounds.get("step", 1)
        kind = "number" if step != int(step) else "integer"
        return {"type": kind, "minimum": low, "maximum": high + (0.5 if kind == "number" else 0)} | (
            {} if step == 1 else {"multipleOf": step}
        )
    return {"type": "string", "minLength": 1, "maxLength": _FREE_TEXT_CHARS}


def _union(schemas: list[dict[str, Any]]) -> dict[str, Any]:
    """One schema for what several templates allow: enumerations merged, ranges joined, the rest side by side."""
    enumerated = sorted({value for schema in schemas for value in schema.get("enum", ())}, key=str)
    others = [schema for schema in schemas if "enum" not in schema]
    numeric = [schema for schema in others if schema["type"] in ("integer", "number")]
    merged: list[dict[str, Any]] = [{"enum": enumerated}] if enumerated else []
    if numeric:
        first = numeric[0]
        merged.append(
            first | {"minimum": min(s["minimum"] for s in numeric), "maximum": max(s["maximum"] for s in numeric)}
        )
    texts = [schema for schema in others if schema["type"] == "string"]
    merged += texts[:1]
    return merged[0] if len(merged) == 1 else {"anyOf": merged}
