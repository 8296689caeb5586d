"""The generators as steps: what they keep, what they drop and why, and where each row comes from."""

from __future__ import annotations

import json
import random
import shutil
from collections import Counter
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq
import pytest
from data_support import Bench, artifact, corpus, document, run_step
from model_support import Asked, Model, Reply, completion, model_server

from liuyi.align.pairs import encode_pairs, read_preferences
from liuyi.core.artifact import Artifact
from liuyi.core.effect import Effect
from liuyi.core.errors import DataError, StepError
from liuyi.core.runner.keys import step_key
from liuyi.core.step import get_step
from liuyi.data.corpus import Rows
from liuyi.data.instructions.convert import chat_entry
from liuyi.data.instructions.tables import CHATS, chats_schema, write_evalset
from liuyi.data.synthesis.preferences import PROBLEMS
from liuyi.data.synthesis.problems import gym_problems
from liuyi.finetune.chats import encode_chats, read_chats
from liuyi.model.tokenizer import train_bpe

SUBJECTS = ("rivers", "bread", "clocks", "bees", "glass", "paper", "salt", "bridges", "owls", "steam", "chess", "maps")
VERBS = ("Explain how", "Write a poem about why", "List ten reasons for which", "Compare the ways in which")
SYLLABLES = ("ka", "mo", "ti", "ru", "sel", "ban", "dor", "fi", "gu", "lem", "nor", "pa", "qui", "vos", "wen", "zy")
MILL = (
    "The mill at Ober was built in 1843 by the carpenter Johann Lang. Its wheel has 24 paddles and turns a stone of "
    "granite. In spring the river carries so much water that the miller closes the upper gate. Flour from the mill was "
    "sold in nine villages until 1951, when a fire destroyed the roof."
)


def seeds(folder: Path, count: int = 6) -> Artifact:
    folder.mkdir(parents=True)
    with Rows(folder / CHATS, chats_schema()) as rows:
        for number in range(count):
            question = f"{VERBS[number % 4]} {SUBJECTS[number]} matter to people of the valley number {number}?"
            entry = chat_entry({"prompt": question, "completion": f"Because of {SUBJECTS[number]}."})
            rows.add({**entry.columns, "source": "own", "license": "CC0-1.0" if number % 2 else "MIT"})
    return artifact(folder, "chats", {"MIT", "CC0-1.0"})


def evalset(folder: Path, question: str) -> Artifact:
    folder.mkdir(parents=True)
    with Rows(folder / "rows.parquet", chats_schema()) as rows:
        entry = chat_entry({"prompt": question, "completion": "x"})
        rows.add({**entry.columns, "cluster": "c", "source": "", "license": ""})
    write_evalset(folder, "held", folder / "rows.parquet", {"c"})
    (folder / "rows.parquet").unlink()
    return artifact(folder, "evalset")


def rows_of(bench: Bench, port: str = "chats", file: str = CHATS) -> list[dict[str, Any]]:
    return pq.read_table(bench.made[port].file(file)).to_pylist()


def dropped(bench: Bench, port: str = "chats") -> Counter[str]:
    return Counter(row["reason"].partition(":")[0] for row in rows_of(bench, port, "dropped.parquet"))


def conversation(row: dict[str, Any]) -> tuple[str, str]:
    asked, answer = json.loads(row["messages"])
    return asked["content"], answer["content"]


def ask(model: Model, name: str, folder: Path, given: dict[str, Any] | None = None, **params: Any) -> Bench:
    with model_server(model) as server:
        options = {"endpoint": server.url, "retry_wait_s": 0.01, "concurrency": 8} | params
        return run_step(name, folder, given, **options)


