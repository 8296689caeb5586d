"""Grammars allow exactly what matches, on a vocabulary whose tokens split characters."""

from __future__ import annotations

import json
import re

import numpy as np
import pytest

from liuyi.infer.errors import RequestError
from liuyi.infer.grammar import GrammarCompiler, Matcher, fill_masks, schema_grammar
from liuyi.infer.request import Grammar
from liuyi.infer.sampling import unpack_mask
from liuyi.model.tokenizer import Tokenizer

DESK = {
    "type": "object",
    "properties": {
        "intent": {"enum": ["HassTurnOn", "HassTurnOff", "开灯"]},
        "slots": {
            "type": "object",
            "properties": {"area": {"type": "string", "maxLength": 8}, "level": {"type": "integer"}},
            "additionalProperties": False,
        },
    },
    "required": ["intent", "slots"],
    "additionalProperties": False,
}


@pytest.fixture(scope="module")
def compiler(tokenizer: Tokenizer) -> GrammarCompiler:
    return GrammarCompiler(tokenizer, tokenizer.vocab_size, tokenizer.stop_ids)


def allowed(matcher: Matcher, vocab_size: int) -> set[int]:
    mask = unpack_mask(fill_masks([matcher], vocab_size), vocab_size)[0]
    return set(mask.nonzero().flatten().tolist())


def may_end(matcher: Matcher, tokenizer: Tokenizer) -> bool:
    """Whether the grammar lets the output end where it is."""
    return matcher.is_over or not allowed(matcher, tokenizer.vocab_size).isdisjoint(tokenizer.stop_ids)


def follows(matcher: Matcher, tokenizer: Tokenizer, text: str) -> bool:
    """Whether the grammar lets the text through, token by token, and may end after it."""
    for token in tokenizer.encode(text):
        if token not in allowed(matcher, tokenizer.vocab_size):
            return False
        matcher.accept(token)
    return may_end(matcher, tokenizer)


@pytest.mark.parametrize(
    ("value", "fits"),
    [
        ({"intent": "HassTurnOn", "slots": {}}, True),
        ({"intent": "开灯", "slots": {"area": "厨房😀"}}, True),
        ({"intent": "HassTurnOn", "slots": {"area": "kitchen", "level": -3}}, True),
        ({"intent": "HassNothing", "slots": {}}, False),
        ({"intent": "HassTurnOn"}, False),
        ({"intent": "HassTurnOn", "slots": {"area": "far too long"}}, False),
        ({"intent": "HassTurnOn", "slots": {"level": "three"}}, False),
        ({"intent": "HassTurnOn", "slots": {}, "more": 1}, False),
    ],
)
def test_a_schema_lets_through_what_satisfies_it(
    compiler: GrammarCompiler, tokenizer: Tokenizer, value: object, fits: bool
) -> None:
    text = json.dumps(value, ensure_ascii=False, separators=(",", ":"))
    assert follows(compiler.compile(schema_grammar(DESK)), tokenizer, text) == fits


def test_json_is_compact_unless_the_schema_says_otherwise(compiler: GrammarCompiler, tokenizer: Tokenizer) -> None:
    spaced = '{ "a": 1 }'
    schema = {"type": "object", "properties": {"a": {"const": 1}}, "additionalProperties": False}
    assert not follows(compiler.compile(schema_grammar(schema)), tokenizer, spaced)
    flexible = schema | {"x-guidance": {"whitespace_flexible": True}}
    assert follows(compiler.compile(schema_grammar(flexible)), tokenizer, spaced)


def test_a_complete_answer_is_over_and_only_ends_are_allowed(compiler: GrammarCompiler, tokenizer: Tokenizer) -> None:
    matcher = compiler.compile(schema_grammar({"const": "厨房"}))
    for token in tokenizer.encode('"厨房"'):
        assert not matcher.is_over
        matcher.accept(token)
    assert matcher.is_over
    assert not matcher.problem
    assert allowed(matcher, tokenizer.vocab_size) == set(tokenizer.stop_ids)


def test_random_walks_through_the_mask_give_valid_json(compiler: GrammarCompiler, tokenizer: Tokenizer) -> None:
    rng = np.random.default_rng(0)
    for _ in range(30):
        matcher = compiler.compile(schema_grammar(DESK))
        written = b""
        while not matcher.is_over:
            token = int(rng.choice(sorted(allowed(matcher, tokenizer.vocab_size) - set(tokenizer.stop_ids))))
            matcher.accept(token)
            written += tokenizer.token_bytes(token)
            if len(written) > 400:
                break
        else:
            answer = json.loads(written.decode())
            assert answer["intent"] in DESK["properties"]["intent"]["enum"]  # type: ignore[index]
            assert set(answer["slots"]) <= {"area", "level"}


