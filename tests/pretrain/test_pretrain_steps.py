"""Pretraining and its evaluation as steps: the dial, continued training, and what is written."""

from __future__ import annotations

import json
import lzma
import math
from collections import defaultdict
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
from pydantic import ValidationError

import in_process
from liuyi.core.artifact import Artifact
from liuyi.core.errors import DataError, ModelError, StepError
from liuyi.core.home import Home
from liuyi.core.recipe import RecipeSource
from liuyi.core.runner.launch import start_run
from liuyi.model.checkpoint import load_config, load_model, save_model
from liuyi.model.tokenizer import Tokenizer, train_bpe
from liuyi.pretrain.bits import Documents, bits_per_byte, model_bits
from liuyi.pretrain.size import config_for_size, parse_size
from liuyi.pretrain.steps import TrainParams
from liuyi.train.data import TokenStream
from waiting import wait_for

WORDS = tuple(
    [
        "the",
        "a",
        "file",
        "opens",
        "reads",
        "writes",
        "closes",
        "path",
        "error",
        "returns",
        "value",
        "list",
        "of",
        "in",
        "with",
        "buffer",
        "lock",
    ]
)


def texts(count: int, seed: int) -> list[str]:
    rng = np.random.default_rng(seed)
    return [" ".join(rng.choice(WORDS, size=int(rng.integers(3, 60)))) + "." for _ in range(count)]


def run_step(
    home: Home, workdir: Path, name: str, inputs: dict[str, Artifact], **params: object
) -> dict[str, Artifact]:
    workdir.mkdir(exist_ok=True)
    return in_process.run_step(home, workdir, name, inputs, **params)


class Shelf:
    """Artifacts of a small corpus: tokenizer, training tokens, held-out tokens and corpus."""

    def __init__(self, home: Home) -> None:
        self.home = home
        train, heldout = texts(120, seed=1), texts(25, seed=2)
        self.built = train_bpe(train, 300)
        staging = home.store.stage("tokenizer")
        self.built.save(staging.path)
        self.tokenizer = home.store.publish(staging)
        self.tokens, _ = self._publish(train)
        self.heldout, self.corpus = self._publish(heldout)

    def _publish(self, documents: list[str]) -> tuple[Artifact, Artifact]:
        encoded = [[*self.built.encode(text), self.built.eos_id] for text in documents]
        sizes = [len(ids) for ids in encoded]
        index = {
            "id": [f"d{number}" for number in range(len(documents))],
            "cluster": [f"package{number % 4}" for number in range(len(documents))],
        }
        staging = self.home.store.stage("tokens")
        np.concatenate(encoded).astype("<u2").tofile(staging.path / "tokens.bin")
        columns = {
            **index,
            "offset": np.cumsum([0, *sizes[:-1]]).tolist(),
            "tokens": sizes,
            "bytes": [len(text.encode()) for text in documents],
        }
        pq.write_table(pa.table(columns), staging.path / "documents.parquet")
        about = {
            "dtype": "uint16",
            "tokens": sum(sizes),
            "documents": len(sizes),
            "bytes": sum(columns["bytes"]),
            "vocab_size": self.built.vocab_size,
            "eos_id": self.built.eos_id,
        }
        (staging.path / "tokens.json").write_text(json.dumps(about))
        tokens = self.home.store.publish(staging)
        staging = self.home.store.stage("corpus")
        pq.write_table(pa.table({**index, "text": documents}), staging.path / "documents.parquet")
        return tokens, self.home.store.publish(staging)


@pytest.fixture
def shelf(home: Home) -> Shelf:
    return Shelf(home)


TINY = {"hidden_size": 64, "num_hidden_layers": 1, "seq_len": 32, "batch_tokens": 256}


def pretrained(shelf: Shelf, workdir: Path, **params: object) -> Artifact:
    inputs = {"tokens": shelf.tokens, "tokenizer": shelf.tokenizer}
    return run_step(shelf.home, workdir, "pretrain.train", inputs, **{**TINY, **params})["checkpoint"]


def test_training_gives_a_folder_that_transformers_reads(shelf: Shelf, tmp_path: Path) -> None:
    from transformers import AutoModelForCausalLM

    checkpoint = pretrained(shelf, tmp_path / "work", token_budget=256 * 40, init="random", samples_every=20)
    about = json.loads(checkpoint.file("liuyi.json").read_text())
    rows = [json.loads(line) for line in checkpoint.file("training.jsonl").read_text().splitlines()]
    assert about["steps"] == len(rows) == 40
    assert rows[-1]["loss"] < rows[0]["loss"] - 1.5
    said = [json.loads(line) for line in checkpoint.file("samples.jsonl").read_text().splitlines()]
    assert [(row["step"], row["prompt"], bool(row["text"])) for row in said] == [(20, "", True), (40, "", True)]
    theirs = AutoModelForCausalLM.from_pretrained(checkpoint.path).eval()
    ours = load_model(checkpoint.path).eval()
    ids = torch.tensor([Tokenizer.load(checkpoint.path).encode("the file opens")])
    with torch.no_grad():
        torch.testing.assert_close(ours.logits(ours(ids)), theirs(ids).logits, atol=1e-4, rtol=1e-4)


