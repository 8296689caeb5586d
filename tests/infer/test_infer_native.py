"""The native runner against the decoder, in every family, number format and instruction set, and itself by bytes."""

from __future__ import annotations

import os
import random
import signal
import threading
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from functools import cache
from itertools import pairwise
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from infer_support import VOCAB, tiny_model
from torch import Tensor

from liuyi.core.errors import ModelError
from liuyi.infer.blocks import blocks_for
from liuyi.infer.native_runner import NativeRunner
from liuyi.infer.runner import BLOCK_TOKENS, Batch, Draws, Ids, ids
from liuyi.infer.sampling import choose
from liuyi.infer.torch_runner import TorchRunner
from liuyi.kernels.library import INSTRUCTION_SETS, KernelsAbsent, KernelsError, instruction_set_number, kernels
from liuyi.kernels.parts import Part
from liuyi.model.decoder import Decoder, init_weights
from liuyi.model.quantize import Format, quantize

try:
    BEST = kernels().instruction_set
except KernelsAbsent as absent:
    pytest.skip(f"no native kernels: {absent.message}", allow_module_level=True)

FAMILIES: dict[str, dict[str, Any]] = {
    "llama": {},
    "tied, every head its own keys": {"num_key_value_heads": 4, "tie_word_embeddings": True},
    "llama with biases": {"attention_bias": True},
    "one head of keys, heads of 80": {"num_key_value_heads": 1, "head_dim": 80},
    "odd sizes": {"vocab_size": 101, "hidden_size": 36, "intermediate_size": 44, "head_dim": 6, "rms_norm_eps": 1e-5},
    "mistral with a window": {"family": "mistral", "sliding_window": 37},
    "qwen2": {"family": "qwen2", "attention_bias": True, "tie_word_embeddings": True},
    "qwen2 with a window in one layer": {
        "family": "qwen2",
        "attention_bias": True,
        "sliding_window": 5,
        "layer_types": ("full_attention", "sliding_attention"),
    },
    "qwen3": {"family": "qwen3", "qk_norm": True, "head_dim": 16},
    "llama 3": {
        "rope_scaling": {
            "rope_type": "llama3",
            "factor": 8.0,
            "low_freq_factor": 1.0,
            "high_freq_factor": 4.0,
            "original_max_position_embeddings": 64,
        }
    },
    "yarn": {"rope_scaling": {"rope_type": "yarn", "factor": 4.0, "original_max_position_embeddings": 64}},
}
LENGTH = 330
"""More than one span of 256 keys."""


