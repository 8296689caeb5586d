"""Perplexity is what `transformers` finds on the same random model, window by window, in every batch."""

from __future__ import annotations

import math
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
from data_support import Bench, artifact, corpus, document, prose, run_step

from liuyi.core.artifact import Artifact
from liuyi.core.errors import DataError, ModelError
from liuyi.data.corpus import ATTRIBUTES, DROPPED
from liuyi.data.quality.perplexity import Plan, measure_group
from liuyi.kernels.library import KernelsAbsent, kernels
from liuyi.model.tokenizer import Tokenizer, train_bpe
from small_models import save_llama

TEXTS = [prose(1, words=8), prose(2, words=150), "", "质量很高的文章，读者打开文件。" * 8, "a", prose(3, words=60)]
WINDOW = 64


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("model")
    tokenizer = train_bpe([prose(number) for number in range(20)], 400)
    save_llama(folder, tokenizer, context=256)
    return folder


@cache
def peer(model: Path) -> Any:
    from transformers import AutoModelForCausalLM

    return AutoModelForCausalLM.from_pretrained(model, dtype=torch.float32)


def surprise(model: Path, text: str, *, window: int, max_tokens: int) -> tuple[float, int, int]:
    """(nats, tokens, bytes) of a text by `transformers`, written as it is defined."""
    reference = peer(model)
    tokenizer = Tokenizer.load(model)
    ids = tokenizer.encode_batch([text])[0][:max_tokens]
    assert tokenizer.eos_id is not None
    tokens, nats, scored = [tokenizer.eos_id, *ids], 0.0, 1
    while scored < len(tokens):
        end = min(len(tokens), window if scored == 1 else scored + window // 2)
        begin = max(0, end - window)
        with torch.no_grad():
            logprobs = reference(torch.tensor([tokens[begin:end]])).logits[0].double().log_softmax(-1)
        nats -= sum(float(logprobs[at - begin - 1, tokens[at]]) for at in range(scored, end))
        scored = end
    return nats, len(ids), len(tokenizer.decode(ids).encode())


@pytest.mark.parametrize("weights", ["reference", "fp32"])
@pytest.mark.parametrize("max_tokens", [1000, 200])
def test_it_is_what_transformers_finds(model: Path, weights: str, max_tokens: int) -> None:
    pytest.importorskip("transformers")
    table = measure_group(model, Plan(WINDOW, max_tokens, weights), pa.table({"text": TEXTS}))  # type: ignore[arg-type]
    assert max(table["perplexity_tokens"].to_pylist()) > WINDOW
    for row, text in zip(table.to_pylist(), TEXTS, strict=True):
        nats, tokens, size = surprise(model, text, window=WINDOW, max_tokens=max_tokens)
        assert row["perplexity_tokens"] == tokens
        assert row["perplexity"] == pytest.approx(math.exp(nats / max(tokens, 1)), rel=1e-3)
        if max_tokens == 1000:
            assert row["bits_per_byte"] == pytest.approx(nats / math.log(2) / max(size, 1), rel=1e-3)


def test_a_document_alone_has_the_perplexity_that_it_has_among_others(model: Path) -> None:
    try:
        kernels()
    except KernelsAbsent:
        pytest.skip("no native kernels")
    plan = Plan(WINDOW, 500, "fp32")
    together = measure_group(model, plan, pa.table({"text": TEXTS * 20}))
    alone = [measure_group(model, plan, pa.table({"text": [text]})).to_pylist()[0] for text in TEXTS]
    assert together.to_pylist() == alone * 20


def test_a_window_wider_than_the_context_is_cut_to_it(model: Path) -> None:
    texts = pa.table({"text": [prose(5, words=300)]})
    wide, whole = (measure_group(model, Plan(window, 900, "reference"), texts) for window in (5000, 256))
    assert wide["perplexity_tokens"][0].as_py() > 256
    assert wide.to_pylist() == whole.to_pylist()


def test_special_tokens_in_a_text_are_plain_text(model: Path) -> None:
    tokenizer = Tokenizer.load(model)
    table = measure_group(model, Plan(WINDOW, 100, "reference"), pa.table({"text": [tokenizer.eos_token]}))
    assert table["perplexity_tokens"][0].as_py() > 1


@pytest.fixture(scope="module")
def cleaned(tmp_path_factory: pytest.TempPathFactory) -> Artifact:
    folder = tmp_path_factory.mktemp("cleaned")
    texts = [prose(number) for number in range(12)]
    source = corpus(folder / "source", [document(text, cluster=str(n), path=str(n)) for n, text in enumerate(texts)])
    return run_step("data.clean", folder / "clean", {"corpus": source}).made["corpus"]


def select(scored: Artifact, folder: Path, **thresholds: float) -> list[str]:
    bench: Bench = run_step("data.select", folder, {"corpus": scored}, heldout_fraction=0, **thresholds)
    return pq.read_table(bench.made["train"].path / DROPPED)["reason"].to_pylist()  # type: ignore[no-any-return]


@pytest.mark.slow
def test_the_step_adds_attributes_that_selection_judges(model: Path, cleaned: Artifact, tmp_path: Path) -> None:
    given = {"corpus": cleaned, "model": artifact(model, "checkpoint")}
    bench = run_step("data.perplexity", tmp_path / "run", given, window=WINDOW, max_tokens=50)
    scored = bench.made["corpus"]
    table = pq.read_table(scored.path / ATTRIBUTES)
    assert {"words", "perplexity", "bits_per_byte"} <= set(table.column_names)
    assert bench.staged["corpus"].metrics["tokens"] == sum(table["perplexity_tokens"].to_pylist()) == 12 * 50
    values = np.sort(table["perplexity"].to_numpy())
    middle = float(values[5] + values[6]) / 2
    assert select(scored, tmp_path / "high", max_perplexity=middle).count("too surprising") == 6
    assert select(scored, tmp_path / "low", min_perplexity=middle).count("too predictable") == 6
    with pytest.raises(DataError, match="no attribute 'perplexity'"):
        select(cleaned, tmp_path / "none", max_perplexity=middle)


def test_a_tokenizer_without_a_first_token_is_refused(model: Path, tmp_path: Path) -> None:
    for file in model.iterdir():
        (tmp_path / file.name).write_bytes(file.read_bytes())
    settings = tmp_path / "tokenizer_config.json"
    settings.write_text("{}")
    with pytest.raises(ModelError, match="neither a token that begins nor one that ends"):
        measure_group(tmp_path, Plan(WINDOW, 10, "reference"), pa.table({"text": ["a"]}))