def test_same_seed_same_digest(shelf: Shelf, tmp_path: Path) -> None:
    digests = {pretrained(shelf, tmp_path / str(run), token_budget=2000, compute_dtype="fp32").digest for run in (1, 2)}
    assert len(digests) == 1


def test_training_goes_on_from_a_model(shelf: Shelf, tmp_path: Path) -> None:
    first = pretrained(shelf, tmp_path / "first", token_budget=256 * 30)
    inputs = {"tokens": shelf.tokens, "tokenizer": shelf.tokenizer, "model": first}
    params = {"seq_len": 32, "batch_tokens": 256, "token_budget": 256 * 10, "lr": 1e-3}
    second = run_step(shelf.home, tmp_path / "second", "pretrain.train", inputs, **params)["checkpoint"]
    ends = [json.loads(c.file("training.jsonl").read_text().splitlines()[-1])["loss"] for c in (first, second)]
    start = json.loads(second.file("training.jsonl").read_text().splitlines()[0])["loss"]
    assert start == pytest.approx(ends[0], abs=0.5)
    assert ends[1] < start
    with pytest.raises(ModelError, match="shape of a model that goes on"):
        run_step(shelf.home, tmp_path / "third", "pretrain.train", inputs, size="1m")


def test_tokens_of_another_tokenizer_are_refused(shelf: Shelf, tmp_path: Path) -> None:
    staging = shelf.home.store.stage("tokenizer")
    train_bpe(["a b c"], 270).save(staging.path)
    other = shelf.home.store.publish(staging)
    with pytest.raises(ModelError, match="give the step the tokenizer that made the tokens"):
        run_step(shelf.home, tmp_path / "w", "pretrain.train", {"tokens": shelf.tokens, "tokenizer": other})


def test_importing_a_folder(shelf: Shelf, tmp_path: Path) -> None:
    checkpoint = pretrained(shelf, tmp_path / "work", token_budget=300)
    imported = run_step(shelf.home, tmp_path / "i", "pretrain.import_hf", {}, folder=checkpoint.path)["checkpoint"]
    for name in ("model.safetensors", "tokenizer.json", "tokenizer_config.json"):
        assert imported.file(name).read_bytes() == checkpoint.file(name).read_bytes()


def test_evaluation_of_documents(shelf: Shelf, tmp_path: Path) -> None:
    checkpoint = pretrained(shelf, tmp_path / "work", token_budget=256 * 60)
    inputs = {
        "model": checkpoint,
        "tokens": shelf.heldout,
        "corpus": shelf.corpus,
        "train_tokens": shelf.tokens,
    }
    evaluation = run_step(shelf.home, tmp_path / "eval", "pretrain.evaluate", inputs, window=32)["evaluation"]
    table = pq.read_table(evaluation.file("items.parquet")).to_pydict()
    summary = json.loads(evaluation.file("evaluation.json").read_text())["metrics"]
    total = sum(table["bytes"])
    for name in ("model", "untrained", "unigram", "5gram", "xz", "xz_package"):
        assert summary[f"bits_{name}"]["mean"] == pytest.approx(sum(table[f"bits_{name}"]) / total)
        assert summary[f"bits_{name}"]["low"] <= summary[f"bits_{name}"]["mean"] <= summary[f"bits_{name}"]["high"]
    means = {name: summary[f"bits_{name}"]["mean"] for name in ("model", "untrained", "unigram")}
    assert means["model"] < means["unigram"] < means["untrained"]
    corpus = pq.read_table(shelf.corpus.file("documents.parquet")).to_pydict()
    filters = [{"id": lzma.FILTER_LZMA2, "preset": 9 | lzma.PRESET_EXTREME}]
    alone = dict(zip(table["item"], table["bits_xz"], strict=True))
    for id, text in zip(corpus["id"], corpus["text"], strict=True):
        assert alone[id] == 8 * len(lzma.compress(text.encode(), format=lzma.FORMAT_RAW, filters=filters))
    by_package = defaultdict(list)
    for cluster, text in zip(corpus["cluster"], corpus["text"], strict=True):
        by_package[cluster].append(text)
    for cluster, members in by_package.items():
        packed = lzma.compress("\n\n".join(members).encode(), format=lzma.FORMAT_RAW, filters=filters)
        shares = [bits for bits, own in zip(table["bits_xz_package"], table["cluster"], strict=True) if own == cluster]
        assert sum(shares) == pytest.approx(8 * len(packed))


