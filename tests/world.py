"""A small world for the tests: a home whose artifacts descend from documents to a gate's verdict."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from copy import copy
from pathlib import Path
from typing import Any

from liuyi.core.artifact import InputRef
from liuyi.core.digest import sha256_json
from liuyi.core.home import Home


class World:
    """A home, and one run in it that went from documents through training to a gate.

    docs ─ corpus ─┬─ clean ─┬─ kept ──┬─ tokenizer
                   │         │         └─ tokens ─ train ─ base ─┬─ evaluate ─ scores
                   │         └─ held ──── held_tokens ───────────┘
    desk ─┬─ chats ─ sft(base) ─ tuned ─┬─ gate ─ tuned (the same), verdict
          └─ evalset ─ before ──────────┘
    """

    def __init__(self, home: Home) -> None:
        self.home = home
        self.run_id = home.ledger.create_run(
            recipe="world", text="recipe: world", source="w.yaml", overrides=[], seed=1
        )
        self.digests: dict[str, str] = {}
        self._position = 0

    def at(self, home: Home) -> World:
        """The same world in a copy of its home."""
        moved = copy(self)
        moved.home, moved.digests = home, dict(self.digests)
        return moved

    def make(
        self,
        name: str,
        step: str,
        outputs: Mapping[str, tuple[Any, Mapping[str, Any]]],
        inputs: Sequence[tuple[str, str]] = (),
        licences: Sequence[str] = (),
        run_id: str | None = None,
    ) -> dict[str, str]:
        """Do a step: `outputs` is port → (kind, files); a list of rows becomes a Parquet file, the rest JSON."""
        ledger, store = self.home.ledger, self.home.store
        refs = [InputRef(name=port, digest=digest) for port, digest in inputs]
        key = sha256_json([step, name, [list(pair) for pair in inputs]])
        made = {}
        for port, (kind, files) in outputs.items():
            staging = store.stage(kind)
            for file, content in files.items():
                write(staging.path / file, content)
            staging.licences |= set(licences)
            artifact = store.publish(staging, step=step, step_key=key, output=port, inputs=refs, params={"of": name})
            ledger.record_artifact(artifact.manifest)
            made[port] = artifact.digest
            self.digests.setdefault(port if len(outputs) > 1 else name, artifact.digest)
        run_id = run_id or self.run_id
        ledger.record_execution(
            key=key,
            step=step,
            version=1,
            params={"of": name},
            seed=1,
            device="cpu",
            inputs=list(inputs),
            outputs=made,
            seconds=1.0,
            run_id=run_id,
        )
        ledger.put_step(run_id, name, step=step, key=key, status="done", position=self._position)
        self._position += 1
        return made

    def build(self) -> World:
        d = self.digests
        documents = [document(number) for number in range(8)]
        self.make("docs", "data.python_docs", {"corpus": ("corpus", {"documents.parquet": documents})}, (), ["MIT"])
        dropped = [documents[6] | {"reason": "too short"}, documents[7] | {"reason": "near-duplicate"}]
        kept = {"documents.parquet": documents[:4], "dropped.parquet": dropped}
        held = {"documents.parquet": documents[4:6]}
        self.make("clean", "data.select", {"kept": ("corpus", kept), "held": ("corpus", held)}, [("corpus", d["docs"])])
        self.make(
            "vocab", "data.tokenizer", {"tokenizer": ("tokenizer", {"tokenizer.json": {}})}, [("corpus", d["kept"])]
        )
        for name, corpus, rows in (("tokens", "kept", documents[:4]), ("held_tokens", "held", documents[4:6])):
            listed = [
                {"id": row["id"], "offset": 0, "tokens": 3, "bytes": 9, "cluster": row["cluster"]} for row in rows
            ]
            inputs = [("corpus", d[corpus]), ("tokenizer", d["vocab"])]
            self.make(name, "data.tokens", {"tokens": ("tokens", {"documents.parquet": listed})}, inputs)
        inputs = [("tokens", d["tokens"]), ("tokenizer", d["vocab"])]
        self.make("base", "pretrain.train", {"checkpoint": ("checkpoint", {"config.json": {"n": 1}})}, inputs, ["MIT"])
        scored = [{"item": row["id"], "cluster": row["cluster"], "bits_model": 2.0} for row in documents[4:6]]
        inputs = [("model", d["base"]), ("tokens", d["held_tokens"])]
        self.make("scores", "pretrain.evaluate", {"evaluation": ("evaluation", {"items.parquet": scored})}, inputs)
        chats = [chat(number) for number in range(3)]
        items = [item(number) for number in range(2)]
        desk = {"chats": ("chats", {"chats.parquet": chats}), "evalset": ("evalset", {"items.parquet": items})}
        self.make("desk", "data.desk", desk, (), ["CC-BY-4.0"])
        inputs = [("model", d["base"]), ("chats", d["chats"])]
        self.make("sft", "finetune.sft", {"checkpoint": ("checkpoint", {"config.json": {"n": 2}})}, inputs, ["MIT"])
        for name, model in (("before", "base"), ("after", "sft")):
            outcome = [{"item": row["id"], "cluster": "c", "output": name, "exact": 1.0} for row in items]
            inputs = [("model", d[model]), ("evalset", d["evalset"])]
            self.make(name, "evaluate.generate", {"evaluation": ("evaluation", {"items.parquet": outcome})}, inputs)
        verdict = {"stage": "fine-tuning", "decision": "promoted", "comparisons": []}
        gate = {
            "checkpoint": ("checkpoint", {"config.json": {"n": 2}}),
            "verdict": ("verdict", {"verdict.json": verdict}),
        }
        inputs = [("before", d["before"]), ("after", d["after"]), ("candidate", d["sft"]), ("current", d["base"])]
        self.make("gate", "evaluate.gate", gate, inputs)
        self.home.ledger.update_run(self.run_id, status="done")
        return self


def document(number: int) -> dict[str, Any]:
    return {
        "id": f"{number:02d}" * 8,
        "text": f"document {number}",
        "source": "requests" if number % 2 else "numpy",
        "url": f"requests/doc{number}.rst",
        "license": "Apache-2.0" if number % 2 else "BSD-3-Clause",
        "lang": "en",
        "created": "",
        "cluster": "requests" if number % 2 else "numpy",
    }


def chat(number: int) -> dict[str, Any]:
    messages = [{"role": "user", "content": f"turn on lamp {number}"}, {"role": "assistant", "content": "{}"}]
    return {
        "id": f"chat-{number}",
        "messages": json.dumps(messages),
        "source": "home-assistant-intents/en/light_HassTurnOn.yaml",
        "license": "CC-BY-4.0",
        "cluster": f"template-{number}",
    }


def item(number: int) -> dict[str, Any]:
    return {
        "id": f"item-{number}",
        "cluster": f"held-{number}",
        "messages": json.dumps([{"role": "user", "content": "turn it off"}]),
        "reference": "{}",
        "lang": "en",
        "kind": "clean",
        "source": "home-assistant-intents/en/light_HassTurnOff.yaml",
        "license": "CC-BY-4.0",
    }


def write(path: Path, content: Any) -> None:
    if isinstance(content, list):
        import pyarrow as pa
        import pyarrow.parquet as pq

        pq.write_table(pa.Table.from_pylist(content), path)
    else:
        path.write_text(json.dumps(content), encoding="utf-8")
