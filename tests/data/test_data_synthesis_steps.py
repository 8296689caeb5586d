"""The generators as steps: what they keep, what they drop and why, and where each row comes from."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq
import pytest
from data_support import corpus, document, run_step
from model_support import Asked, Model, Reply, completion, model_server
from synthesis_support import (
    SUBJECTS,
    VERBS,
    ask,
    check_lineage,
    conversation,
    dropped,
    invented,
    lister,
    rows_of,
    seeds,
)

from liuyi.core.errors import DataError, StepError
from liuyi.data.instructions.tables import CHATS

MILL = (
    "The mill at Ober was built in 1843 by the carpenter Johann Lang. Its wheel has 24 paddles and turns a stone of "
    "granite. In spring the river carries so much water that the miller closes the upper gate. Flour from the mill was "
    "sold in nine villages until 1951, when a fire destroyed the roof."
)


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
