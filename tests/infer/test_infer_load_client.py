"""What the load client makes of answers, however their bytes come and wherever they end."""

from __future__ import annotations

import asyncio
import gzip
import re
from bisect import bisect_left
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from itertools import pairwise

import pytest
from hypothesis import given
from hypothesis import strategies as st
from load_support import (
    LAST_CHUNK,
    Reply,
    Scripted,
    answer,
    answer_events,
    asks,
    chunk,
    events,
    jump,
    line,
    measure,
    refused,
)

from liuyi.core.errors import LiuyiError
from liuyi.infer.address import http_client
from liuyi.infer.load.answer import KEPT_BYTES, Answer
from liuyi.infer.load.client import Endpoint
from liuyi.infer.load.connect import connect
from liuyi.infer.load.drive import Load
from liuyi.infer.load.outcome import Outcome
from liuyi.infer.load.strain import TICK_S, strained

TEXT = {"choices": [{"text": "x", "finish_reason": None}]}
BODY = b"".join(line(event) for _, event in answer_events([0.0] * 5))
UNTIL_CLOSED = ("Connection: close",)


def outcome_of(reply: Reply) -> Outcome:
    (outcome,) = measure(Scripted(lambda body: reply), Load("one", asks(1)), timeout_s=30)
    return outcome


def cut(data: bytes, places: Sequence[int]) -> list[bytes]:
    edges = [0, *sorted(place for place in places if place < len(data)), len(data)]
    return [data[begin:end] for begin, end in pairwise(edges)]


class TestTimes:
    @given(places=st.lists(st.integers(1, 900), unique=True, max_size=12), chunked=st.booleans())
    def test_are_those_at_which_the_ends_of_events_came(self, places: list[int], chunked: bool) -> None:
        """Wherever the bytes are cut, an event has come when the end of its first line has, and not before."""
        raw = b"".join(chunk(line(event)) for _, event in answer_events([0.0] * 5)) + LAST_CHUNK if chunked else BODY
        pieces = cut(raw, places)
        headers = Reply.headers if chunked else UNTIL_CLOSED
        outcome = outcome_of(Reply([*((1.0, piece) for piece in pieces), (0, None)], headers=headers))
        assert (outcome.status, outcome.completion_tokens, outcome.prompt_tokens) == ("ok", 5, 7)
        seen = [sum(map(len, pieces[: at + 1])) for at in range(len(pieces))]
        ends, at = [], 0
        for _ in range(5):
            at = raw.index(b"}\n", at + 1)
            ends.append(bisect_left(seen, at + 2) + 1.0)
        assert list(outcome.pieces_s) == ends

    def test_a_long_answer_is_read_while_it_comes(self) -> None:
        answer, event = Answer(), line(TEXT)
        kept = KEPT_BYTES // len(event)
        for at in range(kept):
            answer.keep(event, float(at))
        assert not answer.pieces_s
        answer.keep(event, float(kept))
        assert answer.pieces_s == [float(at) for at in range(kept + 1)]

    def test_a_compressed_answer_is_read_as_it_is(self) -> None:
        packed = gzip.compress(BODY)
        headers = (*Reply.headers, "Content-Encoding: gzip")
        outcome = outcome_of(Reply([(1.0, chunk(packed)), (0, LAST_CHUNK)], headers=headers))
        assert (outcome.status, outcome.completion_tokens, outcome.cached_tokens) == ("ok", 5, 2)