@pytest.fixture(params=INSTRUCTION_SETS)
def instruction_set(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> str:
    """Each instruction set that this processor has."""
    name = str(request.param)
    if instruction_set_number(name) > instruction_set_number(BEST):
        pytest.skip(f"this processor has no {name}")
    monkeypatch.setenv("LIUYI_KERNELS", name)
    return name


def wider_model() -> Decoder:
    """Wide enough for rounding errors to average out, with attention that is not all on one key."""
    model = tiny_model(hidden_size=128, intermediate_size=192, head_dim=32)
    init_weights(model, seed=1, std=0.1)
    return model


def texts_of(model: Decoder, texts: int, length: int = LENGTH) -> Ids:
    generator = torch.Generator().manual_seed(3)
    return ids(torch.randint(model.config.vocab_size, (texts, length), generator=generator).numpy())


def shuffled_tables(texts: int, length: int = LENGTH, seed: int = 0) -> Ids:
    blocks = list(range(texts * blocks_for(length)))
    random.Random(seed).shuffle(blocks)
    return ids(blocks).reshape(texts, -1)


def whole_batch(tokens: Ids) -> Batch:
    """All texts from their beginning, in blocks in no order; results for every token."""
    texts, length = tokens.shape
    return Batch(
        tokens=ids(tokens.reshape(-1)),
        counts=ids([length] * texts),
        lengths=ids([0] * texts),
        tables=shuffled_tables(texts, length),
        rows=ids(range(texts * length)),
        adapters=ids([-1] * texts),
    )


def expected(model: Decoder, tokens: Ids) -> Tensor:
    with torch.inference_mode():
        return model.logits(model(torch.from_numpy(tokens).long())).flatten(0, 1).float()


def relative_error(found: Tensor, exact: Tensor) -> float:
    return float((found - exact).norm() / exact.norm())


@pytest.mark.parametrize("name", FAMILIES)
def test_in_float32_it_is_the_decoder(name: str, instruction_set: str) -> None:
    model = tiny_model(**FAMILIES[name])
    tokens = texts_of(model, 2)
    batch = whole_batch(tokens)
    runner = NativeRunner(model, batch.tables.size, weights="fp32", kv="fp32", threads=2)
    assert relative_error(runner.logits(batch), expected(model, tokens)) < 2e-5
    with torch.inference_mode():
        hidden = model(torch.from_numpy(tokens).long()).flatten(0, 1)
    assert relative_error(runner.hidden(batch), hidden) < 2e-5


@pytest.mark.parametrize(
    ("weights", "kv", "error"),
    [
        ("fp32", "bf16", 0.005),
        ("fp32", "int8", 0.015),
        ("bf16", "fp32", 0.01),
        ("bf16", "bf16", 0.01),
        ("int8", "bf16", 0.05),
        ("int8", "int8", 0.05),
        ("int4", "bf16", 0.35),
    ],
)
def test_in_other_formats_it_is_near(weights: str, kv: str, error: float, instruction_set: str) -> None:
    model = wider_model()
    tokens = texts_of(model, 1)
    batch = whole_batch(tokens)
    runner = NativeRunner(model, batch.tables.size, weights=weights, kv=kv)
    assert runner.name == f"native {weights}, kv {kv}"
    if weights == "bf16" and instruction_set == "amx":
        error = 0.015  # It rounds activations too.
    assert relative_error(runner.logits(batch), expected(model, tokens)) < error


def test_bfloat16_agrees_with_the_decoder_in_bfloat16_weights(instruction_set: str) -> None:
    model = wider_model().bfloat16()
    exact = wider_model()
    exact.load_state_dict(model.state_dict())
    tokens = texts_of(model, 2)
    batch = whole_batch(tokens)
    wanted = expected(exact, tokens)
    found = NativeRunner(model, batch.tables.size, weights="bf16", kv="bf16").logits(batch)
    assert relative_error(found, wanted) < 0.01
    # AMX rounds activations too, and of a random model many next tokens are nearly as likely as the likeliest.
    least = 0.98 if instruction_set == "amx" else 0.99
    assert (found.argmax(1) == wanted.argmax(1)).float().mean() >= least


@pytest.mark.parametrize("vocab", [21, 700])
@pytest.mark.parametrize("weights", ["fp32", "int8"])
def test_chosen_tokens_are_those_that_the_logits_give(vocab: int, weights: str, instruction_set: str) -> None:
    model = tiny_model(vocab_size=2 * vocab)
    with torch.no_grad():  # Each token twice: of equal logits the first counts.
        head = model.get_parameter("lm_head.weight")
        head[vocab:] = head[:vocab]
    tokens = ids(texts_of(model, 2, 70) % vocab)
    batch = whole_batch(tokens)
    for threads in (1, 2, 3):
        runner = NativeRunner(model, batch.tables.size, weights=weights, kv="fp32", threads=threads)
        logits = runner.logits(batch)
        assert torch.equal(logits[:, :vocab], logits[:, vocab:])
        assert np.array_equal(runner.choose(batch), logits[:, :vocab].numpy().argmax(axis=1))
        for seed in range(5):
            temperatures = np.resize([0.0, 0.2, 1.0, 4.0], len(logits)).astype(np.float32)
            draws = Draws(temperatures, np.random.default_rng(seed).integers(0, 2**64, len(logits), np.uint64))
            assert np.array_equal(runner.choose(batch, draws), choose(logits, draws))


@pytest.mark.parametrize("fmt", ["int8", "int4"])
def test_a_quantised_checkpoint_is_taken_as_it_is(fmt: Format) -> None:
    """What is left is the rounding of activations, which the exact product of the same weights does not have."""
    small = quantize(wider_model(), fmt)
    tokens = texts_of(small, 1)
    batch = whole_batch(tokens)
    wanted = expected(small, tokens)
    runner = NativeRunner(small, batch.tables.size, weights=fmt, kv="fp32")
    assert relative_error(runner.logits(batch), wanted) < 0.03
    wide = NativeRunner(small, batch.tables.size, weights="fp32", kv="fp32").logits(batch)
    assert relative_error(wide, wanted) < 2e-5


FORMATS = [("fp32", "fp32"), ("bf16", "bf16"), ("int8", "int8"), ("int8", "bf16"), ("int4", "int8")]


@pytest.mark.parametrize(("weights", "kv"), FORMATS)
@pytest.mark.parametrize("name", ["llama", "mistral with a window", "one head of keys, heads of 80"])
def test_pieces_batches_and_threads_change_no_bit(name: str, weights: str, kv: str, instruction_set: str) -> None:
    model = tiny_model(**FAMILIES[name])
    tokens = texts_of(model, 4)
    tables = shuffled_tables(4)
    alone = NativeRunner(model, tables.size, weights=weights, kv=kv, threads=1)
    whole = [alone.logits(replace_rows(whole_batch(tokens[i : i + 1]), tables[i : i + 1])) for i in range(4)]
    together = NativeRunner(model, tables.size, weights=weights, kv=kv, threads=3)
    chance, done = random.Random(1), [0] * 4
    while min(done) < LENGTH:
        open_texts = [text for text in range(4) if done[text] < LENGTH]
        chosen = sorted(chance.sample(open_texts, chance.randint(1, len(open_texts))))
        counts = [min(chance.choice([1, 2, 31, 100, 200]), LENGTH - done[text]) for text in chosen]
        pieces = [tokens[text, done[text] : done[text] + count] for text, count in zip(chosen, counts, strict=True)]
        batch = Batch(
            tokens=ids(np.concatenate(pieces)),
            counts=ids(counts),
            lengths=ids([done[text] for text in chosen]),
            tables=ids(tables[chosen]),
            rows=ids(range(sum(counts))),
            adapters=ids([-1] * len(chosen)),
        )
        results = together.logits(batch).split(counts)
        for text, count, found in zip(chosen, counts, results, strict=True):
            assert torch.equal(found, whole[text][done[text] : done[text] + count])
            done[text] += count


ATTENTION: dict[str, dict[str, Any]] = {
    "heads of 64, groups of 3": {"num_attention_heads": 9, "num_key_value_heads": 3, "head_dim": 64},
    "heads of 96, one a group": {"num_attention_heads": 2, "num_key_value_heads": 2, "head_dim": 96},
    "heads of 128, groups of 7": {"num_attention_heads": 7, "num_key_value_heads": 1, "head_dim": 128},
    "heads of 16, groups of 20": {"num_attention_heads": 20, "num_key_value_heads": 1, "head_dim": 16},
    "groups of 8, a window": {
        "num_attention_heads": 8,
        "num_key_value_heads": 1,
        "head_dim": 80,
        "family": "mistral",
        "sliding_window": 70,
    },
}
"""Shapes that fill tiles of keys, of rows and of columns in different ways."""


@pytest.mark.parametrize("name", ATTENTION)
def test_attention_of_every_shape_is_near_in_small_formats_and_int8_is_the_same_on_the_matrix_unit(
    name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    model = tiny_model(hidden_size=128, num_hidden_layers=1, **ATTENTION[name])
    init_weights(model, seed=1, std=0.1)
    tokens = texts_of(model, 1)
    wanted, found = expected(model, tokens), {}
    for instruction_set in INSTRUCTION_SETS:
        if instruction_set_number(instruction_set) > instruction_set_number(BEST):
            continue
        monkeypatch.setenv("LIUYI_KERNELS", instruction_set)
        for kv, error in (("bf16", 0.006), ("int8", 0.015)):
            runner = NativeRunner(model, blocks_for(LENGTH), weights="fp32", kv=kv)
            found[instruction_set, kv] = runner.logits(whole_batch(tokens))
            assert relative_error(found[instruction_set, kv], wanted) < error
    if BEST == "amx":
        assert torch.equal(found["amx", "int8"], found["avx512", "int8"])


@pytest.mark.parametrize("kv", ["bf16", "int8"])
@pytest.mark.parametrize("name", ATTENTION)
def test_a_few_tokens_of_every_shape_get_what_they_get_in_the_whole_text(name: str, kv: str) -> None:
    model = tiny_model(hidden_size=128, num_hidden_layers=1, **ATTENTION[name])
    init_weights(model, seed=1, std=0.1)
    tokens, tables = texts_of(model, 1), shuffled_tables(1)
    runner = NativeRunner(model, tables.size, weights="fp32", kv=kv, threads=2)
    whole = runner.logits(replace_rows(whole_batch(tokens), tables))
    chance, begin = random.Random(2), 0
    while begin < LENGTH:
        part = ids(tokens[0, begin : begin + chance.randint(1, 8)])
        batch = Batch(part, ids([len(part)]), ids([begin]), tables, ids(range(len(part))), ids([-1]))
        assert torch.equal(runner.logits(batch), whole[begin : begin + len(part)])
        begin += len(part)


@given(cuts=st.sets(st.integers(1, LENGTH - 1), max_size=12), kv=st.sampled_from(["bf16", "int8"]))
@settings(max_examples=25, deadline=None, derandomize=True)
def test_wherever_a_prompt_is_cut_its_results_are_the_same(cuts: set[int], kv: str) -> None:
    runner, tokens, tables, whole = _read_whole(kv)
    edges = [0, *sorted(cuts), LENGTH]
    for begin, end in pairwise(edges):
        part = ids(tokens[0, begin:end])
        batch = Batch(part, ids([len(part)]), ids([begin]), tables, ids(range(len(part))), ids([-1]))
        assert torch.equal(runner.logits(batch), whole[begin:end])


@cache
def _read_whole(kv: str) -> tuple[NativeRunner, Ids, Ids, Tensor]:
    model = tiny_model(num_hidden_layers=1, **ATTENTION["heads of 64, groups of 3"])
    tokens, tables = texts_of(model, 1), shuffled_tables(1)
    runner = NativeRunner(model, tables.size, weights="fp32", kv=kv, threads=2)
    return runner, tokens, tables, runner.logits(replace_rows(whole_batch(tokens), tables))


def replace_rows(batch: Batch, tables: Ids) -> Batch:
    return replace(batch, tables=ids(tables))


@pytest.mark.parametrize(("kv", "window", "length"), [("bf16", None, 2100), ("int8", 2100, 2800)])
def test_who_attends_to_which_part_of_a_long_text_changes_no_bit(kv: str, window: int | None, length: int) -> None:
    family = {"family": "mistral", "sliding_window": window} if window else {}
    shape = ATTENTION["heads of 64, groups of 3"] | family
    model = tiny_model(num_hidden_layers=1, max_position_embeddings=8192, **shape)
    tokens, tables = texts_of(model, 1, length), shuffled_tables(1, length)
    found = []
    # One thread takes all that a head sees, two take it in stretches of spans, and four span by span.
    for threads in (1, 2, 4):
        runner = NativeRunner(model, tables.size, weights="fp32", kv=kv, threads=threads)
        read = []
        for begin, end in pairwise([0, length - 9, length - 1, length]):
            part = ids(tokens[0, begin:end])
            batch = Batch(part, ids([len(part)]), ids([begin]), tables, ids([len(part) - 1]), ids([-1]))
            read.append(runner.logits(batch))
        found.append(torch.cat(read))
    whole = runner.logits(replace_rows(whole_batch(tokens), tables))
    for each in found:
        assert torch.equal(each, whole[[length - 10, length - 2, length - 1]])


def test_both_runners_agree_on_long_sequences_read_in_pieces() -> None:
    model = tiny_model(max_position_embeddings=8192)
    length, piece = 2500, 700
    tokens = texts_of(model, 1, length)
    tables = shuffled_tables(1, length)
    native = NativeRunner(model, tables.size, weights="fp32", kv="fp32")
    torch_runner = TorchRunner(model, tables.size)
    for begin in range(0, length, piece):
        part = tokens[0, begin : begin + piece]
        batch = Batch(ids(part), ids([len(part)]), ids([begin]), tables, ids([len(part) - 1]), ids([-1]))
        assert relative_error(native.logits(batch), torch_runner.logits(batch)) < 2e-5


def test_dynamic_scaling_beyond_the_trained_context_is_that_of_the_torch_runner() -> None:
    model = tiny_model(max_position_embeddings=64, rope_scaling={"rope_type": "dynamic", "factor": 2.0})
    batch = whole_batch(texts_of(model, 2, 150))
    native = NativeRunner(model, batch.tables.size, weights="fp32", kv="fp32")
    assert relative_error(native.logits(batch), TorchRunner(model, batch.tables.size).logits(batch)) < 2e-5


def test_blocks_are_shared_by_those_that_begin_alike() -> None:
    model = tiny_model()
    tokens = texts_of(model, 1, 70)
    runner = NativeRunner(model, 8, weights="int8", kv="int8")
    whole = runner.logits(replace_rows(whole_batch(tokens), ids([[0, 1, 2]])))
    last = Batch(ids(tokens[0, 64:]), ids([6]), ids([64]), ids([[0, 1, 5]]), ids([2, 5]), ids([-1]))
    assert torch.equal(runner.logits(last), whole[[66, 69]])


def test_what_a_block_held_before_does_not_matter() -> None:
    model = tiny_model()
    tokens = texts_of(model, 2, 40)
    fresh = NativeRunner(model, 2, weights="fp32", kv="bf16")
    used = NativeRunner(model, 2, weights="fp32", kv="bf16")
    used.logits(whole_batch(tokens[1:]))
    assert torch.equal(used.logits(whole_batch(tokens[:1])), fresh.logits(whole_batch(tokens[:1])))


def test_results_are_given_for_the_rows_that_are_wanted() -> None:
    model = tiny_model()
    batch = whole_batch(texts_of(model, 2, 40))
    runner = NativeRunner(model, batch.tables.size)
    every = runner.logits(batch)
    assert torch.equal(runner.logits(replace(batch, rows=ids([0, 39, 79]))), every[[0, 39, 79]])
    assert runner.logits(replace(batch, rows=ids([]))).shape == (0, VOCAB)
    assert runner.hidden(replace(batch, rows=ids([1]))).shape == (1, 32)


WRONG: dict[str, tuple[Callable[[Batch], Batch], str]] = {
    "a token beyond the vocabulary": (lambda b: replace(b, tokens=ids([VOCAB, *b.tokens[1:]])), "vocabulary"),
    "a negative token": (lambda b: replace(b, tokens=ids([-1, *b.tokens[1:]])), "vocabulary"),
    "a block that there is not": (lambda b: replace(b, tables=b.tables + 100), "a block that there is not"),
    "a block that is missing": (lambda b: replace(b, tables=ids([[0, -1]])), "a block that there is not"),
    "a table that is too short": (lambda b: replace(b, tables=ids([[0]])), "too short"),
    "counts that do not add up": (lambda b: replace(b, counts=ids([39])), "add up"),
    "no new tokens": (lambda b: replace(b, counts=ids([0])), "no new tokens"),
    "a negative length": (lambda b: replace(b, lengths=ids([-1])), "negative length"),
    "a length beyond the table": (lambda b: replace(b, lengths=ids([2**31 - 40])), "too short"),
    "a row that is not there": (lambda b: replace(b, rows=ids([40])), "wanted row"),
    "a row twice": (lambda b: replace(b, rows=ids([3, 3])), "do not rise"),
    "an adapter that there is not": (lambda b: replace(b, adapters=ids([0])), "an adapter that there is not"),
    "fewer lengths than counts": (lambda b: replace(b, lengths=ids([])), "different numbers"),
    "fewer adapters than counts": (lambda b: replace(b, adapters=ids([])), "different numbers"),
    "numbers of 64 bits": (lambda b: replace(b, tokens=b.tokens.astype(np.int64)), "int32"),
    "a table in pieces": (lambda b: replace(b, tables=np.repeat(b.tables, 2, axis=1)[:, ::2]), "C-contiguous"),
    "nothing": (lambda b: Batch(*(ids([]) for _ in range(3)), ids(np.empty((0, 0))), ids([]), ids([])), "empty"),
}


@pytest.mark.parametrize("name", WRONG)
def test_a_batch_that_is_not_possible_is_an_error_and_changes_nothing(name: str) -> None:
    model = tiny_model()
    batch = whole_batch(texts_of(model, 1, 40))
    runner = NativeRunner(model, 2)
    before = runner.logits(batch)
    change, words = WRONG[name]
    with pytest.raises(KernelsError, match=words):
        runner.logits(change(batch))
    assert torch.equal(runner.logits(batch), before)


def test_formats_that_there_are_not_are_refused_by_name() -> None:
    with pytest.raises(ModelError, match="no number format 'fp16'"):
        NativeRunner(tiny_model(), 2, weights="fp16")
    with pytest.raises(ModelError, match="no number format 'int4'"):
        NativeRunner(tiny_model(), 2, kv="int4")


def test_a_closed_runner_says_so() -> None:
    runner = NativeRunner(tiny_model(), 2)
    runner.close()
    with pytest.raises(KernelsError, match="closed"):
        runner.logits(whole_batch(texts_of(tiny_model(), 1, 40)))


def test_threads_that_use_one_model_take_turns() -> None:
    model = tiny_model()
    runner = NativeRunner(model, 12, threads=2)
    texts = texts_of(model, 4, 40)
    batches = [replace(whole_batch(texts[i : i + 1]), tables=ids([[2 * i, 2 * i + 1]])) for i in range(len(texts))]
    alone = [runner.logits(batch) for batch in batches]
    with ThreadPoolExecutor(len(batches)) as pool:
        for _ in range(20):
            together = list(pool.map(runner.logits, batches))
            assert all(torch.equal(one, other) for one, other in zip(alone, together, strict=True))


def test_it_can_be_closed_while_another_thread_computes() -> None:
    runner = NativeRunner(tiny_model(), 2, threads=2)
    batch = whole_batch(texts_of(tiny_model(), 1, 40))
    computes = threading.Event()

    def compute() -> str:
        try:
            while True:
                runner.logits(batch)
                computes.set()
        except KernelsError as error:
            return error.message

    with ThreadPoolExecutor(1) as pool:
        message = pool.submit(compute)
        assert computes.wait(30)
        runner.close()
        assert message.result(30) == "the model is closed"


def in_child(body: Callable[[], None]) -> int:
    """How a forked child ends that calls `body`: 0 if that returns; −14 if it hangs."""
    child = os.fork()
    if child == 0:
        signal.alarm(30)
        try:
            body()
        except BaseException:
            os._exit(1)
        os._exit(0)
    return os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])


