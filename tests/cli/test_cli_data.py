"""`liuyi data`: the commands that look at data, on artifacts that steps made."""

from __future__ import annotations

import json
import random
import re
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq
import pytest
from click.testing import CliRunner

from in_process import run_step
from liuyi.cli.data import command as group
from liuyi.cli.main import cli
from liuyi.core.artifact import Artifact
from liuyi.core.home import Home
from liuyi.data.corpus import Document, document_id, write_documents

WORDS = [
    *("the", "reader", "opens", "a", "file", "and", "returns", "its", "lines", "in", "order", "of", "text", "with"),
    *("care", "for", "encodings", "that", "may", "happen", "when", "disk", "is", "full", "or", "name", "wrong", "so"),
    *("callers", "know", "what", "to", "do", "next", "window", "river", "garden", "letter", "morning", "house"),
]
SENTENCES = [
    "北京的秋天很美，街边的叶子慢慢变黄了。",
    "我们沿着河边一直走，走到天黑才回家吃晚饭。",
    "他在图书馆里找到了一本关于古代建筑的书。",
    "老师说这个问题可以用两种方法来解决。",
    "因为昨天下了大雨，所以今天早上的空气很好。",
    "妹妹把新买的自行车放在门口，然后去上学了。",
    "这家小店的面条又便宜又好吃，客人总是很多。",
    "如果明天不忙，我想和朋友一起去爬山。",
    "科学家发现，海水的温度比二十年前高了不少。",
    "她每天晚上都会写日记，记下当天发生的事情。",
    "村里的老人常常坐在树下，给孩子们讲故事。",
    "公司决定在南方开一家工厂，生产环保的材料。",
]


@dataclass
class Made:
    """A home with artifacts by name."""

    home: Home
    artifacts: dict[str, Artifact]

    def call(self, *args: str, status: int = 0) -> str:
        result = CliRunner().invoke(cli, ["--home", str(self.home.path), "data", *args])
        assert result.exit_code == status, result.output
        return result.stdout if status == 0 else result.stderr

    def said(self, *args: str) -> Any:
        return json.loads(self.call(*args, "--json"))


def english(rng: random.Random) -> str:
    return " ".join(f"{' '.join(rng.choices(WORDS, k=11)).capitalize()}." for _ in range(9)) + "\n"


def chinese(rng: random.Random) -> str:
    return "".join(rng.sample(SENTENCES, k=8)) + "\n"


def documents() -> list[Document]:
    rng = random.Random(1)
    texts = [chinese(rng) if n % 4 == 0 else english(rng) for n in range(24)]
    texts[1] = "The text is too short.\n"
    texts[2] = texts[3]
    texts[5] += "Write to jane.roe@fastmail.net about it, please, and wait for the answer that will come.\n"
    return [
        Document(document_id("s", f"{n}.txt", text), text, f"source{n % 2}", f"{n}.txt", "MIT", "", "", f"c{n % 6}")
        for n, text in enumerate(texts)
    ]


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Made:
    folder = tmp_path_factory.mktemp("data")
    home = Home(folder / "home")
    staging = home.store.stage("corpus")
    write_documents(staging.path, documents())
    raw = home.store.publish(staging, output="corpus")

    def run(name: str, inputs: dict[str, Any], **params: Any) -> dict[str, Artifact]:
        workdir = folder / name
        workdir.mkdir()
        return run_step(home, workdir, name, inputs, **params)

    clean = run("data.clean", {"corpus": raw})["corpus"]
    chosen = run("data.select", {"corpus": clean}, heldout_fraction=0.2)
    home.ledger.record_execution(
        key="k",
        step="data.select",
        version=1,
        params=chosen["train"].manifest.params,
        seed=1,
        device="cpu",
        inputs=[("corpus", clean.digest)],
        outputs={port: artifact.digest for port, artifact in chosen.items()},
        seconds=1.0,
        run_id="run-1",
    )
    tokenizer = run("data.tokenizer", {"texts": [chosen["train"]]}, vocab_size=400)["tokenizer"]
    tokens = run("data.tokens", {"corpus": chosen["train"], "tokenizer": tokenizer})["tokens"]
    size = {"hidden_size": 32, "num_hidden_layers": 1, "init": "random", "seq_len": 32}
    inputs = {"tokens": tokens, "tokenizer": tokenizer}
    model = run("pretrain.train", inputs, batch_tokens=128, token_budget=512, **size)["checkpoint"]
    return Made(home, {"raw": raw, "clean": clean, **chosen, "tokenizer": tokenizer, "tokens": tokens, "model": model})


