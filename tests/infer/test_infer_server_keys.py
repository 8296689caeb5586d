"""Who may call, and how much: API keys, hashed, with limits that are told in headers."""

from __future__ import annotations

import stat
from pathlib import Path

import httpx
import openai
import pytest
from click.testing import CliRunner, Result
from infer_support import LONG, backend_over, client_of, eventually, live_server

from liuyi.cli.main import cli
from liuyi.core.errors import LiuyiError
from liuyi.infer.engine import Engine
from liuyi.infer.server.keys import ApiKey, KeyFile, KeyRing, digest_of
from liuyi.infer.server.limits import Bucket, Caller
from liuyi.model.decoder import Decoder
from liuyi.model.tokenizer import Tokenizer


class Clock:
    def __init__(self) -> None:
        self.now = 0.0

    def __call__(self) -> float:
        return self.now


class TestFile:
    def test_holds_no_key_and_is_its_owners(self, tmp_path: Path) -> None:
        file = KeyFile(tmp_path / "keys.yaml")
        secret, key = file.create("desk", requests_per_minute=60)
        other, _ = file.create("厨房")
        text = file.path.read_text(encoding="utf-8")
        assert secret not in text
        assert other not in text
        assert stat.S_IMODE(file.path.stat().st_mode) == 0o600
        assert file.load()[0] == key == ApiKey("desk", digest_of(secret), key.created, 60, None)
        with pytest.raises(LiuyiError, match="already"):
            file.create("desk")
        with pytest.raises(LiuyiError, match="needs a name"):
            file.create("")
        file.revoke("desk")
        assert [key.name for key in file.load()] == ["厨房"]
        with pytest.raises(LiuyiError, match="no key named 'desk'"):
            file.revoke("desk")
        assert [path.name for path in tmp_path.iterdir()] == ["keys.yaml"]

    @pytest.mark.parametrize(
        "text",
        ["[", "a: 1", "keys: 3", "keys: [3]", "keys: [{sha256: x}]", "keys: [{name: a, sha256: x}]", "\x00", "[" * 5000]
        + [f"keys: [{{name: a, sha256: '{'0' * 64}', {more}}}]" for more in ("x: 1", "requests_per_minute: 0")]
        + [f"keys: [{entry}, {entry}]" for entry in (f"{{name: a, sha256: '{'0' * 64}'}}",)],
    )
    def test_that_cannot_be_understood_is_an_error_that_names_it(self, tmp_path: Path, text: str) -> None:
        path = tmp_path / "keys.yaml"
        path.write_text(text)
        with pytest.raises(LiuyiError) as caught:
            KeyRing(file=KeyFile(path))
        assert caught.value.where == str(path)


class TestLimits:
    def test_a_bucket_fills_with_time_and_can_be_overdrawn(self) -> None:
        clock = Clock()
        bucket = Bucket(60, clock)
        bucket.take(60)
        assert bucket.wait_s(1) == pytest.approx(1)
        clock.now = 10
        assert bucket.level == pytest.approx(10)
        bucket.take(40)
        assert bucket.wait_s(30) == pytest.approx(60)
        clock.now = 1000
        assert bucket.level == 60
        assert bucket.wait_s(10_000) == 0

    def test_a_caller_has_both_and_is_charged_what_was_used(self) -> None:
        clock = Clock()
        caller = Caller(ApiKey("a", "", "", 2, 100), clock)
        assert caller.enter(50) is None
        assert caller.enter(60) == ("tokens", 6)
        caller.settle(50, 10)
        assert caller.enter(60) is None
        assert caller.enter(0) == ("requests", 30)
        headers = caller.headers()
        assert headers["x-ratelimit-limit-requests"] == "2"
        assert headers["x-ratelimit-remaining-requests"] == "0"
        assert headers["x-ratelimit-remaining-tokens"] == "30"
        assert headers["x-ratelimit-reset-tokens"] == "42.000s"
        caller.settle(60, 500)
        assert caller.headers()["x-ratelimit-remaining-tokens"] == "0"
        assert Caller(ApiKey("b", "")).headers() == {}


