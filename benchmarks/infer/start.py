"""From the command to the first token: a server's process is started, and asked until it answers.

python benchmarks/infer/start.py PEERS
"""

from __future__ import annotations

import time

import httpx
from engines import parser, record
from rich.console import Console
from servers import PATIENCE_S, free_port, liuyi_command, llama_command, running

BAR_S = 5.0


def main() -> None:
    made = parser(__doc__)
    made.set_defaults(repeats=3)
    asked = made.parse_args()
    commands = {
        "Liuyi": lambda port: liuyi_command(asked, port),
        "llama.cpp server": lambda port: llama_command(asked, port, 1, 2048),
    }
    seconds: dict[str, list[float]] = {name: [] for name in commands}
    for _ in range(asked.repeats):
        for name, command in commands.items():
            port = free_port()
            began = time.perf_counter()
            with running(asked, command(port)):
                _first_token(port)
                seconds[name].append(time.perf_counter() - began)
    fastest = {name: min(measured) for name, measured in seconds.items()}
    record(asked, "from the command to the first token", "s", fastest, most=BAR_S, lower_is_better=True)
    for name, measured in seconds.items():
        bar = f" (bar {BAR_S:g} s)" if name == "Liuyi" else ""
        Console().print(f"{name}: first token {min(measured):.2f} s after the command{bar}")


def _first_token(port: int) -> None:
    """Return when the server has answered with a token."""
    asked = {"model": "bench", "prompt": "The sun", "max_tokens": 1, "temperature": 0}
    until = time.monotonic() + PATIENCE_S
    while time.monotonic() < until:
        try:
            response = httpx.post(f"http://127.0.0.1:{port}/v1/completions", json=asked, timeout=PATIENCE_S)
        except httpx.ConnectError:
            time.sleep(0.02)
            continue
        if response.status_code == 200:
            return
        if response.status_code != 503:
            raise SystemExit(f"the server refused: {response.text}")
        time.sleep(0.02)
    raise SystemExit("the server did not answer")


if __name__ == "__main__":
    main()
