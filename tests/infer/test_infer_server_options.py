"""Echo, the best of several, grammars and ends, through the official client and against the plain forward pass."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import openai
import pytest
import torch
from infer_support import MESSAGES

from liuyi.core.errors import ModelError
from liuyi.infer.engine import Engine
from liuyi.infer.server.model_backend import sampling_defaults
from liuyi.model.decoder import Decoder
from liuyi.model.tokenizer import Tokenizer

PROMPTS = ["turn on the kitchen lights", "打开厨房的灯"]
SCHEMA = {
    "type": "object",
    "properties": {"on": {"type": "boolean"}},
    "required": ["on"],
    "additionalProperties": False,
}


def forward_logprobs(model: Decoder, ids: list[int]) -> torch.Tensor:
    """Log-probabilities [tokens, vocab] after each token."""
    with torch.no_grad():
        return model.logits(model(torch.tensor([ids])))[0].float().log_softmax(-1)


@pytest.mark.parametrize(
    ("said", "taken"),
    [
        (
            {"do_sample": True, "temperature": 0.6, "top_p": 0.9, "top_k": None, "max_length": 9},
            {"temperature", "top_p"},
        ),
        ({"do_sample": False, "temperature": 0.6}, set()),
        ({}, set()),
    ],
)
def test_a_folder_recommends_how_to_sample(tmp_path: Path, said: dict[str, Any], taken: set[str]) -> None:
    assert sampling_defaults(tmp_path) == {}
    (tmp_path / "generation_config.json").write_text(json.dumps(said))
    assert sampling_defaults(tmp_path) == {name: said[name] for name in taken}


def test_a_recommendation_that_cannot_be_read_is_named(tmp_path: Path) -> None:
    (tmp_path / "generation_config.json").write_text("{")
    with pytest.raises(ModelError, match="is not JSON") as raised:
        sampling_defaults(tmp_path)
    assert raised.value.where == str(tmp_path / "generation_config.json")


USUAL: dict[str, Any] = {
    "skip_special_tokens": True,
    "spaces_between_special_tokens": True,
    "include_stop_str_in_output": False,
    "return_token_ids": False,
    "bad_words": [],
    "add_generation_prompt": True,
    "continue_final_message": False,
    "echo": False,
}


def test_what_clients_of_vllm_send_is_taken_where_it_changes_nothing(client: openai.OpenAI) -> None:
    asked: dict[str, Any] = {"model": "tiny", "messages": MESSAGES, "max_tokens": 5, "temperature": 0}
    plain = client.chat.completions.create(**asked)
    assert client.chat.completions.create(**asked, extra_body=USUAL).choices == plain.choices
    for name, usual in USUAL.items():
        other = ["never"] if usual == [] else not usual
        with pytest.raises(openai.BadRequestError, match=name):
            client.chat.completions.create(**asked, extra_body={name: other})


class TestEcho:
    @pytest.mark.parametrize("most", [0, 5])
    def test_scores_prompt_and_answer_as_the_model_does(
        self, client: openai.OpenAI, model: Decoder, tokenizer: Tokenizer, most: int
    ) -> None:
        answer = client.completions.create(
            model="tiny", prompt=PROMPTS, echo=True, logprobs=2, max_tokens=most, temperature=0
        )
        for prompt, choice in zip(PROMPTS, answer.choices, strict=True):
            assert choice.text.startswith(prompt)
            assert choice.finish_reason == ("length" if most == 0 else choice.finish_reason)
            logprobs = choice.logprobs
            assert logprobs is not None
            ids = tokenizer.encode(prompt)
            assert logprobs.tokens is not None
            assert len(logprobs.tokens) <= len(ids) + most
            assert len(logprobs.tokens) == len(logprobs.token_logprobs or ()) == len(logprobs.text_offset or ())
            assert logprobs.token_logprobs is not None
            assert logprobs.token_logprobs[0] is None
            assert (logprobs.top_logprobs or [{}])[0] is None
            expected = forward_logprobs(model, ids)
            values = [float(expected[at, token]) for at, token in enumerate(ids[1:])]
            assert logprobs.token_logprobs[1 : len(ids)] == pytest.approx(values, abs=1e-4)
            best = [float(row.max()) for row in expected[: len(ids) - 1]]
            tops = [max(top.values()) for top in (logprobs.top_logprobs or [])[1 : len(ids)]]
            assert tops == pytest.approx(best, abs=1e-4)
        assert answer.usage is not None
        assert answer.usage.completion_tokens <= most * 2

    def test_streams_what_it_answers_whole(self, client: openai.OpenAI, tokenizer: Tokenizer) -> None:
        asked: dict[str, Any] = {
            "model": "tiny",
            "prompt": [tokenizer.encode(prompt) for prompt in PROMPTS],
            "echo": True,
            "logprobs": 1,
            "n": 2,
            "seed": 3,
            "max_tokens": 6,
        }
        whole = client.completions.create(**asked)
        texts, offsets = [""] * 4, [[] for _ in range(4)]  # type: list[str], list[list[int]]
        for chunk in client.completions.create(**asked, stream=True):
            for choice in chunk.choices:
                texts[choice.index] += choice.text
                offsets[choice.index] += (choice.logprobs and choice.logprobs.text_offset) or []
        assert texts == [choice.text for choice in whole.choices]
        assert offsets == [choice.logprobs.text_offset for choice in whole.choices if choice.logprobs]
        assert [text.startswith(prompt) for text, prompt in zip(texts[::2], PROMPTS, strict=True)] == [True, True]

    def test_without_logprobs(self, client: openai.OpenAI) -> None:
        choice = client.completions.create(model="tiny", prompt=PROMPTS[0], echo=True, max_tokens=3).choices[0]
        assert choice.text.startswith(PROMPTS[0])
        assert choice.logprobs is None
        choice = client.completions.create(model="tiny", prompt=PROMPTS[0], echo=True, max_tokens=0).choices[0]
        assert choice.text == PROMPTS[0]


def test_the_best_have_the_highest_mean_logprob(client: openai.OpenAI) -> None:
    asked: dict[str, Any] = {"model": "tiny", "prompt": PROMPTS, "seed": 11, "max_tokens": 12, "temperature": 1.2}
    candidates = client.completions.create(**asked, n=6, logprobs=0)
    best = client.completions.create(**asked, n=2, best_of=6)
    means = [
        sum(choice.logprobs.token_logprobs) / len(choice.logprobs.token_logprobs)
        for choice in candidates.choices
        if choice.logprobs is not None and choice.logprobs.token_logprobs
    ]
    expected = []
    for prompt in range(2):
        ranked = sorted(range(prompt * 6, prompt * 6 + 6), key=lambda at: means[at], reverse=True)
        expected += [candidates.choices[at].text for at in ranked[:2]]
    assert [choice.text for choice in best.choices] == expected
    assert [choice.logprobs for choice in best.choices] == [None] * 4
    assert best.usage is not None
    assert candidates.usage is not None
    assert best.usage.total_tokens == candidates.usage.total_tokens


class TestGrammars:
    @pytest.mark.parametrize(
        ("extra", "answers"),
        [
            ({"structured_outputs": {"choice": ["yes", "no"]}}, ["yes", "no"]),
            ({"structured_outputs": {"regex": "a{3}|b{4}"}}, ["aaa", "bbbb"]),
            ({"structured_outputs": {"grammar": 'start: "x" | "yz"'}}, ["x", "yz"]),
            ({"structured_outputs": {"json": {"enum": [1, "a"]}, "regex": None}}, ["1", '"a"']),
            ({"guided_choice": ["yes", "厨房", 'say "no"']}, ["yes", "厨房", 'say "no"']),
            ({"guided_regex": "a{3}|b{4}"}, ["aaa", "bbbb"]),
            ({"guided_grammar": 'start: "x" | "yz"'}, ["x", "yz"]),
            ({"guided_json": {"enum": [1, "a"]}}, ["1", '"a"']),
            ({"response_format": {"type": "lark", "lark": 'start: "x"'}}, ["x"]),
        ],
    )
    def test_by_the_names_of_vllm(self, client: openai.OpenAI, extra: dict[str, Any], answers: list[str]) -> None:
        for seed in range(3):
            answer = client.chat.completions.create(model="tiny", messages=MESSAGES, seed=seed, extra_body=extra)
            assert answer.choices[0].message.content in answers
        answer = client.completions.create(model="tiny", prompt="x", extra_body=extra)
        assert answer.choices[0].text in answers

    def test_with_several_answers_logprobs_and_a_stream(self, client: openai.OpenAI) -> None:
        asked: dict[str, Any] = {
            "model": "tiny",
            "messages": MESSAGES,
            "response_format": {"type": "json_schema", "json_schema": {"name": "a", "strict": True, "schema": SCHEMA}},
            "n": 3,
            "logprobs": True,
            "top_logprobs": 2,
            "seed": 5,
        }
        whole = client.chat.completions.create(**asked)
        texts, tokens = [""] * 3, [0] * 3
        for chunk in client.chat.completions.create(**asked, stream=True):
            for choice in chunk.choices:
                texts[choice.index] += choice.delta.content or ""
                tokens[choice.index] += len((choice.logprobs and choice.logprobs.content) or ())
        for text, count, choice in zip(texts, tokens, whole.choices, strict=True):
            assert choice.message.content == text
            assert isinstance(json.loads(text)["on"], bool)
            assert choice.logprobs is not None
            assert len(choice.logprobs.content or ()) == count
            assert choice.finish_reason == "stop"

    def test_a_stop_string_ends_it_sooner(self, client: openai.OpenAI) -> None:
        answer = client.chat.completions.create(
            model="tiny", messages=MESSAGES, stop=["c"], extra_body={"guided_regex": "abcd"}
        )
        assert (answer.choices[0].message.content, answer.choices[0].finish_reason) == ("ab", "stop")

    def test_text_is_a_format_too(self, client: openai.OpenAI) -> None:
        asked: dict[str, Any] = {"model": "tiny", "messages": MESSAGES, "temperature": 0, "max_tokens": 8}
        with_format = client.chat.completions.create(**asked, response_format={"type": "text"})
        assert with_format.choices == client.chat.completions.create(**asked).choices


class TestEnds:
    def test_further_stop_tokens(self, client: openai.OpenAI, model: Decoder, tokenizer: Tokenizer) -> None:
        from liuyi.infer.request import Request

        ids = tokenizer.encode("turn on")
        tokens = Engine(model, tokenizer).generate([Request(prompt_ids=ids, max_tokens=12)])[0].token_ids
        stop = next(token for at, token in enumerate(tokens) if at >= 4 and token not in tokens[:at])
        answer = client.completions.create(
            model="tiny", prompt=ids, max_tokens=12, temperature=0, extra_body={"stop_token_ids": [stop]}
        )
        assert answer.choices[0].finish_reason == "stop"
        assert answer.usage is not None
        assert answer.usage.completion_tokens == tokens.index(stop) + 1

    def test_ignoring_the_end_gives_all_tokens(self, client: openai.OpenAI) -> None:
        answer = client.completions.create(
            model="tiny",
            prompt="turn on",
            max_tokens=20,
            logit_bias={"2": 100},
            extra_body={"ignore_eos": True},
        )
        assert answer.usage is not None
        assert answer.usage.completion_tokens == 20

    def test_not_before_so_many_tokens(self, client: openai.OpenAI) -> None:
        asked: dict[str, Any] = {"model": "tiny", "messages": MESSAGES, "max_tokens": 20, "logit_bias": {"2": 100}}
        lengths = []
        for more in ({}, {"min_tokens": 9}):
            answer = client.chat.completions.create(**asked, extra_body=more)
            assert answer.usage is not None
            assert answer.choices[0].finish_reason == "stop"
            lengths.append(answer.usage.completion_tokens)
        assert lengths == [1, 10]


def test_what_changes_nothing_is_accepted(client: openai.OpenAI) -> None:
    asked: dict[str, Any] = {"model": "tiny", "messages": MESSAGES, "max_tokens": 5, "seed": 1}
    more: dict[str, Any] = {
        "user": "me",
        "metadata": {"a": "b"},
        "store": False,
        "service_tier": "flex",
        "modalities": ["text"],
        "verbosity": "medium",
        "prediction": {"type": "content", "content": "turn"},
        "prompt_cache_options": {"mode": "implicit"},
        "extra_body": {"priority": 3, "top_k": -1, "min_p": 0.0, "typical_p": 1.0, "repetition_penalty": 1.0},
    }
    plain, told = client.chat.completions.create(**asked), client.chat.completions.create(**asked, **more)
    assert plain.choices == told.choices


@pytest.mark.parametrize(
    ("change", "param"),
    [
        ({"max_tokens": 0}, "max_tokens"),
        ({"max_tokens": 5, "min_tokens": 6}, "min_tokens"),
        ({"min_tokens": -1}, "min_tokens"),
        ({"n": 3, "best_of": 2}, "best_of"),
        ({"best_of": 2, "stream": True}, "best_of"),
        ({"best_of": 99}, "best_of"),
        ({"stream_options": {"include_usage": True}}, "stream_options"),
        ({"guided_json": {}, "guided_regex": "a"}, "guided_regex"),
        ({"guided_choice": []}, "guided_choice"),
        ({"structured_outputs": {}}, "structured_outputs"),
        ({"structured_outputs": {"regex": "a", "grammar": 'start: "x"'}}, "structured_outputs"),
        ({"structured_outputs": {"structural_tag": "x"}}, "structured_outputs.structural_tag"),
        ({"structured_outputs": {"regex": "a"}, "guided_regex": "a"}, "guided_regex"),
        ({"structured_outputs": {"regex": "("}}, "structured_outputs"),
        ({"typical_p": 0}, "typical_p"),
        ({"suffix": "x"}, "suffix"),
        ({"priority": -1}, "priority"),
        ({"prompt": ["a", ""]}, "prompt"),
        ({"stop_token_ids": [-1]}, "stop_token_ids.0"),
        ({"stop_token_ids": [1_000_000]}, "stop_token_ids"),
        ({"guided_regex": "("}, "guided_regex"),
        ({"guided_grammar": "x"}, "guided_grammar"),
        ({"guided_json": {"type": "nonsense"}}, "guided_json"),
        ({"response_format": {"type": "regex", "regex": "("}}, "response_format"),
        ({"surprise": 1}, "surprise"),
    ],
)
def test_what_does_not_go_together_is_said(client: openai.OpenAI, change: dict[str, Any], param: str) -> None:
    with pytest.raises(openai.BadRequestError) as caught:
        client.completions.create(model="tiny", extra_body={"prompt": "turn"} | change, prompt="turn")
    assert caught.value.param == param


class TestBeamSearch:
    def test_is_that_of_the_engine(self, client: openai.OpenAI, model: Decoder, tokenizer: Tokenizer) -> None:
        from liuyi.infer.beam import BeamOptions, beam_search
        from liuyi.infer.request import Request

        answer = client.completions.create(
            model="tiny",
            prompt=PROMPTS,
            n=2,
            best_of=3,
            max_tokens=6,
            extra_body={"use_beam_search": True, "length_penalty": 0.5},
        )
        texts = []
        for prompt in PROMPTS:
            request = Request(prompt_ids=tokenizer.encode(prompt), max_tokens=6)
            found = beam_search(Engine(model, tokenizer), request, width=3, options=BeamOptions(0.5))
            texts += [tokenizer.decode(one.token_ids, skip_special_tokens=True) for one in found[:2]]
        assert [choice.text for choice in answer.choices] == texts
        assert [choice.index for choice in answer.choices] == [0, 1, 2, 3]
        assert answer.usage is not None
        assert answer.usage.prompt_tokens == sum(len(tokenizer.encode(prompt)) for prompt in PROMPTS)

    def test_chats_too_and_as_a_stream(self, client: openai.OpenAI) -> None:
        asked: dict[str, Any] = {"model": "tiny", "messages": MESSAGES, "n": 2, "max_tokens": 5, "temperature": 0}
        whole = client.chat.completions.create(**asked, extra_body={"use_beam_search": True})
        texts = ["", ""]
        for chunk in client.chat.completions.create(**asked, stream=True, extra_body={"use_beam_search": True}):
            for choice in chunk.choices:
                texts[choice.index] += choice.delta.content or ""
        assert texts == [choice.message.content for choice in whole.choices]
        assert texts[0] != texts[1]

    @pytest.mark.parametrize(
        ("change", "param"),
        [
            ({"temperature": 1}, "temperature"),
            ({"top_p": 0.5}, "top_p"),
            ({"guided_regex": "a"}, "guided_regex"),
            ({"logprobs": 1}, "logprobs"),
            ({"use_beam_search": False, "length_penalty": 2}, "length_penalty"),
            ({"echo": True}, "echo"),
            ({"presence_penalty": 1}, "presence_penalty"),
            ({"best_of": 16, "n": 16, "stop_token_ids": [5, 6, 7, 8]}, "n"),
        ],
    )
    def test_what_it_does_not_heed_is_refused(self, client: openai.OpenAI, change: dict[str, Any], param: str) -> None:
        with pytest.raises(openai.BadRequestError) as caught:
            client.completions.create(model="tiny", prompt="turn", extra_body={"use_beam_search": True} | change)
        assert caught.value.param == param
