"""Grammars of tool calls let through what the format's reader reads as calls that fit their schemas, and text."""

from __future__ import annotations

import json
from typing import Any

import jsonschema
import llguidance
import numpy as np
import pytest
import tokenizers
from infer_support import LINES, VOCAB, let_drafts_cost, tiny_model
from tokenizers import AddedToken

from liuyi.infer.engine import Engine
from liuyi.infer.errors import RequestError
from liuyi.infer.grammar import ControlTokens, GrammarCompiler, Matcher, fill_masks, schema_grammar
from liuyi.infer.request import Grammar, Request
from liuyi.infer.sampling import unpack_mask
from liuyi.infer.speculate.lookup import PromptLookup
from liuyi.infer.tools.calls import Function, Message
from liuyi.infer.tools.formats import FORMATS, HERMES, LLAMA, MISTRAL, PLAIN
from liuyi.infer.tools.grammar import tool_grammar
from liuyi.model.tokenizer import Tokenizer, train_bpe

ADD = Function(
    "add",
    parameters={
        "type": "object",
        "properties": {"a": {"type": "integer", "maximum": 99, "minimum": 0}, "b": {"$ref": "#/$defs/word"}},
        "required": ["a"],
        "additionalProperties": False,
        "$defs": {"word": {"enum": ["x", "厨"]}},
    },
)
STOP = Function("stop-it", parameters={"type": "object", "properties": {}, "additionalProperties": False})
FUNCTIONS = [ADD, STOP]
NO_CONTROL = ControlTokens({}, frozenset())
TAGS = ["<think>", "</think>", "<tool_call>", "</tool_call>", "<|python_tag|>", "[TOOL_CALLS]", "[ARGS]", "[CALL_ID]"]


@pytest.fixture(scope="module", params=["tags are special tokens", "tags are tokens", "tags are text"])
def tokenizer(request: pytest.FixtureRequest) -> Tokenizer:
    tokenizer = train_bpe(LINES * 4, VOCAB)
    if request.param == "tags are special tokens":
        tokenizer.backend.add_special_tokens([AddedToken(tag, special=True) for tag in TAGS])
    elif request.param == "tags are tokens":
        # As in Qwen's tokenizers: one token, and no special one.
        tokenizer.backend.add_tokens([AddedToken(tag, special=False) for tag in TAGS])
    return tokenizer


@pytest.fixture(scope="module")
def compiler(tokenizer: Tokenizer) -> GrammarCompiler:
    return GrammarCompiler(tokenizer, tokenizer.vocab_size, tokenizer.stop_ids)


def allowed(matcher: Matcher, vocab_size: int) -> list[int]:
    return unpack_mask(fill_masks([matcher], vocab_size), vocab_size)[0].nonzero().flatten().tolist()


def fits(compiler: GrammarCompiler, tokenizer: Tokenizer, grammar: Grammar, text: str) -> bool:
    matcher, tokens = compiler.compile(grammar), tokenizer.encode(text)
    if matcher.agrees(tokens) < len(tokens):
        return False
    for token in tokens:
        matcher.accept(token)
    return matcher.is_over or not set(tokenizer.stop_ids).isdisjoint(allowed(matcher, tokenizer.vocab_size))


TWO = {
    "hermes": '<tool_call>\n{"name": "add", "arguments": {"a": 1, "b": "厨"}}\n</tool_call>\n'
    '<tool_call>\n{"name": "stop-it", "arguments": {}}\n</tool_call>',
    "mistral": '[TOOL_CALLS][{"name": "add", "arguments": {"a": 1, "b": "厨"}}, {"name": "stop-it", "arguments": {}}]',
    "mistral-args": '[TOOL_CALLS]add[ARGS]{"a": 1, "b": "厨"}[TOOL_CALLS]stop-it[ARGS]{}',
    "plain": '{"name": "add", "arguments": {"a": 1, "b": "厨"}}\n{"name": "stop-it", "arguments": {}}',
}
ONE = {
    "hermes": '<tool_call>\n{"name": "add", "arguments": {"a": 1}}\n</tool_call>',
    "llama": '{"name": "add", "parameters": {"a": 1}}',
    "mistral": '[TOOL_CALLS][{"name": "add", "arguments": {"a": 1}}]',
    "mistral-args": '[TOOL_CALLS]add[ARGS]{"a": 1}',
    "plain": '{"name": "add", "arguments": {"a": 1}}',
}