def test_bits_are_those_of_each_document_alone(shelf: Shelf, tmp_path: Path) -> None:
    """Packing and windows against one forward pass a document; long documents score every token once."""
    model = load_model(pretrained(shelf, tmp_path / "work", token_budget=2560).path).eval()
    stream = TokenStream(shelf.heldout.path)
    documents = Documents.load(shelf.heldout.path)

    def alone(number: int) -> float:
        offset, size = documents.offsets[number], documents.tokens[number]
        ids = torch.tensor([stream.eos_id, *stream.tokens[offset : offset + size].tolist()])
        with torch.no_grad():
            logprobs = model.logits(model(ids[None, :-1])).log_softmax(-1)[0]
        return -float(logprobs.gather(1, ids[1:, None]).sum()) / math.log(2)

    expected = [alone(number) for number in range(len(documents.ids))]
    np.testing.assert_allclose(model_bits(model, stream, documents, window=256), expected, rtol=1e-4)
    windowed = model_bits(model, stream, documents, window=16, batch_rows=3)
    short = documents.tokens <= 16
    np.testing.assert_allclose(windowed[short], np.array(expected)[short], rtol=1e-4)
    assert windowed.sum() == pytest.approx(sum(expected), rel=0.05)


def test_sample_takes_whole_documents_within_the_budget(shelf: Shelf) -> None:
    documents = Documents.load(shelf.heldout.path)
    some = documents.sample(200, seed=1)
    assert 0 < some.tokens.sum() <= 200
    assert set(some.ids) < set(documents.ids)
    assert documents.sample(10**9, seed=1).ids == documents.ids
    with pytest.raises(DataError, match="as few as 1 tokens"):
        documents.sample(1, seed=1)


def test_interval_resamples_packages() -> None:
    """With two packages of unlike density the interval spans both; with equal density it is a point."""
    documents = Documents(
        [str(n) for n in range(40)],
        ["a"] * 20 + ["b"] * 20,
        np.zeros(40, dtype=np.int64),
        np.ones(40, dtype=np.int64),
        np.full(40, 10),
    )
    apart = bits_per_byte(np.array([10.0] * 20 + [30.0] * 20), documents)
    assert (apart["low"], apart["mean"], apart["high"]) == (1.0, 2.0, 3.0)
    assert bits_per_byte(np.full(40, 20.0), documents) == {"mean": 2.0, "low": 2.0, "high": 2.0}


def test_the_dial() -> None:
    assert [parse_size(text) for text in ("800k", "5m", "1.5B")] == [800_000, 5_000_000, 1_500_000_000]
    with pytest.raises(DataError, match="is not a model size"):
        parse_size("five")
    for wanted in (2e6, 5e6, 30e6, 135e6, 1e9):
        config = config_for_size(round(wanted), vocab_size=4096, seq_len=256, eos_id=0, pad_id=1)
        assert 0.7 < config.num_parameters / wanted < 1.4


def test_size_sets_the_model(shelf: Shelf, tmp_path: Path) -> None:
    inputs = {"tokens": shelf.tokens, "tokenizer": shelf.tokenizer}
    made = run_step(shelf.home, tmp_path / "w", "pretrain.train", inputs, size="500k", token_budget=100, seq_len=32)
    config = load_config(made["checkpoint"].path)
    assert 0.5 < config.num_parameters / 500_000 < 1.5
    assert config.vocab_size == shelf.built.vocab_size


@pytest.mark.parametrize(
    ("params", "said"),
    [
        ({"size": "five"}, "'five' is not a model size; write it as 800k"),
        ({"size": "9000b"}, "the dial ends at .* and 9000b are asked for; take a smaller size"),
        ({"seq_len": 10**12}, "less than or equal to 16777216"),
        ({"batch_tokens": 10**12}, "less than or equal to 4294967296"),
        ({"hidden_size": 10**9}, "less than or equal to 131072"),
        ({"tie_embeddings": True}, "tied embeddings cannot hold a table of bigrams"),
        ({"experts_per_token": 3}, "means nothing without 'experts'"),
        ({"experts": 2, "experts_per_token": 3}, "cannot go through 3 of 2 experts"),
        ({"schedule": "cosine", "decay": 0.2}, "'decay' is for the schedule wsd, and this one is cosine"),
        ({"processes": 2, "tensor": 2, "fp8": True}, "'fp8' and 'tensor' do not go together"),
    ],
)
def test_params_that_cannot_be_are_refused_before_anything_runs(params: dict[str, Any], said: str) -> None:
    with pytest.raises(ValidationError, match=said):
        TrainParams(**params)
    TrainParams(**TrainParams().model_dump())


