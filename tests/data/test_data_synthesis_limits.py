"""What generators refuse, where they stop, and whom they ask."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from data_support import run_step
from model_support import Asked, Model, Reply, model_server
from synthesis_support import (
    ask,
    conversation,
    dropped,
    evalset,
    lister,
    rows_of,
    seeds,
    solver,
)

from liuyi.core.errors import DataError
from liuyi.core.runner.keys import step_key
from liuyi.core.step import get_step
from liuyi.data.synthesis.problems import gym_problems


def test_what_an_eval_set_asks_is_not_made(tmp_path: Path) -> None:
    problems = list(gym_problems(["chain_sum"], 4, 1, ""))
    tests = evalset(tmp_path / "tests", problems[2].text)
    params = {"tasks": ["chain_sum"], "problems_per_task": 4, "samples": 4}
    bench = ask(solver, "data.verified", tmp_path / "run", {"evalsets": tests}, **params)
    assert dropped(bench)["in an eval set"] == 1
    assert all(problems[2].text not in row["prompt"] for row in rows_of(bench, "chats", "answers.parquet"))
    new = "Explain why rivers of kind 17 freeze from above when the winter is long and cold in the valley"
    tests = evalset(tmp_path / "more", f"Please help me. {new}")
    model: Model = lambda asked: f"1. {new}\n2. Name all bees" if "list" in asked.prompt else "Because they do."  # noqa: E731
    given = {"evalsets": tests, "seeds": seeds(tmp_path / "seeds")}
    bench = ask(model, "data.self_instruct", tmp_path / "again", given, rows=2)
    assert dropped(bench)["in an eval set"] >= 1
    assert [conversation(row)[0] for row in rows_of(bench)] == ["Name all bees"]


def test_the_judge_decides_and_its_failures_are_counted(tmp_path: Path) -> None:
    def model(asked: Asked) -> str | Reply:
        if "Grade an assistant" not in asked.prompt:
            return lister(asked)
        assert asked.body["temperature"] == 0
        assert asked.body["model"] == "larger"
        grade = asked.body.get("response_format") and len(asked.prompt) % 3
        return {0: '{"reason": "good", "grade": 5}', 1: '{"reason": "bad", "grade": 2}', 2: "I like it."}[grade or 0]

    given = {"seeds": seeds(tmp_path / "seeds")}
    bench = ask(
        model,
        "data.self_instruct",
        tmp_path / "run",
        given,
        rows=20,
        min_grade=4,
        structured=True,
        judge_model="larger",
    )
    reasons = dropped(bench)
    assert reasons["graded low"]
    assert reasons["not judged"]
    assert reasons["graded low"] + reasons["not judged"] + len(rows_of(bench)) == 20


def test_limits_stop_cleanly_with_what_there_is(tmp_path: Path) -> None:
    given = {"seeds": seeds(tmp_path / "seeds")}
    prices = {"price_in": 1.0, "price_out": 2.0}
    bench = ask(
        lister, "data.self_instruct", tmp_path / "run", given, rows=50, per_request=4, max_requests=30, **prices
    )
    report = json.loads(bench.made["chats"].file("synthesis.json").read_text())
    assert report["answered"] == 30
    assert 0 < report["kept"] < 50
    assert report["price"] == pytest.approx((report["tokens_in"] + 2 * report["tokens_out"]) / 1e6)
    assert "stopped at the limit" in bench.logs[-1]
    assert dropped(bench)["not answered"]


def test_nothing_kept_is_an_error_that_says_why(tmp_path: Path) -> None:
    given = {"seeds": seeds(tmp_path / "seeds")}
    with pytest.raises(DataError, match="no row was kept") as error:
        ask(lambda asked: "no list", "data.self_instruct", tmp_path / "run", given, rows=3)
    assert "× not a list" in error.value.hint


def test_a_template_of_ones_own_in_chinese(tmp_path: Path) -> None:
    own = tmp_path / "mine.jinja"
    own.write_text("{{ problem }}\n只写结果，格式为“Answer: 结果”。")
    with model_server(lambda asked: solver(asked)) as server:
        params = {"tasks": ["chain_sum"], "problems_per_task": 3, "samples": 4, "template": own, "language": "zh"}
        bench = run_step("data.verified", tmp_path / "run", endpoint=server.url, **params)
        assert all("只写结果" in asked.prompt for asked in server.asked)
    assert all(row["template"].startswith("mine@") for row in rows_of(bench))


@pytest.mark.parametrize(
    ("endpoint", "said"),
    [
        ("http://me:secret@host/v1", "holds no user, password or query"),
        ("http://host/v1?key=secret", "holds no user, password or query"),
        ("host:8000", "is no URL of a server: it needs http:// or https:// and a host"),
        ("http://a\x01b/v1", "is no URL of a server"),
        ("http://xn--/v1", "is no URL of a server"),
        ("http://host:80a/v1", "[Pp]ort"),
        ("http://host:99999/v1", "[Pp]ort"),
    ],
)
def test_endpoints_that_hold_secrets_or_are_none(endpoint: str, said: str) -> None:
    with pytest.raises(ValueError, match=said):
        get_step("data.verified").params(endpoint=endpoint)


def test_how_fast_is_asked_is_no_part_of_the_key(tmp_path: Path) -> None:
    """A run that was too fast for its endpoint goes on slower with what it has."""
    step = get_step("data.verified")

    def key(**params: object) -> str:
        given = step.params(endpoint="http://host/v1", **params)
        return step_key(step, given, [], seed=1, device="cpu", folder=tmp_path)

    assert key(concurrency=4, retry_wait_s=9) == key()
    assert key(temperature=0.1) != key()
    assert step.params(concurrency=4).model_dump(mode="json")["concurrency"] == 4


def test_exactly_one_model_is_asked(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(DataError, match="neither the input 'model' nor an 'endpoint'"):
        run_step("data.verified", tmp_path / "none", tasks=["gcd"])
    monkeypatch.delenv("MY_KEY", raising=False)
    with pytest.raises(DataError, match="the environment variable MY_KEY is empty"):
        run_step(
            "data.verified", tmp_path / "key", tasks=["gcd"], endpoint="http://127.0.0.1:9/v1", api_key_env="MY_KEY"
        )
