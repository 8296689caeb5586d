"""Our engine beside `transformers.generate`: the same random model, the same prompts, the same run, taking turns.

    python benchmarks/serve.py                # the quickstart's model, 6 M parameters
    python benchmarks/serve.py --shape 135m   # the shape of SmolLM2-135M
    python benchmarks/serve.py --cpu-time     # one thread on the clock of the process: for a machine with other work

Both sides note the time of every token and are judged by the same figures: medians over prompts and repeats for one
stream, the best of the repeats for the rest. Read the ratios, since other work on the machine moves both.
"""

from __future__ import annotations

import argparse
import tempfile
from collections.abc import Callable
from pathlib import Path
from statistics import median
from time import perf_counter, process_time

import torch
from rich.console import Console
from rich.table import Table

from liuyi.infer.bench import Bench
from liuyi.infer.engine import Engine
from liuyi.model.checkpoint import save_model
from liuyi.model.config import DecoderConfig
from liuyi.model.decoder import Decoder, init_weights
from liuyi.model.tokenizer import train_bpe

SHAPES = {
    "6m": {
        "vocab_size": 4096,
        "hidden_size": 256,
        "intermediate_size": 704,
        "num_hidden_layers": 6,
        "num_attention_heads": 4,
        "num_key_value_heads": 4,
        "head_dim": 64,
    },
    "135m": {
        "vocab_size": 49152,
        "hidden_size": 576,
        "intermediate_size": 1536,
        "num_hidden_layers": 30,
        "num_attention_heads": 9,
        "num_key_value_heads": 3,
        "head_dim": 64,
    },
}


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--shape", choices=SHAPES, default="6m")
    parser.add_argument("--cpu-time", action="store_true")
    parser.add_argument("--streams", type=int, default=16)
    parser.add_argument("--prompt-tokens", type=int, default=64)
    parser.add_argument("--new-tokens", type=int, default=32)
    parser.add_argument("--prefill-tokens", type=int, default=512)
    parser.add_argument("--repeats", type=int, default=3)
    asked = parser.parse_args()
    clock = process_time if asked.cpu_time else perf_counter
    if asked.cpu_time:
        torch.set_num_threads(1)

    model = Decoder(DecoderConfig(family="llama", tie_word_embeddings=True, **SHAPES[asked.shape]))
    init_weights(model, seed=1)
    generator = torch.Generator().manual_seed(0)
    prompts = torch.randint(300, (4, asked.prompt_tokens), generator=generator).tolist()
    ours = Bench(
        Engine(model, train_bpe(["a b c"], 260), max_slots=asked.streams, max_tokens=1024),
        prompts,
        new_tokens=asked.new_tokens,
        streams=asked.streams,
        prefill_tokens=asked.prefill_tokens,
        clock=clock,
    )
    theirs = Peer(model, prompts, asked, clock)
    ours.warm_up()
    theirs.warm_up()
    for _ in range(asked.repeats):
        ours.repeat()
        theirs.repeat()
    figures = ours.figures()
    title = f"{asked.shape}, fp32, {torch.get_num_threads()} threads{', CPU time' if asked.cpu_time else ''}"
    table = Table(title=title)
    for column in ("", "Liuyi", "transformers", "ratio"):
        table.add_column(column, justify="right" if column else "left")
    for name, mine, peer, higher in (
        ("first token, ms", 1000 * figures.ttft_p50_s, 1000 * median(theirs.ttft_s), False),
        ("decode, 1 stream, tokens/s", figures.decode_tokens_per_s, median(theirs.decode), True),
        (f"decode, {asked.streams} streams, tokens/s", figures.batch_tokens_per_s, max(theirs.batch), True),
        (f"prefill of {asked.prefill_tokens}, tokens/s", figures.prefill_tokens_per_s, max(theirs.prefill), True),
    ):
        ratio = mine / peer if higher else peer / mine
        table.add_row(name, f"{mine:,.1f}", f"{peer:,.1f}", f"{ratio:.2f}×")
    Console().print(table)


class Peer:
    """The same weights in `transformers`, greedy, with its key-value cache."""

    def __init__(
        self, model: Decoder, prompts: list[list[int]], asked: argparse.Namespace, clock: Callable[[], float]
    ) -> None:
        from transformers import AutoModelForCausalLM

        with tempfile.TemporaryDirectory() as folder:
            save_model(Path(folder), model)
            self.model = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32).eval()
        self.model.generation_config.eos_token_id = None
        self.clock = clock
        self.prompts = [torch.tensor([prompt]) for prompt in prompts]
        self.many = torch.tensor([prompts[at % len(prompts)] for at in range(asked.streams)])
        self.long = torch.arange(1, asked.prefill_tokens + 1)[None]
        self.new_tokens = asked.new_tokens
        self.ttft_s: list[float] = []
        self.decode: list[float] = []
        self.batch: list[float] = []
        self.prefill: list[float] = []

    def warm_up(self) -> None:
        """Run everything once, without counting it."""
        self._token_times(self.many, 2)

    def repeat(self) -> None:
        """Measure everything once."""
        for prompt in self.prompts:
            times = self._token_times(prompt, self.new_tokens)
            self.ttft_s.append(times[0])
            self.decode.append((len(times) - 1) / (times[-1] - times[0]))
        times = self._token_times(self.many, self.new_tokens)
        self.batch.append(len(self.many) * (len(times) - 1) / (times[-1] - times[0]))
        self.prefill.append(self.long.shape[1] / self._token_times(self.long, 1)[0])

    @torch.inference_mode()
    def _token_times(self, ids: torch.Tensor, new_tokens: int) -> list[float]:
        """Seconds from the call to each step's tokens."""
        times = _Times(self.clock)
        self.model.generate(
            ids,
            attention_mask=torch.ones_like(ids),
            max_new_tokens=new_tokens,
            min_new_tokens=new_tokens,
            do_sample=False,
            pad_token_id=0,
            streamer=times,
        )
        return times.seconds[1:]  # the first are those of the prompt


class _Times:
    """A streamer of `transformers` that keeps the time only."""

    def __init__(self, clock: Callable[[], float]) -> None:
        self._clock = clock
        self._began = clock()
        self.seconds: list[float] = []

    def put(self, value: torch.Tensor) -> None:
        """New tokens have come."""
        self.seconds.append(self._clock() - self._began)

    def end(self) -> None:
        """No more will come."""


if __name__ == "__main__":
    main()
