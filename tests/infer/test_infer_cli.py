"""`liuyi serve` and `liuyi chat`: what they choose, what they say, and how they end."""

from __future__ import annotations

import os
import pty
import re
import select
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from functools import partial
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import httpx
import openai
import pytest
from click.testing import CliRunner, Result
from fastapi.testclient import TestClient
from infer_support import LiveServer, backend_over, eventually, live_server

from liuyi.cli.main import cli
from liuyi.cli.models import choose, newest
from liuyi.core.artifact import Artifact
from liuyi.core.digest import sha256_file
from liuyi.core.errors import LiuyiError
from liuyi.core.home import Home
from liuyi.infer.engine import Engine
from liuyi.infer.request import Request
from liuyi.infer.server import run as server_run
from liuyi.infer.server.keys import KeyRing
from liuyi.infer.server.sockets import url_of
from liuyi.model.chat import CHATML, encode_chat
from liuyi.model.checkpoint import save_model
from liuyi.model.decoder import Decoder
from liuyi.model.gguf_export import export_gguf
from liuyi.model.load import load
from liuyi.model.tokenizer import Tokenizer


@pytest.fixture
def home(tmp_path: Path) -> Iterator[Home]:
    place = Home(tmp_path / "home")
    yield place
    place.close()


@pytest.fixture(scope="module")
def folder(model: Decoder, tokenizer: Tokenizer, tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("model") / "tiny"
    save_model(path, model, tokenizer)
    return path


def publish(home: Home, kind: Any, step: str, key: str, files: Path | dict[str, str]) -> Artifact:
    staging = home.store.stage(kind)
    if isinstance(files, Path):
        for file in files.iterdir():
            (staging.path / file.name).write_bytes(file.read_bytes())
    else:
        for name, text in files.items():
            (staging.path / name).write_text(text)
    made = home.store.publish(staging, step=step, step_key=key, output="out", inputs=[], params={})
    home.ledger.record_artifact(made.manifest)
    return made


def enter(home: Home, *made: tuple[str, Artifact]) -> str:
    """A run whose steps gave these artifacts, in this order."""
    run = home.ledger.create_run(recipe="r", text="", source="", overrides=[], seed=1)
    for position, (name, artifact) in enumerate(made):
        key = artifact.manifest.step_key
        home.ledger.put_step(run, name, step="s", key=key, status="done", position=position)
        home.ledger.record_execution(
            key=key, step="s", version=1, params={}, seed=1, device="cpu", inputs=[], outputs={"out": artifact.digest},
            seconds=1.0, run_id=run,
        )  # fmt: skip
    return run


def answer_of(model: Decoder, tokenizer: Tokenizer, *messages: tuple[str, str], **sampling: Any) -> str:
    said = [{"role": role, "content": content} for role, content in messages]
    ids, _ = encode_chat(tokenizer, said, add_generation_prompt=True)
    return Engine(model, tokenizer).generate([Request(prompt_ids=ids, **sampling)])[0].text


def run(home: Home, *args: str, typed: str = "") -> Result:
    return CliRunner().invoke(cli, ["--home", str(home.path), *args], input=typed)


class TestChoosing:
    def test_by_digest_by_step_and_by_folder(self, home: Home, folder: Path) -> None:
        made = publish(home, "checkpoint", "pretrain.train", "k1", folder)
        run_id = enter(home, ("sft", made))
        for ref in (made.digest, made.digest[:9], "last/sft", f"{run_id}/sft.out"):
            chosen = choose(home, ref)
            assert (chosen.name, chosen.artifact) == ("sft", made)
        chosen = choose(home, str(folder))
        assert (chosen.name, chosen.path, chosen.artifact) == ("tiny", folder, None)

    def test_without_a_name_the_newest_of_the_last_run_that_made_one(self, home: Home, folder: Path) -> None:
        with pytest.raises(LiuyiError, match="no run has made"):
            newest(home)
        first = publish(home, "checkpoint", "a", "k1", {"a": "1"})
        second = publish(home, "checkpoint", "b", "k2", {"b": "2"})
        enter(home, ("pretrain", first), ("sft", second))
        assert newest(home) == second.digest
        app = publish(home, "app", "c", "k3", {"c": "3"})
        later = publish(home, "checkpoint", "d", "k4", {"d": "4"})
        enter(home, ("app", app), ("later", later))
        assert newest(home) == app.digest
        enter(home, ("report", publish(home, "report", "e", "k5", {"e": "5"})))
        assert newest(home) == app.digest
        enter(home, ("pretrain", first))
        assert newest(home) == first.digest

    def test_what_cannot_answer_is_refused(self, home: Home, tmp_path: Path) -> None:
        report = publish(home, "report", "a", "k1", {"a": "1"})
        with pytest.raises(LiuyiError, match="is a report"):
            choose(home, report.digest)
        with pytest.raises(LiuyiError, match="holds no model"):
            choose(home, str(tmp_path))
        with pytest.raises(LiuyiError):
            choose(home, "abcdef012345")

    def test_a_model_is_called_as_its_user_calls_it(self, home: Home, folder: Path, tmp_path: Path) -> None:
        link = tmp_path / "SmolLM2"
        link.symlink_to(folder)
        assert (choose(home, str(link)).name, choose(home, str(link)).path) == ("SmolLM2", folder)
        cached = tmp_path / "models--HuggingFaceTB--SmolLM2-135M" / "snapshots" / "12fd25f77366fa6b3b4b768ec3050bf6"
        cached.mkdir(parents=True)
        (cached / "config.json").symlink_to(folder / "config.json")
        assert choose(home, str(cached)).name == "SmolLM2-135M"

    def test_a_gguf_file_is_known_by_how_it_begins(
        self, home: Home, model: Decoder, tokenizer: Tokenizer, tmp_path: Path
    ) -> None:
        made = tmp_path / "made.gguf"
        export_gguf(model, tokenizer, made, "F16")
        blob = made.rename(tmp_path / "sha256-0123")
        assert choose(home, str(blob)).path == blob
        assert load(blob)[0].config.num_parameters == model.config.num_parameters
        result = run(home, "import", str(blob), "--licence", "MIT")
        assert result.exit_code == 0, result.output
        assert result.stdout.startswith("checkpoint ")
        assert run(home, "export", str(blob), "--to", "hf", "-o", str(tmp_path / "out")).exit_code == 0

    def test_a_file_of_a_model_is_not_the_model(self, home: Home, folder: Path) -> None:
        with pytest.raises(LiuyiError, match="no model by itself") as caught:
            choose(home, str(folder / "model.safetensors"))
        assert "folder" in caught.value.hint

    def test_a_damaged_model_is_not_used(self, home: Home, folder: Path) -> None:
        made = publish(home, "checkpoint", "pretrain.train", "k1", folder)
        path = made.path / "model.safetensors"
        damaged = bytearray(path.read_bytes())
        damaged[-1] ^= 1
        path.chmod(0o644)
        path.write_bytes(damaged)
        result = run(home, "chat", made.digest, typed="hello\n")
        assert result.exit_code == 1
        assert "model.safetensors" in result.stderr


class TestChat:
    def test_answers_each_line_in_one_conversation(
        self, home: Home, folder: Path, model: Decoder, tokenizer: Tokenizer
    ) -> None:
        typed = "turn on\n\nthe lights\n/reset\nturn on\n/quit\nnever answered\n"
        result = run(home, "chat", str(folder), "--temperature", "0", "--max-tokens", "9", typed=typed)
        assert result.exit_code == 0, result.output
        one = answer_of(model, tokenizer, ("user", "turn on"), max_tokens=9)
        two = answer_of(model, tokenizer, ("user", "turn on"), ("assistant", one), ("user", "the lights"), max_tokens=9)
        assert result.stdout == f"{one}\n{two}\n{one}\n"

    def test_begins_with_the_system_message(
        self, home: Home, folder: Path, model: Decoder, tokenizer: Tokenizer
    ) -> None:
        args = ("--system", "be brief", "--max-tokens", "9", "--seed", "4")
        result = run(home, "chat", str(folder), *args, typed="turn on\n")
        sampling = {"max_tokens": 9, "seed": 4, "temperature": 1.0}
        expected = answer_of(model, tokenizer, ("system", "be brief"), ("user", "turn on"), **sampling)
        assert result.stdout == f"{expected}\n"

    def test_bytes_that_are_no_text_are_refused_as_such(self, home: Home, live: LiveServer) -> None:
        typed = "你好".encode("gbk") + b"\n"
        result = CliRunner().invoke(cli, ["--home", str(home.path), "chat", "--url", live.url], input=typed)
        assert result.exit_code == 1
        assert "a message is not text in utf-8" in result.stderr
        assert "GBK" in result.stderr

    def test_talks_to_a_server(self, home: Home, live: LiveServer, model: Decoder, tokenizer: Tokenizer) -> None:
        expected = answer_of(model, tokenizer, ("user", "turn on"), max_tokens=9, seed=2, temperature=1.0)
        for url in (live.url, f"{live.url}/v1/"):
            result = run(home, "chat", "--url", url, "--max-tokens", "9", "--seed", "2", typed="turn on\n")
            assert result.stdout == f"{expected}\n"

    def test_says_what_the_server_said(
        self, home: Home, live: LiveServer, model: Decoder, tokenizer: Tokenizer, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        result = run(home, "chat", "--url", live.url, "--model", "tinny", typed="hello\n")
        assert result.exit_code == 1
        assert "did you mean 'tiny'" in result.stderr
        result = run(home, "chat", "--url", "http://127.0.0.1:9", typed="hello\n")
        assert result.exit_code == 1
        assert "cannot be reached" in result.stderr
        with live_server(
            {"tiny": backend_over(Engine(model, tokenizer, max_slots=1))}, keys=KeyRing(["secret"])
        ) as guarded:
            result = run(home, "chat", "--url", guarded.url, typed="hello\n")
            assert "API key" in result.stderr
            assert "--api-key-env" in result.stderr
            monkeypatch.setenv("SOME_KEY", "secret")
            args = ("--url", guarded.url, "--api-key-env", "SOME_KEY", "--max-tokens", "2")
            assert run(home, "chat", *args, typed="hello\n").exit_code == 0

    @pytest.mark.parametrize(
        ("models", "event"),
        [
            ('{"data": [3]}', ""),
            ('{"data": [{"id": "m"}]}', "data: {"),
            ('{"data": [{"id": "m"}]}', 'data: {"choices": [{}]}'),
            ('{"data": [{"id": "m"}]}', 'data: {"error": "gone"}'),
        ],
    )
    def test_a_server_that_speaks_otherwise_is_told_as_one(
        self, models: str, event: str, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        def answer(request: httpx.Request) -> httpx.Response:
            return httpx.Response(200, text=models if request.url.path.endswith("/models") else event + "\n\n")

        client = partial(httpx.AsyncClient, transport=httpx.MockTransport(answer))
        monkeypatch.setattr(httpx, "AsyncClient", client)
        result = CliRunner().invoke(cli, ["chat", "--url", "http://elsewhere"], input="hello\n")
        assert result.exit_code == 1
        assert "this is no server with the OpenAI API" in result.stderr

    def test_refuses_options_that_do_not_go_together(self, home: Home) -> None:
        assert run(home, "chat", "x", "--url", "http://127.0.0.1:9").exit_code == 2
        assert run(home, "chat", "--model", "x").exit_code == 2


class TestServe:
    def test_never_listens_beyond_loopback_without_a_key(self, home: Home, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.delenv("LIUYI_API_KEYS", raising=False)
        for host in ("0.0.0.0", "::", "192.168.1.5", "example.com"):
            result = run(home, "serve", "--host", host)
            assert result.exit_code == 1
            assert "no API key is set" in result.stderr
        monkeypatch.setenv("OTHER", " , ")
        assert "$OTHER" in run(home, "serve", "--host", "0.0.0.0", "--api-key-env", "OTHER").stderr

    def test_refuses_options_that_do_not_go_together(self, home: Home, folder: Path) -> None:
        port = ("--port", "0")
        template = str(folder.parent / "chat.jinja")
        Path(template).write_text(CHATML)
        for args, said in (
            ((str(folder), "--adapter", "tiny=somewhere"), "an adapter's"),
            (("--backend", "vllm", "--weights", "int8"), "--weights does not go with --backend"),
            (("--backend", "vllm", "--adapter-loading"), "--adapter-loading does not go with --backend"),
            (("--backend", "vllm", "--chat-template", template), "--chat-template does not go with --backend"),
            (("--backend", "tgi"), "no kind of backend"),
        ):
            result = run(home, "serve", *args, *port)
            assert result.exit_code == 1
            assert said in result.stderr
        assert run(home, "serve", str(folder), "--adapter", "nameless", *port).exit_code == 2

    def test_says_when_the_port_is_taken(self, home: Home, folder: Path, live: LiveServer) -> None:
        port = live.url.rpartition(":")[2]
        result = run(home, "serve", str(folder), "--port", port)
        assert result.exit_code == 1
        assert f"cannot listen on 127.0.0.1:{port}" in result.stderr

    @pytest.mark.slow
    def test_says_why_it_cannot_start_without_a_traceback(
        self, home: Home, folder: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
    ) -> None:
        cut = tmp_path / "cut"
        cut.mkdir()
        for file in folder.iterdir():
            whole = file.read_bytes()
            (cut / file.name).write_bytes(whole[: len(whole) // 2] if file.suffix == ".safetensors" else whole)

        def written(template: str | bytes) -> str:
            path = tmp_path / f"{len(list(tmp_path.iterdir()))}.jinja"
            path.write_bytes(template if isinstance(template, bytes) else template.encode())
            return str(path)

        for args, said in (
            (("--backend", "openai:http://127.0.0.1:1/v1"), "cannot be reached"),
            ((str(cut),), "model.safetensors"),
            ((str(folder), "--otel", "localhost:4318"), "no URL of a receiver"),
            ((str(folder), "--max-tokens", "1000000"), "more than the model's context"),
            ((str(folder), "--chat-template", written("{% for m in messages %}")), "is not valid"),
            ((str(folder), "--chat-template", written("{{ ''.__class__.mro() }}")), "does what it must not"),
            ((str(folder), "--chat-template", written("{{ bos_token }}Answer:")), "leaves out what the user says"),
            ((str(folder), "--chat-template", written(b"\xff")), "not UTF-8"),
        ):
            result = run(home, "serve", *args, "--port", "0")
            assert result.exit_code == 1
            assert said in result.stderr
            assert "Traceback" not in result.stderr + caplog.text
            assert not [record for record in caplog.records if record.levelname == "ERROR"]

    def test_a_keys_file_that_is_not_there_is_named(self, home: Home, folder: Path, tmp_path: Path) -> None:
        missing = tmp_path / "no keys.yaml"
        result = run(home, "serve", str(folder), "--port", "0", "--keys-file", str(missing))
        assert result.exit_code == 1
        said = "".join(result.stderr.split())
        assert "nofilewithAPIkeys" in said
        assert "".join(f"liuyi keys create NAME --keys-file '{missing}'".split()) in said


@pytest.mark.parametrize(
    ("host", "url", "elsewhere"),
    [
        ("127.0.0.1", "http://127.0.0.1:", False),
        ("0.0.0.0", "http://127.0.0.1:", True),
        ("::1", "http://[::1]:", False),
        ("::", "http://[::1]:", True),
    ],
)
def test_says_an_address_that_one_can_open(
    home: Home, monkeypatch: pytest.MonkeyPatch, host: str, url: str, elsewhere: bool
) -> None:
    def served(server: Any, bound: socket.socket) -> None:
        bound.listen()
        parts = httpx.URL(url_of(bound))
        socket.create_connection((parts.host, parts.port), timeout=10).close()
        listening.append(server.listening())

    listening: list[None] = []
    monkeypatch.setattr(server_run, "serve", served)
    monkeypatch.setattr(server_run, "make_server", lambda app, **options: SimpleNamespace(**options))
    monkeypatch.setenv("LIUYI_API_KEYS", "secret")
    result = run(home, "serve", "--backend", "openai:http://127.0.0.1:1/v1", "--host", host, "--port", "0")
    assert result.exit_code == 0, result.output
    assert listening == [None]
    assert url in result.stdout
    assert ("this machine's other addresses" in " ".join(result.stdout.split())) == elsewhere
    assert "secret" not in result.stdout


def test_the_ledger_is_open_before_the_first_answer(home: Home, monkeypatch: pytest.MonkeyPatch) -> None:
    database = home.path / "ledger.db"
    monkeypatch.setattr(server_run, "serve", lambda server, bound: eventually(database.exists, "not opened"))
    result = run(home, "serve", "--backend", "openai:http://127.0.0.1:1/v1", "--port", "0")
    assert result.exit_code == 0, result.output


def test_a_ledger_that_cannot_be_opened_is_told_and_keeps_nobody_waiting(
    home: Home, folder: Path, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    home.path.mkdir()
    (home.path / "ledger.db").write_bytes(b"this is no database" * 100)

    def served(server: Any, bound: socket.socket) -> None:
        eventually(lambda: bool(caplog.records), "nothing is said")
        with TestClient(server.config.app, base_url="http://127.0.0.1") as client:
            body = {"model": "tiny", "prompt": "turn on", "max_tokens": 2}
            answers = [client.post("/v1/completions", json=body) for _ in range(2)]
            assert [answer.status_code for answer in answers] == [200, 200], answers[0].text

    monkeypatch.setattr(server_run, "serve", served)
    result = run(home, "serve", str(folder), "--port", "0")
    assert result.exit_code == 0, result.output
    told = [record.getMessage() for record in caplog.records if record.levelname == "ERROR"]
    assert told[0].startswith("answers will not be recorded: ")
    assert "ledger" in told[0]
    assert "could not be recorded" in told[1]
    assert told[2:] == ["2 answers in a row were not recorded"]


def liuyi(home: Home, *args: str, **options: Any) -> subprocess.Popen[str]:
    code = "from liuyi.cli.main import main; main()"
    command = [sys.executable, "-c", code, "--home", str(home.path), *args]
    return subprocess.Popen(command, text=True, **options)


@pytest.mark.slow
def test_a_served_checkpoint_answers_is_recorded_and_drains_on_sigterm(
    home: Home, folder: Path, tokenizer: Tokenizer
) -> None:
    made = publish(home, "checkpoint", "pretrain.train", "k1", folder)
    enter(home, ("sft", made))
    template = home.path / "chat.jinja"
    template.write_text("{% for said in messages %}{{ said.content }}, says the {{ said.role }}.{% endfor %}")
    options = ("--port", "0", "--chat-template", str(template))
    process = liuyi(home, "serve", *options, stdout=subprocess.PIPE, env=os.environ | {"COLUMNS": "200"})
    try:
        assert process.stdout is not None
        line = process.stdout.readline()
        found = re.search(r"http://127\.0\.0\.1:\d+", line)
        assert found, line
        url = found.group()
        assert line.startswith("sft (checkpoint")
        with openai.OpenAI(base_url=f"{url}/v1", api_key="any", max_retries=0) as client:
            answer = client.chat.completions.create(
                model="sft", messages=[{"role": "user", "content": "hello"}], max_tokens=5
            )
            stream = client.chat.completions.create(
                model="sft",
                messages=[{"role": "user", "content": "hello"}],
                max_tokens=200,
                stream=True,
                logit_bias={"0": -100, "2": -100},
            )
            first = next(stream)
            process.send_signal(signal.SIGTERM)
            rest = list(stream)
        assert rest[-1].choices[0].finish_reason == "length"
        assert answer.usage is not None
        assert answer.usage.prompt_tokens == len(tokenizer.encode("hello, says the user."))
        assert process.wait(60) == 0
        with pytest.raises(httpx.ConnectError):
            httpx.get(f"{url}/health")
    finally:
        process.kill()
        process.wait()
    for id in (answer.id, first.id):
        recorded = home.ledger.answer(id)
        assert recorded is not None
        assert recorded.model_digest == made.digest
    shown = run(home, "lineage", answer.id, "--up").stdout
    assert made.digest[:12] in shown
    for fact in ("runner: torch", f"chat_template_digest: {sha256_file(template)}", "parameters: {'max_tokens': 5"):
        assert fact in shown


@pytest.mark.slow
def test_a_conversation_by_hand(home: Home, folder: Path) -> None:
    master, slave = pty.openpty()
    process = liuyi(
        home, "chat", str(folder), "--max-tokens", "5", stdin=slave, stdout=slave, stderr=slave, start_new_session=True
    )
    os.close(slave)
    seen = b""

    def until(text: str) -> None:
        nonlocal seen
        deadline = time.monotonic() + 240
        while text.encode() not in seen:
            assert time.monotonic() < deadline, seen
            if select.select([master], [], [], 0.2)[0]:
                seen += os.read(master, 4096)
        seen = seen.partition(text.encode())[2]

    try:
        until("/quit")
        until("›")
        os.write(master, b"hello\n")
        until("s to the first token")
        until("›")
        os.write(master, b"/help\n")
        until("/reset starts over")
        until("›")
        os.write(master, b"too long " * 200 + b"\n")
        until("error: ")
        until("›")
        os.write(master, b"hello\n")
        until("s to the first token")
        until("›")
        os.write(master, b"/quit\n")
        assert process.wait(60) == 0
    finally:
        process.kill()
        process.wait()
        os.close(master)
