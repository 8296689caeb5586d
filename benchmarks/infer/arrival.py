"""How evenly tokens keep coming while a prompt of 4,096 tokens arrives at a server that answers others.

    python benchmarks/infer/arrival.py PEERS [--peer]

The undisturbed inter-token latency is that of the same streams before it arrives; the disturbed one is that of all
gaps in which some of it was read, from its being sent to its first token. The bar is their p99 against the undisturbed
p50. The undisturbed p99 says what of that is the machine's own unevenness, and the client, which shares the cores with
the server, what it takes of them. Streams begin with 512 tokens, for they grow while the prompt is read, and their own
steps with them. When it has been read their client hangs up.
"""

from __future__ import annotations

import argparse
import asyncio
from collections.abc import Callable
from dataclasses import dataclass
from itertools import pairwise

import numpy as np
from engines import Texts, parser, record
from rich.console import Console
from servers import ask, free_port, liuyi_command, llama_command, running, wait_until_ready, whole

from liuyi.infer.load.answer import Answer
from liuyi.infer.load.client import Endpoint
from liuyi.infer.load.strain import strained
from liuyi.infer.load.workload import Ask

SETTLED_S, BEFORE_S, AFTER_S = 0.5, 2.0, 0.5
BAR = 2.0


@dataclass(frozen=True)
class Arrival:
    """Gaps between tokens before and while a prompt is read, in seconds, and what the client took for a token."""

    p50_s: float
    p99_s: float
    disturbed_p50_s: float
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
            f"undisturbed p50 {1000 * self.p50_s:.1f} ms, p99 {self.p99_s / self.p50_s:.2f} times that; disturbed p50 "
            f"{1000 * self.disturbed_p50_s:.1f} ms, p99 {1000 * self.disturbed_p99_s:.1f} ms; the prompt's first token "
            f"after {self.ttft_s:.2f} s; the client took {1e6 * self.client_s:.0f} µs of a core for a token"
        )


def main() -> None:
    made = parser(__doc__)
    made.add_argument("--streams", type=int, nargs="+", default=[4, 16], help="a row for each number")
    made.add_argument("--stream-tokens", type=int, default=512, help="with which each of them begins")
    made.add_argument("--prompt-tokens", type=int, default=4096)
    made.add_argument("--new-tokens", type=int, default=3000, help="more than a stream needs until the prompt is read")
    made.add_argument("--peer", action="store_true", help="llama.cpp's server too")
    made.set_defaults(repeats=2)
    asked = made.parse_args()
    texts = Texts(asked.peers / "models" / "fp32")
    slots = max(asked.streams) + 1
    servers: dict[str, Callable[[int], list[str]]] = {
        "Liuyi": lambda port: liuyi_command(asked, port, "--slots", str(slots))
    }
    if asked.peer:
        servers["llama.cpp server"] = lambda port: llama_command(asked, port, slots, 8192)
    best: dict[int, dict[str, Arrival]] = {streams: {} for streams in asked.streams}
    for name, command in servers.items():
        port = free_port()
        with running(asked, command(port)):
            wait_until_ready(port)
            for streams in asked.streams:
                measured = [
                    ask(port, lambda endpoint, streams=streams: _measure(endpoint, texts, streams, asked))
                    for _ in range(asked.repeats)
                ]
                best[streams][name] = min(measured, key=lambda one: one.stretched)
    for streams, arrivals in best.items():
        title = f"p99 ITL of {streams} streams while {asked.prompt_tokens:,} tokens arrive, of the undisturbed p50"
        for name, one in arrivals.items():
            Console(width=120).print(f"{title}: {name} {one.stretched:.2f}× (bar {BAR:g}×); {one.note}")
        stretched = {name: one.stretched for name, one in arrivals.items()}
        notes = {name: one.note for name, one in arrivals.items()}
        record(asked, title, "×", stretched, most=BAR, lower_is_better=True, notes=notes)


async def _measure(endpoint: Endpoint, texts: Texts, streams: int, asked: argparse.Namespace) -> Arrival:
    clock = asyncio.get_running_loop().time
    began = clock()
    answers = [Answer() for _ in range(streams)]
    following = [
        asyncio.create_task(endpoint.follow(Ask(texts.take(asked.stream_tokens), asked.new_tokens), answer, began))
        for answer in answers
    ]
    while not all(answer.pieces_s for answer in answers):
        await asyncio.sleep(0.02)
        for answer in answers:
            answer.read()
        _check(answers)
    async with strained() as strain:
        watched_s = clock() - began
        await asyncio.sleep(SETTLED_S)
        settled_s = clock() - began
        await asyncio.sleep(BEFORE_S)
        (arrived,) = whole([await endpoint.send(Ask(texts.take(asked.prompt_tokens), 1), clock() - began, began)])
        await asyncio.sleep(AFTER_S)
    _check(answers)
    for stream in following:
        stream.cancel()
    await asyncio.wait(following)
    before, during, tokens = [], [], 0
    for answer in answers:
        answer.read()
        for begin_s, end_s in pairwise(answer.pieces_s):
            tokens += end_s > watched_s
            if settled_s < end_s <= arrived.sent_s:
                before.append(end_s - begin_s)
            elif begin_s < arrived.pieces_s[0] and end_s > arrived.sent_s:
                during.append(end_s - begin_s)
    ttft_s, client_s = arrived.pieces_s[0] - arrived.sent_s, strain.core_s / tokens
    return Arrival(*np.percentile(before, (50, 99)), *np.percentile(during, (50, 99)), ttft_s, client_s)


def _check(answers: list[Answer]) -> None:
    """End where a stream has."""
    for answer in answers:
        if answer.ended_s is not None:
            raise SystemExit(f"a stream ended before the prompt was read: {answer.reason or 'raise --new-tokens'}")


if __name__ == "__main__":
    main()
