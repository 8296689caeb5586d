"""Clean, select, tokenizer and tokens as steps, one after another on a small corpus with planted faults."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
import pytest
from data_support import artifact, corpus, document, prose, run_step

from liuyi.core.artifact import Artifact
from liuyi.core.effect import EFFECT_FILE, Effect
from liuyi.core.errors import ArtifactError, DataError
from liuyi.data.clean.run import clean
from liuyi.data.corpus import ATTRIBUTES, DOCUMENTS, DROPPED, read_documents
from liuyi.data.select.split import held_out_clusters
from liuyi.data.tokens import Tokens
from liuyi.model.tokenizer import Tokenizer

CHINESE = "数据库在写入之前会先把修改记录到日志里，这样即使突然断电，重新启动之后也可以根据日志恢复到正确的状态。"
LICENCE = (
    "Permission is hereby granted, free of charge, to any person\nobtaining a copy. The above copyright notice\n" * 8
)


@pytest.fixture(scope="module")
def messy(tmp_path_factory: pytest.TempPathFactory) -> Artifact:
    documents = [document(prose(n), f"pkg{n % 12}", f"m{n}.py") for n in range(120)]
    documents += [
        document(prose(3) + "One more line.\n", "pkg1", "near.py"),
        document(prose(4).upper(), "pkg2", "exact.py"),
        document("Too short.", "pkg3", "short.py"),
        document(LICENCE, "pkg4", "LICENSE.txt"),
        document(prose(500) + "Write to ada@lemburg.com or call +86 138-1234-5678.\n", "pkg5", "mail.py"),
        document(CHINESE + "\n" + "这是第二段，说的是另外一件事情，和前面没有关系。", "pkg6", "zh.md", "CC-BY-4.0"),
        document("これは日本語の文章です。ここでは言語の判定がうまくいくかどうかを調べています。" * 3, "pkg7", "ja.md"),
        document("<|endoftext|> " + prose(600), "pkg8", "special.py"),
    ]
    return corpus(tmp_path_factory.mktemp("messy") / "corpus", documents)


@pytest.fixture(scope="module")
def cleaned(messy: Artifact, tmp_path_factory: pytest.TempPathFactory) -> Artifact:
    return run_step("data.clean", tmp_path_factory.mktemp("clean"), {"corpus": messy}).made["corpus"]


def reasons(folder: Path) -> dict[str, str]:
    return {row["url"]: row["reason"] for row in pq.read_table(folder / DROPPED).to_pylist()}


def test_clean_leaves_documents_as_they_are(messy: Artifact, cleaned: Artifact) -> None:
    assert cleaned.file(DOCUMENTS).read_bytes() == messy.file(DOCUMENTS).read_bytes()
    table = pq.read_table(cleaned.file(ATTRIBUTES))
    assert table["id"].to_pylist() == read_documents(messy.path, ["id"])["id"].to_pylist()


@pytest.mark.slow
def test_clean_is_the_same_with_one_worker_and_two(messy: Artifact, cleaned: Artifact, tmp_path: Path) -> None:
    for workers in (1, 2):
        out, workdir = tmp_path / f"out{workers}", tmp_path / f"work{workers}"
        out.mkdir()
        workdir.mkdir()
        clean(messy.path, out, workdir, jaccard=0.8, workers=workers)
        assert (out / ATTRIBUTES).read_bytes() == cleaned.file(ATTRIBUTES).read_bytes()


def test_clean_of_nothing(tmp_path: Path) -> None:
    empty = corpus(tmp_path / "empty", [])
    made = run_step("data.clean", tmp_path / "out", {"corpus": empty}).made["corpus"]
    assert pq.read_table(made.file(ATTRIBUTES)).num_rows == 0


def test_clean_refuses_two_documents_of_one_id(tmp_path: Path) -> None:
    first = document(prose(1))
    twice = corpus(tmp_path / "twice", [document(prose(2)), first, document(prose(3)), first])
    with pytest.raises(DataError, match=f"same id, such as {first.id}"):
        run_step("data.clean", tmp_path / "out", {"corpus": twice})


def test_select_gives_reasons(cleaned: Artifact, tmp_path: Path) -> None:
    bench = run_step("data.select", tmp_path, {"corpus": cleaned}, heldout_fraction=0.2)
    assert reasons(bench.made["train"].path) == {
        "near.py": "near duplicate",
        "exact.py": "exact duplicate",
        "short.py": "too short",
        "LICENSE.txt": "licence text",
        "ja.md": "other language",
    }
    train, heldout = (read_documents(bench.made[name].path) for name in ("train", "heldout"))
    assert train.num_rows + heldout.num_rows + 5 == 128
    assert not set(train["cluster"].to_pylist()) & set(heldout["cluster"].to_pylist())
    assert 0.1 < sum(map(len, heldout["text"].to_pylist())) / sum(map(len, train["text"].to_pylist())) < 0.4
    languages = dict(
        zip(
            train["url"].to_pylist() + heldout["url"].to_pylist(),
            train["lang"].to_pylist() + heldout["lang"].to_pylist(),
            strict=True,
        )
    )
    assert languages["zh.md"] == "zh"
    assert set(languages.values()) <= {"zh", "en", ""}


def test_select_masks_and_keeps_ids(cleaned: Artifact, tmp_path: Path) -> None:
    for masked in (True, False):
        bench = run_step(
            "data.select", tmp_path / str(masked), {"corpus": cleaned}, mask_pii=masked, heldout_fraction=0
        )
        rows = {row["url"]: row for row in read_documents(bench.made["train"].path).to_pylist()}
        assert ("Write to [EMAIL] or call [PHONE]." in rows["mail.py"]["text"]) == masked
        assert ("ada@lemburg.com" in rows["mail.py"]["text"]) != masked
        originals = {row["url"]: row["id"] for row in read_documents(cleaned.path).to_pylist()}
        assert all(originals[url] == row["id"] for url, row in rows.items())
        assert read_documents(bench.made["heldout"].path).num_rows == 0


def test_what_is_masked_is_nowhere_in_the_artifact(tmp_path: Path) -> None:
    """Neither in samples of what was kept, nor in what was dropped."""
    mail = "Write to ada@lemburg.com. "
    documents = [document(mail + prose(1), path="kept.txt"), document(mail + "Too short.", path="short.txt")]
    clean = run_step("data.clean", tmp_path / "clean", {"corpus": corpus(tmp_path / "raw", documents)}).made["corpus"]
    for masked in (True, False):
        train = run_step(
            "data.select", tmp_path / str(masked), {"corpus": clean}, mask_pii=masked, heldout_fraction=0
        ).made["train"]
        assert reasons(train.path) == {"short.txt": "too short"}
        tables = [pq.read_table(train.path / name).to_pylist() for name in (DOCUMENTS, DROPPED)]
        for said in (*map(str, tables), (train.path / EFFECT_FILE).read_text(encoding="utf-8")):
            assert ("ada@lemburg.com" in said) != masked
            assert ("[EMAIL]" in said) == masked


def test_moving_a_threshold_changes_the_decision_only(cleaned: Artifact, tmp_path: Path) -> None:
    loose = run_step(
        "data.select", tmp_path / "a", {"corpus": cleaned}, min_words=2, min_stop_words=0, drop_duplicates=False
    )
    assert reasons(loose.made["train"].path) == {"LICENSE.txt": "licence text", "ja.md": "other language"}
    strict = run_step("data.select", tmp_path / "b", {"corpus": cleaned}, licenses=("CC-BY-4.0",), heldout_fraction=0)
    assert read_documents(strict.made["train"].path)["url"].to_pylist() == ["zh.md"]


def test_select_shows_its_effect(cleaned: Artifact, tmp_path: Path) -> None:
    bench = run_step("data.select", tmp_path, {"corpus": cleaned})
    shown = Effect.load(bench.made["train"].path)
    assert shown is not None
    assert shown.stage == "data"
    blocks = {block.title: block for block in shown.blocks}
    assert dict(blocks["Documents dropped, by reason"].bars)["too short"] == 1
    figures = {row[0]: row[1:] for row in blocks["Before and after"].rows}
    assert figures["documents"] == (128, 123)
    assert figures["near duplicates"] == (1, 0)
    assert figures["spans of personal data"] == (2, 0)
    assert sum(row[1] for row in blocks["By source"].rows) == 128
    assert sum(row[3] for row in blocks["By licence"].rows) == 123
    assert {"CC-BY-4.0", "MIT"} == {row[0] for row in blocks["By licence"].rows}
    assert len(blocks["Kept"].samples) == 6
    assert len(blocks["Dropped"].samples) == 5
    assert Effect.load(bench.made["heldout"].path) is None


def test_select_needs_attributes_of_the_same_documents(messy: Artifact, cleaned: Artifact, tmp_path: Path) -> None:
    with pytest.raises(ArtifactError, match=ATTRIBUTES):
        run_step("data.select", tmp_path / "a", {"corpus": messy})
    other = corpus(tmp_path / "other", [document(prose(1))])
    (other.path / ATTRIBUTES).write_bytes(cleaned.file(ATTRIBUTES).read_bytes())
    with pytest.raises(ArtifactError, match="same ids"):
        run_step("data.select", tmp_path / "b", {"corpus": other})


def test_held_out_clusters_are_many_small_and_stable() -> None:
    sizes = {f"c{number}": 100 + number for number in range(60)} | {"giant": 50_000}
    chosen = held_out_clusters(sizes, 0.03)
    held = sum(sizes[name] for name in chosen)
    assert "giant" not in chosen
    assert len(chosen) >= 8
    assert 0.03 <= held / sum(sizes.values()) < 0.035
    assert held_out_clusters(dict(reversed(sizes.items())), 0.03) == chosen
    assert len(chosen ^ held_out_clusters(sizes | {"new": 120}, 0.03)) <= 3


def test_held_out_clusters_at_the_edges() -> None:
    assert held_out_clusters({"a": 10, "b": 90}, 0) == set()
    assert held_out_clusters({"a": 10, "b": 90}, 0.05) == {"a"}
    assert len(held_out_clusters({"a": 10, "b": 10, "c": 10}, 0.9)) == 2
    with pytest.raises(DataError, match="one cluster"):
        held_out_clusters({"a": 10}, 0.1)
    with pytest.raises(DataError, match="dropped"):
        held_out_clusters({}, 0.1)


@pytest.fixture(scope="module")
def chosen(cleaned: Artifact, tmp_path_factory: pytest.TempPathFactory) -> Artifact:
    return run_step("data.select", tmp_path_factory.mktemp("chosen"), {"corpus": cleaned}).made["train"]


@pytest.fixture(scope="module")
def chats(tmp_path_factory: pytest.TempPathFactory) -> Artifact:
    folder = tmp_path_factory.mktemp("chats")
    rows = [
        {
            "prompt": f"请打开{room}的灯，{number}号",
            "completion": json.dumps({"intent": "HassTurnOn", "slots": {"area": room}}),
        }
        for number in range(40)
        for room in ("厨房", "客厅", "卧室")
    ]
    path = folder / "desk.jsonl"
    path.write_text("\n".join(json.dumps(row, ensure_ascii=False) for row in rows), encoding="utf-8")
    return run_step("data.chats_file", folder / "out", path=path).made["train"]


@pytest.fixture(scope="module")
def trained(chosen: Artifact, chats: Artifact, tmp_path_factory: pytest.TempPathFactory) -> Artifact:
    given = {"texts": [chosen, chats]}
    return run_step("data.tokenizer", tmp_path_factory.mktemp("tok"), given, vocab_size=450, sample_mb=0.05).made[
        "tokenizer"
    ]


def test_tokenizer_learns_from_all_its_inputs(trained: Artifact, chosen: Artifact, tmp_path: Path) -> None:
    tokenizer = Tokenizer.load(trained.path)
    assert tokenizer.vocab_size == 450
    alone = run_step("data.tokenizer", tmp_path, {"texts": [chosen]}, vocab_size=450, sample_mb=0.05).made["tokenizer"]
    for text in ("请打开厨房的灯，", '{"intent": "HassTurnOn", "slots": {"area": "卧室"}}'):
        assert len(tokenizer.encode(text)) < 0.5 * len(Tokenizer.load(alone.path).encode(text))
    assert len(tokenizer.encode(" encodings")) == 1
    shown = Effect.load(trained.path)
    assert shown is not None
    measured = {row[0]: row[3] for row in shown.blocks[0].rows}
    assert set(measured) == {"en", "zh"}
    assert all(value > 1.5 for value in measured.values())


def test_tokenizer_is_the_same_again(trained: Artifact, chosen: Artifact, chats: Artifact, tmp_path: Path) -> None:
    again = run_step("data.tokenizer", tmp_path, {"texts": [chosen, chats]}, vocab_size=450, sample_mb=0.05)
    assert again.made["tokenizer"].digest == trained.digest


def test_tokens_come_back_as_documents(chosen: Artifact, trained: Artifact, tmp_path: Path) -> None:
    made = run_step("data.tokens", tmp_path, {"corpus": chosen, "tokenizer": trained}).made["tokens"]
    tokenizer, tokens = Tokenizer.load(trained.path), Tokens(made.path)
    texts = {row["id"]: row for row in read_documents(chosen.path).to_pylist()}
    about = json.loads(made.file("tokens.json").read_text())
    assert about["tokens"] == len(tokens) == made.file("tokens.bin").stat().st_size // 2
    assert about["documents"] == len(texts)
    assert about["bytes"] == sum(len(row["text"].encode()) for row in texts.values())
    assert about["eos_id"] == tokenizer.eos_id
    assert int((tokens.ids == tokenizer.eos_id).sum()) == len(texts)  # also where a text says <|endoftext|>
    for row in tokens.documents.to_pylist():
        ids = tokens.ids[row["offset"] : row["offset"] + row["tokens"]]
        assert ids[-1] == tokenizer.eos_id
        assert tokenizer.decode(ids[:-1].tolist()) == texts[row["id"]]["text"]
        assert (row["bytes"], row["cluster"]) == (len(texts[row["id"]]["text"].encode()), texts[row["id"]]["cluster"])
    assert tokens.documents["id"].to_pylist() != list(texts)


def test_any_position_leads_to_its_document(chosen: Artifact, trained: Artifact, tmp_path: Path) -> None:
    tokens = Tokens(run_step("data.tokens", tmp_path, {"corpus": chosen, "tokenizer": trained}).made["tokens"].path)
    owner = np.repeat(tokens.documents["id"].to_pylist(), tokens.documents["tokens"].to_numpy())
    for position in [0, 1, len(tokens) - 1, *range(7, len(tokens), 331), *tokens.offsets.tolist()]:
        place = tokens.locate(position)
        assert place.document == owner[position]
        assert tokens.ids[position - place.offset : position - place.offset + place.tokens][-1] == tokens.about.eos_id
    for outside in (-1, len(tokens)):
        with pytest.raises(IndexError):
            tokens.locate(outside)


def test_a_budget_takes_a_sample_of_everything(chosen: Artifact, trained: Artifact, tmp_path: Path) -> None:
    given = {"corpus": chosen, "tokenizer": trained}
    whole = Tokens(run_step("data.tokens", tmp_path / "all", given).made["tokens"].path)
    budget = len(whole) // 2
    half = Tokens(run_step("data.tokens", tmp_path / "half", given, max_tokens=budget).made["tokens"].path)
    assert 0.9 * budget < len(half) <= budget
    assert set(half.documents["id"].to_pylist()) < set(whole.documents["id"].to_pylist())
    assert len(set(half.documents["cluster"].to_pylist())) >= 8
    with pytest.raises(DataError, match="no document fits"):
        run_step("data.tokens", tmp_path / "none", given, max_tokens=3)


def test_tokens_that_do_not_agree_are_refused(chosen: Artifact, trained: Artifact, tmp_path: Path) -> None:
    made = run_step("data.tokens", tmp_path, {"corpus": chosen, "tokenizer": trained}).made["tokens"]
    made.file("tokens.bin").write_bytes(made.file("tokens.bin").read_bytes()[:-2])
    with pytest.raises(ArtifactError, match=r"tokens\.json says"):
        Tokens(made.path)


def test_python_docs_as_a_step(tmp_path: Path) -> None:
    params = {"include": ("click", "jinja2"), "max_mb": 0.2}
    made = [run_step("data.python_docs", tmp_path / str(n), **params).made["corpus"] for n in range(2)]
    assert made[0].digest == made[1].digest
    table = read_documents(made[0].path)
    assert set(table["source"].to_pylist()) == {"click", "jinja2"} == set(table["cluster"].to_pylist())
    assert 100_000 < sum(len(text.encode()) for text in table["text"].to_pylist()) <= 260_000
    assert made[0].manifest.licences == ("BSD-3-Clause",)
    assert artifact(made[0].path, "corpus").digest == made[0].digest
