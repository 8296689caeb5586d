"""A process that has imported what steps need, and forks one step process after another.

    with ForkServer(["torch"], log) as server:
        pid = server.start(order)
        while (ended := server.poll(0.5)) is None: ...

Importing torch takes seconds; forked from here, a step starts in milliseconds. The server dies with the worker that
started it and every step dies with the server, by the kernel's promise, so `kill -9` of a worker leaves nothing behind.
It imports and does nothing else, since a fork takes no threads along but those of libraries that prepare for it.
"""

from __future__ import annotations

import importlib
import io
import json
import os
import selectors
import signal
import subprocess
import sys
import traceback
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NoReturn

from liuyi.core.errors import StepError
from liuyi.core.runner.lifetime import die_with_parent

_PIPE_BYTES = 65536


@dataclass(frozen=True)
class Ended:
    """How a step process ended: its exit status, or minus the number of the signal that killed it, and its error."""

    status: int
    error: dict[str, Any]


class ForkServer:
    """The worker's end. One step process at a time."""

    def __init__(self, preload: Sequence[str], log: Path) -> None:
        self._log = log
        command = [sys.executable, "-P", "-m", __name__, str(os.getpid()), *preload]
        # A fixed hash seed keeps the order of sets, and whatever a step derives from it, the same in every run.
        environment = os.environ | {"PYTHONHASHSEED": "0"}
        with log.open("ab") as errors:
            self._process = subprocess.Popen(
                command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=errors, env=environment, bufsize=0
            )
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        self._to, self._from = self._process.stdin, self._process.stdout
        self._selector = selectors.DefaultSelector()
        self._selector.register(self._from, selectors.EVENT_READ)
        self._unread = b""

    def __enter__(self) -> ForkServer:
        return self

    def __exit__(self, *_: object) -> None:
        self._selector.close()
        self._to.close()
        self._from.close()
        self._process.kill()
        self._process.wait()

    def start(self, order: str) -> int:
        """Fork a process for a step order, given as JSON, and return its pid."""
        data = order.encode() + b"\n"
        try:
            while data:  # a signal can break a write off in the middle
                data = data[self._to.write(data) :]
        except BrokenPipeError:
            raise self._broken() from None
        return int(self._message()["pid"])

    def poll(self, timeout_s: float) -> Ended | None:
        """How the step process ended; None if it still runs after `timeout_s`."""
        if b"\n" not in self._unread and not self._selector.select(timeout_s):
            return None
        message = self._message()
        return Ended(message["status"], message["error"])

    def _message(self) -> dict[str, Any]:
        """The server's next message, waited for. Raises StepError if the server has ended."""
        while b"\n" not in self._unread:
            fresh = os.read(self._from.fileno(), _PIPE_BYTES)
            if not fresh:
                raise self._broken()
            self._unread += fresh
        line, _, self._unread = self._unread.partition(b"\n")
        message: dict[str, Any] = json.loads(line)
        return message

    def _broken(self) -> StepError:
        return StepError("the process that starts steps has ended", hint=f"its last words are in {self._log}")


def main() -> None:
    """The server's end: read one order a line, fork, wait, report; until the worker closes the pipe or dies."""
    parent, preload = int(sys.argv[1]), sys.argv[2:]
    die_with_parent(parent)
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    reports = os.dup(1)
    os.dup2(2, 1)  # a module that prints while it is imported must not be taken for a report
    for name in ["numpy", "liuyi.core.runner.process", *preload]:
        importlib.import_module(name)
    from liuyi.core.step import all_steps

    all_steps()
    server = os.getpid()
    for line in sys.stdin.buffer:
        read_end, write_end = os.pipe()
        pid = os.fork()
        if pid == 0:
            die_with_parent(server)
            os.close(read_end)
            os.close(reports)
            _become_step(line, write_end)
        os.close(write_end)
        _report(reports, {"pid": pid})
        _, status = os.waitpid(pid, 0)
        _report(reports, {"status": os.waitstatus_to_exitcode(status), "error": _last_words(read_end)})
        os.close(read_end)


def _report(to: int, message: dict[str, Any]) -> None:
    os.write(to, json.dumps(message).encode() + b"\n")


def _last_words(read_end: int) -> dict[str, Any]:
    """The error that an ended step process left in its pipe; empty if it left none."""
    os.set_blocking(read_end, False)
    try:
        words: dict[str, Any] = json.loads(os.read(read_end, _PIPE_BYTES) or b"{}")
    except BlockingIOError:  # a process that the step left behind still holds the other end
        return {}
    return words


def _become_step(line: bytes, write_end: int) -> NoReturn:
    """Do a step's work in this process, with the step's log in the place of the terminal."""
    status = 1
    try:
        os.setpgid(0, 0)
        from liuyi.core.runner.process import StepOrder, run_step

        order = StepOrder.model_validate_json(line)
        log = os.open(order.log, os.O_WRONLY | os.O_APPEND | os.O_CREAT, 0o644)
        os.dup2(os.open(os.devnull, os.O_RDONLY), 0)
        os.dup2(log, 1)
        os.dup2(log, 2)
        for stream in (sys.stdout, sys.stderr):
            assert isinstance(stream, io.TextIOWrapper)
            stream.reconfigure(encoding="utf-8", errors="backslashreplace", line_buffering=True)
        status, error = run_step(order)
        if error:
            os.write(write_end, json.dumps(error, ensure_ascii=False).encode(errors="replace"))
    except BaseException:
        traceback.print_exc()
    finally:
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(status)


if __name__ == "__main__":
    main()
