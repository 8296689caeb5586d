"""How a format writes calls, so that a grammar can make a model write them so."""

from __future__ import annotations

import json
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass


@dataclass(frozen=True)
class Shape:
    """Calls are `tag`, `before`, an object, `after`; a further call is the same again, or only another object.

    An object is `head`, in which NAME stands for the function, the arguments, and `tail`. Names of control tokens
    in these strings are those tokens, where the tokenizer has them.
    """

    tag: str = ""
    """What no text beside calls contains; empty where a call is the whole answer."""
    prelude: str = ""
    """A control token that may stand before calls without a tag."""
    before: str = ""
    after: str = ""
    each: bool = False
    """Every call has tag, before and after of its own."""
    between: str = ""
    """What stands between calls."""
    head: str = '{"name": "NAME", "arguments": '
    tail: str = "}"

    def calls(self, names: Sequence[str], control: Mapping[str, int], *, parallel: bool) -> list[str]:
        """Lark rules for `calls`, which may follow on the tag; rule `arguments_N` is for others to write."""
        before, after = lark_text(self.before, control), lark_text(self.after, control)
        between, tag = lark_text(self.between, control), lark_text(self.tag, control)
        again = f"({between} {tag} wrapped)*" if self.each else f"({between} call)*"
        rules = [
            f"calls: wrapped {again if parallel and self.each else ''}",
            f"wrapped: {before} call {again if parallel and not self.each else ''} {after}",
            "call: " + " | ".join(f"call_{number}" for number in range(len(names))),
        ]
        for number, name in enumerate(names):
            head, tail = (lark_text(part.replace("NAME", name), control) for part in (self.head, self.tail))
            rules.append(f"call_{number}: {head} arguments_{number} {tail}")
        return rules


def lark_text(text: str, control: Mapping[str, int]) -> str:
    """A text as Lark: literals, and the control tokens that are named in it by their ids."""
    if not text:
        return ""
    names = "|".join(map(re.escape, sorted(control, key=len, reverse=True)))
    parts = re.split(f"({names})", text) if names else [text]
    return " ".join(f"<[{control[part]}]>" if part in control else json.dumps(part) for part in parts if part)
