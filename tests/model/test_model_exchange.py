"""Model folders go into the store and out again, and other programs read what comes out."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from liuyi.core.errors import ArtifactError, ModelError
from liuyi.core.home import Home
from liuyi.model.checkpoint import load_model, save_model
from liuyi.model.config import DecoderConfig
from liuyi.model.decoder import Decoder
from liuyi.model.exchange import import_model, source_of
from liuyi.model.export import export_hf
from liuyi.model.tokenizer import train_bpe

CARD = "---\nlicense: apache-2.0\nlanguage: en\n---\n# A model\n"


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("made") / "tiny"
    tokenizer = train_bpe(["turn on the lamp in the kitchen"] * 4, 280)
    torch.manual_seed(0)
    config = DecoderConfig(
        family="llama",
        vocab_size=tokenizer.vocab_size,
        hidden_size=32,
        intermediate_size=48,
        num_hidden_layers=2,
        num_attention_heads=4,
        num_key_value_heads=2,
        head_dim=8,
        max_position_embeddings=64,
        eos_token_id=tokenizer.eos_id,
    )
    model = Decoder(config)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.normal_()
    save_model(folder, model, tokenizer, {"note": "ours"})
    return folder


@pytest.fixture
def folder(made: Path, tmp_path: Path) -> Path:
    """A model folder of somebody else's, with a card, a pickle and a link in it."""
    import shutil

    folder = tmp_path / "theirs"
    shutil.copytree(made, folder)
    (folder / "liuyi.json").unlink()
    (folder / "README.md").write_text(CARD)
    (folder / "optimizer.pt").write_bytes(b"a pickle")
    weights = (folder / "model.safetensors").rename(tmp_path / "blob")
    (folder / "model.safetensors").symlink_to(weights)
    return folder


def test_a_model_folder_becomes_a_pinned_checkpoint(home: Home, folder: Path) -> None:
    artifact = import_model(home, folder)
    manifest = artifact.manifest
    assert (manifest.kind, manifest.step, manifest.licences) == ("checkpoint", "import", ("apache-2.0",))
    assert {entry.path for entry in manifest.files} == {
        "README.md",
        "config.json",
        "generation_config.json",
        "model.safetensors",
        "tokenizer.json",
        "tokenizer_config.json",
    }
    assert not artifact.file("model.safetensors").is_symlink()
    assert [pin.digest for pin in home.ledger.pins()] == [artifact.digest]
    assert home.ledger.artifacts() == {artifact.digest: "checkpoint"}
    assert manifest.metrics["parameters"] == sum(p.numel() for p in load_model(folder).parameters())
    assert import_model(home, folder, licences=["MIT"]).digest == artifact.digest


def test_what_goes_out_is_the_same_model_without_what_is_ours(home: Home, made: Path, tmp_path: Path) -> None:
    digest = import_model(home, made).digest
    staging = home.store.stage("checkpoint")
    for path in home.store.open(digest).path.iterdir():
        if path.name != "manifest.json":
            (staging.path / path.name).write_bytes(path.read_bytes())
    for name in ("liuyi.json", "training.jsonl", "effect.json"):
        (staging.path / name).write_text("{}")
    ours = home.store.publish(staging, step="finetune.sft", output="checkpoint")
    names = export_hf(source_of(home, ours.digest[:10]), tmp_path / "out").files
    assert sorted(names) == sorted(path.name for path in (tmp_path / "out").iterdir())
    assert not {"liuyi.json", "training.jsonl", "effect.json", "manifest.json"} & set(names)
    exported, original = load_file(tmp_path / "out" / "model.safetensors"), load_file(made / "model.safetensors")
    assert exported.keys() == original.keys()
    assert all(torch.equal(exported[name], original[name]) for name in original)
    with pytest.raises(ArtifactError, match="exists already"):
        export_hf(source_of(home, ours.digest), tmp_path / "out")


@pytest.mark.slow
def test_transformers_reads_what_goes_out(home: Home, folder: Path, tmp_path: Path) -> None:
    transformers = pytest.importorskip("transformers")
    digest = import_model(home, folder).digest
    export_hf(source_of(home, digest), tmp_path / "out")
    theirs = transformers.AutoModelForCausalLM.from_pretrained(tmp_path / "out").eval()
    tokenizer = transformers.AutoTokenizer.from_pretrained(tmp_path / "out")
    ours = load_model(folder)
    tokens = torch.tensor([tokenizer("turn on the lamp")["input_ids"]])
    with torch.no_grad():
        torch.testing.assert_close(theirs(tokens).logits, ours.logits(ours(tokens)), rtol=1e-4, atol=1e-4)


def test_a_folder_that_is_no_model_is_refused_and_nothing_is_kept(home: Home, folder: Path) -> None:
    def refused(message: str) -> None:
        with pytest.raises(ModelError, match=message):
            import_model(home, folder)
        assert list(home.store.digests()) == []
        assert home.ledger.pins() == []

    weights = load_file(folder / "model.safetensors")
    (folder / "model.safetensors").unlink()
    refused("pickle")
    save_file({name: weights[name] for name in list(weights)[1:]}, folder / "model.safetensors")
    refused("is missing")
    save_file({name: tensor[:1] for name, tensor in weights.items()}, folder / "model.safetensors")
    refused("config.json asks for")
    save_file({**weights, "model.more": weights["model.norm.weight"].clone()}, folder / "model.safetensors")
    refused("holds the tensor 'model.more'")
    (folder / "model.safetensors").write_bytes(b"\0" * 100)
    refused("cannot be read")
    save_file(weights, folder / "model.safetensors")
    for front in ("license: [", "license: mit\ndate: 2020-13-45"):
        (folder / "README.md").write_text(f"---\n{front}\n---\n")
        refused("front matter is not YAML")
    (folder / "README.md").unlink()
    (folder / "config.json").write_text("{}")
    refused("config.json")


def test_only_checkpoints_that_others_can_read_go_out(home: Home, made: Path, tmp_path: Path) -> None:
    staging = home.store.stage("corpus")
    (staging.path / "x").write_text("y")
    corpus = home.store.publish(staging, step="data.files", output="corpus")
    with pytest.raises(ArtifactError, match="is not a model"):
        source_of(home, corpus.digest)
    staging = home.store.stage("checkpoint")
    (staging.path / "quantization.json").write_text(json.dumps({}))
    quantised = home.store.publish(staging, step="infer.quantize", output="checkpoint")
    with pytest.raises(ArtifactError, match="quantised"):
        export_hf(source_of(home, quantised.digest), tmp_path / "out")
    checkpoint = import_model(home, made)
    with pytest.raises(ArtifactError, match="cannot be written"):
        export_hf(source_of(home, checkpoint.digest), Path("/proc/nosuch/out"))
    assert not (tmp_path / "out").exists()
