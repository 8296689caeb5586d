"""Samples while training: what they say is what the whole sequence gives, and they leave no trace in the weights."""

from __future__ import annotations

import json
import random
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from drill import digest, small_run
from parallel_models import divisible_model
from train_support import EOS, VOCAB, Listener, tiny_model

from liuyi.core.errors import DataError
from liuyi.model.chat import CHATML
from liuyi.model.decoder import Decoder, init_weights
from liuyi.model.tokenizer import Tokenizer, train_bpe
from liuyi.train.curves import SAMPLES_FILE, read_samples
from liuyi.train.log import LOG_FILE
from liuyi.train.parallel.apply import parallelize
from liuyi.train.parallel.gradients import local
from liuyi.train.params import SamplesParams
from liuyi.train.samples import Prompt, Samples, chat_prompts, complete
from liuyi.train.world import Layout, World, join
from ranks import run_ranks


def likeliest(model: Decoder, prompt: list[int], max_tokens: int, stop: int | None = None) -> list[int]:
    """Greedy tokens, each from the whole sequence anew."""
    ids = list(prompt)
    with torch.no_grad():
        while len(ids) < len(prompt) + max_tokens and (len(ids) == len(prompt) or ids[-1] != stop):
            ids.append(int(model.logits(model(torch.tensor([ids])))[0, -1].argmax()))
    return ids[len(prompt) :]


def model_of(**changes: object) -> Decoder:
    """Weights large enough that the text depends on what came before."""
    model = Decoder(replace(tiny_model().config, **changes))  # type: ignore[arg-type]
    init_weights(model, seed=3, std=0.6)
    return model


@pytest.mark.parametrize(
    "changes",
    [
        {},
        {"family": "mistral", "qk_norm": False, "sliding_window": 4},
        {"family": "qwen3_moe", "num_experts": 4, "moe_intermediate_size": 8},
    ],
    ids=["dense", "window", "experts"],
)
def test_prompts_of_any_length_go_forward_side_by_side(changes: dict[str, object]) -> None:
    model = model_of(**changes).train()
    prompts = [[EOS], [5, 9, 2, 7, 11, 3, 3, 8], [4, 1, 6]]
    said = complete(model, prompts, max_tokens=9)
    assert [ids for ids, _ in said] == [likeliest(model, prompt, 9) for prompt in prompts]
    assert len({tuple(ids) for ids, _ in said}) == 3
    assert model.training


def test_a_text_ends_where_the_model_ends_it() -> None:
    model = model_of()
    whole = likeliest(model, [5, 9], 12)
    stop = whole[4]
    ids, ended = complete(model, [[5, 9], [4]], max_tokens=12, stop=[stop])[0]
    assert (ids, ended) == (whole[: whole.index(stop)], True)
    assert complete(model, [[5, 9]], max_tokens=2, stop=[VOCAB - 1])[0] == (whole[:2], False)


def test_nothing_is_said_beyond_the_context() -> None:
    model = model_of(max_position_embeddings=10)
    said = complete(model, [[1, 2, 3, 4], [5]], max_tokens=30)
    assert [len(ids) for ids, _ in said] == [6, 9]


def letters() -> Tokenizer:
    """A tokenizer in which every token of the tiny model is a character."""
    import tokenizers

    vocabulary = {chr(ord("0") + number): number for number in range(VOCAB)}
    return Tokenizer(tokenizers.Tokenizer(tokenizers.models.BPE(vocab=vocabulary, merges=[])))


def samples(folder: Path, listener: Listener, steps: int, every: int = 5) -> Samples:
    return Samples(
        prompts=[Prompt("a", (EOS,)), Prompt("b", (5, 6, 7))],
        tokenizer=letters(),
        params=SamplesParams(samples_every=every, sample_tokens=6),
        config=tiny_model().config,
        over=lambda: len((folder / "work" / LOG_FILE).read_text().splitlines()) == steps,
        workdir=folder / "work",
        log=listener.log,
    )


def test_samples_change_no_bit(tmp_path: Path) -> None:
    """Neither of weights nor of the log, nor of random numbers that others draw."""
    plain, _, _ = small_run(tmp_path / "plain", steps=12)
    random.seed(1), np.random.seed(1), torch.manual_seed(1)
    before = random.getstate(), np.random.get_state()[1].tolist(), torch.get_rng_state().tolist()
    listener = Listener()
    watched = samples(tmp_path / "watched", listener, 12)
    model, _, _ = small_run(tmp_path / "watched", steps=12, listener=listener, onlookers=[watched])
    assert (random.getstate(), np.random.get_state()[1].tolist(), torch.get_rng_state().tolist()) == before
    assert digest(model) == digest(plain)
    assert (tmp_path / "plain/work" / LOG_FILE).read_bytes() == (tmp_path / "watched/work" / LOG_FILE).read_bytes()
    rows = read_samples(tmp_path / "watched/work")
    assert [(row["step"], row["prompt"]) for row in rows] == [(s, p) for s in (5, 10, 12) for p in "ab"]
    last = likeliest(model, [5, 6, 7], 6, stop=EOS)
    assert rows[-1]["text"] == letters().decode([id for id in last if id != EOS])
    assert sum(line.startswith("step 5: 'a' → ") for line in listener.logs) == 1