def check_lineage(bench: Bench, port: str = "chats", file: str = CHATS) -> None:
    """Each row's request is among the answers as they came, with the row's seed, and its answer is the row's."""
    answers = {row["request"]: row for row in rows_of(bench, port, "answers.parquet")}
    for row in rows_of(bench, port, file):
        said = answers[row["request"]]
        assert row["seed"] == said["seed"]
        assert row["model"] == said["model"] == "tiny-1"
        if "messages" in row:
            assert conversation(row)[1] in said["answer"]
        if row["asked_by"]:
            assert conversation(row)[0] in answers[row["asked_by"]]["answer"]
    report = json.loads(bench.made[port].file("synthesis.json").read_text())
    assert report["kept"] == len(rows_of(bench, port, file))
    assert report["dropped_by_reason"] == dropped(bench, port)
    assert report["asked"] == len(answers)
    effect = Effect.load(bench.made[port].path)
    assert effect is not None
    assert effect.blocks


def invented(*place: int) -> str:
    """A task like no other, the same for the same place."""
    rng = random.Random(str(place))
    return f"{rng.choice(VERBS)} " + " ".join("".join(rng.choices(SYLLABLES, k=3)) for _ in range(7)) + "?"


def lister(asked: Asked) -> str | Reply:
    """Lists new tasks when asked to, one of them a copy of an example; answers everything else."""
    if "numbered list" not in asked.prompt:
        return f"It is known that: {asked.prompt.lower()[:60]}"
    seed = asked.body["seed"]
    example = asked.prompt.split("1. ")[1].splitlines()[0]
    new = [f"{n}. {invented(seed, n)}" for n in (1, 2)]
    return "\n".join(["Here they are:", *new, f"3. {example}", "4. Draw a picture of it, and of what is beside it"])


def test_self_instruct(tmp_path: Path) -> None:
    bench = ask(
        lister, "data.self_instruct", tmp_path / "run", {"seeds": seeds(tmp_path / "seeds")}, rows=10, per_request=4
    )
    kept = rows_of(bench)
    assert len(kept) == 10
    assert len({row["id"] for row in kept}) == 10
    reasons = dropped(bench)
    assert reasons["near duplicate"] >= 3
    assert reasons["needs more than text"] >= 3
    ids = {row["id"] for row in pq.read_table(tmp_path / "seeds" / CHATS).to_pylist()}
    for row in kept:
        assert set(row["sources"]) <= ids
        assert row["generator"] == "self_instruct"
        assert row["template"].startswith("instructions.en@")
        assert row["license"] in ("CC0-1.0 AND MIT", "MIT", "CC0-1.0")
    check_lineage(bench)
    assert "10 rows kept" in bench.logs[-1]


def test_the_same_run_gives_the_same_bytes_whatever_the_order_of_answers(tmp_path: Path) -> None:
    """One at a time, or many at once with answers that overtake each other and faults on the way."""
    failed: set[str] = set()

    def unruly(asked: Asked) -> Reply:
        if asked.body["seed"] % 4 == 0 and asked.prompt not in failed:
            failed.add(asked.prompt)
            return Reply(b"", 500)
        answer = lister(asked)
        assert isinstance(answer, str)
        return Reply(completion(answer, asked).body, delay_s=(asked.body["seed"] % 5) * 0.02)

    given = {"seeds": seeds(tmp_path / "seeds")}
    one = ask(lister, "data.self_instruct", tmp_path / "one", given, rows=8, concurrency=1)
    many = ask(unruly, "data.self_instruct", tmp_path / "many", given, rows=8, concurrency=16)
    assert failed
    assert one.made["chats"].digest == many.made["chats"].digest


def test_a_step_that_starts_again_asks_nothing_twice(tmp_path: Path) -> None:
    """It breaks off in the middle, goes on with what it has, and gives what an undisturbed run gives."""
    given = {"seeds": seeds(tmp_path / "seeds")}
    whole = ask(lister, "data.self_instruct", tmp_path / "whole", given, rows=20, per_request=2)
    down: Model = lambda asked: lister(asked) if asked.number < 6 else Reply(b"", 500)  # noqa: E731
    with model_server(down) as server:
        options: dict[str, Any] = {
            "endpoint": server.url,
            "rows": 20,
            "per_request": 2,
            "tries": 1,
            "retry_wait_s": 0.01,
            "concurrency": 1,
        }
        with pytest.raises(StepError, match="not answered"):
            run_step("data.self_instruct", tmp_path / "broken", given, **options)
        answered = {asked.prompt for asked in server.asked[:6]}
    shutil.rmtree(tmp_path / "broken" / "chats")  # what a run that failed had written of its output
    with model_server(lister) as server:
        again = run_step("data.self_instruct", tmp_path / "broken", given, **(options | {"endpoint": server.url}))
        assert not answered & set(server.prompts())
    assert again.made["chats"].digest == whole.made["chats"].digest


