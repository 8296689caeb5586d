"""Full training beside Hugging Face's Trainer: speed, loss curves, part of the GEMM peak, memory.

    python benchmarks/train/full.py --peer PEER/bin/python                 # SmolLM2-135M's shape, 2 x 512 tokens
    python benchmarks/train/full.py --peer PEER/bin/python --shape 1x2048
    python benchmarks/train/full.py --peer PEER/bin/python --size 5m --shape 16x256
    python benchmarks/train/full.py --peer PEER/bin/python --quick         # ours and their bf16, in three minutes
    python benchmarks/train/full.py --peer PEER/bin/python --shape 4x1024 --memory --warmup 1 --steps 1

PEER is a virtual environment with torch, transformers, accelerate and datasets. All start from the same random weights,
learn the same rows in the same order with the same AdamW, and take turns step by step, so that what else the machine
does meets them alike. Speed is the median after `--warmup` steps; HF's Trainer is given its settings one by one. With
`--memory` each runs by itself, and what counts is the most memory that its process ever held.
"""

from __future__ import annotations

import argparse
import json
import re
import statistics
import subprocess
import sys
import sysconfig
import tempfile
from collections import Counter
from dataclasses import dataclass, field
from pathlib import Path

import torch

from liuyi.core.machine import gemm_flops
from liuyi.model.checkpoint import save_model
from liuyi.model.config import DecoderConfig
from liuyi.model.decoder import Decoder, init_weights
from liuyi.train.flops import ModelFlops
from liuyi.train.packing import Example, lay_out

WORKERS = Path(__file__).parent / "workers"
SIZES = {
    "smollm2-135m": DecoderConfig(
        family="llama", vocab_size=49152, hidden_size=576, intermediate_size=1536, num_hidden_layers=30,
        num_attention_heads=9, num_key_value_heads=3, head_dim=64, max_position_embeddings=8192, rope_theta=1e5,
        tie_word_embeddings=True, bos_token_id=0, eos_token_id=0, pad_token_id=0,
    ),
    "5m": DecoderConfig(
        family="llama", vocab_size=8192, hidden_size=256, intermediate_size=768, num_hidden_layers=4,
        num_attention_heads=4, num_key_value_heads=2, head_dim=64, max_position_embeddings=2048, rope_theta=1e4,
        tie_word_embeddings=True, bos_token_id=0, eos_token_id=0, pad_token_id=0,
    ),
}  # fmt: skip


@dataclass
class Runner:
    """One way to train, in a process of its own."""

    name: str
    worker: str
    settings: dict[str, object]
    losses: list[float] = field(default_factory=list)
    seconds: list[float] = field(default_factory=list)
    peak_bytes: int = 0

    def start(self, python: str, model: Path, rows: Path, folder: Path, common: dict[str, object]) -> None:
        out = folder / re.sub(r"\W+", "-", self.name)
        arguments = [python, WORKERS / self.worker, model, rows, out, json.dumps(self.settings | common)]
        with (folder / f"{out.name}.log").open("wb") as log:
            self.process = subprocess.Popen(
                arguments, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=log, text=True
            )
        self.log = folder / f"{out.name}.log"

    def step(self) -> None:
        assert self.process.stdin
        self.process.stdin.write("\n")
        self.process.stdin.flush()
        answer = self._read()
        self.losses.append(answer["loss"])
        self.seconds.append(answer["seconds"])

    def stop(self) -> None:
        assert self.process.stdin
        self.process.stdin.close()
        self.peak_bytes = int(self._read()["peak_bytes"])
        self.process.wait()

    def _read(self) -> dict[str, float]:
        assert self.process.stdout
        line = self.process.stdout.readline()
        if not line:
            raise SystemExit(f"{self.name} ended: {self.log.read_text()[-2000:]}")
        answer: dict[str, float] = json.loads(line)
        return answer


