"""Lineage names every ancestor and every descendant, and only those, for artifacts, rows and answers."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pytest

from liuyi.core.errors import ArtifactError, LedgerError, LiuyiError
from liuyi.core.graph import Graph
from liuyi.core.lineage import Node, trace
from liuyi.core.refs import resolve_artifact
from world import World

IN_TRAINING, HELD_OUT, DROPPED = "01" * 8, "04" * 8, "07" * 8


def walk(nodes: tuple[Node, ...]) -> Iterator[Node]:
    for node in nodes:
        yield node
        yield from walk(node.children)


def names(world: World, nodes: tuple[Node, ...]) -> set[str]:
    """The world's names of all artifacts among the nodes and below them."""
    by_digest = {digest: name for name, digest in world.digests.items() if name != "checkpoint"}
    return {by_digest[node.digest] for node in walk(nodes) if node.digest}


def test_a_model_comes_from_all_that_was_used_and_nothing_else(world: World) -> None:
    found = trace(world.home, "last/sft")
    assert names(world, found.up) == {"base", "tokens", "kept", "docs", "vocab", "chats"}
    assert names(world, found.down) == {"after", "verdict", "sft"}
    assert found.licences == ("CC-BY-4.0", "MIT")
    sources = [node.facts for node in walk(found.up) if node.kind == "sources"]
    assert sources[0]["sources"] == [
        {"source": "numpy", "license": "BSD-3-Clause", "rows": 4},
        {"source": "requests", "license": "Apache-2.0", "rows": 4},
    ]
    assert sources[1]["licences"] == {"CC-BY-4.0": 3}


def test_directions_are_walked_alone(world: World) -> None:
    assert trace(world.home, "last/sft", "up").down == ()
    assert trace(world.home, "last/sft", "down").up == ()


def test_what_a_gate_passes_on_was_made_by_what_came_before(world: World) -> None:
    digest = world.digests["sft"]
    assert resolve_artifact(world.home, "last/gate.checkpoint") == digest
    graph = Graph(world.home)
    producer = graph.producer(digest)
    assert producer is not None
    assert producer.step == "finetune.sft"
    assert [gate.step for gate in graph.passed_on_by(digest)] == ["evaluate.gate"]
    found = trace(world.home, "last/gate.checkpoint")
    assert found.subject.facts["step"] == "finetune.sft"
    assert names(world, found.up) == {"base", "tokens", "kept", "docs", "vocab", "chats"}
    (passed,) = [node for node in found.down if node.facts.get("passed_on")]
    assert (passed.digest, passed.children) == (digest, ())


def test_a_gate_that_keeps_the_old_model_makes_no_circle(world: World) -> None:
    d = world.digests
    inputs = [("candidate", d["sft"]), ("current", d["base"])]
    world.make("reject", "evaluate.gate", {"checkpoint": ("checkpoint", {"config.json": {"n": 1}})}, inputs)
    assert Graph(world.home).ancestors([d["base"]]) == {d["base"], d["tokens"], d["vocab"], d["kept"], d["docs"]}
    assert "sft" not in names(world, trace(world.home, d["base"], "up").up)


def test_work_that_gave_its_own_input_back_in_a_circle_ends(world: World) -> None:
    first = world.make("there", "x.there", {"o": ("corpus", {"a": 1})}, [("i", world.digests["docs"])])["o"]
    world.make("back", "x.back", {"o": ("corpus", {"documents.parquet": []})}, [("i", first)])
    ledger = world.home.ledger
    ledger.record_execution(
        key="loop",
        step="x.loop",
        version=1,
        params={},
        seed=1,
        device="cpu",
        inputs=[("i", first)],
        outputs={"o": world.digests["docs"]},
        seconds=1,
    )
    found = trace(world.home, first)
    assert "docs" in {name for name, digest in world.digests.items() if digest in {n.digest for n in walk(found.up)}}


def test_a_document_in_training_is_followed_to_the_models_that_saw_it(world: World) -> None:
    found = trace(world.home, IN_TRAINING)
    assert found.subject.kind == "document"
    assert found.subject.facts["text"] == "document 1"
    assert (found.up[0].kind, found.up[0].title) == ("source", "requests/doc1.rst")
    assert found.up[0].facts["license"] == "Apache-2.0"
    assert found.licences == ("Apache-2.0",)
    assert names(world, found.up[1:]) == {"docs"}
    came = {"docs", "kept", "vocab", "tokens", "base", "scores", "sft", "before", "after", "verdict"}
    assert names(world, found.down) == came
    holding = {node.digest for node in walk(found.down) if node.facts.get("holds")}
    assert holding == {world.digests[name] for name in ("docs", "kept", "tokens")}