@pytest.fixture(autouse=True)
def wide(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("COLUMNS", "200")


@pytest.mark.parametrize("name", group.lines)
def test_every_command_of_the_group_explains_itself(name: str) -> None:
    result = CliRunner().invoke(cli, ["data", name, "--help"])
    assert result.exit_code == 0, result.output
    assert f"data {name} " in result.stdout


def test_a_token_leads_to_its_document(made: Made) -> None:
    digest = made.artifacts["tokens"].digest[:12]
    by_id = {one.id: one for one in documents()}
    found = made.said("where", digest, "77", "--reach", "3")
    document = by_id[found["document"]["id"]]
    assert (found["document"]["url"], found["document"]["license"]) == (document.url, "MIT")
    assert found["before"] + found["token"] + found["after"] in document.text
    printed = made.call("where", digest, "77")
    assert document.id in printed
    assert re.search(rf"source +{document.source}", printed)


def test_a_step_of_the_training_leads_to_the_documents_of_its_batch(made: Made) -> None:
    digest = made.artifacts["model"].digest[:12]
    found = made.said("where", digest, "--step", "2")
    assert [len(row["pieces"]) > 0 for row in found["rows"]] == [True] * 4
    kept = {
        row["document"]["id"]
        for row in made.said("show", made.artifacts["train"].digest, "--kept", "-n", "99")["documents"]
    }
    named = {piece["document"]["id"] for row in found["rows"] for piece in row["pieces"]}
    assert named <= kept
    one = made.said("where", digest, "--step", "2", "--row", "1")
    assert one["rows"] == found["rows"][1:2]
    assert "4 rows" in made.call("where", digest, "--step", "2")


def test_questions_that_cannot_be_answered_say_why(made: Made) -> None:
    tokens, model = made.artifacts["tokens"].digest[:12], made.artifacts["model"].digest[:12]
    assert "outside the stream" in made.call("where", tokens, "99999999", status=1)
    assert "asked by a position" in made.call("where", tokens, "--step", "1", status=2)
    assert "asked by a training step" in made.call("where", model, "5", status=2)
    assert "has no step 99" in made.call("where", model, "--step", "99", status=1)
    assert "has no row 9" in made.call("where", model, "--step", "1", "--row", "9", status=1)
    tokenizer = made.artifacts["tokenizer"].digest[:12]
    assert "was not trained on tokens" in made.call("where", tokenizer, "--step", "1", status=1)


def test_without_a_choice_the_reasons_are_counted(made: Made) -> None:
    clean = made.artifacts["clean"].digest
    found = made.said("show", clean)
    assert found["total"]["documents"] == 24
    assert {one["reason"]: one["documents"] for one in found["dropped"]} == {"exact duplicate": 1, "too short": 1}
    assert found["kept"]["documents"] == 22
    assert found["total"]["bytes"] == sum(len(one.text.encode()) for one in documents())
    printed = made.call("show", clean)
    assert re.search(r"too short +1 +4.2%", printed)
    assert "judged by the thresholds of the latest data.select (run run-1)" in printed


def test_a_dropped_document_says_why(made: Made) -> None:
    clean = made.artifacts["clean"].digest
    (found,) = made.said("show", clean, "--reason", "too short")["documents"]
    assert found["document"]["text"] == "The text is too short.\n"
    first = found["evidence"][0]
    assert (first["reason"], first["values"], first["thresholds"]) == ("too short", {"words": 5}, {"min_words": 40})
    printed = made.call("show", clean, "--reason", "too short")
    assert "dropped: too short  words 5; min_words 40" in printed
    assert "1.txt" in printed
    assert "source1" in printed


def test_a_duplicate_and_what_stands_for_it_name_each_other(made: Made) -> None:
    clean = made.artifacts["clean"].digest
    (twin,) = made.said("show", clean, "--reason", "exact duplicate")["documents"]
    stays = twin["attributes"]["duplicate_of"]
    assert f"exact duplicate of {stays}, similarity 1" in made.call("show", clean, twin["document"]["id"])
    assert f"stands for {twin['document']['id'][:12]}" in made.call("show", clean, stays)


def test_what_selection_gave_is_looked_at_through_what_it_was_made_from(made: Made) -> None:
    train, heldout = made.artifacts["train"].digest, made.artifacts["heldout"].digest
    sides = [
        {one["document"]["id"] for one in made.said("show", side, "--kept", "-n", "99")["documents"]}
        for side in (train, heldout)
    ]
    for ids, side in zip(sides, (train, heldout), strict=True):
        table = pq.read_table(made.home.store.open(side).file("documents.parquet"))
        assert ids == set(table["id"].to_pylist())
    dropped = made.said("show", train, "--dropped", "-n", "99")["documents"]
    assert len(dropped) == 2


def test_conditions_rows_and_chance_choose_documents(made: Made) -> None:
    clean = made.artifacts["clean"].digest
    for condition in ("lang=zh", "lang == zh"):
        found = made.said("show", clean, "--where", condition, "-n", "99")["documents"]
        assert {one["row"] for one in found} == {0, 4, 8, 12, 16, 20}
    masked = made.said("show", clean, "--where", "pii>0")["documents"]
    assert [one["row"] for one in masked] == [5]
    assert "marked: 1 × email" in made.call("show", clean, "--where", "pii>0")
    assert made.said("show", clean, "--row", "7")["documents"][0]["document"]["id"] == documents()[7].id
    drawn = [
        tuple(one["row"] for one in made.said("show", clean, "--random", "-n", "5", "--seed", s)["documents"])
        for s in "112"
    ]
    assert drawn[0] == drawn[1] != drawn[2]
    near = made.said("show", clean, "--near", "min_words", "-n", "2")["documents"]
    assert [bool(one["evidence"]) for one in near] == [False, True]
    words = [one["attributes"]["words"] for one in made.said("show", clean, "--kept", "-n", "99")["documents"]]
    assert near[0]["attributes"]["words"] == min(words)


def test_the_text_is_cut_where_it_is_asked(made: Made) -> None:
    clean = made.artifacts["clean"].digest
    text = documents()[7].text
    assert f"{text[:50]}\n… {len(text) - 50} more characters" in made.call("show", clean, "--row", "7", "--chars", "50")
    assert text in made.call("show", clean, "--row", "7", "--chars", "0")


def test_a_corpus_that_was_not_measured_shows_its_documents(made: Made) -> None:
    raw = made.artifacts["raw"].digest
    assert documents()[3].text in made.call("show", raw, documents()[3].id[:16])
    assert made.said("show", raw)["kept"]["documents"] == 24
    assert "run data.clean" in made.call("show", raw, "--dropped", status=1)
    assert "holds no document 'beef'" in made.call("show", raw, "beef", status=1)


def test_a_document_cannot_command_the_terminal(tmp_path: Path) -> None:
    home = Home(tmp_path / "home")
    staging = home.store.stage("corpus")
    hostile = "\x1b]52;c;ZXZpbA==\x07 and\x9b2J\ttext\n"
    write_documents(staging.path, [Document("1", hostile, "site", "a\x1b[8m.html", "MIT")])
    raw = home.store.publish(staging, output="corpus")
    for args in (("data", "show", raw.digest, "--random"), ("show", raw.digest, "--rows", "1")):
        shown = CliRunner().invoke(cli, ["--home", str(home.path), *args]).stdout
        assert "␛]52;c;ZXZpbA==␇ and\ufffd2J" in shown
        assert "a␛[8m.html" in shown
        assert not re.search(r"[\x00-\x08\x0b-\x1f\x7f-\x9f]", shown)


def test_wrong_names_say_what_would_be_right(made: Made) -> None:
    clean = made.artifacts["clean"].digest
    assert "did you mean 'too short'?" in made.call("show", clean, "--reason", "to short", status=1)
    assert "did you mean 'words'?" in made.call("show", clean, "--where", "word>3", status=1)
    assert "is no condition" in made.call("show", clean, "--where", "words", status=1)
    assert "is no int" in made.call("show", clean, "--where", "words>many", status=1)
    assert "compare it by = or !=" in made.call("show", clean, "--where", "lang>zh", status=1)
    assert "did you mean 'min_words'?" in made.call("show", clean, "--near", "min_word", status=1)
    assert "there is no row 24" in made.call("show", clean, "--row", "24", status=1)
    assert "holds no documents" in made.call("show", made.artifacts["model"].digest, status=1)
    assert "was not made by data.select" in made.call("show", clean, "--as", clean, status=1)


def test_a_page_is_written_about_an_artifact_or_a_run(made: Made, tmp_path: Path) -> None:
    clean = made.artifacts["clean"].digest
    said = made.call("report", clean, "-o", str(tmp_path / "page.html"))
    assert str(tmp_path / "page.html") in said
    assert "too short" in (tmp_path / "page.html").read_text("utf-8")
    run = made.home.ledger.create_run(recipe="look", text="recipe: look", source="l.yaml", overrides=[], seed=1)
    made.home.ledger.put_step(run, "select", step="data.select", key="k", status="done", position=0)
    made.call("report", run)
    (written,) = (made.home.path / "reports").glob("data-*.html")
    page = written.read_text("utf-8")
    assert f"Data of look, run {run}" in page
    assert made.artifacts["train"].digest[:12] in page
    assert "holds no data to report on" in made.call("report", made.artifacts["model"].digest, status=1)