def runners(quick: bool) -> list[Runner]:
    ours = Runner("liuyi", "liuyi_full.py", {"dtype": "bf16"})
    theirs = [
        Runner(f"HF, {name}{', compiled' if compiled else ''}", "hf_full.py", settings | {"compile": compiled})
        for compiled in (False, True)
        for name, settings in (
            ("bf16 weights", {"dtype": "bf16", "autocast": False}),
            ("fp32 weights, autocast", {"dtype": "fp32", "autocast": True}),
        )
    ]
    return [ours, theirs[0], theirs[2]] if quick else [ours, *theirs]


def learnable_rows(vocab: int, count: int, length: int) -> list[list[int]]:
    """Python's own library as word numbers, the most frequent first: text to learn, without a download."""
    words: list[str] = []
    for path in sorted(Path(sysconfig.get_path("stdlib")).glob("*.py")):
        words += re.findall(r"\w+|[^\w\s]|\n +", path.read_text(encoding="utf-8"))
        if len(words) >= count * length:
            break
    number = {word: index for index, (word, _) in enumerate(Counter(words).most_common(vocab))}
    ids = [number.get(word, 0) for word in words]
    return [ids[row * length : (row + 1) * length] for row in range(count)]


def main() -> None:
    arguments = _arguments()
    rows, length = map(int, arguments.shape.split("x"))
    config = SIZES[arguments.size]
    steps = arguments.warmup + arguments.steps
    all_runners = runners(arguments.quick)
    with tempfile.TemporaryDirectory() as temporary:
        folder = Path(temporary)
        model = Decoder(config)
        init_weights(model, seed=1)
        save_model(folder / "model", model)
        # One step more than is asked for: whoever ends would tell no memory.
        tokens = learnable_rows(config.vocab_size, rows * (steps + 1), length)
        (folder / "rows.json").write_text(json.dumps(tokens))
        common = {"rows": rows, "lr": arguments.lr, "threads": arguments.threads}
        groups = [[one] for one in all_runners] if arguments.memory else [all_runners]
        for group in groups:
            for one in group:
                python = sys.executable if one.worker == "liuyi_full.py" else arguments.peer
                one.start(python, folder / "model", folder / "rows.json", folder, common)
            for step in range(steps):
                for one in group:
                    one.step()
                print(f"step {step + 1} of {steps}", end="\r", file=sys.stderr)
            for one in group:
                one.stop()
    torch.set_num_threads(arguments.threads)
    peak = max(gemm_flops("bf16") for _ in range(3))
    examples = [
        [Example(torch.tensor(row).numpy(), torch.ones(length, dtype=torch.bool).numpy())] for row in tokens[:rows]
    ]
    flops = ModelFlops.of(model).batch(lay_out(examples, length, 0))
    millions = config.num_parameters / 1e6
    print(f"{millions:.1f}M parameters, {rows} x {length} tokens, {arguments.threads} threads, bf16 products")
    print(f"GEMM peak {peak / 1e12:.2f} TFLOP/s; a step's model FLOPs {flops / 1e12:.3f} T")
    own = statistics.median(all_runners[0].seconds[arguments.warmup :])
    print(f"{'':34}{'s a step':>10}{'tok/s':>9}{'of peak':>9}{'ours is':>9}{'peak GB':>9}{'first s':>9}")
    for one in all_runners:
        median = statistics.median(one.seconds[arguments.warmup :])
        print(
            f"{one.name:34}{median:10.3f}{rows * length / median:9.0f}{flops / median / peak:9.1%}{median / own:8.2f}x"
            f"{one.peak_bytes / 1e9:9.2f}{one.seconds[0]:9.1f}"
        )
    print("losses, step by step")
    for one in all_runners:
        print(f"{one.name:34}" + " ".join(f"{loss:.3f}" for loss in one.losses))


def _arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--peer", required=True, help="python of an environment with transformers and accelerate")
    parser.add_argument("--size", choices=list(SIZES), default="smollm2-135m")
    parser.add_argument("--shape", default="2x512", help="rows x tokens of a step")
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--lr", type=float, default=1e-4)
    parser.add_argument("--warmup", type=int, default=2)
    parser.add_argument("--steps", type=int, default=8)
    parser.add_argument("--quick", action="store_true")
    parser.add_argument("--memory", action="store_true", help="one after the other, for the memory of each")
    return parser.parse_args()


if __name__ == "__main__":
    main()
