"""How evenly tokens keep coming while a prompt of 4,096 tokens arrives at a server that answers others.

    python benchmarks/infer/arrival.py PEERS

The undisturbed inter-token latency is that of the same streams before it arrives; the disturbed one is that of all
gaps that end between its being sent and its first token. The bar is their p99 against the undisturbed p50.
"""

from __future__ import annotations

import argparse
import asyncio

import numpy as np
from engines import Texts, parser, record
from rich.console import Console
from servers import ask, free_port, liuyi_command, llama_command, running, wait_until_ready, whole

from liuyi.infer.load.client import Endpoint
from liuyi.infer.load.workload import Ask

BEFORE_S, SETTLED_S = 2.0, 0.5
BAR = 2.0


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
        p50, p99, ttft = min(measured, key=lambda one: one[1] / one[0])
        stretched[name] = p99 / p50
        notes[name] = f"undisturbed p50 {1000 * p50:.1f} ms, the prompt's first token after {ttft:.2f} s"
        Console(width=120).print(
            f"{name}, {asked.streams} streams: undisturbed p50 {1000 * p50:.1f} ms, p99 while {asked.prompt_tokens:,} "
            f"tokens arrive {1000 * p99:.1f} ms: {p99 / p50:.2f}× (bar {BAR:g}×); the prompt's first token after "
            f"{ttft:.2f} s"
        )
    title = f"p99 ITL of {asked.streams} streams while {asked.prompt_tokens:,} tokens arrive, of the undisturbed p50"
    record(asked, title, "×", stretched, most=BAR, lower_is_better=True, notes=notes)


async def _measure(endpoint: Endpoint, texts: Texts, asked: argparse.Namespace) -> tuple[float, float, float]:
    """Undisturbed p50, disturbed p99, and the time to the long prompt's first token, in seconds."""
    loop = asyncio.get_running_loop()
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
    for outcome in whole([arrived, *await asyncio.gather(*streams)])[1:]:
        for gap, end_s in zip(outcome.itl_s, outcome.pieces_s[1:], strict=True):
            if outcome.pieces_s[0] + SETTLED_S < end_s <= arrived.sent_s:
                before.append(gap)
            elif arrived.sent_s < end_s <= arrived.pieces_s[0]:
                during.append(gap)
    return float(np.median(before)), float(np.percentile(during, 99)), arrived.pieces_s[0] - arrived.sent_s


if __name__ == "__main__":
    main()
