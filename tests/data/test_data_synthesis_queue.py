"""Asking an endpoint: every way it can fail is counted by reason, nothing that was answered is lost or asked again."""

from __future__ import annotations

import email.utils
import gzip
import json
import os
import signal
import subprocess
import sys
import textwrap
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from model_support import Asked, Model, ModelServer, Reply, completion, model_server

from liuyi.core.errors import DataError, StepError
from liuyi.data.retry import retry_after_s
from liuyi.data.synthesis.ask import Answer, Ask, Sampling
from liuyi.data.synthesis.endpoint import LARGEST_ANSWER_BYTES, HttpEndpoint
from liuyi.data.synthesis.queue import Patience
from liuyi.data.synthesis.session import Session
from liuyi.data.synthesis.store import AnswerStore
from waiting import wait_for

HASTY = Patience(tries=3, first_wait_s=0.01)


def asks(count: int, max_tokens: int = 50) -> list[Ask]:
    return [Ask(({"role": "user", "content": f"Say {n}"},), Sampling(max_tokens), seed=n) for n in range(count)]


@contextmanager
def session(server: ModelServer, folder: Path, concurrency: int = 8, **options: Any) -> Iterator[Session]:
    folder.mkdir(exist_ok=True)
    named = {name: options.pop(name) for name in ("key", "timeout_s") if name in options}
    options = {"patience": HASTY} | options
    connect = lambda: HttpEndpoint(server.url, "", **({"timeout_s": 30.0} | named))  # noqa: E731
    with Session(connect, folder, concurrency=concurrency, **options) as opened:
        yield opened


def echo(asked: Asked) -> str:
    return f"heard {asked.prompt}"


def html(asked: Asked) -> Reply:
    return Reply(b"<html>Welcome</html>", headers={"content-type": "text/html"})


FAULTS: dict[str, tuple[Callable[[Asked], Reply], str]] = {
    "500": (lambda asked: Reply(b"oh", 500), "server error"),
    "503": (lambda asked: Reply(b"{}", 503), "overloaded"),
    "429": (lambda asked: Reply(b"{}", 429, {"retry-after": "0.05"}), "rate limited"),
    "malformed": (lambda asked: Reply(b'{"choices": [{"message"'), "not JSON"),
    "a list": (lambda asked: Reply(b"[1, 2]"), "not JSON"),
    "deep": (lambda asked: Reply(b'{"choices":' + b"[" * 200_000), "not JSON"),
    "html": (html, "wrong content type"),
    "events": (
        lambda asked: Reply(b"data: {}\n\n", headers={"content-type": "text/event-stream"}),
        "wrong content type",
    ),
    "no choices": (lambda asked: Reply(b'{"choices": []}'), "no choices"),
    "choices of another kind": (lambda asked: Reply(b'{"choices": ["text"]}'), "no choices"),
    "null": (lambda asked: completion(None), "empty answer"),
    "blank": (lambda asked: completion(" \n"), "empty answer"),
    "a number": (lambda asked: completion("", choices=[{"message": {"content": 7}}]), "empty answer"),
    "truncated": (lambda asked: Reply(completion("x" * 500).body, send_bytes=40), "connection closed"),
    "closed": (lambda asked: Reply(send_bytes=0, headers={"content-length": "9"}), "connection closed"),
    "hang": (lambda asked: Reply(hang=True), "timed out"),
    "huge": (lambda asked: Reply(b" " * (LARGEST_ANSWER_BYTES + 1)), "too large"),
    "bomb": (
        lambda asked: Reply(gzip.compress(b" " * (LARGEST_ANSWER_BYTES + 1)), headers={"content-encoding": "gzip"}),
        "too large",
    ),
    "not gzip": (lambda asked: Reply(b"plain", headers={"content-encoding": "gzip"}), "not JSON"),
}


@pytest.mark.parametrize("name", FAULTS)
def test_a_fault_is_counted_and_the_next_try_answers(name: str, tmp_path: Path) -> None:
    """Every third request fails once; all are answered in the end, in their order."""
    fault, reason = FAULTS[name]
    failed: set[str] = set()

    def model(asked: Asked) -> str | Reply:
        if int(asked.prompt.split()[1]) % 3 == 0 and asked.prompt not in failed:
            failed.add(asked.prompt)
            return fault(asked)
        return echo(asked)

    with (
        model_server(model) as server,
        session(server, tmp_path / "work", timeout_s=0.5 if name == "hang" else 30) as opened,
    ):
        answers = opened.ask(asks(7))
        assert [answer and answer.text for answer in answers] == [f"heard Say {n}" for n in range(7)]
        assert opened.tally.faults.tries == {reason: 3}
        assert not opened.tally.faults.given_up
        assert len(server.asked) == 10