def evolver(asked: Asked) -> str | Reply:
    """Evolves in ways that are good, copied from the prompt, and without gain; refuses some answers."""
    if "SAME or DIFFERENT" in asked.prompt:
        return "SAME" if "valley number 1" in asked.prompt else "DIFFERENT."
    if "---" in asked.prompt:
        task = asked.prompt.split("---")[1].strip()
        if "number 2" in task:
            return f"Rewritten task: {task}"
        return task if "number 3" in task else f"{task} Give {asked.body['seed'] % 90 + 9} examples with their year."
    return "I'm sorry, I cannot do that." if "number 4" in asked.prompt else f"Well: {asked.prompt}"


def test_evol_instruct_and_its_rules_of_elimination(tmp_path: Path) -> None:
    given = {"seeds": seeds(tmp_path / "seeds")}
    bench = ask(evolver, "data.evol_instruct", tmp_path / "run", given, rounds=2, breadth=0.0, max_rouge=1.0)
    assert dropped(bench) == {
        "says the same as its parent": 4,
        "repeats the prompt's words": 2,
        "a refusal": 2,
    }
    kept = rows_of(bench)
    assert len(kept) == 4
    questions = [conversation(row)[0] for row in kept]
    assert questions[2].startswith(questions[0])
    parents = {row["id"]: row for row in pq.read_table(tmp_path / "seeds" / CHATS).to_pylist()}
    for row in kept:
        (parent,) = row["sources"]
        assert row["cluster"] == parents[parent]["cluster"]
        assert row["license"] == parents[parent]["license"]
        assert row["template"].partition("#")[2] in ("constraint", "depth", "concrete", "reasoning", "input")
    check_lineage(bench)


def test_magpie_over_raw_completions(tmp_path: Path) -> None:
    def model(asked: Asked) -> str:
        if asked.path.endswith("/chat/completions"):
            return f"As to that: {asked.prompt}"
        assert asked.body["stop"] == ["<|im_end|>"]
        assert asked.prompt == "<|im_start|>user\n"
        return f"{VERBS[asked.body['seed'] % 4]} {SUBJECTS[asked.body['seed'] % 12]} {asked.body['seed'] % 3}?"

    params = {"pre_query": "<|im_start|>user\n", "stop": ["<|im_end|>"], "samples": 30, "license": "CC0-1.0"}
    bench = ask(model, "data.magpie", tmp_path / "run", **params)
    kept = rows_of(bench)
    assert 5 < len(kept) < 30
    assert dropped(bench) == {"near duplicate": 30 - len(kept)}
    assert {row["license"] for row in kept} == {"CC0-1.0"}
    check_lineage(bench)
    with pytest.raises(DataError, match="needs 'pre_query'"):
        ask(model, "data.magpie", tmp_path / "none", samples=3)