def test_a_held_out_document_reached_no_model(world: World) -> None:
    found = trace(world.home, HELD_OUT, "down")
    assert names(world, found.down) == {"docs", "held", "held_tokens", "scores"}
    (scores,) = [node for node in walk(found.down) if node.kind == "evaluation"]
    assert scores.facts["holds"] is True


def test_a_dropped_document_is_told_with_its_reason(world: World) -> None:
    found = trace(world.home, DROPPED, "down")
    assert names(world, found.down) == {"docs", "kept"}
    (left_out,) = found.down[0].children
    assert (left_out.facts["holds"], left_out.facts["reason"]) == (False, "near-duplicate")


def test_a_tokens_artifact_that_does_not_list_a_document_did_not_hold_it(world: World) -> None:
    d = world.digests
    inputs = [("corpus", d["kept"]), ("tokenizer", d["vocab"])]
    listed = [{"id": "02" * 8, "offset": 0, "tokens": 3, "bytes": 9, "cluster": "numpy"}]
    world.make("some", "data.tokens", {"tokens": ("tokens", {"documents.parquet": listed})}, inputs)
    world.make("other", "pretrain.train", {"c": ("checkpoint", {"config.json": {"n": 9}})}, [("tokens", d["some"])])
    assert not {"some", "other"} & names(world, trace(world.home, IN_TRAINING, "down").down)
    assert {"some", "other"} <= names(world, trace(world.home, "02" * 8, "down").down)


def test_an_evaluation_item_leads_to_its_source_and_to_all_that_the_model_saw(world: World) -> None:
    for ref in ("last/after:item-1", f"{world.digests['after'][:8]}:item-1"):
        found = trace(world.home, ref)
        assert found.subject.facts["output"] == "after"
        assert found.up[0].facts["source"] == "home-assistant-intents/en/light_HassTurnOff.yaml"
        assert found.up[0].facts["license"] == "CC-BY-4.0"
        assert {"after", "sft", "chats", "base", "docs", "evalset"} <= names(world, found.up)
    scored = trace(world.home, f"last/scores:{HELD_OUT}", "up")
    assert scored.up[0].title == "requests/doc4.rst"


def test_rows_of_every_kind_are_found_by_their_own_id(world: World) -> None:
    conversation = trace(world.home, "chat-1")
    assert conversation.subject.kind == "conversation"
    assert conversation.subject.facts["messages"][0]["content"] == "turn on lamp 1"
    assert conversation.licences == ("CC-BY-4.0",)
    assert names(world, conversation.down) == {"chats", "sft", "after", "verdict"}
    item = trace(world.home, "item-0")
    assert item.subject.kind == "item"
    assert names(world, item.down) == {"evalset", "before", "after", "verdict"}
    pair = {
        "id": "pair-1",
        "prompt": "[]",
        "chosen": "a",
        "rejected": "b",
        "source": "s",
        "license": "l",
        "cluster": "c",
    }
    inputs = [("model", world.digests["sft"])]
    world.make("pairs", "align.sample", {"p": ("preferences", {"preferences.parquet": [pair]})}, inputs)
    assert trace(world.home, "pair-1").subject.kind == "preference pair"


def test_an_answer_leads_to_its_model_and_application(world: World) -> None:
    ledger, d = world.home.ledger, world.digests
    app = world.make("app", "apply.build", {"app": ("app", {"app.json": {}})}, [("model", d["sft"])])["app"]
    ledger.add_answer("chatcmpl-1", d["sft"], app, "r" * 64, {"finish_reason": "stop"})
    found = trace(world.home, "chatcmpl-1")
    assert [node.facts["port"] for node in found.up] == ["app", "model"]
    assert {"app", "sft", "chats", "docs"} <= names(world, found.up)
    assert found.licences == ("CC-BY-4.0", "MIT")
    answers = [node for node in walk(trace(world.home, app, "down").down) if node.kind == "answer"]
    assert [answer.title for answer in answers] == ["chatcmpl-1"]