class TestFailures:
    @pytest.mark.parametrize(
        ("reply", "status", "reason"),
        [
            (refused(429, b'{"error": {"message": "the queue\\nis full"}}'), "rejected", "429 the queue is full"),
            (refused(503, b"busy"), "rejected", "503"),
            (refused(400, b'{"error": {"message": "no"}}'), "failed", "400 no"),
            (refused(500, b'{"detail": "oh"}'), "failed", "500 {'detail': 'oh'}"),
            (refused(500, b"[" * 100_000), "failed", "500"),
            (Reply([], 307, ("Location: http://peer/v1/completions", "Content-Length: 0")), "failed", "307"),
            (events((1, TEXT)), "failed", "the answer broke off"),
            (events((1, {"error": {"message": "gone"}}), (0, "[DONE]")), "failed", "the answer broke off: gone"),
            (events((1, "{"), (0, "[DONE]")), "failed", "an event of the answer is not as OpenAI's API has it"),
            (events((1, "[1]"), (0, "[DONE]")), "failed", "an event of the answer is not as OpenAI's API has it"),
            (events((1, "[" * 9999), (0, "[DONE]")), "failed", "an event of the answer is not as OpenAI's API has it"),
            (
                events((1, {"usage": {"prompt_tokens": "many"}}), (0, "[DONE]")),
                "failed",
                "an event of the answer is not as OpenAI's API has it",
            ),
            (Reply([(60, LAST_CHUNK)]), "failed", "not answered within 30 s"),
            (Reply([(0, chunk(line("[DONE]"))), (60, LAST_CHUNK)]), "failed", "not answered within 30 s"),
        ],
    )
    def test_are_said_with_their_reason(self, reply: Reply, status: str, reason: str) -> None:
        outcome = outcome_of(reply)
        assert (outcome.status, outcome.reason) == (status, reason)

    def test_the_first_reason_stays(self) -> None:
        wire = [(1.0, chunk(line({"error": {"message": "gone"}}))), (1.0, ConnectionResetError("reset"))]
        assert outcome_of(Reply(wire)).reason == "the answer broke off: gone"

    @pytest.mark.parametrize(
        ("wire", "reason"),
        [
            ([(1.0, ConnectionResetError("reset"))], "ClientPayloadError: .*reset"),
            ([(1.0, None)], "ClientPayloadError: "),
            ([(1.0, b"zz\r\n")], "ClientPayloadError: .* not framed"),
            ([(1.0, b"-5\r\n")], "ClientPayloadError: .* not framed"),
            ([(1.0, b"1\r\n:XX")], "ClientPayloadError: .* not framed"),
        ],
    )
    def test_what_came_before_a_break_is_kept(
        self, wire: list[tuple[float, bytes | Exception | None]], reason: str
    ) -> None:
        server = Scripted(lambda body: Reply([(1.0, chunk(line(TEXT))), *wire]))
        (outcome,) = measure(server, Load("one", asks(1)), timeout_s=30)
        assert (outcome.status, outcome.pieces_s, outcome.ended_s) == ("failed", (1.0,), 2.0)
        assert re.match(reason, outcome.reason)
        assert "\n" not in outcome.reason

    def test_a_client_that_waits_no_longer_hangs_up(self) -> None:
        server = Scripted(lambda body: answer([1.0, 60.0]))
        (outcome,) = measure(server, Load("one", asks(1)), timeout_s=30)
        assert (outcome.pieces_s, outcome.ended_s) == ((1.0,), 30.0)
        assert server.hung_up_s == [30.0]

    @given(st.data())
    def test_a_connection_that_ends_anywhere_ends_the_request(self, data: st.DataObject) -> None:
        raw = Reply().head() + b"".join(chunk(line(event)) for _, event in answer_events([0.0] * 3)) + LAST_CHUNK
        whole = data.draw(st.integers(0, len(raw)))
        error = data.draw(st.sampled_from([None, ConnectionResetError("reset")]))

        class Cut(Reply):
            def head(self) -> bytes:
                return raw[:whole]

        outcome = outcome_of(Cut([(1.0, error)]))
        if whole == len(raw):
            assert (outcome.status, outcome.completion_tokens) == ("ok", 3)
        else:
            assert outcome.status == "failed"
            assert "within" not in outcome.reason
            assert outcome.ended_s == 1.0


@asynccontextmanager
async def listening(answer: bytes) -> AsyncIterator[tuple[int, list[bytes]]]:
    """A server that says the same to everyone, its port, and the first lines of what it was asked."""
    asked: list[bytes] = []

    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        asked.append(await reader.readuntil(b"\r\n\r\n"))
        writer.write(b"HTTP/1.1 200 OK\r\nContent-Length: %d\r\n\r\n%s" % (len(answer), answer))
        await writer.drain()
        writer.close()

    server = await asyncio.start_server(serve, "127.0.0.1", 0)
    async with server:
        yield server.sockets[0].getsockname()[1], asked


MODELS = b'{"data": [{"id": "theirs"}]}'


