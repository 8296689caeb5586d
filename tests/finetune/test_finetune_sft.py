"""Fine-tuning: what is learnt, packing that changes nothing, conversations that are kept out by name."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import nn

import in_process
from liuyi.core.artifact import Artifact
from liuyi.core.digest import sha256_file
from liuyi.core.effect import Effect
from liuyi.core.errors import DataError
from liuyi.core.home import Home
from liuyi.finetune.chats import encode_chats, read_chats
from liuyi.model.checkpoint import load_model, save_model
from liuyi.model.decoder import Decoder
from liuyi.model.tokenizer import Tokenizer, train_bpe
from liuyi.train.batches import IGNORE
from liuyi.train.lm import CausalLM
from liuyi.train.packing import Example, PackedRows, lay_out, pack
from small_models import small_model

COLOURS = ("red", "blue", "green", "white", "black", "pink")


@pytest.fixture(scope="module")
def tokenizer() -> Tokenizer:
    return train_bpe(["turn the red blue green white black pink lamp on off please answer"], 290)


def chat(said: str, answer: str) -> list[dict[str, str]]:
    return [{"role": "user", "content": said}, {"role": "assistant", "content": answer}]


def publish_chats(home: Home, rows: list[tuple[str, list[dict[str, str]]]]) -> Artifact:
    staging = home.store.stage("chats")
    columns = {"id": [id for id, _ in rows], "messages": [json.dumps(messages) for _, messages in rows]}
    pq.write_table(pa.table(columns), staging.path / "chats.parquet")
    return home.store.publish(staging)


def publish_model(home: Home, tokenizer: Tokenizer, model: Decoder) -> Artifact:
    staging = home.store.stage("checkpoint")
    save_model(staging.path, model, tokenizer)
    return home.store.publish(staging)


@given(st.lists(st.integers(1, 40), max_size=80), st.integers(40, 100))
def test_packing_keeps_every_sequence_once_within_a_row(lengths: list[int], row_len: int) -> None:
    rows = pack(lengths, row_len)
    assert sorted(number for row in rows for number in row) == list(range(len(lengths)))
    assert all(sum(lengths[number] for number in row) <= row_len for row in rows)
    # Best fit leaves no two rows that could be one.
    filled = sorted(sum(lengths[number] for number in row) for row in rows)
    assert len(filled) < 2 or filled[0] + filled[1] > row_len


def test_packing_short_sequences_wastes_little_and_is_quick() -> None:
    lengths = np.random.default_rng(0).integers(15, 70, size=20_000).tolist()
    rows = pack(lengths, 256)
    assert sum(lengths) / (len(rows) * 256) > 0.97


def test_a_sequence_longer_than_a_row_is_named() -> None:
    with pytest.raises(DataError, match="sequence 1 has 9 tokens"):
        pack([3, 9], 8)


def examples(seed: int, count: int = 12, vocab_size: int = 50) -> list[Example]:
    rng = np.random.default_rng(seed)
    result = []
    for size in rng.integers(2, 20, size=count):
        learnt = rng.random(size) < 0.5
        learnt[-1] = True
        result.append(Example(rng.integers(1, vocab_size, size=size), learnt))
    return result


def test_packed_gradients_are_those_of_each_conversation_alone() -> None:
    many = examples(seed=1)
    model, reference = small_model(50), small_model(50)
    rows = PackedRows(many, seq_len=40, pad_id=0)
    assert len(rows) < len(many)
    loss = CausalLM()(model, rows.read(np.arange(len(rows))))
    loss.total.backward()
    total, count = torch.zeros(()), 0
    for example in many:
        ids = torch.from_numpy(example.tokens)
        targets = torch.where(torch.from_numpy(example.learnt), ids, IGNORE)[1:]
        logits = reference.logits(reference(ids[None]))[0, :-1]
        total = total + nn.functional.cross_entropy(logits, targets, reduction="sum", ignore_index=IGNORE)
        count += int((targets != IGNORE).sum())
    total.backward()
    assert loss.count == count
    assert loss.total.item() == pytest.approx(total.item(), rel=1e-5)
    for (name, ours), theirs in zip(model.named_parameters(), reference.parameters(), strict=True):
        torch.testing.assert_close(ours.grad, theirs.grad, rtol=2e-4, atol=2e-5, msg=name)


def test_rows_say_where_each_example_is() -> None:
    first = Example(np.array([5, 6, 7]), np.array([False, True, True]))
    second = Example(np.array([8, 9]), np.array([True, False]))
    batch = lay_out([[first, second]], seq_len=7, pad_id=1)
    assert batch.tokens.tolist() == [[5, 6, 7, 8, 9, 1, 1]]
    assert batch.targets.tolist() == [[6, 7, IGNORE, IGNORE, IGNORE, IGNORE, IGNORE]]
    assert batch.segments.tolist() == [[0, 0, 0, 1, 1, 2, 2]]
    assert batch.positions.tolist() == [[0, 1, 2, 0, 1, 0, 1]]


def test_only_the_assistants_words_are_learnt(tokenizer: Tokenizer) -> None:
    chats = encode_chats([("a", chat("turn the red lamp on", "answer red"), [])], tokenizer, 64)
    (example,) = chats.examples
    said = tokenizer.decode(example.tokens[example.learnt].tolist())
    assert said == "answer red<|im_end|>"
    assert "turn the red lamp on" in tokenizer.decode(example.tokens[~example.learnt].tolist())


TOOL_TEMPLATE = """\
{%- for tool in tools or [] -%}{{- '<tool>' + tool.function.name + '\n' -}}{%- endfor -%}
{%- for message in messages -%}
    {{- '<|im_start|>' + message.role + '\n' -}}
    {%- if message.role == 'assistant' -%}
        {%- generation -%}
            {{- message.content -}}
            {%- for call in message.tool_calls or [] -%}{{- call.function.arguments | tojson -}}{%- endfor -%}
            {{- '<|im_end|>' -}}
        {%- endgeneration -%}
    {%- else -%}
        {{- message.content + '<|im_end|>' -}}
    {%- endif -%}
{%- endfor -%}
"""


def test_calls_of_tools_are_learnt_where_the_template_knows_them(tokenizer: Tokenizer, tmp_path: Path) -> None:
    calls = [{"type": "function", "function": {"name": "lamp", "arguments": {"on": True}}}]
    messages = [{"role": "user", "content": "light"}, {"role": "assistant", "content": "", "tool_calls": calls}]
    tools = [{"type": "function", "function": {"name": "lamp"}}]
    path = tmp_path / "chats.parquet"
    pq.write_table(pa.table({"id": ["a"], "messages": [json.dumps(messages)], "tools": [json.dumps(tools)]}), path)
    knowing = train_bpe(["lamp light on"], 300)
    knowing.chat_template = TOOL_TEMPLATE
    (example,) = encode_chats(read_chats(path), knowing, 64).examples
    assert knowing.decode(example.tokens[example.learnt].tolist()) == '{"on": true}<|im_end|>'
    assert knowing.decode(example.tokens.tolist()).startswith("<tool>lamp")
    with pytest.raises(DataError, match="no conversation can be trained on") as caught:
        encode_chats(read_chats(path), tokenizer, 64)
    assert "leaves out calls of tools" in caught.value.hint


def test_what_cannot_be_trained_on_is_left_out_by_name(tokenizer: Tokenizer) -> None:
    rows = [
        ("good", chat("lamp", "on"), []),
        ("long", chat("lamp " * 60, "on"), []),
        ("silent", [{"role": "user", "content": "lamp"}], []),
    ]
    chats = encode_chats(rows, tokenizer, 40)
    assert len(chats.examples) == 1
    assert set(chats.left_out) == {"long", "silent"}
    assert "more than 40" in chats.left_out["long"]
    with pytest.raises(DataError, match="no conversation can be trained on"):
        encode_chats(rows[1:], tokenizer, 40)


def test_the_step_teaches_and_reports(home: Home, tmp_path: Path, tokenizer: Tokenizer) -> None:
    """After tuning, the answer that was taught is the most probable one; what was left out is in the checkpoint."""
    rows = [(f"c{n}", chat(f"turn the {colour} lamp on", f"answer {colour}")) for n, colour in enumerate(COLOURS * 10)]
    rows.append(("too-long", chat("turn " * 100, "on")))
    inputs = {
        "model": publish_model(home, tokenizer, small_model(tokenizer.vocab_size)),
        "chats": publish_chats(home, rows),
    }
    params = {"seq_len": 64, "batch_tokens": 512, "epochs": 12, "lr": 0.02}

    def run(name: str) -> Artifact:
        (tmp_path / name).mkdir()
        return in_process.run_step(home, tmp_path / name, "finetune.sft", inputs, **params)["checkpoint"]

    checkpoint = run("work")
    about = json.loads(checkpoint.file("liuyi.json").read_text())
    assert list(about["left_out"]) == ["too-long"]
    assert about["conversations"] == 60
    model = load_model(checkpoint.path).eval()
    for colour in COLOURS:
        (example,) = encode_chats(
            [("x", chat(f"turn the {colour} lamp on", f"answer {colour}"), [])], tokenizer, 64
        ).examples
        ids = torch.from_numpy(example.tokens)
        with torch.no_grad():
            best = model.logits(model(ids[None]))[0, :-1].argmax(-1)
        learnt = torch.from_numpy(example.learnt)[1:]
        assert torch.equal(best[learnt], ids[1:][learnt])
    assert run("again").digest == checkpoint.digest


def test_a_conversation_beyond_the_context_of_the_model_is_left_out(
    home: Home, tmp_path: Path, tokenizer: Tokenizer
) -> None:
    """However long the rows are: at such a position the model has never been."""
    model = small_model(tokenizer.vocab_size)
    model.config = replace(model.config, max_position_embeddings=48)
    rows = [("short", chat("light", "yes")), ("long", chat("light", "yes " * 30))]
    inputs = {"model": publish_model(home, tokenizer, model), "chats": publish_chats(home, rows)}
    made = in_process.run_step(home, tmp_path, "finetune.sft", inputs, seq_len=128, max_steps=1)["checkpoint"]
    left_out = json.loads(made.file("liuyi.json").read_text())["left_out"]
    assert list(left_out) == ["long"]
    assert left_out["long"].endswith("tokens, more than 48")


def test_what_the_model_says_while_it_learns(home: Home, tmp_path: Path, tokenizer: Tokenizer) -> None:
    """Samples lie beside the weights, which are those of a run without them, and are shown in the effect.

    What is left out, here for its length, is not asked either: it might leave no room for an answer.
    """
    rows = [("long", chat("light", "yes " * 60))]
    rows += [(f"c{n}", chat(f"turn the {colour} lamp on", f"answer {colour}")) for n, colour in enumerate(COLOURS)]
    model = publish_model(home, tokenizer, small_model(tokenizer.vocab_size))
    inputs = {"model": model, "chats": publish_chats(home, rows)}

    def run(name: str, **params: object) -> Artifact:
        (tmp_path / name).mkdir()
        settings = {"seq_len": 64, "batch_tokens": 128, "max_steps": 6, "compute_dtype": "fp32", **params}
        return in_process.run_step(home, tmp_path / name, "finetune.sft", inputs, **settings)["checkpoint"]

    plain = run("plain")
    spoken = run(
        "spoken", samples_every=4, sample_tokens=5, export=("tensorboard",), export_folder=str(tmp_path / "runs")
    )
    weights = [sha256_file(made.file("model.safetensors")) for made in (plain, spoken)]
    assert weights[0] == weights[1]
    said = [json.loads(line) for line in spoken.file("samples.jsonl").read_text().splitlines()]
    prompts = [f"turn the {colour} lamp on" for colour in COLOURS[:3]]
    assert [(row["step"], row["prompt"]) for row in said] == [(step, prompt) for step in (4, 6) for prompt in prompts]
    effect = Effect.load(spoken.path)
    assert effect is not None
    assert [block.title for block in effect.blocks] == ["Loss", "Learning rate", "Gradient norm", "Samples"]
    assert "— step 4 —" in effect.blocks[-1].samples[0].text  # type: ignore[union-attr]
    assert spoken.manifest.metrics["tok_s"] > spoken.manifest.metrics["learnt_tok_s"] > 0
    assert [path.name for path in (tmp_path / "runs/liuyi").iterdir()] == ["sft-test"]
    assert "export" not in json.dumps(plain.manifest.params)
