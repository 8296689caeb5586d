"""Servers in processes of their own, ours and llama.cpp's, and requests to them through the client of `bench serve`."""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Awaitable, Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TypeVar

import httpx

from liuyi.infer.load.client import Endpoint
from liuyi.infer.load.connect import connect
from liuyi.infer.load.outcome import Outcome

T = TypeVar("T")
PATIENCE_S = 120.0


def liuyi_command(asked: argparse.Namespace, port: int, *more: str) -> list[str]:
    """Our server with its defaults."""
    model = asked.peers / "models" / "fp32"
    home = tempfile.mkdtemp(prefix="liuyi-bench-")
    return [
        str(Path(sys.executable).parent / "liuyi"),
        "--home",
        home,
        "serve",
        str(model),
        "--name",
        "bench",
        "--port",
        str(port),
        *more,
    ]


def llama_command(asked: argparse.Namespace, port: int, slots: int, tokens: int) -> list[str]:
    """llama.cpp's server with its defaults, but for the number of slots and the tokens that each has room for."""
    binary, model = asked.peers / "llama-tools" / "bin" / "llama-server", asked.peers / "models" / "q8_0.gguf"
    options = f"--parallel {slots} --ctx-size {slots * tokens} --threads {asked.threads} --port {port} --no-webui"
    return [str(binary), "--model", str(model), *options.split()]


def free_port() -> int:
    """A port that nobody listens at now."""
    with socket.socket() as bound:
        bound.bind(("127.0.0.1", 0))
        return int(bound.getsockname()[1])


@contextmanager
def running(asked: argparse.Namespace, command: Sequence[str]) -> Iterator[None]:
    """A server as long as the block lasts."""
    with (asked.peers / f"{Path(command[0]).name}-server.log").open("w") as log:
        process = subprocess.Popen(command, stdout=log, stderr=log)
        try:
            yield
        finally:
            process.terminate()
            with contextlib.suppress(subprocess.TimeoutExpired):
                process.wait(10)
            process.kill()


def wait_until_ready(port: int) -> None:
    """Return once the server says that it can answer."""
    until = time.monotonic() + PATIENCE_S
    while time.monotonic() < until:
        with contextlib.suppress(httpx.HTTPError):
            if httpx.get(f"http://127.0.0.1:{port}/health", timeout=1).status_code == 200:
                return
        time.sleep(0.02)
    sys.exit("the server did not get ready")


def ask(port: int, work: Callable[[Endpoint], Awaitable[T]]) -> T:
    """Do `work` with the server's completions, greedy and of full length."""

    async def run() -> T:
        api = f"http://127.0.0.1:{port}/v1/"
        # A server may close a connection that it has answered on just when the next request is sent.
        async with connect(api, keep_alive=False) as http:
            endpoint = Endpoint(http, api, fields={"temperature": 0, "ignore_eos": True})
            await endpoint.choose_model()
            return await work(endpoint)

    return asyncio.run(run())


def whole(outcomes: Sequence[Outcome]) -> Sequence[Outcome]:
    """The outcomes, if all are whole answers."""
    for outcome in outcomes:
        if outcome.status != "ok":
            sys.exit(f"a request was not answered: {outcome.reason}")
    return outcomes
