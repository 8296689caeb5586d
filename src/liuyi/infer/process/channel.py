"""Frames over a socket, for the threads of an engine's process."""

from __future__ import annotations

import queue
import socket
import threading

from liuyi.infer.process.messages import (
    HEADER_BYTES,
    MAX_FRAME_BYTES,
    EngineSpec,
    FromEngine,
    ToEngine,
    frame,
    read_spec,
    read_to_engine,
)


class Channel:
    """The engine's end of the socket. `send` never waits, however slowly the other side reads.

    What fits into the socket's buffer is written at once: a thread of its own would have to wait for a core that the
    threads of the next step keep. One writes what does not.
    """

    def __init__(self, sock: socket.socket) -> None:
        self._sock = sock
        self._sending = threading.Lock()
        self._late = 0
        """Pieces that the thread has not written yet."""
        self._outbox: queue.SimpleQueue[bytes | None] = queue.SimpleQueue()
        self._writer = threading.Thread(target=self._write, name="liuyi-writer", daemon=True)
        self._writer.start()

    def send(self, message: FromEngine) -> None:
        """Write now or soon; what cannot be written because the other side has gone is dropped."""
        data = frame(message)
        with self._sending:
            rest = data if self._late else data[self._write_now(data) :]
            if rest:
                self._late += 1
                self._outbox.put(rest)

    def receive_spec(self) -> EngineSpec | None:
        """The first message to a process that shall open an engine; None if the other side has gone."""
        payload = self._read_frame()
        return read_spec(payload) if payload is not None else None

    def receive(self) -> ToEngine | None:
        """Wait for the next message; None when the other side has gone."""
        payload = self._read_frame()
        return read_to_engine(payload) if payload is not None else None

    def close(self) -> None:
        """Write what is left, and hang up."""
        self._outbox.put(None)
        self._writer.join()
        self._sock.close()

    def _read_frame(self) -> bytes | None:
        header = self._read(HEADER_BYTES)
        size = int.from_bytes(header, "big")
        if len(header) < HEADER_BYTES or size > MAX_FRAME_BYTES:
            return None
        payload = self._read(size)
        return payload if len(payload) == size else None

    def _read(self, size: int) -> bytes:
        """As many bytes; fewer if the other side has gone."""
        read = bytearray()
        while len(read) < size:
            try:
                piece = self._sock.recv(min(size - len(read), 1 << 20))
            except OSError:
                break
            if not piece:
                break
            read += piece
        return bytes(read)

    def _write_now(self, data: bytes) -> int:
        """How many of the bytes could be written without waiting."""
        try:
            return self._sock.send(data, socket.MSG_DONTWAIT)
        except OSError:
            return 0

    def _write(self) -> None:
        while (data := self._outbox.get()) is not None:
            try:
                self._sock.sendall(data)
            except OSError:
                return
            with self._sending:
                self._late -= 1
        try:
            self._sock.shutdown(socket.SHUT_RDWR)
        except OSError:
            return
