"""How near asking an endpoint comes to what its latency allows, and what a request costs beside it.

    python benchmarks/data/synthesis.py [--latency 0.2] [--concurrency 1 8 64] [--rounds 40]

A server in a process of its own answers every request after a fixed time, however many there are. `c` requests at once
can then be answered at c / latency a second at most. Measured are this project's queue, with every answer synchronised
to disk before it counts, and as a yardstick the `openai` client under a semaphore, which keeps nothing.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import multiprocessing
import tempfile
import time
from collections.abc import Callable
from multiprocessing.connection import Connection
from pathlib import Path

import openai

from liuyi.data.synthesis.ask import Ask, Sampling
from liuyi.data.synthesis.endpoint import HttpEndpoint
from liuyi.data.synthesis.queue import Patience
from liuyi.data.synthesis.session import Session

ANSWER = "An answer of a usual length, such as a model gives to a short question. " * 12
WARM_UP = 2
"""Rounds before the clock starts: connections are made in them."""


def serve(latency_s: float, ready: Connection) -> None:
    """Answer every request after `latency_s`."""
    choice = {"index": 0, "message": {"role": "assistant", "content": ANSWER}, "finish_reason": "stop"}
    usage = {"prompt_tokens": 40, "completion_tokens": 180, "total_tokens": 220}
    said = {"id": "1", "object": "chat.completion", "created": 0, "model": "fixed", "choices": [choice], "usage": usage}
    body = json.dumps(said).encode()
    head = f"HTTP/1.1 200 OK\r\ncontent-type: application/json\r\ncontent-length: {len(body)}\r\n\r\n".encode()

    async def answer(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        try:
            while True:
                request = await reader.readuntil(b"\r\n\r\n")
                length = next(line for line in request.lower().split(b"\r\n") if line.startswith(b"content-length"))
                await reader.readexactly(int(length.partition(b":")[2]))
                await asyncio.sleep(latency_s)
                writer.write(head + body)
        except (asyncio.IncompleteReadError, ConnectionError):
            writer.close()

    async def main() -> None:
        server = await asyncio.start_server(answer, "127.0.0.1", 0)
        ready.send(server.sockets[0].getsockname()[1])
        await server.serve_forever()

    asyncio.run(main())


def asks(count: int, first: int) -> list[Ask]:
    """Requests that are all different."""
    question = "Explain in a few sentences how the following works, and name an example. "
    return [
        Ask(({"role": "user", "content": f"{question * 3}{number}"},), Sampling(400), seed=number)
        for number in range(first, first + count)
    ]


def by_session(url: str, concurrency: int, count: int) -> tuple[float, float]:
    """(wall, CPU) seconds for `count` answers through this project's session."""

    def connect() -> HttpEndpoint:
        return HttpEndpoint(url, "fixed")

    with (
        tempfile.TemporaryDirectory(dir=Path.cwd()) as folder,
        Session(connect, Path(folder), concurrency=concurrency, patience=Patience()) as session,
    ):
        session.ask(asks(WARM_UP * concurrency, 10**6))
        wall, cpu = time.perf_counter(), time.process_time()
        answers = session.ask(asks(count, 0))
        assert all(answer is not None and answer.text == ANSWER for answer in answers)
        return time.perf_counter() - wall, time.process_time() - cpu


def by_openai(url: str, concurrency: int, count: int) -> tuple[float, float]:
    """The same through the `openai` client."""

    async def main() -> tuple[float, float]:
        async with openai.AsyncOpenAI(base_url=url, api_key="none", max_retries=0) as client:
            gate = asyncio.Semaphore(concurrency)

            async def one(ask: Ask) -> str:
                async with gate:
                    said = await client.chat.completions.create(
                        model="fixed", messages=list(ask.prompt), max_tokens=400, seed=ask.seed
                    )
                    return str(said.choices[0].message.content)

            await asyncio.gather(*map(one, asks(WARM_UP * concurrency, 10**6)))
            wall, cpu = time.perf_counter(), time.process_time()
            texts = await asyncio.gather(*map(one, asks(count, 0)))
            assert set(texts) == {ANSWER}
            return time.perf_counter() - wall, time.process_time() - cpu

    return asyncio.run(main())


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--latency", type=float, default=0.2, help="seconds that the server takes for an answer")
    parser.add_argument("--concurrency", type=int, nargs="+", default=[1, 8, 64])
    parser.add_argument("--rounds", type=int, default=40, help="answers of each of the requests at once")
    chosen = parser.parse_args()
    here, there = multiprocessing.Pipe()
    server = multiprocessing.Process(target=serve, args=(chosen.latency, there), daemon=True)
    server.start()
    url = f"http://127.0.0.1:{here.recv()}/v1"
    ways: dict[str, Callable[[str, int, int], tuple[float, float]]] = {"liuyi": by_session, "openai client": by_openai}
    print("| at once | by | answers/s | of the ideal | waiting beside the latency, ms | CPU ms a request |")
    print("|---:|---|---:|---:|---:|---:|")
    for concurrency in chosen.concurrency:
        count = concurrency * chosen.rounds
        for name, way in ways.items():
            wall, cpu = way(url, concurrency, count)
            rate, ideal = count / wall, concurrency / chosen.latency
            beside_ms = 1000 * (wall * concurrency / count - chosen.latency)
            cells = (concurrency, name, f"{rate:.1f}", f"{rate / ideal:.1%}", f"{beside_ms:.1f}")
            print(f"| {' | '.join(map(str, cells))} | {1000 * cpu / count:.2f} |", flush=True)
    server.terminate()


if __name__ == "__main__":
    main()
