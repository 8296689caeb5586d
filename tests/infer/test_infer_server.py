"""The server through the official client, over a real socket: what it answers."""

from __future__ import annotations

import json
import re
from hashlib import sha256
from typing import Any

import openai
import pytest
from infer_support import MESSAGES, LiveServer, backend_over, client_of, eventually, live_server

from liuyi.infer.engine import Engine
from liuyi.infer.runner import BLOCK_TOKENS
from liuyi.infer.server.protocol import ChatCompletionBody
from liuyi.model.chat import encode_chat
from liuyi.model.decoder import Decoder
from liuyi.model.template import _compiled
from liuyi.model.tokenizer import Tokenizer

SCHEMA = {
    "type": "object",
    "properties": {"room": {"enum": ["kitchen", "厨房"]}, "on": {"type": "boolean"}},
    "required": ["room", "on"],
    "additionalProperties": False,
}


class TestChat:
    def test_is_the_engines_answer_to_the_rendered_conversation(
        self, client: openai.OpenAI, live: LiveServer, model: Decoder, tokenizer: Tokenizer
    ) -> None:
        from liuyi.infer.request import Request

        answer = client.chat.completions.create(model="tiny", messages=MESSAGES, temperature=0, max_tokens=12)
        ids, _ = encode_chat(tokenizer, MESSAGES, add_generation_prompt=True)
        expected = Engine(model, tokenizer).generate([Request(prompt_ids=ids, max_tokens=12)])[0]
        assert answer.choices[0].message.content == expected.text
        assert answer.choices[0].finish_reason == expected.finish_reason
        assert answer.usage is not None
        assert (answer.usage.prompt_tokens, answer.usage.completion_tokens) == (len(ids), len(expected.token_ids))
        assert answer.system_fingerprint == "liuyi-" + "d" * 12

    def test_streams_what_it_would_answer_whole(self, client: openai.OpenAI) -> None:
        asked: dict[str, Any] = {"model": "tiny", "messages": MESSAGES, "seed": 5, "max_tokens": 30, "n": 3}
        whole = client.chat.completions.create(**asked)
        texts, reasons, usage, roles = [""] * 3, [""] * 3, None, [""] * 3
        for chunk in client.chat.completions.create(**asked, stream=True, stream_options={"include_usage": True}):
            usage = chunk.usage or usage
            for choice in chunk.choices:
                texts[choice.index] += choice.delta.content or ""
                roles[choice.index] = choice.delta.role or roles[choice.index]
                reasons[choice.index] = choice.finish_reason or reasons[choice.index]
        assert texts == [choice.message.content for choice in whole.choices]
        assert reasons == [choice.finish_reason for choice in whole.choices]
        assert roles == ["assistant"] * 3
        assert usage is not None
        assert whole.usage is not None
        assert usage.total_tokens == whole.usage.total_tokens
        assert len(set(texts)) == 3

    def test_a_seed_gives_the_same_answer_again(self, client: openai.OpenAI) -> None:
        asked: dict[str, Any] = {"model": "tiny", "messages": MESSAGES, "max_tokens": 20}
        one, two, other = (client.chat.completions.create(**asked, seed=seed) for seed in (7, 7, 8))
        assert one.choices == two.choices != other.choices

    def test_answers_follow_a_json_schema(self, client: openai.OpenAI) -> None:
        for stream in (False, True):
            answer = client.chat.completions.create(
                model="tiny",
                messages=MESSAGES,
                response_format={"type": "json_schema", "json_schema": {"name": "a", "strict": True, "schema": SCHEMA}},
                stream=stream,
            )
            if isinstance(answer, openai.Stream):
                text = "".join(choice.delta.content or "" for chunk in answer for choice in chunk.choices)
            else:
                text = answer.choices[0].message.content or ""
                assert answer.choices[0].finish_reason == "stop"
            assert json.loads(text).keys() == {"room", "on"}
            assert " " not in text

    def test_json_objects_and_regular_expressions(self, client: openai.OpenAI) -> None:
        answer = client.chat.completions.create(
            model="tiny",
            messages=MESSAGES,
            max_tokens=200,
            seed=1,
            logit_bias={"95": 20},
            response_format={"type": "json_object"},
        )
        assert (answer.choices[0].message.content or "").startswith("{")
        answer = client.chat.completions.create(
            model="tiny", messages=MESSAGES, extra_body={"response_format": {"type": "regex", "regex": "(yes|no)!"}}
        )
        assert answer.choices[0].message.content in ("yes!", "no!")

    def test_logprobs_have_a_place_for_each_token(self, client: openai.OpenAI) -> None:
        asked: dict[str, Any] = {"model": "tiny", "messages": MESSAGES, "max_tokens": 9, "seed": 2, "logprobs": True}
        answer = client.chat.completions.create(**asked, top_logprobs=4)
        assert answer.usage is not None
        logprobs = answer.choices[0].logprobs
        assert logprobs is not None
        assert logprobs.content is not None
        assert len(logprobs.content) == answer.usage.completion_tokens
        assert all(len(token.top_logprobs) == 4 for token in logprobs.content)
        assert all(token.logprob <= token.top_logprobs[0].logprob for token in logprobs.content)
        written = b"".join(bytes(token.bytes or []) for token in logprobs.content)
        assert written.decode(errors="replace") == answer.choices[0].message.content
        streamed = [
            token
            for chunk in client.chat.completions.create(**asked, top_logprobs=4, stream=True)
            for choice in chunk.choices
            for token in (choice.logprobs and choice.logprobs.content) or []
        ]
        assert streamed == logprobs.content

    def test_stop_strings_end_the_answer(self, client: openai.OpenAI) -> None:
        asked: dict[str, Any] = {"model": "tiny", "messages": MESSAGES, "max_tokens": 60, "temperature": 0}
        text = client.chat.completions.create(**asked).choices[0].message.content or ""
        stop = text[8:10]
        cut = client.chat.completions.create(**asked, stop=[stop, "never there"]).choices[0]
        assert cut.message.content == text[: text.index(stop)]
        assert cut.finish_reason == "stop"

    def test_content_may_come_in_parts_and_from_the_developer(self, client: openai.OpenAI) -> None:
        def ask(messages: Any) -> str | None:
            answer = client.chat.completions.create(model="tiny", messages=messages, temperature=0, max_tokens=8)
            return answer.choices[0].message.content

        parts = [{"type": "text", "text": "turn on"}, {"type": "text", "text": " the lights"}]
        assert ask([{"role": "user", "content": parts}]) == ask(MESSAGES)
        marked = [{"type": "text", "text": "turn on the lights", "prompt_cache_breakpoint": {"mode": "explicit"}}]
        assert ask([{"role": "user", "content": marked}]) == ask(MESSAGES)
        assert ask([{"role": "developer", "content": "be brief"}, *MESSAGES]) == ask(
            [{"role": "system", "content": "be brief"}, *MESSAGES]
        )
        refused = [{"type": "refusal", "refusal": "I will not."}]
        assert ask([*MESSAGES, {"role": "assistant", "content": refused}, *MESSAGES]) == ask(
            [*MESSAGES, {"role": "assistant", "content": "I will not."}, *MESSAGES]
        )

    def test_effort_and_thoughts_are_told_to_the_chat_template(self) -> None:
        for name in ("reasoning_content", "reasoning"):
            self.check_effort({"role": "assistant", "content": "b", name: "c"})

    def check_effort(self, thought: dict[str, str]) -> None:
        body: dict[str, Any] = {"model": "tiny", "messages": [*MESSAGES, thought, *MESSAGES]}
        for effort, thinks in (("none", False), ("low", True), ("max", True)):
            request = ChatCompletionBody(**body, reasoning_effort=effort).request()  # type: ignore[arg-type]
            assert request.template_variables == {"reasoning_effort": effort, "enable_thinking": thinks}
            assert request.messages[1]["reasoning_content"] == "c"
        chosen = ChatCompletionBody(**body, reasoning_effort="none", chat_template_kwargs={"enable_thinking": True})
        assert chosen.request().template_variables["enable_thinking"] is True
        assert ChatCompletionBody(**body).request().template_variables == {}

    def test_the_id_is_where_the_client_looks_for_it(self, client: openai.OpenAI) -> None:
        answer = client.chat.completions.create(model="tiny", messages=MESSAGES, max_tokens=1)
        assert answer._request_id == answer.id
        stream = client.chat.completions.create(model="tiny", messages=MESSAGES, max_tokens=1, stream=True)
        assert stream.response.headers["x-request-id"] == next(chunk.id for chunk in stream)

    def test_no_part_of_a_character_is_streamed(self, client: openai.OpenAI, tokenizer: Tokenizer) -> None:
        regex = "(厨房|卧室|打开灯|😀){20}"
        stream = client.chat.completions.create(
            model="tiny",
            messages=MESSAGES,
            max_tokens=240,
            stream=True,
            extra_body={"response_format": {"type": "regex", "regex": regex}},
        )
        pieces = [choice.delta.content or "" for chunk in stream for choice in chunk.choices]
        assert "\ufffd" not in "".join(pieces)
        assert re.match("[厨房卧室打开灯😀]{12}", "".join(pieces))
        assert len([piece for piece in pieces if piece]) > 12

    def test_each_answer_is_recorded_with_what_made_it(
        self, client: openai.OpenAI, live: LiveServer, tokenizer: Tokenizer
    ) -> None:
        first = client.chat.completions.create(model="tiny", messages=MESSAGES, max_tokens=2, seed=1)
        again = client.chat.completions.create(model="tiny", messages=MESSAGES, max_tokens=2, seed=1)
        stream = client.chat.completions.create(model="tiny", messages=MESSAGES, max_tokens=3, seed=1, stream=True)
        ids = [first.id, again.id, next(chunk.id for chunk in stream)]
        eventually(lambda: {answer.id for answer in live.answers} >= set(ids), "not recorded")
        one, two, three = ([answer for answer in live.answers if answer.id == id] for id in ids)
        assert len(one) == len(two) == len(three) == 1
        assert one[0].model_digest == "d" * 64
        assert one[0].request_digest == two[0].request_digest != three[0].request_digest
        detail = one[0].detail
        assert detail["usage"]["completion_tokens"] == 2
        assert detail["runner"] == "torch fp32"
        assert detail["chat_template_digest"] == sha256(tokenizer.chat_template.encode()).hexdigest()
        assert detail["parameters"]["seed"] == 1
        assert detail["parameters"]["max_tokens"] == 2
        assert "turn on" not in json.dumps(one[0].detail)