@pytest.mark.parametrize("name", ["malformed", "truncated", "500", "html"])
def test_one_that_never_answers_is_given_up_by_its_reason(name: str, tmp_path: Path) -> None:
    fault, reason = FAULTS[name]
    model: Model = lambda asked: fault(asked) if asked.prompt == "Say 2" else echo(asked)  # noqa: E731
    with model_server(model) as server, session(server, tmp_path / "work") as opened:
        answers = opened.ask(asks(4))
        assert [answer is None for answer in answers] == [False, False, True, False]
        assert opened.tally.faults.given_up == {reason: 1}
        assert opened.tally.faults.tries == {reason: HASTY.tries}
        assert (opened.tally.asked, opened.tally.answered) == (4, 3)


def test_a_refusal_is_not_repeated(tmp_path: Path) -> None:
    model: Model = lambda asked: Reply(b'{"error": "too long"}', 400) if asked.prompt == "Say 1" else echo(asked)  # noqa: E731
    with model_server(model) as server, session(server, tmp_path / "work") as opened:
        assert [answer is None for answer in opened.ask(asks(3))] == [False, True, False]
        assert len(server.asked) == 3


def test_a_dead_endpoint_ends_the_step_and_what_it_answered_stays(tmp_path: Path) -> None:
    """It answers ten requests and then only errors: the step fails, and its next start asks only the rest."""
    alive = True

    def model(asked: Asked) -> str | Reply:
        return echo(asked) if alive and asked.number < 10 else Reply(b"down", 502) if alive else echo(asked)

    with model_server(model) as server:
        with (
            session(server, tmp_path / "work", concurrency=2) as opened,
            pytest.raises(StepError, match="the last 8 requests were not answered") as error,
        ):
            opened.ask(asks(40))
        assert "10 answers are kept" in error.value.hint
        alive = False
        before = len(server.asked)
        with session(server, tmp_path / "work", concurrency=2) as opened:
            assert all(opened.ask(asks(40)))
        assert len(server.asked) - before == 30


@pytest.mark.parametrize(
    ("status", "said"), [(401, "wrong API key"), (402, "payment required"), (404, "no such model")]
)
def test_what_no_retry_can_help_ends_the_step_at_once(status: int, said: str, tmp_path: Path) -> None:
    with (
        model_server(lambda asked: Reply(b"{}", status)) as server,
        session(server, tmp_path / "work", concurrency=1) as opened,
    ):
        with pytest.raises(StepError, match=said):
            opened.ask(asks(5))
        assert len(server.asked) == 1


def test_no_server(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="does not tell its models: no connection"):
        Session(lambda: HttpEndpoint("http://127.0.0.1:9/v1", ""), tmp_path, concurrency=1, patience=HASTY)


def test_retry_after_holds_for_all(tmp_path: Path) -> None:
    """One request is told to wait: none is sent before that time but what was under way."""
    times: list[float] = []

    def model(asked: Asked) -> str | Reply:
        times.append(time.monotonic())
        return Reply(b"{}", 429, {"retry-after": "0.6"}) if asked.number == 0 else completion("ok", asked)

    with model_server(model) as server, session(server, tmp_path / "work", concurrency=2) as opened:
        assert all(opened.ask(asks(12)))
    assert sum(moment < times[0] + 0.6 for moment in times[1:]) <= 2


def test_retry_after_forms() -> None:
    soon = email.utils.formatdate(time.time() + 30, usegmt=True)
    assert 25 < retry_after_s(soon) <= 30
    assert retry_after_s("2.5") == 2.5
    for wrong in ("", "soon", "²", "-1", "nan", "inf", email.utils.formatdate(0, usegmt=True)):
        assert retry_after_s(wrong) == 0


def test_backoff_doubles_with_jitter() -> None:
    patience = Patience(first_wait_s=1.0)
    waits = [[patience.wait_s(failures) for _ in range(200)] for failures in range(1, 9)]
    for failures, drawn in enumerate(waits):
        most = min(60.0, 2.0**failures)
        assert most / 2 <= min(drawn) < max(drawn) <= most
        assert len(set(drawn)) > 100


