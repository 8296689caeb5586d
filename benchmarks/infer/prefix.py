"""Thirty-two requests that share their first 2,048 tokens, against as many that share nothing, and llama.cpp's server.

    python benchmarks/infer/prefix.py PEERS

The shared beginning is new to the server in each repetition: the first request that needs it reads it. llama.cpp's
server keeps a prompt in the slot that read it; with one slot, which reads it once, it is fastest here.
"""

from __future__ import annotations

from engines import Bar, Texts, parser, show
from servers import ask, free_port, liuyi_command, llama_command, running, wait_until_ready, whole

from liuyi.infer.load.client import Endpoint
from liuyi.infer.load.drive import in_lanes
from liuyi.infer.load.workload import Ask


def main() -> None:
    made = parser(__doc__)
    made.add_argument("--requests", type=int, default=32)
    made.add_argument("--prefix-tokens", type=int, default=2048)
    made.add_argument("--own-tokens", type=int, default=64)
    made.add_argument("--new-tokens", type=int, default=32)
    made.add_argument("--lanes", type=int, default=16)
    made.set_defaults(repeats=2)
    asked = made.parse_args()
    texts = Texts(asked.peers / "models" / "fp32")

    def shared() -> list[Ask]:
        prefix = texts.take(asked.prefix_tokens)
        return [Ask(prefix + texts.take(asked.own_tokens), asked.new_tokens) for _ in range(asked.requests)]

    def cold() -> list[Ask]:
        length = asked.prefix_tokens + asked.own_tokens
        return [Ask(texts.take(length), asked.new_tokens) for _ in range(asked.requests)]

    def rate(port: int, asks: list[Ask], lanes: int) -> float:
        async def all_of_them(endpoint: Endpoint) -> float:
            outcomes = whole(await in_lanes(endpoint.send, asks, lanes, lambda: None))
            return len(asks) / (max(one.ended_s for one in outcomes) - min(one.sent_s for one in outcomes))

        return ask(port, all_of_them)

    ours, theirs = free_port(), free_port()
    room = asked.prefix_tokens + asked.own_tokens + asked.new_tokens + 64
    llama = running(asked, llama_command(asked, theirs, slots=1, tokens=room))
    with running(asked, liuyi_command(asked, ours, "--slots", str(asked.lanes))), llama:
        wait_until_ready(ours)
        wait_until_ready(theirs)
        rates = {"Liuyi": 0.0, "Liuyi, nothing shared": 0.0, "llama.cpp server": 0.0}
        for _ in range(asked.repeats):
            rates["Liuyi"] = max(rates["Liuyi"], rate(ours, shared(), asked.lanes))
            rates["llama.cpp server"] = max(rates["llama.cpp server"], rate(theirs, shared(), 1))
        rates["Liuyi, nothing shared"] = rate(ours, cold(), asked.lanes)
    title = f"{asked.requests} requests, {asked.prefix_tokens:,} tokens shared, {asked.own_tokens} own, int8"
    bars = (Bar("Liuyi, nothing shared", 5.0), Bar("llama.cpp server", 2.0))
    show(asked, title, rates, bars, unit="requests/s")


if __name__ == "__main__":
    main()
