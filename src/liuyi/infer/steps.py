"""Where this art meets the spine: its steps."""

from __future__ import annotations

from typing import TYPE_CHECKING, Literal, Self

from pydantic import Field, model_validator

from liuyi.core.artifact import Artifact
from liuyi.core.step import Context, Input, Output, Params, step

if TYPE_CHECKING:
    from liuyi.infer.bench import Bench

PRELOAD = ("torch",)

_FIT_TOKENS = 16_384


class QuantizeParams(Params):
    format: Literal["int8", "int4"] = Field(
        "int8",
        description="format of the matrices; norms and biases stay, int4 keeps embedding and head in int8",
    )
    text_tokens: int = Field(4096, ge=2, description="tokens of the corpus or eval set that agreement is measured on")
    fit_tokens: int | None = Field(
        None,
        ge=0,
        description="tokens after those that int4 is fitted to, so that what it makes of such text changes least; "
        "0 takes the nearest numbers [16,384 for int4]",
    )

    @model_validator(mode="after")
    def _fits_int4(self) -> Self:
        if self.format != "int4" and self.fit_tokens is not None:
            raise ValueError(f"fit_tokens is for int4; {self.format} takes the nearest numbers")
        return self


@step(
    "infer.quantize",
    version=5,
    inputs={
        "model": Input("checkpoint", "the model in full precision"),
        "corpus": Input("corpus", "documents to measure the agreement with it on, and to fit int4 to", optional=True),
        "evalset": Input("evalset", "conversations for both, where there is no corpus", optional=True),
    },
    outputs={"checkpoint": Output("checkpoint", "the same model with matrices of few bits, a scale for each group")},
)
def quantize_step(ctx: Context, params: QuantizeParams) -> None:
    """Store a model's matrices in int8 or int4; on text, measure how often the next token stays the same."""
    from liuyi.core.effect import Effect, Table
    from liuyi.infer.quantized import quantize_folder

    source = ctx.input("model")
    with ctx.output("checkpoint") as out:
        texts, fit_to = _quantize_texts(ctx, params)
        error, near = quantize_folder(source.path, out.path, params.format, texts, fit_to)
        before, after = stored_bytes(source), sum(path.stat().st_size for path in out.path.glob("*.safetensors"))
        mean, largest = error["relative_rms_error"], error["relative_rms_error_max"]
        summary = (
            f"{before / 1e6:.1f} MB of weights became {after / 1e6:.1f} MB; each matrix moved by "
            f"{mean:.2%} of its size, the one that moved most by {largest:.2%}."
        )
        if fit_to:
            summary += f" They are fitted to {sum(map(len, fit_to)):,} tokens of text."
        tables = [
            Table(
                title="Weights",
                columns=("format", "MB", "mean error", "largest error"),
                rows=(("before", before / 1e6, 0.0, 0.0), (params.format, after / 1e6, mean, largest)),
            )
        ]
        if near is not None:
            summary += (
                f" On {near.tokens:,} tokens of text the likeliest next token is the same for {near.top1:.1%}, "
                f"and perplexity went from {near.exact_perplexity:.3f} to {near.perplexity:.3f}."
            )
            tables.append(
                Table(
                    title="On text",
                    columns=("format", "perplexity", "same next token", "± standard error"),
                    rows=(
                        ("before, float32", near.exact_perplexity, 1.0, 0.0),
                        (params.format, near.perplexity, near.top1, near.top1_error),
                    ),
                )
            )
        Effect(stage="inference", title="Quantisation", summary=summary, blocks=tuple(tables)).save(out.path)
        agreement = near.metrics() if near is not None else {}
        out.metrics.update({"bytes_before": before, "bytes_after": after, **error, **agreement})
        out.licences.update(source.manifest.licences)


def _quantize_texts(ctx: Context, params: QuantizeParams) -> tuple[list[list[int]], list[list[int]]]:
    """Texts to measure agreement on, and others that int4 is fitted to."""
    from liuyi.infer.quantized import corpus_texts, evalset_texts, take
    from liuyi.model.tokenizer import Tokenizer

    for name, texts_of in (("corpus", corpus_texts), ("evalset", evalset_texts)):
        if ctx.has(name):
            tokenizer = Tokenizer.load(ctx.input("model").path)
            texts = texts_of(ctx.input(name).path, tokenizer)
            wanted = _FIT_TOKENS if params.fit_tokens is None else params.fit_tokens
            return take(texts, params.text_tokens), take(texts, wanted if params.format == "int4" else 0)
    return [], []


def stored_bytes(artifact: Artifact) -> int:
    """Bytes of a checkpoint's weights on disk."""
    return sum(file.bytes for file in artifact.manifest.files if file.path.endswith(".safetensors"))