def test_concurrency_is_kept_and_not_passed(tmp_path: Path) -> None:
    model: Model = lambda asked: Reply(completion("ok", asked).body, delay_s=0.05)  # noqa: E731
    with model_server(model) as server, session(server, tmp_path / "work", concurrency=5) as opened:
        opened.ask(asks(30))
        assert server.most_open == 5


def test_equal_requests_are_asked_once(tmp_path: Path) -> None:
    with model_server(echo) as server, session(server, tmp_path / "work") as opened:
        answers = opened.ask([*asks(3), *asks(3)])
        assert [answer and answer.text for answer in answers] == [f"heard Say {n}" for n in (0, 1, 2)] * 2
        assert len(server.asked) == opened.tally.asked == 3


def test_limits_are_never_passed(tmp_path: Path) -> None:
    """Whatever fails on the way, no more requests are sent and no more tokens are written than allowed."""
    model: Model = lambda asked: Reply(b"", 500) if asked.number % 3 == 0 else completion("a b c d", asked)  # noqa: E731
    with model_server(model) as server:
        with session(server, tmp_path / "a", max_requests=9) as opened:
            answers = opened.ask(asks(30))
            assert len(server.asked) == 9
            assert sum(answer is not None for answer in answers) == 6
            assert opened.is_spent
        with session(server, tmp_path / "b", max_tokens_out=43) as opened:
            answers = opened.ask(asks(30, max_tokens=8))
            tokens = sum(answer.tokens_out or 0 for answer in answers if answer)
            assert 43 - 8 < tokens <= 43
            assert opened.is_spent
        with session(server, tmp_path / "b", max_tokens_out=43) as opened:
            before = len(server.asked)
            assert sum(answer is not None for answer in opened.ask(asks(30, max_tokens=8))) == tokens // 4
            assert len(server.asked) == before


def test_tokens_that_nobody_counts_are_charged_in_full(tmp_path: Path) -> None:
    model: Model = lambda asked: completion("a b", asked, usage={"completion_tokens": "many"})  # noqa: E731
    with model_server(model) as server, session(server, tmp_path / "work", max_tokens_out=100) as opened:
        answers = opened.ask(asks(10, max_tokens=50))
        assert sum(answer is not None for answer in answers) == 2
        assert opened.tally.uncounted == 2
        assert "2 answers came without a count" in opened.tally.summary(None)


def test_the_key_goes_into_the_header_and_nowhere_else(tmp_path: Path) -> None:
    """An endpoint that shows the key in its answers and its errors does not bring it into what is kept or said."""
    secret = "sk-very-secret-1234"

    def model(asked: Asked) -> str | Reply:
        shown = asked.headers["authorization"]
        return shown if asked.prompt == "Say 0" else Reply(json.dumps({"error": shown}).encode(), 400)

    with model_server(model) as server, session(server, tmp_path / "work", key=secret) as opened:
        answers = opened.ask(asks(2))
        assert server.asked[0].headers["authorization"] == f"Bearer {secret}"
        assert answers[0] is not None
        assert answers[0].text == "Bearer ***"
        opened.save_answers(tmp_path)
    assert not [path for path in tmp_path.rglob("*") if path.is_file() and secret.encode() in path.read_bytes()]


@pytest.mark.parametrize("key", ["sk-very\nsecret", "sk-very\0secret", "sk-very-sécret"])
def test_a_key_that_no_header_can_hold_is_refused_and_not_shown(key: str) -> None:
    with pytest.raises(DataError, match="characters that a header cannot hold") as error:
        HttpEndpoint("http://127.0.0.1:9/v1", "m", key=key)
    assert "sk-very" not in f"{error.value}{error.value.hint}"


def test_the_end_of_line_behind_a_key_is_no_part_of_it(tmp_path: Path) -> None:
    with model_server(echo) as server, session(server, tmp_path, key="sk-1234\r\n") as opened:
        assert opened.ask(asks(1))[0] is not None
        assert server.asked[0].headers["authorization"] == "Bearer sk-1234"


def test_names_and_counts_that_cannot_be_written_lose_no_answer(tmp_path: Path) -> None:
    """Half a surrogate pair as the model's name, and more tokens than a column of numbers holds."""
    lies = {"model": "\ud83d", "usage": {"prompt_tokens": -1, "completion_tokens": 10**30}}
    with model_server(lambda asked: completion("Good.", **lies)) as server, session(server, tmp_path) as opened:
        (answer,) = opened.ask(asks(1))
        assert answer == Answer("Good.", "stop", "\ufffd")
        assert opened.tally.uncounted == 1
        opened.finish()
        (tmp_path / "out").mkdir()
        opened.save_answers(tmp_path / "out")


