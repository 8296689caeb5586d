"""The verifier's order, the pairs that rollouts give, and the step on a tiny random model."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import given
from hypothesis import strategies as st

from in_process import run_step
from liuyi.align.labels import encode_labels
from liuyi.align.pairs import encode_pairs, read_preferences
from liuyi.align.preferences import sample_figures, write_preferences
from liuyi.align.reward import PARTIAL, verify
from liuyi.align.rollout import Pair, Prompt, Rollout, choose_prompts, make_pairs, read_prompts, roll_out, with_room
from liuyi.align.watch import Probe
from liuyi.core.artifact import Artifact
from liuyi.core.effect import Effect
from liuyi.core.errors import DataError
from liuyi.core.home import Home
from liuyi.infer.engine import Engine
from liuyi.infer.request import Completion
from liuyi.model.checkpoint import load_model, save_model
from liuyi.model.config import DecoderConfig
from liuyi.model.decoder import Decoder, init_weights
from liuyi.model.tokenizer import Tokenizer, train_bpe

GOLD = '{"intent":"HassTurnOn","slots":{"area":"kitchen","domain":"light"}}'
SCHEMA: dict[str, Any] = {
    "type": "object",
    "properties": {"intent": {"enum": ["HassTurnOn", "HassTurnOff"]}, "slots": {"type": "object"}},
    "required": ["intent", "slots"],
}
LADDER = [
    GOLD,
    '{"intent":"HassTurnOn","slots":{"area":"attic","domain":"light"}}',
    '{"intent":"HassTurnOn","slots":{"name":"tv"}}',
    '{"intent":"HassTurnOff","slots":{}}',
    '{"intent":"HassDance","slots":{}}',
    '{"intent":"HassTurnOn","slots":{"area":"kit',
]


def test_better_answers_are_worth_more() -> None:
    totals = [verify(text, GOLD, SCHEMA).total for text in LADDER]
    assert totals == sorted(totals, reverse=True)
    assert len(set(totals)) == len(totals)
    assert totals[0] == 1.0
    assert totals[1] <= PARTIAL
    assert totals[-1] == 0.0


def test_spacing_and_key_order_do_not_count() -> None:
    assert verify('{"slots": {"domain": "light", "area": "kitchen"}, "intent": "HassTurnOn"}', GOLD).exact


@given(st.text(max_size=40))
def test_nothing_but_the_right_answer_is_exact(text: str) -> None:
    reward = verify(text, GOLD, SCHEMA)
    assert reward.exact == (reward.total == 1.0)
    assert 0 <= reward.total <= (1.0 if reward.exact else PARTIAL)


def prompt(number: int, cluster: str = "c") -> Prompt:
    return Prompt(f"p{number}", ({"role": "user", "content": f"say {number}"},), GOLD, "s", "l", cluster)


def rolled(*texts: str) -> list[Rollout]:
    return [Rollout(text, -float(number), number == 0, verify(text, GOLD, SCHEMA)) for number, text in enumerate(texts)]


def test_pairs_are_right_against_the_likeliest_wrong() -> None:
    pairs = list(
        make_pairs(
            [prompt(1)], [rolled(LADDER[3], GOLD, LADDER[1], LADDER[1], LADDER[2])], per_prompt=2, use_reference=False
        )
    )
    assert [(pair.chosen, pair.rejected) for pair in pairs] == [(GOLD, LADDER[3]), (GOLD, LADDER[1])]
    assert all(pair.on_policy for pair in pairs)


def test_the_reference_stands_in_only_if_asked() -> None:
    rollouts = [rolled(LADDER[1], LADDER[2])]
    assert list(make_pairs([prompt(1)], rollouts, per_prompt=2, use_reference=False)) == []
    pairs = list(make_pairs([prompt(1)], rollouts, per_prompt=1, use_reference=True))
    assert [(pair.chosen, pair.on_policy) for pair in pairs] == [(GOLD, False)]


def test_no_pair_where_everything_is_right_and_none_twice() -> None:
    assert list(make_pairs([prompt(1)], [rolled(GOLD, GOLD)], per_prompt=2, use_reference=True)) == []
    twice = [rolled(GOLD, LADDER[1]), rolled(GOLD, LADDER[1])]
    assert len(list(make_pairs([prompt(1), prompt(1)], twice, per_prompt=2, use_reference=True))) == 1


@given(st.lists(st.integers(0, 5), min_size=1, max_size=60), st.integers(1, 80), st.integers(0, 9))
def test_prompts_are_drawn_over_all_clusters(clusters: list[int], count: int, seed: int) -> None:
    prompts = [prompt(number, f"c{cluster}") for number, cluster in enumerate(clusters)]
    chosen = choose_prompts(prompts, count, seed)
    assert len(chosen) == min(count, len(prompts))
    assert len({each.id for each in chosen}) == len(chosen)
    assert chosen == choose_prompts(prompts, count, seed)
    if count >= len(set(clusters)):
        assert {each.cluster for each in chosen} == {each.cluster for each in prompts}


def test_figures_and_an_empty_yield(tmp_path: Path) -> None:
    rollouts = [rolled(GOLD, LADDER[1], GOLD), rolled(LADDER[5], LADDER[1], LADDER[2])]
    pairs = [Pair(prompt(1), GOLD, LADDER[1], True)]
    figures = sample_figures(rollouts, pairs)
    assert figures["exact_greedy"] == 0.5
    assert figures["exact_sampled"] == 0.25
    assert figures["exact_any"] == 0.5
    assert figures["distinct_answers"] == 2.5
    with pytest.raises(DataError, match="no pair"):
        write_preferences(tmp_path, [])


def chats(folder: Path, *conversations: list[dict[str, str]]) -> None:
    columns = {
        "id": [f"r{n}" for n in range(len(conversations))],
        "messages": [json.dumps(messages) for messages in conversations],
        "source": ["s"] * len(conversations),
        "license": ["CC0-1.0"] * len(conversations),
        "cluster": [f"c{n % 3}" for n in range(len(conversations))],
    }
    pq.write_table(pa.table(columns), folder / "chats.parquet")


def test_a_conversation_without_answer_is_named(tmp_path: Path) -> None:
    chats(tmp_path, [{"role": "user", "content": "hi"}])
    with pytest.raises(DataError, match="row 0"):
        read_prompts(tmp_path / "chats.parquet")


@pytest.fixture
def inputs(home: Home) -> dict[str, Artifact]:
    rows = [[{"role": "user", "content": f"turn on {n}"}, {"role": "assistant", "content": GOLD}] for n in range(12)]
    tokenizer = train_bpe([json.dumps(rows)], 300)
    shape = {"hidden_size": 16, "intermediate_size": 32, "num_hidden_layers": 1, "num_attention_heads": 1}
    config = DecoderConfig(
        family="llama", vocab_size=300, num_key_value_heads=1, head_dim=16, max_position_embeddings=128, **shape
    )
    model = Decoder(config)
    init_weights(model, seed=1, std=0.3)
    staging = home.store.stage("checkpoint")
    save_model(staging.path, model, tokenizer, {})
    checkpoint = home.store.publish(staging, step="test")
    staging = home.store.stage("chats")
    chats(staging.path, *rows)
    (staging.path / "schema.json").write_text(json.dumps(SCHEMA))
    return {"model": checkpoint, "chats": home.store.publish(staging, step="test")}


def test_the_step_pairs_what_a_random_model_says_with_references(
    home: Home, inputs: dict[str, Artifact], tmp_path: Path
) -> None:
    params = {"prompts": 9, "samples": 3, "max_tokens": 6}
    outputs = [run_step(home, tmp_path, "align.sample", inputs, **params)["preferences"] for _ in range(2)]
    assert outputs[0].digest == outputs[1].digest
    pairs = pq.read_table(outputs[0].file("preferences.parquet")).to_pylist()
    assert {pair["chosen"] for pair in pairs} == {GOLD}
    assert all(pair["rejected"] != GOLD and pair["chosen_by"] == "reference" for pair in pairs)
    assert json.loads(pairs[0]["prompt"])[0]["role"] == "user"
    assert len({pair["id"] for pair in pairs}) == len(pairs)
    rollouts = pq.read_table(outputs[0].file("rollouts.parquet"))
    assert rollouts.num_rows == 9 * 4
    assert sum(rollouts.column("greedy").to_pylist()) == 9
    effect = Effect.load(outputs[0].path)
    assert effect is not None
    assert effect.stage == "alignment"
    assert outputs[0].manifest.licences == ("CC0-1.0",)


def test_no_conversation_is_told(home: Home, inputs: dict[str, Artifact], tmp_path: Path) -> None:
    staging = home.store.stage("chats")
    chats(staging.path)
    empty = home.store.publish(staging, step="test")
    with pytest.raises(DataError, match="no conversation to take a prompt from"):
        run_step(home, tmp_path, "align.sample", {**inputs, "chats": empty})


def test_tools_that_might_be_called_are_in_the_prompt_wherever_its_answers_are_learnt_from(tmp_path: Path) -> None:
    """In what the model answers to, in the pairs of its answers, and in what preferences are trained on."""
    tokenizer = train_bpe(["turn on off the light in kitchen hall garden office yes no"], 300)
    tokenizer.chat_template = (
        "{%- for tool in tools or [] -%}{{- '<tool>' + tool.function.name -}}{%- endfor -%}" + tokenizer.chat_template
    )
    lamp = [{"type": "function", "function": {"name": "lamp"}}]
    prompts = []
    for tools in ([], lamp):
        chats(tmp_path, [{"role": "user", "content": "hi"}, {"role": "assistant", "content": "[]"}])
        table = pq.read_table(tmp_path / "chats.parquet")
        pq.write_table(table.append_column("tools", pa.array([json.dumps(tools)])), tmp_path / "chats.parquet")
        prompts += read_prompts(tmp_path / "chats.parquet")
    asked: list[list[int]] = []

    class Echo:
        def __init__(self) -> None:
            self.tokenizer = tokenizer

        def generate(self, requests: list[Any], on_progress: object) -> list[Any]:
            asked.extend(request.prompt_ids for request in requests)
            return [Completion(str(number), (), (-1.0,), (), "stop", 3) for number in range(len(requests))]

    rollouts = roll_out(Echo(), prompts, samples=1, temperature=1.0)  # type: ignore[arg-type]
    write_preferences(tmp_path, list(make_pairs(prompts, rollouts, per_prompt=1, use_reference=True)))
    rows = read_preferences(tmp_path / "preferences.parquet")
    assert [row["tools"] for row in rows] == [[], lamp]
    other = {"id": "o", "prompt": [{"role": "user", "content": "hall"}], "chosen": "no", "rejected": None}
    labels = encode_labels([*rows, other], tokenizer, 96).labels
    pairs = encode_pairs(rows, tokenizer, 96).pairs
    probe = Probe.choose(rows, [(pair.id, pair.chosen) for pair in pairs], tokenizer, 2, seed=1, seq_len=96)
    of_second = (asked[2], pairs[1].chosen, pairs[1].rejected, labels[2].answer, labels[2].mismatched, labels[3].answer)
    of_first = (asked[0], pairs[0].chosen, pairs[0].rejected, labels[0].answer, labels[0].mismatched, labels[1].answer)
    for which, expected in ((of_second, True), (of_first, False)):
        texts = [tokenizer.decode(list(getattr(one, "tokens", one))) for one in which]
        assert [text.startswith("<tool>lamp") for text in texts] == [expected] * 6
    assert sorted(tokenizer.decode(ids).startswith("<tool>lamp") for ids in probe.prompts) == [False, True]


def test_prompts_that_leave_the_context_no_room_are_left_out(inputs: dict[str, Artifact], tmp_path: Path) -> None:
    engine = Engine(load_model(inputs["model"].path), Tokenizer.load(inputs["model"].path))
    long = replace(prompt(2), messages=({"role": "user", "content": "say " * engine.max_tokens},))
    kept = with_room(engine, [prompt(1), long, prompt(3)])
    assert kept == [prompt(1), prompt(3)]
    assert len(roll_out(engine, kept, samples=1, temperature=1.0, max_tokens=2)) == 2


@pytest.mark.parametrize("content", [None, ""])
def test_an_answer_that_is_no_text_is_named(tmp_path: Path, content: str | None) -> None:
    call = {"role": "assistant", "content": content, "tool_calls": [{"type": "function"}]}
    chats(tmp_path, [{"role": "user", "content": "hi"}, call])  # type: ignore[list-item]
    with pytest.raises(DataError, match=r"row 0 \(r0\).*no text"):
        read_prompts(tmp_path / "chats.parquet")
