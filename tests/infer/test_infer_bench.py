"""The benchmark on a clock that counts steps, and the step that writes it down."""

from __future__ import annotations

import json
import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
from infer_support import tiny_model
from pydantic import ValidationError

from in_process import run_step
from liuyi.core.artifact import Artifact
from liuyi.core.effect import Effect
from liuyi.core.errors import DataError, ModelError
from liuyi.core.home import Home
from liuyi.core.machine import Machine
from liuyi.evaluate.evaluation import Evaluation
from liuyi.infer.bench import Bench, fractions, limits
from liuyi.infer.engine import Engine
from liuyi.infer.request import Request
from liuyi.infer.torch_runner import TorchRunner
from liuyi.model.checkpoint import load_model, save_model
from liuyi.model.decoder import Decoder
from liuyi.model.quantize import quantization_of
from liuyi.model.tokenizer import Tokenizer

MACHINE = Machine(
    cpu="a processor", threads=2, torch="2", gemm_flops={"fp32": 1e9, "bf16": 2e9}, memory_bytes_per_s=1e8
)


class StepClock:
    """A second passes with each step of the engine, and none else."""

    def __init__(self, engine: Engine, monkeypatch: pytest.MonkeyPatch) -> None:
        self.seconds = 0
        step = engine.step

        def ticking() -> Any:
            self.seconds += 1
            return step()

        monkeypatch.setattr(engine, "step", ticking)

    def __call__(self) -> float:
        return float(self.seconds)


@pytest.fixture
def bench_of(model: Decoder, tokenizer: Tokenizer, monkeypatch: pytest.MonkeyPatch) -> Callable[..., Bench]:
    def make(prompts: list[list[int]], **options: int) -> Bench:
        engine = Engine(model, tokenizer, max_slots=4, prefill_tokens=16)
        return Bench(engine, prompts, clock=StepClock(engine, monkeypatch), **options)

    return make


class TestBench:
    def test_counts_seconds_to_the_first_token_and_between_tokens(self, bench_of: Callable[..., Bench]) -> None:
        bench = bench_of([[30] * 10, [31] * 40], new_tokens=9, streams=4, prefill_tokens=100)
        bench.warm_up()
        bench.repeat()
        bench.repeat()
        short, long = bench.prompt_medians()
        assert (short.prompt_tokens, short.ttft_s, short.tokens_per_s) == (10, 1.0, 1.0)
        assert (long.prompt_tokens, long.ttft_s, long.tokens_per_s) == (40, 3.0, 1.0)
        figures = bench.figures()
        assert figures.decode_tokens_per_s == 1.0
        assert figures.prefill_tokens_per_s == 100 / 7
        assert (figures.ttft_p50_s, figures.ttft_p95_s) == (2.0, 3.0)
        assert not bench.engine.has_work

    def test_counts_a_batch_only_while_all_its_streams_decode(self, bench_of: Callable[..., Bench]) -> None:
        bench = bench_of([[30] * 10, [31] * 20], new_tokens=12, streams=4, prefill_tokens=8)
        bench.repeat()
        assert bench.figures().batch_tokens_per_s == 4.0
        # With fewer tokens than it takes to read all prompts there is no such time, and all of it counts.
        bench = bench_of([[30 + at] * 60 for at in range(4)], new_tokens=2, streams=4, prefill_tokens=8)
        bench.repeat()
        assert bench.figures().batch_tokens_per_s == 8 / 16


def test_answers_that_leave_no_room_for_a_prompt_are_refused(bench_of: Callable[..., Bench]) -> None:
    with pytest.raises(DataError, match="no room for a prompt and 256 new ones"):
        bench_of([[30, 31]], new_tokens=256, streams=1, prefill_tokens=8)
    bench_of([[30, 31]], new_tokens=255, streams=1, prefill_tokens=8)


def test_weights_and_limits_follow_from_the_configuration() -> None:
    for tied in (True, False):
        model = tiny_model(tie_word_embeddings=tied)
        embedding = model.config.vocab_size * model.config.hidden_size
        # A tied embedding is read as the head; one that is not is only looked up.
        read = model.config.num_parameters - (0 if tied else embedding)
        runner = TorchRunner(model, blocks=1)
        assert runner.weight_bytes == 4 * read
        most = limits(runner, MACHINE, streams=3)
        assert most.decode_tokens_per_s == pytest.approx(1e8 / (4 * read))
        assert most.prefill_tokens_per_s == pytest.approx(1e9 / (2 * read))
        assert most.batch_tokens_per_s == pytest.approx(min(3e8 / (4 * read), 1e9 / (2 * read)))