KILLED = """
import sys
from pathlib import Path
from test_data_synthesis_queue import asks, session
from model_support import ModelServer
with session(ModelServer(sys.argv[1]), Path(sys.argv[2]), concurrency=4) as opened:
    opened.ask(asks(60))
"""


def asked_for(server: ModelServer, requests: int, process: subprocess.Popen[bytes]) -> bool:
    """Whether a process has sent so many requests, which it has to do before it ends."""
    assert process.poll() is None
    return len(server.asked) >= requests


@pytest.mark.slow
def test_a_killed_process_asks_nothing_twice_that_was_answered(tmp_path: Path) -> None:
    """Killed with SIGKILL twice on its way; what was on disk is never asked again."""
    model: Model = lambda asked: Reply(completion(echo(asked), asked).body, delay_s=0.03)  # noqa: E731
    work = tmp_path / "work"
    environment = os.environ | {"PYTHONPATH": os.pathsep.join(map(str, Path(__file__).parents[:2]))}
    with model_server(model) as server:
        for stop_at in (15, 40):
            process = subprocess.Popen(
                [sys.executable, "-c", textwrap.dedent(KILLED), server.url, str(work)], env=environment
            )
            wait_for(partial(asked_for, server, stop_at, process), pause_s=0.005)
            process.send_signal(signal.SIGKILL)
            assert process.wait() == -signal.SIGKILL
            wait_for(lambda: not server.connections)  # It has read all that was sent.
            on_disk = [json.loads(line)["key"] for line in (work / "answers.jsonl").read_bytes().split(b"\n")[:-1]]
            kept = len(on_disk)
            assert kept == len(set(on_disk)) > 0
            sent = len(server.asked)
        with session(server, work, concurrency=4) as opened:
            answers = opened.ask(asks(60))
    assert [answer and answer.text for answer in answers] == [f"heard Say {n}" for n in range(60)]
    assert len(server.asked) - sent == 60 - kept


@settings(max_examples=25, deadline=None)
@given(st.lists(st.text(max_size=30), min_size=1, max_size=6), st.data())
def test_a_torn_file_loses_the_torn_answer_only(texts: list[str], data: st.DataObject) -> None:
    """Cut anywhere, the store gives the answers whose lines are whole, and takes new ones after them."""
    import asyncio
    import tempfile

    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "answers.jsonl"
        answers = {f"key {n}": Answer(text, "stop", "m", n, None) for n, text in enumerate(texts)}

        async def write(store: AnswerStore, keys: list[str]) -> None:
            for key in keys:
                store.add(key, answers[key], tries=1, tokens_out=2)
                await store.flush()

        store = AnswerStore(path)
        asyncio.run(write(store, list(answers)))
        store.close()
        whole = path.read_bytes()
        cut = data.draw(st.integers(0, len(whole)))
        path.write_bytes(whole[:cut])
        lines = whole[:cut].count(b"\n")
        store = AnswerStore(path)
        assert [store.get(key) for key in answers] == [*list(answers.values())[:lines], *[None] * (len(texts) - lines)]
        assert (store.requests, store.tokens_out) == (lines, 2 * lines)
        asyncio.run(write(store, list(answers)[lines:]))
        assert [store.get(key) for key in answers] == list(answers.values())
        store.close()
        assert path.read_bytes() == whole


def test_a_full_disk_is_an_error_and_not_an_answer(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(*_: object) -> int:
        raise OSError(28, "No space left on device")

    with model_server(echo) as server, session(server, tmp_path / "work") as opened:
        monkeypatch.setattr(os, "pwrite", full)
        with pytest.raises(OSError, match="No space"):
            opened.ask(asks(3))
        monkeypatch.undo()
        assert all(opened.ask(asks(3)))


def test_a_request_broken_off_anywhere_hinders_none_after_it() -> None:
    """Cancelled after any number of turns of the event loop, it leaves no client behind that waits for ever."""
    import asyncio

    async def talk(endpoint: HttpEndpoint) -> None:
        for turns in range(60):
            broken_off = asyncio.create_task(endpoint.ask(asks(1)[0]))
            for _ in range(turns):
                await asyncio.sleep(0)
            broken_off.cancel()
            await asyncio.wait([broken_off])
            assert (await endpoint.ask(asks(1)[0])).text == "heard Say 0"
        await endpoint.close()

    with model_server(echo) as server:
        asyncio.run(talk(HttpEndpoint(server.url, "tiny-1", timeout_s=5.0)))
