"""How well a model knows text it has not seen, beside honest baselines: the evaluation, and what to look at."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from liuyi.core.effect import Bars, Effect, Sample, Samples
from liuyi.core.errors import ModelError
from liuyi.core.step import Context
from liuyi.infer.engine import Engine
from liuyi.infer.request import Request
from liuyi.model.checkpoint import load_model
from liuyi.model.decoder import Decoder, init_weights
from liuyi.model.tokenizer import Tokenizer
from liuyi.pretrain.bits import Documents, Floats, baseline_bits, bits_per_byte, model_bits, xz_bits, xz_package_bits
from liuyi.train.data import TokenStream

if TYPE_CHECKING:
    from liuyi.pretrain.steps import EvaluateParams

PROMPT_TOKENS = 24
SUBJECTS = {
    "model": "this model",
    "untrained": "the same model before training",
    "unigram": "token frequencies",
    "5gram": "5-gram, modified Kneser–Ney",
    "xz": "xz -9e, a document alone",
    "xz_package": "xz -9e, a package at once",
}


def evaluate_bits(ctx: Context, params: EvaluateParams) -> None:
    """Measure as `params` say and publish the evaluation.

    Raises ModelError when the tokens were not made for this model, DataError when corpus and tokens do not agree.
    """
    artifact = ctx.input("model")
    trained = load_model(artifact.path)
    heldout, train = TokenStream(ctx.input("tokens").path), TokenStream(ctx.input("train_tokens").path)
    for stream in (heldout, train):
        if stream.vocab_size > trained.config.vocab_size:
            raise ModelError(
                f"the tokens use {stream.vocab_size} token ids, the model knows {trained.config.vocab_size}",
                where=str(stream.folder),
            )
    documents = Documents.load(heldout.folder).sample(params.max_tokens, ctx.seed)
    bits: dict[str, Floats] = {}
    untrained = Decoder(trained.config)
    init_weights(untrained, ctx.seed)
    for name, model in (("model", trained), ("untrained", untrained)):
        bits[name] = model_bits(
            model,
            heldout,
            documents,
            window=params.window,
            on_progress=lambda done, total, name=name: ctx.progress(done, total, f"rows, {SUBJECTS[name]}"),  # type: ignore[misc]
        )
    ctx.log("counting n-grams")
    bits |= baseline_bits(train, heldout, documents)
    texts, clusters = read_texts(ctx.input("corpus").path)
    bits["xz"] = xz_bits(texts, documents)
    bits["xz_package"] = xz_package_bits(texts, clusters, documents)
    with ctx.output("evaluation") as out:
        figures = write_evaluation(
            out.path,
            documents,
            bits,
            label=params.label,
            subject=artifact.digest,
            evalset=ctx.input("tokens").digest,
            seed=ctx.seed,
        )
        out.metrics.update(figures)
        effect(figures, continuations(trained, artifact.path, heldout, documents, ctx.seed)).save(out.path)
    ctx.log("bits per byte: " + ", ".join(f"{name[4:]} {value:.3f}" for name, value in figures.items()))


def continuations(
    model: Decoder, folder: Path, stream: TokenStream, documents: Documents, seed: int, *, count: int = 4
) -> Samples:
    """How the model goes on from the first tokens of held-out documents."""
    tokenizer = Tokenizer.load(folder)
    long = np.flatnonzero(documents.tokens > 3 * PROMPT_TOKENS)
    drawn = np.sort(np.random.default_rng(seed).permutation(long)[:count])
    starts = [stream.tokens[documents.offsets[at] :][:PROMPT_TOKENS].tolist() for at in drawn]
    requests = [
        Request(prompt_ids=[stream.eos_id, *ids], max_tokens=2 * PROMPT_TOKENS, temperature=0.7, seed=seed)
        for ids in starts
    ]
    completions = Engine(model, tokenizer, max_tokens=4 * PROMPT_TOKENS, seed=seed).generate(requests)
    samples = [
        Sample(title=documents.clusters[at], text=tokenizer.decode(ids) + " ▸ " + completion.text)
        for at, ids, completion in zip(drawn, starts, completions, strict=True)
    ]
    return Samples(title="Held-out beginnings, and how the model goes on", samples=tuple(samples))


def effect(figures: Mapping[str, float], samples: Samples) -> Effect:
    """What pretraining has to show: bits per byte beside the baselines, and text."""
    bars = tuple((SUBJECTS[name.removeprefix("bpb_")], value) for name, value in figures.items())
    return Effect(
        stage="pretraining",
        title="Held-out text",
        summary=f"{figures['bpb_model']:.3f} bits per byte on packages that were not in the training text.",
        blocks=(Bars(title="Bits per byte, lower is better", bars=bars, unit="bits/byte"), samples),
    )


def read_texts(folder: Path) -> tuple[dict[str, str], dict[str, str]]:
    """Text and cluster of each document of a corpus, by id."""
    import pyarrow.parquet as pq

    table = pq.read_table(folder / "documents.parquet", columns=["id", "text", "cluster"]).to_pydict()
    texts = dict(zip(table["id"], table["text"], strict=True))
    return texts, dict(zip(table["id"], table["cluster"], strict=True))


def write_evaluation(
    folder: Path, documents: Documents, bits: Mapping[str, Floats], *, label: str, subject: str, evalset: str, seed: int
) -> dict[str, float]:
    """Write the evaluation's two files; gives each subject's bits per byte."""
    import pyarrow as pa
    import pyarrow.parquet as pq

    empty = [""] * len(documents.ids)
    columns: dict[str, Any] = {"item": documents.ids, "cluster": documents.clusters}
    columns |= dict.fromkeys(("lang", "kind", "prompt", "reference", "output"), empty)
    columns |= {f"bits_{name}": values for name, values in bits.items()}
    columns["bytes"] = documents.bytes.astype(np.float64)
    pq.write_table(pa.table(columns), folder / "items.parquet")
    figures = {name: bits_per_byte(values, documents, seed=seed) for name, values in bits.items()}
    metrics = {
        f"bits_{name}": {
            "title": SUBJECTS[name],
            "kind": "ratio",
            "unit": "bits per byte",
            "better": "lower",
            "per": "bytes",
            **figure,
        }
        for name, figure in figures.items()
    }
    summary = {"name": "held-out text", "label": label, "subject": subject, "evalset": evalset, "metrics": metrics}
    (folder / "evaluation.json").write_text(json.dumps(summary, indent=1, ensure_ascii=False) + "\n", encoding="utf-8")
    return {f"bpb_{name}": figure["mean"] for name, figure in figures.items()}