def test_fractions_leave_out_what_was_not_measured(model: Decoder, tokenizer: Tokenizer) -> None:
    bench = Bench(Engine(model, tokenizer, max_slots=2), [[30]], new_tokens=2, streams=2, prefill_tokens=8)
    bench.repeat()
    unknown = MACHINE.model_copy(update={"gemm_flops": {}})
    found = fractions(bench.figures(), limits(bench.engine.runner, unknown, 2))
    assert found.keys() == {"decode_tokens_per_s"}
    assert found["decode_tokens_per_s"] == bench.figures().decode_tokens_per_s / (
        1e8 / bench.engine.runner.weight_bytes
    )


@pytest.fixture
def checkpoint(home: Home, model: Decoder, tokenizer: Tokenizer) -> Artifact:
    staging = home.store.stage("checkpoint")
    save_model(staging.path, model, tokenizer)
    return home.store.publish(staging, step="pretrain.train")


@pytest.fixture
def evalset(home: Home) -> Artifact:
    staging = home.store.stage("evalset")
    rows = [
        {
            "id": f"q{at}",
            "cluster": f"c{at % 3}",
            "messages": json.dumps([{"role": "user", "content": f"question {at}"}]),
            "reference": "",
            "lang": "en",
            "kind": "plain",
        }
        for at in range(9)
    ]
    pq.write_table(pa.Table.from_pylist(rows), staging.path / "items.parquet")
    (staging.path / "evalset.json").write_text('{"name": "questions", "scorer": "exact"}')
    return home.store.publish(staging, step="data.desk")