def test_a_run_that_was_killed_has_the_same_samples(tmp_path: Path) -> None:
    class Killed(BaseException):
        pass

    class Killer(Listener):
        def progress(self, done: float, total: float, unit: str = "", **shown: float) -> None:
            if done == 11:
                raise Killed

    for name in ("whole", "broken"):
        kills = [Killer()] if name == "broken" else []
        for listener in [*kills, Listener()]:
            looked = samples(tmp_path / name, listener, 15)
            try:
                # The newest checkpoint is that of the start: all samples are made again.
                small_run(tmp_path / name, steps=15, every_s=1e9, listener=listener, onlookers=[looked])
            except Killed:
                assert len(read_samples(tmp_path / name / "work")) == 4
    whole, broken = (tmp_path / name / "work" / SAMPLES_FILE for name in ("whole", "broken"))
    assert whole.read_bytes() == broken.read_bytes()
    assert len([json.loads(line) for line in whole.read_text().splitlines()]) == 6


def test_a_prompt_has_to_leave_room(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="has 2048 tokens"):
        replace(samples(tmp_path, Listener(), 5), prompts=[Prompt("long", (1,) * 2048)])


def test_parameters_of_samples_need_samples() -> None:
    with pytest.raises(ValueError, match="'sample_prompts' means nothing without samples"):
        SamplesParams(sample_prompts=("a",))
    assert SamplesParams(**SamplesParams(samples_every=2, sample_prompts=("a",)).model_dump()).sample_tokens == 64
    assert SamplesParams(**SamplesParams().model_dump()) == SamplesParams()


def speak(layout: Layout, shape: str) -> list[list[tuple[list[int], bool]]]:
    """What a divided model says, before and after its weights have changed."""
    world = join(layout) if layout.size > 1 else World()
    model = divisible_model(shape)
    parallelize(model, world)
    said = []
    for _ in range(2):
        said.append(complete(model, [[1], [5, 9, 2, 7, 11], [4, 1]], max_tokens=12, world=world))
        with torch.no_grad():
            for parameter in model.parameters():
                local(parameter).neg_()
    return said


@pytest.mark.parametrize(
    ("layout", "shape"),
    [(Layout(shard=2), "qwen3"), (Layout(tensor=2), "qwen2"), (Layout(context=2), "mistral")],
    ids=["shard", "tensor", "context"],
)
def test_a_model_that_is_divided_says_the_same(layout: Layout, shape: str) -> None:
    alone = speak(Layout(), shape)
    assert run_ranks(2, speak, layout, shape) == [alone, alone]
    assert alone[0] != alone[1]


def disagree() -> tuple[list[tuple[list[int], bool]], list[tuple[list[int], bool]]]:
    """What copies of a model say together whose weights differ, and what this one says alone."""
    world = join(Layout(replicate=2))
    model = Decoder(tiny_model().config)
    init_weights(model, seed=3 + world.rank, std=0.6)
    settings = {"max_tokens": 9, "stop": [17]}
    prompts = [[5, 9], [4]]
    return complete(model, prompts, world=world, **settings), complete(model, prompts, **settings)  # type: ignore[arg-type]


def test_processes_whose_logits_differ_say_what_the_first_says() -> None:
    """And end when it ends: where one goes on alone, it waits for the others for ever."""
    (first, alone), (second, otherwise) = run_ranks(2, disagree)
    assert first == second == alone != otherwise


def test_conversations_that_the_assistant_begins_ask_nothing(tmp_path: Path) -> None:
    conversations = [([{"role": "assistant", "content": "Welcome"}], [])] * 2
    listener = Listener()
    silent = replace(samples(tmp_path, listener, 5), prompts=chat_prompts((), conversations, letters()))
    silent.after_step(tiny_model(), {"step": 4}, {})
    assert not read_samples(tmp_path / "work")
    assert not listener.logs


def test_conversations_are_asked_with_the_tools_that_may_be_called() -> None:
    tokenizer = train_bpe(["turn on off the light"], 300)
    tokenizer.chat_template = "{%- for tool in tools or [] -%}{{- tool.function.name -}}{%- endfor -%}" + CHATML
    asked, lamp = [{"role": "user", "content": "on"}], [{"type": "function", "function": {"name": "lamp"}}]
    plain, with_tools = chat_prompts((), [(asked, []), (asked, lamp), (asked, lamp)], tokenizer)
    assert (plain.shown, with_tools.shown) == ("on", "on")
    assert tokenizer.decode(list(with_tools.ids)) == f"lamp{tokenizer.decode(list(plain.ids))}"
