"""Output that must match: JSON Schema, a regular expression or a Lark grammar, through llguidance.

    compiler = GrammarCompiler(tokenizer, config.vocab_size, tokenizer.stop_ids)
    matcher = compiler.compile(Grammar("json_schema", '{"type": "object"}'))
    bits = fill_masks([matcher], config.vocab_size)   # a bit a token: what may come next
    matcher.accept(token)

Works on bytes, so that a character split over several tokens is followed byte by byte.
"""

from __future__ import annotations

import json
import threading
from collections import OrderedDict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import llguidance
import llguidance.numpy
import numpy as np
from numpy.typing import NDArray

from liuyi.infer.errors import RequestError
from liuyi.infer.request import Grammar

if TYPE_CHECKING:
    from liuyi.model.tokenizer import Tokenizer

LEXER_FUEL = 200_000
"""What the regular expressions of one grammar may cost to build. With five times as much, llguidance's default,
`((((a{100}){100}){100}){100})` holds up a step, and all who wait for it, for seconds."""
ANY_JSON_OBJECT = Grammar("json_schema", '{"type":"object"}')


class Matcher:
    """Where one output stands in its grammar."""

    def __init__(self, state: llguidance.LLMatcher) -> None:
        self.state = state

    def accept(self, token: int) -> None:
        """Go on by one token, which the last mask allowed."""
        self.state.consume_token(token)

    def agrees(self, tokens: Sequence[int]) -> int:
        """How many of these tokens, one after the other, the grammar would let through now; nothing is accepted."""
        return self.state.validate_tokens(list(tokens))

    def forced(self) -> list[int]:
        """Tokens that must come next because nothing else may; often empty."""
        return self.state.compute_ff_tokens()

    @property
    def is_over(self) -> bool:
        """Nothing may follow: the output is whole, or there is a `problem`."""
        return self.state.is_stopped()

    @property
    def problem(self) -> str:
        """Why the grammar cannot be followed any further, such as a limit that it broke; empty while it can."""
        if not self.state.is_error():
            return ""
        return f"the grammar cannot be followed any further: {describe_problem(self.state.get_error())}"


class GrammarCompiler:
    """Compiles grammars for one tokenizer; the last ones used are kept. Safe to use from several threads."""

    def __init__(self, tokenizer: Tokenizer, vocab_size: int, stop_ids: Sequence[int], keep: int = 128) -> None:
        """`vocab_size` is the model's, which may have more ids than the tokenizer."""
        self._tokenizer = llguidance.LLTokenizer(
            tokenizer.backend.to_str(), n_vocab=vocab_size, eos_token=list(stop_ids)
        )
        self._keep = keep
        self._compiled: OrderedDict[Grammar, llguidance.LLMatcher] = OrderedDict()
        self._lock = threading.Lock()

    def compile(self, grammar: Grammar) -> Matcher:
        """A fresh matcher at the beginning of the grammar.

        Raises RequestError, saying what is wrong, if the schema or grammar is not valid or not supported.
        """
        with self._lock:
            compiled = self._compiled.get(grammar)
            if compiled is not None:
                self._compiled.move_to_end(grammar)
        if compiled is None:
            compiled = self._build(grammar)
            with self._lock:
                self._compiled[grammar] = compiled
                while len(self._compiled) > self._keep:
                    self._compiled.popitem(last=False)
        return Matcher(compiled.deep_copy())

    def _build(self, grammar: Grammar) -> llguidance.LLMatcher:
        try:
            if grammar.kind == "json_schema":
                text = llguidance.LLMatcher.grammar_from_json_schema(
                    grammar.text, defaults={"whitespace_flexible": False}
                )
            elif grammar.kind == "regex":
                text = llguidance.LLMatcher.grammar_from_regex(grammar.text)
            else:
                text = llguidance.LLMatcher.grammar_from_lark(grammar.text)
            matcher = llguidance.LLMatcher(self._tokenizer, text, log_level=0, limits=_limits())
            problem = matcher.get_error()
        except ValueError as error:
            problem = str(error)
        if problem:
            kind = {"json_schema": "JSON schema", "regex": "regular expression", "lark": "grammar"}[grammar.kind]
            raise RequestError(
                f"invalid or unsupported {kind}: {describe_problem(problem)}",
                param=grammar.param,
                code="invalid_json_schema" if grammar.kind == "json_schema" else "invalid_grammar",
            )
        return matcher


@dataclass(frozen=True)
class ControlTokens:
    """Tokens that no text in a grammar stands for: a grammar has to name them by their ids."""

    ids: Mapping[str, int]
    spoken: frozenset[str]
    """Those that are text to everybody else, such as the `<think>` of some models."""

    @classmethod
    def of(cls, tokenizer: Tokenizer) -> ControlTokens:
        """Special tokens, and added ones that look like tags: so llguidance tells them."""
        added = {token.content: int(id) for id, token in tokenizer.backend.get_added_tokens_decoder().items()}
        special = tokenizer.special_tokens
        tags = {name for name in added if name.startswith("<") and name.endswith(">")}
        ids = {name: id for name, id in added.items() if name in special or name in tags}
        return cls(ids, frozenset(tags.difference(special)))


def schema_grammar(schema: Mapping[str, Any], param: str = "response_format") -> Grammar:
    """The grammar of a JSON Schema; properties are generated in the order in which the schema names them."""
    return Grammar("json_schema", json.dumps(schema, ensure_ascii=False, separators=(",", ":")), param)


def fill_masks(matchers: Sequence[Matcher], vocab_size: int) -> NDArray[np.int32]:
    """What may come next: [rows, ceil(vocab_size / 32)] int32, bit t of a row set if token t is allowed."""
    bits = llguidance.numpy.allocate_token_bitmask(len(matchers), vocab_size)
    for row, matcher in enumerate(matchers):
        llguidance.numpy.fill_next_token_bitmask(matcher.state, bits, row)
    return bits


def _limits() -> llguidance.LLParserLimits:
    return llguidance.LLParserLimits(initial_lexer_fuel=LEXER_FUEL, verbose_errors=False)


def describe_problem(problem: str) -> str:
    """What llguidance says is wrong, in one line."""
    return " ".join(problem.partition("<state>")[0].removesuffix("<non-verbose/>").split())[:300]
