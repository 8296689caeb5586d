"""What prompt lookup gains: the same requests with and without it, one by one and sixteen at once, by turns.

    python benchmarks/infer/speculation.py PEERS

Greedy, SmolLM2 goes on with documentation in loops, the best that can happen to prompt lookup; at temperature 1 hardly
a guess is right, the worst. The tokens must be the same.
"""

from __future__ import annotations

import argparse
from time import perf_counter

from engines import Texts, parser
from rich.console import Console
from rich.table import Table

from liuyi.infer.engine import Engine
from liuyi.infer.open import open_runner
from liuyi.infer.request import Request
from liuyi.infer.speculate.lookup import PromptLookup
from liuyi.model.checkpoint import load_model
from liuyi.model.tokenizer import Tokenizer

SLOTS = 16


def main() -> None:
    made = parser(__doc__)
    made.add_argument("--input-tokens", type=int, default=512)
    made.add_argument("--output-tokens", type=int, default=128)
    made.add_argument("--streams", type=int, nargs="+", default=[1, SLOTS])
    asked = made.parse_args()
    texts = Texts(asked.peers / "models" / "fp32")
    engines = {"without": _engine(asked, drafts=False), "with": _engine(asked, drafts=True)}
    table = Table("streams", "temperature", "without, tokens/s", "with", "gain", title="prompt lookup, int8")
    for streams in asked.streams:
        for temperature in (0.0, 1.0):
            rates: dict[str, float] = dict.fromkeys(engines, 0.0)
            for repeat in range(asked.repeats + 1):
                prompts = [texts.take(asked.input_tokens) for _ in range(streams)]
                answers = {name: _answer(engine, prompts, asked, temperature) for name, engine in engines.items()}
                if answers["with"][1] != answers["without"][1]:
                    raise SystemExit("drafts changed the tokens")
                for name, (seconds, _) in answers.items():
                    if repeat:
                        rates[name] = max(rates[name], streams * asked.output_tokens / seconds)
            gain = rates["with"] / rates["without"]
            table.add_row(
                str(streams), f"{temperature:g}", f"{rates['without']:.0f}", f"{rates['with']:.0f}", f"{gain:.2f}×"
            )
    Console(width=100).print(table)


def _engine(asked: argparse.Namespace, *, drafts: bool) -> Engine:
    folder = asked.peers / "models" / "fp32"
    tokens = SLOTS * (asked.input_tokens + asked.output_tokens + 64)
    runner = open_runner(load_model(folder), weights="int8", kv_tokens=tokens)
    return Engine(runner, Tokenizer.load(folder), max_slots=SLOTS, drafter=PromptLookup() if drafts else None)


def _answer(
    engine: Engine, prompts: list[list[int]], asked: argparse.Namespace, temperature: float
) -> tuple[float, list[list[int]]]:
    """Seconds from the first submitted to the last answered, and the tokens."""
    began = perf_counter()
    requests = [
        Request(prompt_ids=prompt, max_tokens=asked.output_tokens, temperature=temperature, seed=seed, ignore_eos=True)
        for seed, prompt in enumerate(prompts)
    ]
    answers: dict[int, list[int]] = {engine.submit(request): [] for request in requests}
    while engine.has_work:
        for update in engine.step():
            answers[update.id] += update.token_ids
    return perf_counter() - began, list(answers.values())


if __name__ == "__main__":
    main()