def test_forced_tokens_are_those_that_the_mask_leaves_no_choice_about(
    compiler: GrammarCompiler, tokenizer: Tokenizer
) -> None:
    matcher = compiler.compile(schema_grammar(DESK))
    forced = matcher.forced()
    assert b"".join(map(tokenizer.token_bytes, forced)).startswith(b'{"inten')
    for token in forced:
        assert allowed(matcher, tokenizer.vocab_size) == {token}
        matcher.accept(token)


@pytest.mark.parametrize(
    ("kind", "text", "good", "bad"),
    [
        ("regex", "(ab|厨)+c", ["abc", "厨ab厨c"], ["c", "ab"]),
        ("lark", 'start: "a" NUMBER\nNUMBER: /[0-9]{2}/', ["a12"], ["a1", "a123"]),
    ],
)
def test_regex_and_lark(
    compiler: GrammarCompiler, tokenizer: Tokenizer, kind: str, text: str, good: list[str], bad: list[str]
) -> None:
    grammar = Grammar(kind, text)  # type: ignore[arg-type]
    assert all(follows(compiler.compile(grammar), tokenizer, word) for word in good)
    assert not any(follows(compiler.compile(grammar), tokenizer, word) for word in bad)


@pytest.mark.parametrize(
    ("kind", "text", "says"),
    [
        ("json_schema", '{"type": "strange"}', "strange"),
        ("json_schema", '{"type": "string", "format": "nonsense"}', "nonsense"),
        ("json_schema", '{"$ref": "#/nowhere"}', "nowhere"),
        ("json_schema", '{"type": "integer", "minimum": 3, "maximum": 1}', "minimum"),
        ("json_schema", '{"not": {}}', "not"),
        ("json_schema", "[1, 2]", "schema"),
        ("json_schema", '{"type": "string", "pattern": "("}', "regex"),
        ("regex", "[a-z", "[a-z"),
        ("lark", "nothing here", "grammar"),
    ],
)
def test_what_is_not_valid_is_said(compiler: GrammarCompiler, kind: str, text: str, says: str) -> None:
    with pytest.raises(RequestError, match=re.escape(says)) as caught:
        compiler.compile(Grammar(kind, text))  # type: ignore[arg-type]
    assert caught.value.param == "response_format"
    assert "\n" not in caught.value.message


def test_deeply_nested_schemas_are_refused_not_followed(compiler: GrammarCompiler) -> None:
    text = '{"items":' * 3000 + "{}" + "}" * 3000
    with pytest.raises(RequestError, match="recursion"):
        compiler.compile(Grammar("json_schema", text))


def test_grammars_that_would_hold_up_everybody_are_refused(compiler: GrammarCompiler, tokenizer: Tokenizer) -> None:
    with pytest.raises(RequestError, match="too big"):
        compiler.compile(schema_grammar({"enum": [f"value number {number}" for number in range(20_000)]}))
    matcher = compiler.compile(Grammar("regex", "((((a{100}){100}){100}){100})"))
    for _ in range(3):
        allowed(matcher, tokenizer.vocab_size)
        matcher.accept(tokenizer.encode("a")[0])
    assert "cannot be followed any further" in matcher.problem


def test_compiled_grammars_are_kept_and_matchers_are_independent(tokenizer: Tokenizer) -> None:
    compiler = GrammarCompiler(tokenizer, tokenizer.vocab_size, tokenizer.stop_ids, keep=2)
    first, second = compiler.compile(schema_grammar(DESK)), compiler.compile(schema_grammar(DESK))
    before = allowed(second, tokenizer.vocab_size)
    first.accept(first.forced()[0])
    assert allowed(second, tokenizer.vocab_size) == before
    for number in range(5):
        compiler.compile(schema_grammar({"const": number}))
    assert len(compiler._compiled) == 2


def test_a_token_that_breaks_the_grammar_is_a_problem(compiler: GrammarCompiler, tokenizer: Tokenizer) -> None:
    matcher = compiler.compile(schema_grammar({"const": 1}))
    matcher.accept(tokenizer.encode("x")[0])
    assert "grammar" in matcher.problem


def test_a_draft_is_good_as_far_as_the_grammar_goes(compiler: GrammarCompiler, tokenizer: Tokenizer) -> None:
    matcher = compiler.compile(schema_grammar(DESK))
    before = allowed(matcher, tokenizer.vocab_size)
    good = tokenizer.encode('{"intent":"Hass')
    assert matcher.agrees([*good, *tokenizer.encode("Nothing")]) == len(good)
    assert allowed(matcher, tokenizer.vocab_size) == before
    assert not matcher.problem
