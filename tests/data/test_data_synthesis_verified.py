"""`data.verified`: problems that a model solves several times, with the answers that turn out right."""

from __future__ import annotations

from collections import Counter
from pathlib import Path

import pytest
from data_support import artifact
from model_support import Asked
from synthesis_support import (
    ask,
    check_lineage,
    conversation,
    dropped,
    rows_of,
    solver,
)

from liuyi.align.pairs import encode_pairs, read_preferences
from liuyi.core.errors import DataError
from liuyi.data.corpus import Rows
from liuyi.data.instructions.convert import chat_entry
from liuyi.data.instructions.tables import CHATS, chats_schema
from liuyi.data.synthesis.preferences import PROBLEMS
from liuyi.data.synthesis.problems import gym_problems
from liuyi.finetune.chats import encode_chats, read_chats
from liuyi.model.tokenizer import train_bpe


def test_verified_answers_and_pass_rates(tmp_path: Path) -> None:
    params = {"tasks": ["chain_sum"], "problems_per_task": 12, "samples": 6, "keep": 2, "pairs": 2}
    bench = ask(solver, "data.verified", tmp_path / "run", **params, license="Apache-2.0")
    problems = {row["id"]: row for row in rows_of(bench, "preferences", "problems.parquet")}
    answers = rows_of(bench, "chats", "answers.parquet")
    assert len(problems) == 12
    assert len(answers) == 72
    expected = {problem.id: problem for problem in gym_problems(["chain_sum"], 12, bench.seed, "")}
    by_problem = Counter(row["sources"][0] for row in rows_of(bench))
    assert max(by_problem.values()) == 2
    for row in rows_of(bench):
        question, answer = conversation(row)
        (problem,) = row["sources"]
        assert question == expected[problem].text
        assert answer.endswith(f"Answer: {expected[problem].reference}")
        assert row["pass_rate"] == problems[problem]["pass_rate"] > 0
    for id, problem in problems.items():
        mine = [row for row in answers if expected[id].text in row["prompt"].replace("\\n", "\n")]
        right = sum(row["seed"] % 2 == 1 and row["seed"] % 7 > 0 for row in mine)
        assert (problem["samples"], problem["pass_rate"]) == (6, right / 6)
    pairs = rows_of(bench, "preferences", "preferences.parquet")
    assert pairs
    for pair in pairs:
        reference = expected[pair["sources"][0]].reference
        assert pair["chosen"].endswith(f"Answer: {reference}")
        assert not pair["rejected"].endswith(f"Answer: {reference}")
        assert pair["rejected"] == next(row["answer"] for row in answers if row["request"] == pair["rejected_request"])
        assert pair["chosen_by"] == "verifier"
    assert {"a wrong result", "no result"} <= set(dropped(bench))
    check_lineage(bench)
    tokenizer = train_bpe([pair["chosen"] for pair in pairs], 300)
    chats = encode_chats(read_chats(bench.made["chats"].file(CHATS)), tokenizer, 512)
    assert len(chats.examples) == len(rows_of(bench))
    learnt = encode_pairs(read_preferences(bench.made["preferences"].file("preferences.parquet")), tokenizer, 512)
    assert len(learnt.pairs) == len(pairs)


def test_verified_on_own_problems_with_bounds(tmp_path: Path) -> None:
    """Always solved, never solved, and solved sometimes: only the last is between the bounds."""
    folder = tmp_path / "own"
    folder.mkdir()
    with Rows(folder / CHATS, chats_schema()) as rows:
        for number, reference in enumerate(("1/2", "7", "Some words.\nAnswer: x^2 - 1")):
            entry = chat_entry({"prompt": f"Problem {number}", "completion": reference})
            rows.add({**entry.columns, "source": "own", "license": "MIT"})

    def model(asked: Asked) -> str:
        said = {
            "0": r"\boxed{0.5}",
            "1": "Answer: 8",
            "2": "Answer: (x+1)(x-1)" if asked.body["seed"] % 2 else "Answer: x",
        }
        return f"Sample {asked.body['seed']}. {said[asked.prompt.split()[1]]}"

    def answer(asked: Asked) -> str:
        return model(asked).replace(". Answer", ".\nAnswer")

    given = {"problems": artifact(folder, "chats", {"MIT"})}
    params = {"samples": 8, "keep": 8, "min_pass_rate": 0.1, "max_pass_rate": 0.9, "pairs": 8}
    bench = ask(answer, "data.verified", tmp_path / "run", given, **params)
    kept = rows_of(bench)
    assert {conversation(row)[0] for row in kept} == {"Problem 2"}
    rates = {row["problem"]: row["pass_rate"] for row in rows_of(bench, "preferences", "problems.parquet")}
    assert (rates["Problem 0"], rates["Problem 1"]) == (1.0, 0.0)
    assert rates["Problem 2"] == len(kept) / 8
    assert dropped(bench)["its problem is too easy or too hard"] == 8
    with pytest.raises(DataError, match="there are no problems"):
        ask(answer, "data.verified", tmp_path / "none")


def test_a_problem_given_twice_is_solved_once_and_one_without_a_reference_not_at_all(tmp_path: Path) -> None:
    folder = tmp_path / "own"
    folder.mkdir()
    call = {"id": "1", "type": "function", "function": {"name": "sum", "arguments": "{}"}}
    silent = {"role": "assistant", "content": None, "tool_calls": [call]}
    with Rows(folder / CHATS, chats_schema()) as rows:
        for answer in ({"role": "assistant", "content": "5"}, silent):
            asked = {"role": "user", "content": f"What is it that you {'call' if answer is silent else 'say'}?"}
            rows.add({**chat_entry({"messages": [asked, answer]}).columns, "source": "own", "license": "MIT"})
    given = {"problems": [artifact(folder, "chats", {"MIT"})] * 2}
    model = lambda asked: f"Answer: {4 + asked.body['seed'] % 2}"  # noqa: E731
    bench = ask(model, "data.verified", tmp_path / "run", given, samples=8, pairs=4)
    problems = {row["problem"]: (row["samples"], row["pass_rate"]) for row in rows_of(bench, "preferences", PROBLEMS)}
    assert len(problems) == len(rows_of(bench, "preferences", PROBLEMS)) == 2
    assert problems["What is it that you call?"] == (0, None)
    assert problems["What is it that you say?"][0] == 8
    assert dropped(bench)["no reference to compare with"] == 1
    assert len(rows_of(bench, "preferences", "preferences.parquet")) == 1