@pytest.mark.parametrize("name", sorted(FORMATS))
def test_calls_that_are_required(compiler: GrammarCompiler, tokenizer: Tokenizer, name: str) -> None:
    def check(text: str, parallel: bool = True) -> bool:
        grammar = tool_grammar(FORMATS[name], FUNCTIONS, ControlTokens.of(tokenizer), required=True, parallel=parallel)
        return fits(compiler, tokenizer, grammar, text)

    assert check(ONE[name])
    if name == "llama":
        assert check("<|python_tag|>" + ONE[name]) == ("<|python_tag|>" in ControlTokens.of(tokenizer).ids)
    if name in TWO:
        assert check(TWO[name])
        assert not check(TWO[name], parallel=False)
    assert not check("Hello.")
    assert not check("")
    assert not check(ONE[name].replace("add", "other"))
    assert not check(ONE[name].replace('"a": 1', '"a": 100'))
    assert not check(ONE[name].replace('"a": 1', ""))


@pytest.mark.parametrize("name", sorted(FORMATS))
def test_calls_that_may_be(compiler: GrammarCompiler, tokenizer: Tokenizer, name: str) -> None:
    form = FORMATS[name]

    def check(text: str) -> bool:
        grammar = tool_grammar(form, FUNCTIONS, ControlTokens.of(tokenizer), required=False, parallel=True)
        return fits(compiler, tokenizer, grammar, text)

    assert check(ONE[name])
    assert name not in TWO or check(TWO[name])
    for text in ("", "Hello,\n world < 厨房 [x] {", '{"name": "Bob", "age": 3}', "[1, 2]", '{"a": {}}'):
        assert check(text)
    if "<think>" not in tokenizer.special_tokens:
        assert check("<think>well, < </think>Hello.<think>")
    if form.shape.tag:
        assert check("I look.\n" + ONE[name])
        if "<think>" not in tokenizer.special_tokens:
            assert check("<think>I look.</think>\n" + ONE[name])
    assert not check(ONE[name].replace('"a": 1', '"a": "one"'))
    if name == "llama" and "<|python_tag|>" in ControlTokens.of(tokenizer).ids:
        assert check("<|python_tag|>" + ONE[name])
        assert not check("<|python_tag|>" + ONE[name].replace('"a": 1', '"a": "one"'))
    if form.shape.tag:
        assert not check("I look.\n" + ONE[name].replace('"a": 1', '"a": "one"'))


@pytest.mark.parametrize("name", sorted(FORMATS))
@pytest.mark.parametrize("required", [True, False])
def test_random_walks_are_read_as_calls_that_fit(
    compiler: GrammarCompiler, tokenizer: Tokenizer, name: str, required: bool
) -> None:
    random, form = np.random.default_rng(5), FORMATS[name]
    grammar = tool_grammar(form, FUNCTIONS, ControlTokens.of(tokenizer), required=required, parallel=True)
    called = 0
    for _ in range(6):
        matcher, ids = compiler.compile(grammar), []
        if not required:
            # A random text hardly ever begins a call.
            for token in tokenizer.encode(ONE[name][:15]):
                matcher.accept(token)
                ids.append(token)
        while not matcher.is_over and len(ids) < 400:
            choice = allowed(matcher, tokenizer.vocab_size)
            ends = set(choice) & set(tokenizer.stop_ids)
            if ends and (random.random() < 0.5 or len(choice) == len(ends)):
                break
            token = int(random.choice(sorted(set(choice) - ends)))
            matcher.accept(token)
            ids.append(token)
        assert not matcher.problem
        reader, message = form.reader({function.name for function in FUNCTIONS}), Message()
        message.add(reader.push(tokenizer.decode(ids))).add(reader.finish())
        assert message.content == ""
        assert message.calls
        for called_name, arguments in message.calls:
            function = next(function for function in FUNCTIONS if function.name == called_name)
            jsonschema.validate(json.loads(arguments), dict(function.parameters))
            called += 1
    assert called >= 6


def test_an_answer_without_calls_may_have_to_match_too(compiler: GrammarCompiler, tokenizer: Tokenizer) -> None:
    for content, good, bad in (
        (schema_grammar({"const": {"ok": 1}}), '{"ok":1}', '{"ok": 1}'),
        (Grammar("regex", "a/b+"), "a/bb", "ab"),
    ):
        for form, name in ((HERMES, "hermes"), (MISTRAL, "mistral")):
            grammar = tool_grammar(
                form, FUNCTIONS, ControlTokens.of(tokenizer), required=False, parallel=True, content=content
            )
            assert fits(compiler, tokenizer, grammar, good)
            assert fits(compiler, tokenizer, grammar, ONE[name])
            assert not fits(compiler, tokenizer, grammar, bad)
    for form, lark in ((LLAMA, schema_grammar({})), (PLAIN, schema_grammar({})), (HERMES, Grammar("lark", "x"))):
        with pytest.raises(RequestError) as caught:
            tool_grammar(form, FUNCTIONS, NO_CONTROL, required=False, parallel=True, content=lark)
        assert caught.value.param == "response_format"


