"""Starting the engine's process, and learning how it ended."""

from __future__ import annotations

import contextlib
import signal
import socket
import subprocess
import sys
from typing import Protocol

from liuyi.infer.process.messages import EngineSpec, frame


class Peer(Protocol):
    """Whoever holds the other end of a socket, with an engine."""

    sock: socket.socket

    def kill(self) -> None:
        """End it at once."""

    def end(self) -> str:
        """Wait for its end, which has begun; how it ended, for people."""


class EngineProcess:
    """A process that was started for one engine.

    It ends when its owner does: the operating system closes the socket, whatever became of the owner.
    """

    def __init__(self, process: subprocess.Popen[bytes], sock: socket.socket) -> None:
        self.process = process
        self.sock = sock

    def kill(self) -> None:
        """End it at once."""
        self.process.kill()

    def end(self, patience_s: float = 5.0) -> str:
        """Wait for its end, with force if it takes too long; how it ended."""
        try:
            code = self.process.wait(patience_s)
        except subprocess.TimeoutExpired:
            self.process.kill()
            code = self.process.wait()
        if code < 0:
            with contextlib.suppress(ValueError):
                return f"it was ended by {signal.Signals(-code).name}"
            return f"it was ended by signal {-code}"
        return f"it ended with status {code}"


def spawn(spec: EngineSpec) -> EngineProcess:
    """Start a process that opens the engine of `spec` and answers on the socket."""
    ours, theirs = socket.socketpair()
    with theirs:
        command = [sys.executable, "-m", "liuyi.infer.process", str(theirs.fileno())]
        process = subprocess.Popen(command, pass_fds=[theirs.fileno()], stdin=subprocess.DEVNULL)
    ours.sendall(frame(spec))
    return EngineProcess(process, ours)
