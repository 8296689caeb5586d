"""`liuyi data contains`: from a model back to the documents that hold a text, through the tokens between them."""

from __future__ import annotations

import json
import random
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from click.testing import CliRunner

from in_process import run_step
from liuyi.cli.main import cli
from liuyi.core.artifact import InputRef
from liuyi.core.home import Home
from liuyi.data.corpus import Document, document_id, write_documents

WORDS = [f"{first}{second}" for first in "bdfgklmnprst" for second in ("an", "el", "ir", "ot", "um")]
SECRET = "the heron that stands by the weir at dawn has counted eleven fish and one boot"


@pytest.fixture(scope="module")
def home(tmp_path_factory: pytest.TempPathFactory) -> Home:
    """A corpus, tokens of half of it, and a model that names the tokens as what it was trained on."""
    folder = tmp_path_factory.mktemp("contains")
    made = Home(folder / "home")
    rng = random.Random(1)
    texts = [" ".join(rng.choices(WORDS, k=120)) for _ in range(20)]
    staging = made.store.stage("corpus")
    write_documents(staging.path, [document(f"{n:02}", f"{text}. {SECRET}, {n}.") for n, text in enumerate(texts)])
    corpus = made.store.publish(staging, output="corpus")

    def run(name: str, inputs: dict[str, Any], **params: Any) -> dict[str, Any]:
        (folder / name).mkdir()
        return run_step(made, folder / name, name, inputs, **params)

    tokenizer = run("data.tokenizer", {"texts": [corpus]}, vocab_size=400)["tokenizer"]
    tokens = run("data.tokens", {"corpus": corpus, "tokenizer": tokenizer}, max_tokens=1500)["tokens"]
    items = made.store.stage("evalset")
    messages = [
        json.dumps([{"role": "user", "content": text}]) for text in (SECRET + "?", "no such words anywhere here")
    ]
    pq.write_table(pa.table({"id": ["heron", "nothing"], "messages": messages}), items.path / "items.parquet")
    made.store.publish(items, output="test")
    model = made.store.stage("checkpoint")
    (model.path / "weights").write_text("none")
    refs = [InputRef(name="tokens", digest=tokens.digest), InputRef(name="tokenizer", digest=tokenizer.digest)]
    made.store.publish(model, step="pretrain.train", output="checkpoint", inputs=refs)
    return made


def document(url: str, text: str) -> Document:
    return Document(document_id("pond", url, text), text, "pond", url, "CC0-1.0")


def digest(home: Home, kind: str) -> str:
    (found,) = [one for one in home.store.digests() if home.store.manifest(one).kind == kind]
    return found


def call(home: Home, *args: str, status: int = 0) -> str:
    result = CliRunner().invoke(cli, ["--home", str(home.path), "data", "contains", *args])
    assert result.exit_code == status, result.output
    return result.stdout if status == 0 else result.stderr


def test_a_model_leads_to_the_documents_that_its_tokens_hold(home: Home) -> None:
    held = pq.read_table(home.store.open(digest(home, "tokens")).file("documents.parquet"))["id"].to_pylist()
    assert 0 < len(held) < 20
    found = json.loads(call(home, digest(home, "checkpoint"), SECRET.upper(), "--json"))
    assert sorted(one["row"] for one in found) == sorted(held)
    texts = {
        row["id"]: row["text"]
        for row in pq.read_table(home.store.open(digest(home, "corpus")).file("documents.parquet")).to_pylist()
    }
    for one in found:
        assert texts[one["row"]][one["start"] : one["end"]] == SECRET
        assert (one["source"], one["license"], one["kind"]) == ("pond", "CC0-1.0", "corpus")


def test_a_corpus_is_asked_itself(home: Home) -> None:
    corpus = digest(home, "corpus")
    assert len(json.loads(call(home, corpus, SECRET, "--json"))) == 20
    assert "not found" in call(home, corpus, "a heron that nobody has written about")
    assert "in 20 rows of corpus" in call(home, corpus, SECRET)


def test_every_item_of_an_eval_set_is_asked_for(home: Home) -> None:
    printed = call(home, digest(home, "checkpoint"), "--items", digest(home, "evalset"))
    assert printed.startswith("1 of 2 items found")
    assert "heron" in printed


def test_what_cannot_be_answered_is_said(home: Home) -> None:
    corpus = digest(home, "corpus")
    assert "what it was trained on" in call(home, digest(home, "evalset"), "some words", status=1).replace(
        digest(home, "evalset")[:12], "it"
    )
    assert "not an eval set" in call(home, corpus, "--items", corpus, status=1)
    assert "no words" in call(home, corpus, "…", status=1)
    call(home, corpus, status=2)
    call(home, corpus, "text", "--items", digest(home, "evalset"), status=2)


def test_a_model_whose_training_data_is_gone_is_no_model_that_saw_nothing(home: Home) -> None:
    model = home.store.stage("checkpoint")
    (model.path / "weights").write_text("other")
    gone = InputRef(name="chats", digest="0" * 64)
    made = home.store.publish(model, step="finetune.sft", output="checkpoint", inputs=[gone])
    assert "no longer in the store" in call(home, made.digest, SECRET, status=1)
    home.store.delete(made.digest)