def test_rephrase(tmp_path: Path) -> None:
    def model(asked: Asked) -> str:
        passage = asked.prompt.split("---")[1].strip()
        if "ten-year-old" in asked.prompt:
            return passage
        if "encyclopedia" in asked.prompt:
            return f"In brief: {passage.replace('1843', '1846')} {' '.join(SUBJECTS)}"
        if "experts" in asked.prompt:
            return "Mill."
        return "Question: What of the mill at Ober? Answer: built in 1843, it has 24 paddles and lost its roof in 1951."

    texts = corpus(tmp_path / "texts", [document(MILL, "mills", license="CC-BY-4.0", lang="en")])
    bench = ask(model, "data.rephrase", tmp_path / "run", {"corpus": texts})
    assert dropped(bench, "corpus") == {
        "a copy of its passage": 1,
        "a number that its passage does not have": 1,
        "much shorter or longer than its passage": 1,
    }
    (kept,) = rows_of(bench, "corpus", "documents.parquet")
    (lineage,) = rows_of(bench, "corpus", "attributes.parquet")
    (source,) = pq.read_table(texts.file("documents.parquet")).to_pylist()
    assert kept["id"] == lineage["id"]
    assert lineage["sources"] == [source["id"]]
    assert lineage["template"].endswith("#dialogue")
    assert (kept["license"], kept["cluster"], kept["lang"]) == ("CC-BY-4.0", "mills", "en")
    check_lineage(bench, "corpus", "attributes.parquet")
    cleaned = run_step("data.clean", tmp_path / "clean", {"corpus": bench.made["corpus"]})
    (measured,) = rows_of(cleaned, "corpus", "attributes.parquet")
    assert measured["chars"] > 0
    assert {name: measured[name] for name in lineage} == lineage


def test_back_translation_is_grounded(tmp_path: Path) -> None:
    replies = iter(
        [
            "QUESTION: Who built the mill at Ober?\nANSWER: The mill was built by the carpenter Johann Lang in 1843.",
            "QUESTION: When did the roof burn?\nANSWER: The roof was destroyed by a fire in 1952.",
            "QUESTION: Is flour healthy?\nANSWER: Whole grains bring fibre, vitamins and minerals to every table.",
            "QUESTION: What does the author say of the wheel?\nANSWER: The wheel has 24 paddles.",
            "The mill is old.",
            "QUESTION: Who was it that built the mill at Ober?\nANSWER: The mill was built by Johann Lang.",
        ]
    )
    texts = corpus(tmp_path / "texts", [document(MILL, "mills", license="CC-BY-4.0")])
    bench = ask(
        lambda asked: next(replies),
        "data.back_translate",
        tmp_path / "run",
        {"corpus": texts},
        questions=6,
        concurrency=1,
    )
    (kept,) = rows_of(bench)
    assert conversation(kept)[0] == "Who built the mill at Ober?"
    assert kept["sources"] == [pq.read_table(texts.file("documents.parquet"))["id"][0].as_py()]
    assert kept["cluster"] == "mills"
    assert dropped(bench) == {
        "not grounded": 2,
        "asks about the text itself": 1,
        "not a question with its answer": 1,
        "near duplicate": 1,
    }
    check_lineage(bench)


def test_personas(tmp_path: Path) -> None:
    def model(asked: Asked) -> str | Reply:
        if "Who would write" in asked.prompt:
            return (
                "I'm sorry, no."
                if "glass" in asked.prompt
                else f"A restorer of {asked.prompt.split('---')[1].split()[0]}s."
            )
        if "Imagine this person" in asked.prompt:
            kind = asked.prompt.split("restorer of ")[1].split(".")[0]
            return f"{invented(asked.body['seed'])} Tell it to {kind}."
        return f"I would say: {asked.prompt}"

    texts = corpus(tmp_path / "texts", [document(f"{word} is old.", path=word) for word in ("mill", "gate", "glass")])
    bench = ask(model, "data.personas", tmp_path / "run", {"corpus": texts}, tasks=2)
    assert len(rows_of(bench)) == 4
    assert dropped(bench) == {"no persona": 1}
    check_lineage(bench)


def solver(asked: Asked) -> str:
    """Solves sums by adding them up, right every other time."""
    terms = asked.prompt.split(": ")[1].split("\n")[0].split(". ")[0].strip(".").removesuffix(" =").split()
    total = sum(
        (-1 if sign == "-" else 1) * int(number) for sign, number in zip(["+", *terms[1::2]], terms[::2], strict=True)
    )
    said = total if asked.body["seed"] % 2 else total + 1
    return (
        f"I add them one by one, {asked.body['seed']}.\nAnswer: {said}"
        if asked.body["seed"] % 7
        else "It is so much that nobody has ever counted it."
    )


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
        ("host:8000", "an endpoint is a URL such as"),
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