class BenchParams(Params):
    label: str = Field("model", description="what the report calls the model")
    baseline_label: str = Field("baseline", description="what it calls the baseline")
    prompts: int = Field(12, ge=1, le=1000, description="prompts answered one after the other")
    prompt_tokens: int = Field(64, ge=1, description="length of made-up prompts, where there is no eval set")
    new_tokens: int = Field(32, ge=2, description="tokens generated for each")
    streams: int = Field(16, ge=1, le=256, description="prompts answered at once")
    prefill_tokens: int = Field(512, ge=1, description="length of the long prompt")
    repeats: int = Field(2, ge=1, le=100, description="how often all is measured; the models take turns")
    weights: Literal["auto", "reference", "fp32", "bf16", "int8", "int4"] = Field(
        "auto", description="number format computed in; auto as in serve, reference as the weights are"
    )
    kv: Literal["auto", "fp32", "bf16", "int8"] = Field("auto", description="number format of keys and values")


@step(
    "infer.bench",
    version=3,
    inputs={
        "model": Input("checkpoint", "whose speed is measured"),
        "baseline": Input("checkpoint", "what it is compared with, in the same run", optional=True),
        "evalset": Input("evalset", "where prompts are taken from", optional=True),
    },
    outputs={"evaluation": Output("evaluation", "latency and speed for each prompt, and the figures of all")},
)
def bench_step(ctx: Context, params: BenchParams) -> None:
    """Measure time to first token, decoding and prefill, as fractions of what this machine can do."""
    from liuyi.core.machine import machine_limits
    from liuyi.infer.bench import limits
    from liuyi.infer.bench_report import Measured, write_bench

    subjects = [(params.label, ctx.input("model"))]
    if ctx.has("baseline"):
        subjects.append((params.baseline_label, ctx.input("baseline")))
    items = _bench_items(ctx, params)
    machine = machine_limits()
    benches = [_bench(artifact, items, params) for _, artifact in subjects]
    for bench in benches:
        bench.warm_up()
    for repeat in range(params.repeats):
        for bench in benches:
            bench.repeat()
        ctx.progress(repeat + 1, params.repeats, "repeats")
    measured = [
        Measured(
            label=label,
            digest=artifact.digest,
            stored_bytes=stored_bytes(artifact),
            runner=bench.engine.runner.name,
            figures=bench.figures(),
            limits=limits(bench.engine.runner, machine, params.streams),
            prompts=bench.prompt_medians(),
        )
        for (label, artifact), bench in zip(subjects, benches, strict=True)
    ]
    with ctx.output("evaluation") as out:
        write_bench(out.path, measured, items, machine, params.streams)
        figures = measured[0].figures
        out.metrics.update(
            {
                "decode_tokens_per_s": figures.decode_tokens_per_s,
                "batch_tokens_per_s": figures.batch_tokens_per_s,
                "prefill_tokens_per_s": figures.prefill_tokens_per_s,
                "ttft_p50_ms": 1000 * figures.ttft_p50_s,
                "ttft_p95_ms": 1000 * figures.ttft_p95_s,
                "weight_bytes": float(figures.weight_bytes),
            }
        )


def _bench_items(ctx: Context, params: BenchParams) -> list[dict[str, str]]:
    """The prompts' ids, clusters, languages and kinds, and their messages where there is an eval set."""
    if not ctx.has("evalset"):
        return [{"id": f"prompt-{at:04}", "cluster": f"prompt-{at:04}"} for at in range(params.prompts)]
    import pyarrow.parquet as pq

    rows = pq.read_table(ctx.input("evalset").file("items.parquet")).to_pylist()
    spread = [rows[at * len(rows) // min(params.prompts, len(rows))] for at in range(min(params.prompts, len(rows)))]
    return [
        {name: str(row.get(name) or "") for name in ("id", "cluster", "lang", "kind", "messages")} for row in spread
    ]


def _bench(artifact: Artifact, items: list[dict[str, str]], params: BenchParams) -> Bench:
    import json
    import random

    from liuyi.infer.bench import Bench
    from liuyi.infer.engine import Engine
    from liuyi.infer.open import open_runner
    from liuyi.model.chat import encode_chat
    from liuyi.model.checkpoint import load_model
    from liuyi.model.tokenizer import Tokenizer

    runner = open_runner(load_model(artifact.path), weights=params.weights, kv=params.kv, slots=params.streams)
    engine = Engine(runner, Tokenizer.load(artifact.path), max_slots=params.streams)
    rng = random.Random(0)
    prompts = []
    for item in items:
        if "messages" in item:
            prompts.append(encode_chat(engine.tokenizer, json.loads(item["messages"]), add_generation_prompt=True)[0])
        else:
            prompts.append([rng.randrange(engine.tokenizer.vocab_size) for _ in range(params.prompt_tokens)])
    return Bench(
        engine,
        prompts,
        new_tokens=params.new_tokens,
        streams=params.streams,
        prefill_tokens=params.prefill_tokens,
    )