def test_keys_are_asked_for_and_not_told(
    model: Decoder, tokenizer: Tokenizer, caplog: pytest.LogCaptureFixture
) -> None:
    keys = ["sk-first-secret", "sk-second-secret"]
    with live_server({"tiny": backend_over(Engine(model, tokenizer, max_slots=1))}, keys=KeyRing(keys)) as live:
        for header in ({}, {"authorization": "Bearer wrong"}, {"authorization": f"Basic {keys[0]}"}):
            response = httpx.get(f"{live.url}/v1/models", headers=header)
            assert response.status_code == 401
            assert response.json()["error"]["code"] == "invalid_api_key"
            assert response.headers["www-authenticate"] == "Bearer"
        for key in keys:
            assert httpx.get(f"{live.url}/metrics", headers={"authorization": f"Bearer {key}"}).status_code == 200
        assert httpx.get(f"{live.url}/health").json()["status"] == "ok"
        with client_of(live) as client, pytest.raises(openai.AuthenticationError):
            client.models.list()
    assert not any(key in caplog.text for key in keys)


class TestServed:
    @pytest.fixture
    def file(self, tmp_path: Path) -> KeyFile:
        return KeyFile(tmp_path / "keys.yaml")

    def test_limits_refuse_with_retry_after_and_come_back(
        self, model: Decoder, tokenizer: Tokenizer, file: KeyFile
    ) -> None:
        few, _ = file.create("few", requests_per_minute=2)
        small, _ = file.create("small", tokens_per_minute=300)
        backend = backend_over(Engine(model, tokenizer, max_slots=2))
        with live_server({"tiny": backend}, keys=KeyRing(file=file)) as live:

            def ask(key: str, **changes: object) -> httpx.Response:
                body = LONG | {"max_tokens": 1} | changes
                headers = {"authorization": f"Bearer {key}"}
                return httpx.post(f"{live.url}/v1/chat/completions", json=body, headers=headers)

            first = ask(few)
            assert first.status_code == 200
            assert first.headers["x-ratelimit-remaining-requests"] == "1"
            assert ask(few, model="none").status_code == 404
            refused = ask(few)
            assert refused.status_code == 429
            assert 1 <= int(refused.headers["retry-after"]) <= 60
            assert refused.json()["error"]["code"] == "rate_limit_exceeded"
            assert "few" in refused.json()["error"]["message"]
            # Looking is free.
            assert httpx.get(f"{live.url}/v1/models", headers={"authorization": f"Bearer {few}"}).status_code == 200

            answer = ask(small, max_tokens=200)
            used = answer.json()["usage"]["total_tokens"]
            left = int(ask(small).headers["x-ratelimit-remaining-tokens"])
            assert left <= 300 - used + 5
            assert ask(small, messages=[{"role": "user", "content": "x" * 1200}]).status_code == 429
            metrics = httpx.get(f"{live.url}/metrics", headers={"authorization": f"Bearer {small}"}).text
            assert 'liuyi_rejections_total{reason="rate_limit_exceeded"} 2' in metrics
            eventually(lambda: len(live.answers) == 3, "not recorded")
            assert {answer.detail["key"] for answer in live.answers} == {"few", "small"}

    def test_a_revoked_key_is_refused_at_once_and_a_broken_file_changes_nothing(
        self, model: Decoder, tokenizer: Tokenizer, file: KeyFile
    ) -> None:
        one, _ = file.create("one")
        with live_server({"tiny": backend_over(Engine(model, tokenizer))}, keys=KeyRing(file=file)) as live:

            def status(key: str) -> int:
                return httpx.get(f"{live.url}/v1/models", headers={"authorization": f"Bearer {key}"}).status_code

            assert status(one) == 200
            two, _ = file.create("two")
            file.revoke("one")
            assert (status(one), status(two)) == (401, 200)
            file.path.write_text("keys: 3")
            assert (status(one), status(two)) == (401, 200)
            file.path.unlink()
            assert status(two) == 401


class TestCommand:
    @pytest.fixture
    def path(self, tmp_path: Path) -> str:
        return str(tmp_path / "keys.yaml")

    def run(self, *args: str) -> Result:
        return CliRunner().invoke(cli, ["keys", *args])

    def test_creates_lists_and_revokes(self, path: str) -> None:
        made = self.run("create", "desk", "--keys-file", path, "--requests-per-minute", "60")
        secret = made.stdout.strip()
        assert KeyRing(file=KeyFile(Path(path))).find(secret) is not None
        listed = self.run("list", "--keys-file", path).stdout
        assert "desk" in listed
        assert "60" in listed
        assert secret not in listed
        assert secret not in self.run("list", "--json", "--keys-file", path).stdout
        assert self.run("revoke", "desk", "--keys-file", path).exit_code == 0
        assert "no keys" in self.run("list", "--keys-file", path).stdout
        wrong = self.run("revoke", "desk", "--keys-file", path)
        assert wrong.exit_code == 1
        assert "no key named 'desk'" in wrong.stderr