def test_a_model_that_the_machine_cannot_hold_is_refused(
    shelf: Shelf, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    inputs = {"tokens": shelf.tokens, "tokenizer": shelf.tokenizer}
    memory = SimpleNamespace(total=4_000_000, available=4_000_000)
    monkeypatch.setattr("psutil.virtual_memory", lambda: memory)
    with pytest.raises(ModelError, match=r"take 7\.7 GB before they learn anything, and this machine has 0\.0 GB"):
        run_step(shelf.home, tmp_path / "b", "pretrain.train", inputs, size="2b")
    run_step(shelf.home, tmp_path / "c", "pretrain.train", inputs, **TINY, token_budget=100)


def test_a_document_longer_than_a_row_is_learnt_whole_and_a_row_longer_than_the_context_is_refused(
    shelf: Shelf, tmp_path: Path
) -> None:
    """Every token is a target once, whatever row it falls into."""
    inputs = {"tokens": shelf.tokens, "tokenizer": shelf.tokenizer}
    documents = pq.read_table(shelf.tokens.file("documents.parquet"))["tokens"].to_pylist()
    size = {**TINY, "seq_len": 16, "batch_tokens": 16 * -(-sum(documents) // 16)}
    assert max(documents) > 2 * 16
    made = run_step(shelf.home, tmp_path / "a", "pretrain.train", inputs, **size, epochs=1.0)["checkpoint"]
    assert (made.manifest.metrics["tokens"], made.manifest.metrics["steps"]) == (sum(documents), 1)
    assert made.manifest.metrics["loss"] > 0
    context = load_config(made.path).context_tokens
    with pytest.raises(ModelError, match=f"longer than the model's context of {context}") as refused:
        run_step(shelf.home, tmp_path / "b", "pretrain.train", {**inputs, "model": made}, seq_len=context + 1)
    assert f"seq_len: {context}" in refused.value.hint


def test_a_start_model_that_is_not_numbers_is_refused_before_any_step(shelf: Shelf, tmp_path: Path) -> None:
    inputs = {"tokens": shelf.tokens, "tokenizer": shelf.tokenizer}
    made = run_step(shelf.home, tmp_path / "a", "pretrain.train", inputs, **TINY, token_budget=256)["checkpoint"]
    model = load_model(made.path)
    with torch.no_grad():
        model.model.layers[0].mlp.up_proj.weight[0, 0] = math.nan
    staging = shelf.home.store.stage("checkpoint")
    save_model(staging.path, model, Tokenizer.load(made.path))
    broken = shelf.home.store.publish(staging)
    with pytest.raises(StepError, match=r"weights in 'model\.layers\.0\.mlp\.up_proj\.weight' that are not finite"):
        run_step(shelf.home, tmp_path / "b", "pretrain.train", {**inputs, "model": broken}, seq_len=TINY["seq_len"])


@pytest.mark.slow
def test_a_run_meets_every_fault_and_gives_the_same_model(shelf: Shelf, tmp_path: Path) -> None:
    """Killed, hanging and with a flipped bit, the run goes on by itself, and its artifact has the same digest."""
    made = []
    for number, faults in enumerate(["nan@5", "nan@5,kill@9,hang@14,flip@20,kill@27"]):
        path = tmp_path / f"recipe{number}.yaml"
        params = {**TINY, "token_budget": 256 * 40, "compute_dtype": "fp32", "checkpoint_every_s": 0}
        fit = {
            "step": "pretrain.train",
            "tokens": f"artifact:{shelf.tokens.digest}",
            "tokenizer": f"artifact:{shelf.tokenizer.digest}",
        }
        step = {**fit, **params, "hang_timeout_s": 8, "inject": faults}
        path.write_text(json.dumps({"recipe": "faults", "steps": {"fit": step}}))
        attached = start_run(shelf.home, RecipeSource(path.name, path, tmp_path))
        wait_for(lambda attached=attached: not attached.is_active())
        ended = attached.run()
        assert ended.status == "done", ended.error
        (fitted,) = shelf.home.ledger.steps(ended.id)
        execution = shelf.home.ledger.execution(fitted.key)
        assert execution is not None
        made.append(execution.outputs["checkpoint"])
        events = (shelf.home.run_dir(ended.id) / "events.jsonl").read_text()
        assert events.count("starting it again") == sum(faults.count(kind) for kind in ("kill", "hang"))
        assert events.count("silent corruption") == faults.count("flip")
    whole, broken = (shelf.home.store.open(digest) for digest in made)
    names = sorted(path.name for path in whole.path.iterdir())
    assert [name for name in names if whole.file(name).read_bytes() != broken.file(name).read_bytes()] == []
    assert made[0] == made[1]