class TestStep:
    @pytest.fixture(autouse=True)
    def _machine(self, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr("liuyi.core.machine.machine_limits", lambda: MACHINE)

    def test_writes_an_evaluation_that_can_be_compared(
        self, home: Home, tmp_path: Path, checkpoint: Artifact, evalset: Artifact
    ) -> None:
        made = run_step(
            home,
            tmp_path,
            "infer.bench",
            {"model": checkpoint, "baseline": checkpoint, "evalset": evalset},
            prompts=3,
            new_tokens=4,
            streams=2,
            prefill_tokens=32,
            label="after",
            baseline_label="before",
        )["evaluation"]
        evaluation = Evaluation.load(made.path)
        assert evaluation.columns["item"] == ["q0", "q3", "q6"]
        assert evaluation.columns["cluster"] == ["c0", "c0", "c0"]
        assert evaluation.subject == checkpoint.digest
        assert (evaluation.scores("ttft_ms") > 0).all()
        figure = evaluation.figure("tokens_per_s")
        said = json.loads(made.file("evaluation.json").read_text())
        assert said["metrics"]["tokens_per_s"]["mean"] == pytest.approx(figure.mean)
        assert said["models"].keys() == {"after", "before"}
        assert made.manifest.metrics["decode_tokens_per_s"] > 0
        effect = Effect.load(made.path)
        assert effect is not None
        assert effect.stage == "inference"
        assert "Against before in the same run" in effect.summary
        table = next(block for block in effect.blocks if block.kind == "table")
        assert [row[0] for row in table.rows] == ["after", "before"]

    def test_makes_up_prompts_without_an_eval_set(self, home: Home, tmp_path: Path, checkpoint: Artifact) -> None:
        options = {"prompts": 2, "prompt_tokens": 20, "new_tokens": 3, "streams": 1, "weights": "fp32", "kv": "bf16"}
        made = run_step(home, tmp_path, "infer.bench", {"model": checkpoint}, **options)["evaluation"]
        assert "kv bf16" in made.file("evaluation.json").read_text()
        evaluation = Evaluation.load(made.path)
        assert evaluation.columns["prompt_tokens"] == [20.0, 20.0]


class TestQuantize:
    def test_a_quarter_of_the_bytes_and_nearly_the_same_model(
        self, home: Home, tmp_path: Path, checkpoint: Artifact, model: Decoder, tokenizer: Tokenizer
    ) -> None:
        made = run_step(home, tmp_path, "infer.quantize", {"model": checkpoint})["checkpoint"]
        figures = made.manifest.metrics
        assert figures["bytes_before"] == sum(
            entry.bytes for entry in checkpoint.manifest.files if entry.path.endswith(".safetensors")
        )
        # A byte a weight instead of four, but rows of 32 are filled up to a whole group of 64; norms and scales stay.
        assert 0.25 < figures["bytes_after"] / figures["bytes_before"] < 0.55
        small = load_model(made.path)
        requests = [Request(prompt_ids=[30 + at], max_tokens=8, logprobs=True, ignore_eos=True) for at in range(8)]
        exact, near = (Engine(one, Tokenizer.load(made.path)).generate(requests) for one in (model, small))
        first = [(one.logprobs[0], other.logprobs[0]) for one, other in zip(exact, near, strict=True)]
        assert all(abs(one - other) < 0.2 for one, other in first)
        assert any(one != other for one, other in first)
        effect = Effect.load(made.path)
        assert effect is not None
        assert effect.stage == "inference"

    def test_the_same_model_gives_the_same_bytes(self, home: Home, tmp_path: Path, checkpoint: Artifact) -> None:
        one, two = (run_step(home, tmp_path, "infer.quantize", {"model": checkpoint})["checkpoint"] for _ in range(2))
        assert one.digest == two.digest

    @pytest.mark.parametrize("fmt", ["int8", "int4"])
    def test_text_shows_what_it_costs(
        self, home: Home, tmp_path: Path, checkpoint: Artifact, model: Decoder, tokenizer: Tokenizer, fmt: str
    ) -> None:
        staging = home.store.stage("corpus")
        table = pa.table({"text": ["a cold day", "b", "warm rain in the night " * 40, "never read " * 500]})
        pq.write_table(table, staging.path / "documents.parquet")
        corpus = home.store.publish(staging, step="data.files", output="corpus")
        made = run_step(
            home, tmp_path, "infer.quantize", {"model": checkpoint, "corpus": corpus}, format=fmt, text_tokens=300
        )["checkpoint"]
        figures = made.manifest.metrics
        small = load_model(made.path)
        assert quantization_of(small) == fmt
        texts = [tokenizer.encode("a cold day"), tokenizer.encode("warm rain in the night " * 40)]
        texts[1] = texts[1][: 300 - len(texts[0])]
        with torch.inference_mode():
            losses = [
                torch.nn.functional.cross_entropy(
                    model.logits(model(torch.tensor([text])))[0, :-1], torch.tensor(text[1:]), reduction="sum"
                )
                for text in texts
            ]
        tokens = sum(map(len, texts)) - 2
        assert figures["agreement_tokens"] == tokens
        assert figures["exact_perplexity"] == pytest.approx(math.exp(sum(map(float, losses)) / tokens), rel=1e-4)
        assert figures["perplexity"] == pytest.approx(figures["exact_perplexity"], rel=0.2)
        assert figures["nll_increase"] == pytest.approx(
            math.log(figures["perplexity"] / figures["exact_perplexity"]), abs=1e-6
        )
        assert {"int8": 0.8, "int4": 0.3}[fmt] < figures["top1_agreement"] <= 1
        effect = Effect.load(made.path)
        assert effect is not None
        assert "the likeliest next token is the same for" in effect.summary
        # All that comes after what is measured, 512 tokens of a text at most.
        assert ("fitted to 512 tokens of text" in effect.summary) == (fmt == "int4")

    def test_int4_may_be_rounded_to_the_nearest(self, home: Home, tmp_path: Path, checkpoint: Artifact) -> None:
        staging = home.store.stage("corpus")
        pq.write_table(pa.table({"text": ["warm rain in the night " * 40] * 4}), staging.path / "documents.parquet")
        corpus = home.store.publish(staging, step="data.files", output="corpus")
        made = [
            run_step(home, tmp_path, "infer.quantize", inputs, format="int4", **options)["checkpoint"]
            for inputs, options in (
                ({"model": checkpoint}, {}),
                ({"model": checkpoint, "corpus": corpus}, {"text_tokens": 30, "fit_tokens": 0}),
                ({"model": checkpoint, "corpus": corpus}, {"text_tokens": 30}),
            )
        ]
        simple, asked, fitted = (load_model(one.path).state_dict() for one in made)
        changed = {name for name, weight in simple.items() if not torch.equal(weight, fitted[name])}
        assert all(torch.equal(weight, asked[name]) for name, weight in simple.items())
        assert changed
        assert all(".layers." in name for name in changed)

    def test_int8_is_not_fitted(self, home: Home, tmp_path: Path, checkpoint: Artifact) -> None:
        with pytest.raises(ValidationError, match="fit_tokens is for int4"):
            run_step(home, tmp_path, "infer.quantize", {"model": checkpoint}, fit_tokens=5)

    def test_a_quantised_model_is_not_quantised_again(self, home: Home, tmp_path: Path, checkpoint: Artifact) -> None:
        made = run_step(home, tmp_path, "infer.quantize", {"model": checkpoint})["checkpoint"]
        with pytest.raises(ModelError, match="already"):
            run_step(home, tmp_path, "infer.quantize", {"model": made})