def test_the_first_conversation_finds_its_template_compiled(model: Decoder, tokenizer: Tokenizer) -> None:
    own = Tokenizer(
        tokenizer.backend, {**tokenizer.settings, "chat_template": f"{tokenizer.chat_template}{{# of this test #}}"}
    )
    before = _compiled.cache_info().misses
    with live_server({"tiny": backend_over(Engine(model, own))}) as live, client_of(live) as client:
        assert _compiled.cache_info().misses == before + 1
        client.chat.completions.create(model="tiny", messages=MESSAGES, max_tokens=1)
    assert _compiled.cache_info().misses == before + 1


class TestCompletions:
    def test_continue_each_prompt(self, client: openai.OpenAI, model: Decoder, tokenizer: Tokenizer) -> None:
        from liuyi.infer.request import Request

        prompts = ["turn on", "打开厨房"]
        answer = client.completions.create(model="tiny", prompt=prompts, max_tokens=7, temperature=0, logprobs=2)
        requests = [Request(prompt_ids=tokenizer.encode(prompt), max_tokens=7) for prompt in prompts]
        expected = Engine(model, tokenizer).generate(requests)
        assert [choice.text for choice in answer.choices] == [one.text for one in expected]
        assert answer.choices[1].logprobs is not None
        assert len(answer.choices[1].logprobs.tokens or []) == len(expected[1].token_ids)
        ids = client.completions.create(
            model="tiny", prompt=[tokenizer.encode(prompt) for prompt in prompts], max_tokens=7, temperature=0
        )
        assert [choice.text for choice in ids.choices] == [one.text for one in expected]

    def test_stream(self, client: openai.OpenAI) -> None:
        asked: dict[str, Any] = {"model": "tiny", "prompt": "turn", "seed": 3, "n": 2}
        whole = client.completions.create(**asked)
        texts = ["", ""]
        for chunk in client.completions.create(**asked, stream=True):
            for choice in chunk.choices:
                texts[choice.index] += choice.text
        assert texts == [choice.text for choice in whole.choices]
        assert whole.usage is not None
        assert whole.usage.completion_tokens <= 2 * 16

    def test_says_how_much_of_a_prompt_was_in_the_cache(self, client: openai.OpenAI) -> None:
        ids = [5 + at % 7 for at in range(3 * BLOCK_TOKENS)]
        asked: dict[str, Any] = {"model": "tiny", "prompt": [ids, ids[1:]], "max_tokens": 2, "n": 2}
        cached = []
        for _ in range(2):
            usage = client.completions.create(**asked).usage
            assert usage is not None
            assert usage.prompt_tokens == 2 * len(ids) - 1
            cached.append(usage.prompt_tokens_details.cached_tokens if usage.prompt_tokens_details else None)
        # The last token is always read, for what comes after it.
        assert cached == [0, 2 * BLOCK_TOKENS + 2 * BLOCK_TOKENS]


class TestModels:
    def test_are_listed(self, client: openai.OpenAI) -> None:
        assert [model.id for model in client.models.list()] == ["tiny"]
        assert client.models.retrieve("tiny").owned_by == "liuyi"
        with pytest.raises(openai.NotFoundError):
            client.models.retrieve("none")
