"""Seeds, eval sets and models for tests of the generators, and what must hold of every row that they make."""

from __future__ import annotations

import json
import random
from collections import Counter
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq
from data_support import Bench, artifact, run_step
from model_support import Asked, Model, Reply, model_server

from liuyi.core.artifact import Artifact
from liuyi.core.effect import Effect
from liuyi.data.corpus import Rows
from liuyi.data.instructions.convert import chat_entry
from liuyi.data.instructions.tables import CHATS, chats_schema, write_evalset

SUBJECTS = ("rivers", "bread", "clocks", "bees", "glass", "paper", "salt", "bridges", "owls", "steam", "chess", "maps")
VERBS = ("Explain how", "Write a poem about why", "List ten reasons for which", "Compare the ways in which")
SYLLABLES = ("ka", "mo", "ti", "ru", "sel", "ban", "dor", "fi", "gu", "lem", "nor", "pa", "qui", "vos", "wen", "zy")


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