def test_an_answer_of_a_model_outside_the_store_names_its_digest(world: World) -> None:
    world.home.ledger.add_answer("chatcmpl-2", "f" * 64, None, "r" * 64, {"finish_reason": "stop"})
    found = trace(world.home, "chatcmpl-2", "up")
    assert [(node.facts["port"], node.digest) for node in found.up] == [("model", "f" * 64)]
    assert found.up[0].facts["outside"]
    assert "removed" not in found.up[0].facts
    assert not found.up[0].children


def test_what_the_store_no_longer_holds_is_still_known(world: World) -> None:
    world.home.store.delete(world.digests["kept"])
    found = trace(world.home, "last/base", "up")
    assert names(world, found.up) == {"tokens", "kept", "docs", "vocab"}
    removed = {node.digest for node in walk(found.up) if node.facts.get("removed")}
    assert removed == {world.digests["kept"]}
    assert next(node for node in walk(found.up) if node.digest in removed).kind == "corpus"


def test_without_records_the_manifests_are_believed(world: World, tmp_path: Any, monkeypatch: Any) -> None:
    monkeypatch.setenv("LIUYI_LEDGER_URL", str(tmp_path / "empty.db"))
    from liuyi.core.home import Home

    fresh = Home(world.home.path)
    found = trace(fresh, world.digests["sft"], "up")
    assert names(world, found.up) == {"base", "tokens", "kept", "docs", "vocab", "chats"}


def test_json_says_what_the_nodes_say(world: World) -> None:
    said = trace(world.home, "last/base").as_json()
    assert said["subject"]["digest"] == world.digests["base"]
    assert said["up"][0]["port"] == "tokens"
    assert said["up"][0]["children"][0]["children"][0]["digest"] == world.digests["docs"]
    assert said["licences"] == ["MIT"]


@pytest.mark.parametrize(
    ("ref", "error", "message"),
    [
        ("nosuch", LiuyiError, "nothing here is called 'nosuch'"),
        ("f" * 12, LiuyiError, "nothing here is called"),
        ("last", LiuyiError, "it is a run"),
        ("sft.checkpoint", ArtifactError, "did you mean 'last/sft.checkpoint'"),
        ("stf", LiuyiError, "nothing here is called 'stf'"),
        ("last/stf", LedgerError, "did you mean 'sft'"),
        ("last/sft.chekpoint", LedgerError, "did you mean 'checkpoint'"),
        ("last/gate", LedgerError, "last/gate.checkpoint, last/gate.verdict"),
        ("nosuch/sft", LedgerError, "no run 'nosuch'"),
        ("last/after:item-9", ArtifactError, "holds no row 'item-9'"),
        ("last/sft:item-1", ArtifactError, "has no rows"),
    ],
)
def test_what_names_nothing_is_told_with_what_would_be_right(
    world: World, ref: str, error: type[LiuyiError], message: str
) -> None:
    with pytest.raises(error) as caught:
        trace(world.home, ref)
    assert message in str(caught.value)


@pytest.mark.parametrize(
    ("ref", "message"),
    [
        ("sft", "did you mean 'last/sft'?"),
        ("sft.checkpiont", "did you mean 'last/sft.checkpiont'?"),
        ("my-model", "last/STEP.OUTPUT"),
        ("./my-model", "./my-model: there is no such file or folder"),
        ("models/small.gguf", "models/small.gguf: there is no such file or folder"),
        ("HuggingFaceTB/SmolLM2-135M", "hf download HuggingFaceTB/SmolLM2-135M"),
        ("lats/sft", "there is no run 'lats'"),
        ("http://me:pass-word@host:8000", "http://me:***@host:8000: an address is no artifact, and no path"),
    ],
)
def test_a_model_that_is_not_there_is_told_by_what_was_meant(world: World, ref: str, message: str) -> None:
    with pytest.raises(LiuyiError) as caught:
        resolve_artifact(world.home, ref)
    assert message in str(caught.value)


def test_a_damaged_table_is_not_believed(world: World) -> None:
    path = world.home.store.open(world.digests["tokens"]).file("documents.parquet")
    data = bytearray(path.read_bytes())
    data[len(data) // 2] ^= 1
    path.write_bytes(data)
    with pytest.raises(ArtifactError, match=r"tokens .* is damaged: documents\.parquet"):
        trace(world.home, IN_TRAINING)
