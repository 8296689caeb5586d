"""The recipe and the commands of `docs/synthesis.md` do what the page says, with faults and a kill on the way."""

from __future__ import annotations

import json
import os
import re
import signal
import subprocess
import sys
import time
from pathlib import Path

import pyarrow.parquet as pq
import pytest
from data_support import prose
from model_support import Asked, Reply, completion, model_server
from synthesis_support import invented

from liuyi.core.home import Home
from liuyi.core.step import all_steps

PAGE = Path(__file__).parents[2] / "docs" / "synthesis.md"
TEXT = PAGE.read_text(encoding="utf-8")
KEY = "sk-of-the-test"


def block(language: str) -> str:
    return str(re.findall(rf"^```{language}\n(.*?)^```", TEXT, re.M | re.S)[0])


def model(asked: Asked) -> Reply:
    """Lists tasks, grades answers, solves problems with some luck, and is rate limited now and then."""
    if asked.number % 11 == 5:
        return Reply(b"{}", 429, {"retry-after": "0.1"})
    assert asked.headers["authorization"] == f"Bearer {KEY}"
    seed = asked.body["seed"]
    if "numbered list" in asked.prompt:
        text = "\n".join(f"{n}. {invented(seed, n)}" for n in range(1, 9))
    elif "Grade an assistant" in asked.prompt:
        text = '{"reason": "fine", "grade": 4}' if len(asked.prompt) % 3 else '{"reason": "poor", "grade": 1}'
    elif "Work through it" in asked.prompt:
        numbers = [int(number) for number in re.findall(r"-?\d+", asked.prompt)]
        text = f"I try {seed}.\nAnswer: {numbers[0] if seed % 2 else sum(numbers)}"
    else:
        text = f"It is so: {prose(seed, 20)}"
    return Reply(completion(text, asked).body, delay_s=0.3)


def answered(home: Home) -> set[str]:
    """The keys of the requests whose answers are on disk while a step is at work."""
    lines = [line for path in home.work_root.rglob("answers.jsonl") for line in path.read_bytes().split(b"\n")[:-1]]
    return {json.loads(line)["key"] for line in lines}


@pytest.mark.slow
def test_the_recipe_and_the_commands(tmp_path: Path) -> None:
    """The run is killed with SIGKILL once; no answer that was there is asked for again."""
    rows = [f'{{"prompt": "{invented(number)}", "completion": "Because of {number}."}}' for number in range(20)]
    (tmp_path / "seeds.jsonl").write_text("\n".join(rows))
    environment = {name: value for name, value in os.environ.items() if not name.startswith("LIUYI_")}
    environment |= {"HOME": str(tmp_path), "PATH": f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"}
    environment["MODEL_KEY"] = KEY

    def run(command: str) -> str:
        done = subprocess.run(
            command.split(), cwd=tmp_path, env=environment, capture_output=True, text=True, timeout=300
        )
        assert done.returncode == 0, done.stdout + done.stderr
        return done.stdout + done.stderr

    first, *others = block("sh").splitlines()
    with model_server(model) as server:
        (tmp_path / "recipe.yaml").write_text(block("yaml").replace("http://127.0.0.1:8000/v1", server.url))
        started = subprocess.Popen(
            first.split(), cwd=tmp_path, env=environment, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL
        )
        until = time.monotonic() + 120
        while len(server.asked) < 3:
            assert time.monotonic() < until
            assert started.poll() is None
            time.sleep(0.01)
        home = Home(tmp_path / ".liuyi")
        (lost,) = home.ledger.runs()
        while len(answered(home)) < 40:
            assert time.monotonic() < until
            time.sleep(0.01)
        os.kill(int(lost.worker.split(":")[1]), signal.SIGKILL)
        started.wait(60)
        kept = answered(home)
        before = len(server.asked)
        said = run(f"liuyi resume {lost.id}")
        printed = dict(zip(others, map(run, others), strict=True))
    sent_again = {(asked.prompt, asked.body["seed"]) for asked in server.asked[before:]}
    assert "30 rows" not in said
    assert re.search(r"1\d\d asked, 1\d\d answered, \d+ rows kept", said)
    assert "rate limited" in said
    assert "price 0.0" in said
    tasks, sums, steps = printed.values()
    assert "self_instruct" in tasks
    assert "rejected" in sums
    assert "max_pass_rate" in steps
    requests = {
        row["request"]: (json.loads(row["prompt"])[-1]["content"], row["seed"])
        for path in home.path.rglob("answers.parquet")
        for row in pq.read_table(path).to_pylist()
    }
    assert kept <= set(requests)
    assert not {requests[key] for key in kept} & sent_again
    assert not [path for path in home.path.rglob("*") if path.is_file() and KEY.encode() in path.read_bytes()]
    home.close()


def test_the_page_names_real_steps_parameters_and_prompts() -> None:
    steps = all_steps()
    named = set(re.findall(r"`(data\.\w+)`", TEXT))
    assert named == {name for name, step in steps.items() if step.run.__module__ == "liuyi.data.synthesis.steps"}
    known = {field for name in named for field in steps[name].params.model_fields}
    inputs = {port for name in named for port in steps[name].inputs}
    for parameter in ("max_requests", "max_tokens_out", "min_support", "api_key_env", "pre_query", "tries", "language"):
        assert parameter in known
        assert f"`{parameter}" in TEXT
    assert {"seeds", "corpus", "problems", "evalsets", "model"} == inputs
    with_template = {name for name in named if "template" in steps[name].params.model_fields}
    assert set(re.findall(r"^\| `(data\.\w+)` \| `\w+`(?:, `\w+`)* \|$", TEXT, re.M)) == with_template