async def model_at(api: str, key: str = "") -> str:
    async with connect(api, key) as http:
        endpoint = Endpoint(http, api)
        await endpoint.choose_model()
        return endpoint.model


class TestConnections:
    @pytest.fixture(autouse=True)
    def _no_proxies(self, monkeypatch: pytest.MonkeyPatch) -> None:
        for name in ("http_proxy", "https_proxy", "all_proxy", "no_proxy"):
            monkeypatch.delenv(name, raising=False)
            monkeypatch.delenv(name.upper(), raising=False)

    @pytest.mark.parametrize("variable", ["HTTP_PROXY", "ALL_PROXY"])
    def test_go_through_the_proxy_of_the_environment(self, monkeypatch: pytest.MonkeyPatch, variable: str) -> None:
        async def work() -> bytes:
            async with listening(MODELS) as (port, asked):
                monkeypatch.setenv(variable, f"http://user:secret@127.0.0.1:{port}")
                assert await model_at("http://peer.invalid/v1/", "sk-1") == "theirs"
                monkeypatch.setenv("NO_PROXY", "peer.invalid")
                with pytest.raises(LiuyiError, match="does not answer"):
                    await model_at("http://peer.invalid/v1/")
                return asked[0]

        asked = asyncio.run(work())
        assert asked.startswith(b"GET http://peer.invalid/v1/models HTTP/1.1")
        assert b"Authorization: Bearer sk-1\r\n" in asked
        assert b"Proxy-Authorization: Basic dXNlcjpzZWNyZXQ=\r\n" in asked

    def test_a_user_in_the_address_goes_before_the_key(self) -> None:
        async def work() -> bytes:
            async with listening(MODELS) as (port, asked):
                await model_at(f"http://user:secret@127.0.0.1:{port}/v1/", "sk-1")
                return asked[0]

        assert b"Authorization: Basic dXNlcjpzZWNyZXQ=\r\n" in asyncio.run(work())

    def test_servers_on_this_machine_are_reached_without_it(self, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setenv("ALL_PROXY", "socks5://127.0.0.1:1")

        async def work() -> None:
            async with listening(MODELS) as (port, _):
                assert await model_at(f"http://localhost:{port}/v1/") == "theirs"
                async with http_client(f"http://127.0.0.1:{port}/v1/") as client:
                    assert (await client.get("models")).json()["data"][0]["id"] == "theirs"

        asyncio.run(work())
        with pytest.raises(LiuyiError, match="the proxy cannot be used"):
            http_client("http://peer.invalid/v1/")

    def test_a_proxy_that_speaks_something_else_is_refused(self, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setenv("ALL_PROXY", "socks5://user:secret@127.0.0.1:1")
        with pytest.raises(LiuyiError, match=r"socks5://user:\*\*\*@127.0.0.1:1 does not speak HTTP"):
            asyncio.run(model_at("http://peer.invalid/v1/"))

    def test_a_key_that_no_header_can_hold_is_refused_and_not_shown(self) -> None:
        with pytest.raises(LiuyiError, match="no header may have") as refused:
            asyncio.run(model_at("http://127.0.0.1:9/v1/", "sk-1\nX: y"))
        assert "sk-1" not in str(refused.value)

    @pytest.mark.parametrize("listing", [b"{", b"{}", b'{"data": []}', b"[1]", b"[" * 100_000])
    def test_a_server_of_something_else_is_said_to_be(self, listing: bytes) -> None:
        async def work() -> None:
            async with listening(listing) as (port, _):
                await model_at(f"http://127.0.0.1:{port}/v1/")

        with pytest.raises(LiuyiError, match="no server with the OpenAI API"):
            asyncio.run(work())


def test_a_client_that_is_kept_from_its_work_says_by_how_long() -> None:
    async def work() -> tuple[int, float]:
        loop = asyncio.get_running_loop()
        async with strained() as strain:
            await asyncio.sleep(10 * TICK_S)
            loop.now += 0.5  # type: ignore[attr-defined]
            await asyncio.sleep(10 * TICK_S)
        return len(strain.late_s), max(strain.late_s)

    ticks, latest = jump(work())
    assert ticks >= 18
    assert 0.5 - TICK_S <= latest <= 0.5