def test_after_a_fork_it_says_that_its_threads_are_elsewhere() -> None:
    runner = NativeRunner(tiny_model(), 2, threads=2)
    batch = whole_batch(texts_of(tiny_model(), 1, 40))
    before = runner.logits(batch)

    def in_vain() -> None:
        head = np.zeros((runner.config.vocab_size, runner.config.hidden_size), np.float32)
        for call in (lambda: runner.logits(batch), lambda: runner.native.pack("head", 0, "int8", [Part(head)])):
            with pytest.raises(KernelsError, match="another process"):
                call()

    assert in_child(in_vain) == 0
    assert in_child(runner.close) == 0
    assert torch.equal(runner.logits(batch), before)


def test_a_forked_child_can_have_a_model_of_its_own() -> None:
    runner = NativeRunner(tiny_model(), 2, threads=2)
    batch = whole_batch(texts_of(tiny_model(), 1, 40))
    here = runner.choose(batch).tolist()

    def anew() -> None:
        assert NativeRunner(tiny_model(), 2, threads=2).choose(batch).tolist() == here

    assert in_child(anew) == 0


def test_a_block_takes_what_its_format_needs() -> None:
    model = tiny_model(head_dim=16)
    values = 2 * BLOCK_TOKENS * 16 * 2 * 2  # keys and values, 2 heads, 2 layers
    sizes = {kv: NativeRunner(model, 2, kv=kv).block_bytes for kv in ("fp32", "bf16", "int8")}
    assert sizes == {"fp32": 4 * values, "bf16": 2 * values, "int8": values + 2 * 2 * 2 * BLOCK_TOKENS * 4}