@pytest.mark.parametrize("required", [True, False])
@pytest.mark.parametrize("temperature", [0.0, 1.0])
def test_speculation_changes_no_call(
    tokenizer: Tokenizer, monkeypatch: pytest.MonkeyPatch, required: bool, temperature: float
) -> None:
    model = tiny_model(vocab_size=tokenizer.vocab_size)
    let_drafts_cost(monkeypatch)
    grammar = tool_grammar(HERMES, FUNCTIONS, ControlTokens.of(tokenizer), required=required, parallel=True)
    ids = tokenizer.encode((TWO["hermes"] + "\n") * 2)
    requests = [
        Request(prompt_ids=ids, max_tokens=80, grammar=grammar, temperature=temperature, seed=seed, logprobs=True)
        for seed in range(4)
    ]
    plain = Engine(model, tokenizer).generate(requests)
    engine = Engine(model, tokenizer, drafter=PromptLookup())
    speculated = engine.generate(requests)
    assert [one.token_ids for one in speculated] == [one.token_ids for one in plain]
    for one, other in zip(speculated, plain, strict=True):
        assert one.text == other.text
        assert one.logprobs == pytest.approx(other.logprobs, abs=1e-4)
    assert engine.stats.drafted_tokens > 0 or not required


def test_control_tokens_are_those_of_llguidance(tokenizer: Tokenizer) -> None:
    names = ["<a b>", "<x", "[X]", "plain", "<>"]
    other = Tokenizer(tokenizers.Tokenizer.from_str(tokenizer.backend.to_str()), tokenizer.settings)
    other.backend.add_tokens([AddedToken(name, special=False) for name in names])
    theirs = llguidance.LLTokenizer(other.backend.to_str(), n_vocab=other.vocab_size, eos_token=list(other.stop_ids))
    special = {id for id in other.backend.get_added_tokens_decoder() if theirs.is_special_token(id)}
    control = ControlTokens.of(other)
    assert set(control.ids.values()) == special
    assert control.spoken == {name for name in control.ids if name not in other.special_tokens}


@pytest.mark.parametrize(
    ("parameters", "takes"),
    [
        (None, False),
        ({"properties": {}}, False),
        ({"type": "object", "properties": {"b": {"type": "integer"}}, "required": []}, False),
        ({"type": "object", "properties": {"a": {"type": "integer"}}}, True),
        ({"type": "object"}, True),
        ({"properties": {}, "additionalProperties": True}, True),
        ({"properties": {}, "patternProperties": {"^a": {}}}, True),
        ({"properties": {}, "required": ["a"]}, True),
    ],
)
def test_a_function_takes_the_arguments_that_it_names(
    compiler: GrammarCompiler, tokenizer: Tokenizer, parameters: dict[str, Any] | None, takes: bool
) -> None:
    given: dict[str, Any] = {} if parameters is None else {"parameters": parameters}
    function = Function("add", strict=True, **given)
    for name, form in FORMATS.items():
        grammar = tool_grammar(form, [function], ControlTokens.of(tokenizer), required=True, parallel=False)
        assert fits(compiler, tokenizer, grammar, ONE[name]) is takes


DEEP: dict[str, Any] = {}
for _ in range(3000):
    DEEP = {"type": "array", "items": DEEP}


@pytest.mark.parametrize("schema", [{"properties": {"a": {"type": "strange"}}}, {"not": {}}, {"properties": DEEP}])
def test_what_cannot_be_enforced(compiler: GrammarCompiler, tokenizer: Tokenizer, schema: dict[str, Any]) -> None:
    loose = tool_grammar(
        HERMES, [Function("add", parameters=schema)], ControlTokens.of(tokenizer), required=True, parallel=True
    )
    assert fits(compiler, tokenizer, loose, ONE["hermes"])
    with pytest.raises(RequestError, match="add") as caught:
        tool_grammar(
            HERMES, [ADD, Function("add", parameters=schema, strict=True)], NO_CONTROL, required=True, parallel=True
        )
    assert caught.value.param == "tools.1.function.parameters"
