"""How fast documents are scored by a classifier and read by a model, a core: megabytes and tokens a CPU second.

    python benchmarks/data/scoring.py [--corpus FOLDER] [--mb 10] [--size 2m] [--tokens 20000]

Without `--corpus` the texts are the documentation of the Python packages that are installed. The weights are random:
speed does not depend on them. Threads that wait for a busy core count as working, so an idle machine gives more.
"""

from __future__ import annotations

import argparse
import tempfile
import time
from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np
import pyarrow as pa
from texts import texts

from liuyi.data.quality.classifier import Classifier
from liuyi.data.quality.features import BUCKETS
from liuyi.data.quality.perplexity import Plan, measure_group
from liuyi.model.checkpoint import save_model
from liuyi.model.decoder import Decoder, init_weights
from liuyi.model.tokenizer import train_bpe
from liuyi.pretrain.size import config_for_size, parse_size

REPEATS = 3


def classifier_speed(given: Sequence[str]) -> float:
    """Megabytes a CPU second, the best of some repeats."""
    classifier = Classifier(np.random.default_rng(1).normal(size=BUCKETS).astype(np.float32), 0.0, 1.0, 0.0, 1.0)
    classifier.score(given[:10])
    size = sum(len(text.encode()) for text in given)
    return max(size / 1e6 / _cpu_s(lambda: classifier.score(given)) for _ in range(REPEATS))


def model_folder(given: Sequence[str], folder: Path, size: str) -> Path:
    """A model of random weights with a tokenizer of these texts."""
    tokenizer = train_bpe(given[:500], 4096)
    assert tokenizer.eos_id is not None
    config = config_for_size(
        parse_size(size), vocab_size=tokenizer.vocab_size, seq_len=512, eos_id=tokenizer.eos_id, pad_id=None
    )
    model = Decoder(config)
    init_weights(model, 1)
    save_model(folder, model, tokenizer, {})
    print(f"a model of {config.num_parameters / 1e6:.1f}M parameters")
    return folder


def model_speed(given: Sequence[str], model: Path, weights: str, tokens: int) -> float:
    """Tokens a CPU second, after one document that opens the model."""
    plan = Plan(512, 1024, weights)  # type: ignore[arg-type]
    measure_group(model, plan, pa.table({"text": given[:1]}))
    documents = pa.table({"text": given[: max(1, tokens // 500)]})
    read = 0

    def measure() -> None:
        nonlocal read
        read = sum(measure_group(model, plan, documents)["perplexity_tokens"].to_pylist())

    spent = _cpu_s(measure)
    return read / spent


def _cpu_s(work: Callable[[], object]) -> float:
    begin = time.process_time()
    work()
    return time.process_time() - begin


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--corpus", type=Path, help="the folder of a corpus artifact")
    parser.add_argument("--mb", type=float, default=10, help="megabytes to score")
    parser.add_argument("--size", default="2m", help="parameters of the model")
    parser.add_argument("--tokens", type=int, default=20_000, help="about how many tokens the model reads")
    options = parser.parse_args()
    given, held = [], 0
    for text in texts(options.corpus):
        if held < options.mb * 1e6:
            given.append(text)
            held += len(text.encode())
    print(f"classifier: {classifier_speed(given):.1f} MB of text a CPU second, of {held / 1e6:.1f} MB")
    with tempfile.TemporaryDirectory() as folder:
        model = model_folder(given, Path(folder), options.size)
        for weights in ("reference", "fp32", "bf16", "int8"):
            print(
                f"perplexity, {weights}: {model_speed(given, model, weights, options.tokens):,.0f} tokens a CPU second"
            )


if __name__ == "__main__":
    main()
