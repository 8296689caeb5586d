"""How evenly tokens keep coming while a prompt of 4,096 tokens arrives at a server that answers others.

    python benchmarks/infer/arrival.py PEERS

The undisturbed inter-token latency is that of the same streams before it arrives; the disturbed one is that of all
gaps that end between its being sent and its first token. The bar is their p99 against the undisturbed p50. The
undisturbed p99 says what of that is the machine's own unevenness, and the client, which shares the cores with the
server, what it takes of them.
"""

from __future__ import annotations

import argparse
import asyncio
import time
from dataclasses import dataclass

import numpy as np
from engines import Texts, parser, record
from rich.console import Console
from servers import ask, free_port, liuyi_command, llama_command, running, wait_until_ready, whole

from liuyi.infer.load.client import Endpoint
from liuyi.infer.load.workload import Ask

BEFORE_S, SETTLED_S = 2.0, 0.5
BAR = 2.0


@dataclass(frozen=True)
class Arrival:
    """Gaps between tokens before and while a prompt is read, in seconds, and what the client took for a token."""

    p50_s: float
    p99_s: float
    disturbed_p99_s: float
    ttft_s: float
    client_s: float

    @property
    def stretched(self) -> float:
        """What the bar is about."""
        return self.disturbed_p99_s / self.p50_s

    @property
    def note(self) -> str:
        """The rest of it."""
        return (
            f"undisturbed p50 {1000 * self.p50_s:.1f} ms, p99 {1000 * self.p99_s:.1f} ms; the prompt's first token "
            f"after {self.ttft_s:.2f} s; the client took {1e6 * self.client_s:.0f} µs of a core for a token"
        )


def main() -> None:
    made = parser(__doc__)
    made.add_argument("--streams", type=int, default=4)
    made.add_argument("--prompt-tokens", type=int, default=4096)
    made.add_argument("--new-tokens", type=int, default=4000)
    made.add_argument("--peer", action="store_true", help="llama.cpp's server too")
    made.set_defaults(repeats=2)
    asked = made.parse_args()
    texts = Texts(asked.peers / "models" / "fp32")
    servers = {"Liuyi": lambda port: liuyi_command(asked, port, "--slots", "16")}
    if asked.peer:
        servers["llama.cpp server"] = lambda port: llama_command(asked, port, asked.streams + 1, 8192)
    stretched, notes = {}, {}
    for name, command in servers.items():
        port = free_port()
        with running(asked, command(port)):
            wait_until_ready(port)
            measured = [ask(port, lambda endpoint: _measure(endpoint, texts, asked)) for _ in range(asked.repeats)]
        best = min(measured, key=lambda one: one.stretched)
        stretched[name], notes[name] = best.stretched, best.note
        Console(width=120).print(
            f"{name}, {asked.streams} streams: p99 while {asked.prompt_tokens:,} tokens arrive "
            f"{1000 * best.disturbed_p99_s:.1f} ms, {best.stretched:.2f}× the undisturbed p50 (bar {BAR:g}×); "
            f"{best.note}"
        )
    title = f"p99 ITL of {asked.streams} streams while {asked.prompt_tokens:,} tokens arrive, of the undisturbed p50"
    record(asked, title, "×", stretched, most=BAR, lower_is_better=True, notes=notes)


async def _measure(endpoint: Endpoint, texts: Texts, asked: argparse.Namespace) -> Arrival:
    loop = asyncio.get_running_loop()
    worked = time.process_time()
    began = loop.time()
    streams = [
        asyncio.create_task(endpoint.send(Ask(texts.take(64), asked.new_tokens), 0.0, began))
        for _ in range(asked.streams)
    ]
    await asyncio.sleep(BEFORE_S)
    arrived = await endpoint.send(Ask(texts.take(asked.prompt_tokens), 1), loop.time() - began, began)
    if any(stream.done() for stream in streams):
        raise SystemExit("the streams ended before the prompt was read: raise --new-tokens")
    before, during = [], []
    outcomes = whole([arrived, *await asyncio.gather(*streams)])
    client_s = (time.process_time() - worked) / sum(outcome.completion_tokens for outcome in outcomes)
    for outcome in outcomes[1:]:
        for gap, end_s in zip(outcome.itl_s, outcome.pieces_s[1:], strict=True):
            if outcome.pieces_s[0] + SETTLED_S < end_s <= arrived.sent_s:
                before.append(gap)
            elif arrived.sent_s < end_s <= arrived.pieces_s[0]:
                during.append(gap)
    p50, p99 = np.percentile(before, (50, 99))
    ttft_s = arrived.pieces_s[0] - arrived.sent_s
    return Arrival(float(p50), float(p99), float(np.percentile(during, 99)), ttft_s, client_s)


if __name__ == "__main__":
    main()
