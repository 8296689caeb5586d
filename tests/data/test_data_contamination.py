"""Items planted in documents are marked and dropped, with their words and place; the step's result is one table."""

from __future__ import annotations

import json
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from data_support import artifact, corpus, document, prose, run_step

from liuyi.core.artifact import Artifact
from liuyi.core.errors import DataError
from liuyi.data.attributes import read_groups
from liuyi.data.contamination.items import read_items
from liuyi.data.contamination.mark import CONTAMINATION, mark
from liuyi.data.corpus import ATTRIBUTES

QUESTION = "Which of the two rivers that meet below the old stone bridge carries more water in spring, and why?"
SHORT = "把厨房的灯关掉"
SYSTEM = {
    "role": "system",
    "content": "You answer questions about rivers, lights and bridges, in one sentence, please.",
}


def evalset(folder: Path, **prompts: str) -> Artifact:
    folder.mkdir(parents=True)
    messages = [json.dumps([SYSTEM, {"role": "user", "content": prompt}]) for prompt in prompts.values()]
    pq.write_table(pa.table({"id": list(prompts), "messages": messages}), folder / "items.parquet")
    return artifact(folder, "evalset")


def planted(folder: Path) -> Artifact:
    texts = [
        prose(1),
        prose(2) + f"As they ask: “{QUESTION.upper()}” " + prose(3),
        prose(4) + "请" + SHORT + "，谢谢。",
        prose(5) + " ".join(QUESTION.split()[:12]) + "!",
        str(SYSTEM["content"]) + prose(6),
    ]
    return corpus(folder, [document(text, path=f"{number}") for number, text in enumerate(texts)])


def test_the_step_marks_documents_and_says_what_and_where(tmp_path: Path) -> None:
    source = planted(tmp_path / "source")
    sets = [evalset(tmp_path / "a", river=QUESTION), evalset(tmp_path / "b", kitchen=SHORT, copy=QUESTION)]
    bench = run_step("data.decontaminate", tmp_path / "run", {"corpus": source, "evalsets": sets})
    made = bench.made["corpus"].path
    marked = pq.read_table(made / ATTRIBUTES)
    assert marked["contaminated_by"].to_pylist() == [[], ["river", "copy"], ["kitchen"], [], []]
    texts = dict(
        zip(*(pq.read_table(made / "documents.parquet")[name].to_pylist() for name in ("id", "text")), strict=True)
    )
    rows = pq.read_table(made / CONTAMINATION).to_pylist()
    assert {(row["item"], row["evalset"]) for row in rows} == {
        ("river", sets[0].digest),
        ("copy", sets[1].digest),
        ("kitchen", sets[1].digest),
    }
    for row in rows:
        place = texts[row["document"]][row["start"] : row["end"]]
        assert place == (SHORT if row["item"] == "kitchen" else QUESTION.upper().rstrip("?"))
    assert bench.staged["corpus"].metrics == {"documents": 5, "contaminated": 2, "items": 3, "items_found": 3}


@pytest.mark.slow
def test_selection_drops_what_is_marked_unless_told_otherwise(tmp_path: Path) -> None:
    cleaned = run_step("data.clean", tmp_path / "clean", {"corpus": planted(tmp_path / "source")}).made["corpus"]
    items = evalset(tmp_path / "items", river=QUESTION)
    marked = run_step("data.decontaminate", tmp_path / "mark", {"corpus": cleaned, "evalsets": [items]}).made["corpus"]
    for drop, expected in ((True, 1), (False, 0)):
        made = run_step(
            "data.select", tmp_path / f"{drop}", {"corpus": marked}, heldout_fraction=0.0, drop_contaminated=drop
        ).made["train"]
        reasons = pq.read_table(made.path / "dropped.parquet")["reason"].to_pylist()
        assert reasons.count("contaminated by an eval item") == expected


@pytest.mark.slow
@pytest.mark.parametrize("workers", [1, 2])
def test_marks_over_several_row_groups_do_not_depend_on_workers(tmp_path: Path, workers: int) -> None:
    texts = [prose(number, 20) + (QUESTION if number % 1000 == 7 else "") for number in range(2200)]
    source = corpus(tmp_path / "source", [document(text, path=f"{number}") for number, text in enumerate(texts)])
    items = read_items([evalset(tmp_path / "items", river=QUESTION)])
    (tmp_path / "out").mkdir()
    found = mark(source.path, tmp_path / "out", items, tmp_path, ngram=13, workers=workers)
    marks = [
        by for group in read_groups(tmp_path / "out", ["contaminated_by"], ATTRIBUTES) for by in group[0].to_pylist()
    ]
    assert [number for number, by in enumerate(marks) if by] == [7, 1007, 2007]
    assert (found.documents, found.items) == (3, 1)


def test_items_that_are_no_conversation_are_an_error(tmp_path: Path) -> None:
    broken = tmp_path / "broken"
    broken.mkdir()
    pq.write_table(pa.table({"id": ["x"], "messages": ['{"role": "user"}']}), broken / "items.parquet")
    with pytest.raises(DataError, match="no list"):
        read_items([artifact(broken, "evalset")])
