"""Model folders: `transformers` reads ours, we read theirs, and what is wrong is named."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from tiny_models import hf_model, our_model

from liuyi.core.errors import ModelError
from liuyi.model.checkpoint import load_config, load_model, save_model
from liuyi.model.config import DecoderConfig
from liuyi.model.decoder import Decoder, init_weights
from liuyi.model.tokenizer import Tokenizer, train_bpe

TOKENS = torch.arange(60).view(2, 30)


@pytest.fixture(scope="module")
def tokenizer() -> Tokenizer:
    return train_bpe(["turn on the light"] * 5, 280)


def _logits(model: Decoder) -> torch.Tensor:
    with torch.inference_mode():
        return model.logits(model(TOKENS))


def _their_logits(folder: Path) -> torch.Tensor:
    from transformers import AutoModelForCausalLM

    model = AutoModelForCausalLM.from_pretrained(folder, attn_implementation="eager")
    with torch.inference_mode():
        return torch.as_tensor(model(TOKENS).logits)


def test_transformers_reads_our_folder(pair: tuple[Decoder, Any], tmp_path: Path) -> None:
    ours, _ = pair
    save_model(tmp_path, ours)
    torch.testing.assert_close(_their_logits(tmp_path), _logits(ours), atol=1e-5, rtol=1e-5)
    assert torch.equal(_logits(load_model(tmp_path)), _logits(ours))
    assert load_model(tmp_path).config == ours.config


def test_we_read_the_folder_of_transformers_in_shards_too(pair: tuple[Decoder, Any], tmp_path: Path) -> None:
    ours, theirs = pair
    theirs.save_pretrained(tmp_path / "whole")
    theirs.save_pretrained(tmp_path / "shards", max_shard_size="40KB")
    assert len(list((tmp_path / "shards").glob("*.safetensors"))) > 2
    for name in ("whole", "shards"):
        assert torch.equal(_logits(load_model(tmp_path / name)), _logits(ours))


def test_the_whole_folder_works_in_transformers(tokenizer: Tokenizer, tmp_path: Path) -> None:
    from transformers import AutoModelForCausalLM, AutoTokenizer

    config = DecoderConfig("qwen3", 280, 32, 48, 2, 4, 2, 8, qk_norm=True, tie_word_embeddings=True, eos_token_id=0)
    model = Decoder(config)
    init_weights(model, seed=1)
    save_model(tmp_path, model, tokenizer, {"note": 1})
    assert sorted(path.name for path in tmp_path.iterdir()) == [
        "config.json",
        "generation_config.json",
        "liuyi.json",
        "model.safetensors",
        "tokenizer.json",
        "tokenizer_config.json",
    ]
    theirs, their_tokenizer = AutoModelForCausalLM.from_pretrained(tmp_path), AutoTokenizer.from_pretrained(tmp_path)
    ids = their_tokenizer("turn on", return_tensors="pt")
    assert ids["input_ids"][0].tolist() == tokenizer.encode("turn on")
    written = theirs.generate(**ids, max_new_tokens=8, do_sample=False)[0]
    with torch.inference_mode():
        expected = ids["input_ids"]
        for _ in range(len(written) - expected.shape[1]):
            expected = torch.cat((expected, model.logits(model(expected))[:, -1:].argmax(-1)), dim=1)
    assert written.tolist() == expected[0].tolist()
    assert theirs.generation_config.eos_token_id == [0, 2]
    assert load_config(tmp_path).eos_token_ids == (0, 2)


def test_the_same_model_gives_the_same_bytes(tokenizer: Tokenizer, tmp_path: Path) -> None:
    for name in ("a", "b"):
        model = our_model(hf_model("qwen2"))
        save_model(tmp_path / name, model, tokenizer, {"b": 1, "a": 2})
    save_model(tmp_path / "c", load_model(tmp_path / "a"), tmp_path / "a", {"a": 2, "b": 1})
    for path in (tmp_path / "a").iterdir():
        assert path.read_bytes() == (tmp_path / "b" / path.name).read_bytes()
        if path.name != "config.json":
            assert path.read_bytes() == (tmp_path / "c" / path.name).read_bytes()


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_narrow_weights_keep_their_dtype(dtype: torch.dtype, tmp_path: Path) -> None:
    save_model(tmp_path, our_model(hf_model("llama2")).to(dtype))
    assert {tensor.dtype for tensor in load_file(tmp_path / "model.safetensors").values()} == {dtype}
    wide = load_model(tmp_path)
    assert {parameter.dtype for parameter in wide.parameters()} == {torch.float32}
    assert {parameter.dtype for parameter in load_model(tmp_path, dtype).parameters()} == {dtype}


def test_initial_weights_are_a_function_of_the_seed() -> None:
    models = [Decoder(our_model(hf_model("llama-biased")).config) for _ in range(3)]
    for model, seed in zip(models, (1, 1, 2), strict=True):
        init_weights(model, seed)
    assert torch.equal(_logits(models[0]), _logits(models[1]))
    assert not torch.equal(_logits(models[0]), _logits(models[2]))
    assert models[0].model.embed_tokens.weight.std().item() == pytest.approx(0.02, rel=0.05)
    mlp = models[0].model.layers[0].mlp
    assert mlp.down_proj.weight.std().item() == pytest.approx(0.02 / 6**0.5, rel=0.05)


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    save_model(tmp_path, our_model(hf_model("llama2")))
    return tmp_path


def _edit(folder: Path, **fields: Any) -> None:
    path = folder / "config.json"
    values = {**json.loads(path.read_text()), **fields}
    path.write_text(json.dumps({name: value for name, value in values.items() if value is not ...}))


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"model_type": "gpt2", "architectures": ["GPT2LMHeadModel"]}, "GPT2LMHeadModel is not supported"),
        ({"hidden_act": "gelu"}, "'gelu' is not supported"),
        ({"mlp_bias": True}, "mlp_bias"),
        ({"num_key_value_heads": 4}, "cannot share"),
        ({"hidden_size": ...}, "'hidden_size' is missing"),
        ({"hidden_size": "48"}, "must be a positive whole number"),
        ({"hidden_size": 0}, "must be a positive whole number"),
        ({"num_hidden_layers": 10**12}, "is 1000000000000, more than 1024"),
        (
            {
                "model_type": "qwen3",
                "num_hidden_layers": 10**12,
                "use_sliding_window": True,
                "sliding_window": 4,
            },
            "more than 1024",
        ),
        ({"num_attention_heads": 0, "head_dim": None}, "a value that it cannot have"),
        ({"rope_parameters": ["default"]}, "a value that it cannot have"),
        ({"rope_parameters": {"rope_theta": "large"}}, "a value that it cannot have"),
        ({"rope_parameters": {"rope_theta": -1}}, "must be a number above 0, not -1"),
        ({"head_dim": 7}, "must be even"),
        ({"rope_parameters": {"rope_type": "longrope"}}, "'longrope' is not supported"),
        ({"rope_parameters": {"rope_type": "yarn"}}, "lacks factor"),
        ({"rope_parameters": {"rope_type": "default", "partial_rotary_factor": 0.5}}, "partial"),
        (
            {"rope_parameters": {"rope_theta": 1e5}, "rope_scaling": {"rope_type": "linear", "factor": 2.0}},
            "otherwise than rope_parameters",
        ),
        ({"model_type": "qwen3", "layer_types": ["x"], "use_sliding_window": True, "sliding_window": 4}, "layer_types"),
        ({"model_type": "mistral", "sliding_window": 0}, "must be at least 1"),
        ({"model_type": ["llama"], "architectures": 3}, r"\['llama'\] is not supported"),
        ({"rms_norm_eps": "small"}, "a value that it cannot have"),
        ({"eos_token_id": ["</s>"]}, "must be the ids of tokens, not '</s>'"),
        ({"rope_parameters": {"rope_type": "linear", "factor": "2"}}, "'factor' must be a number above 0, not '2'"),
    ],
)
def test_what_is_not_supported_is_named(folder: Path, fields: dict[str, Any], message: str) -> None:
    _edit(folder, **fields)
    with pytest.raises(ModelError, match=message) as raised:
        load_config(folder)
    assert "config.json" in raised.value.where


def test_rope_may_be_said_in_both_fields_if_it_is_the_same(folder: Path) -> None:
    linear = {"rope_type": "linear", "factor": 2.0}
    _edit(folder, rope_parameters=linear | {"rope_theta": 1e5}, rope_scaling={"type": "linear", "factor": 2.0})
    config = load_config(folder)
    assert (config.rope_scaling, config.rope_theta) == (linear, 1e5)


def test_the_file_of_a_wrong_value_is_named_once(folder: Path) -> None:
    _edit(folder, head_dim=7)
    with pytest.raises(ModelError) as raised:
        load_config(folder)
    assert raised.value.where == f"{folder / 'config.json'}, head_dim"
    _edit(folder, head_dim=8)
    (folder / "generation_config.json").write_text('{"eos_token_id": "</s>"}')
    with pytest.raises(ModelError) as raised:
        load_config(folder)
    assert raised.value.where == f"{folder / 'generation_config.json'}, eos_token_id"


def test_sizes_beyond_any_memory_are_refused(folder: Path) -> None:
    _edit(folder, hidden_size=10**12, intermediate_size=10**12)
    with pytest.raises(ModelError, match="no model can be of these sizes") as raised:
        load_model(folder)
    assert raised.value.where == str(folder / "config.json")


def test_supported_families_are_listed(folder: Path) -> None:
    _edit(folder, model_type="gpt2")
    with pytest.raises(ModelError, match="llama, mistral, mixtral, qwen2, qwen3, qwen3_moe"):
        load_model(folder)


def _rewrite(folder: Path, **tensors: torch.Tensor | None) -> None:
    weights = load_file(folder / "model.safetensors")
    for name, tensor in tensors.items():
        weights.pop(name, None)
        if tensor is not None:
            weights[name] = tensor
    save_file(weights, folder / "model.safetensors")


@pytest.mark.parametrize(
    ("tensors", "message"),
    [
        ({"model.norm.weight": None}, "'model.norm.weight' is missing"),
        ({"model.norm.weight": None, "lm_head.weight": None}, "'.*' and 1 more is missing"),
        ({"model.extra": torch.zeros(1)}, "the tensor 'model.extra', which a llama model has not"),
        (
            {"model.norm.weight": torch.zeros(5)},
            r"'model.norm.weight' has the shape \[5\]; config.json asks for \[48\]",
        ),
    ],
)
def test_wrong_tensors_are_named(folder: Path, tensors: dict[str, torch.Tensor | None], message: str) -> None:
    _rewrite(folder, **tensors)
    with pytest.raises(ModelError, match=message) as raised:
        load_model(folder)
    assert str(folder) in raised.value.where


def test_old_folders_with_frequencies_and_a_stored_tied_head_are_read(tmp_path: Path) -> None:
    model = our_model(hf_model("smollm2"))
    save_model(tmp_path, model)
    head = model.head_weight.detach().clone()
    _rewrite(tmp_path, **{"model.layers.0.self_attn.rotary_emb.inv_freq": torch.ones(4), "lm_head.weight": head})
    assert torch.equal(_logits(load_model(tmp_path)), _logits(model))


def test_pickles_are_refused(folder: Path) -> None:
    (folder / "model.safetensors").unlink()
    with pytest.raises(ModelError, match=r"has no model\.safetensors"):
        load_model(folder)
    torch.save({}, folder / "pytorch_model.bin")
    with pytest.raises(ModelError, match=r"pytorch_model\.bin is a pickle") as raised:
        load_model(folder)
    assert "save_pretrained" in raised.value.hint


def test_damaged_weights_are_named(folder: Path) -> None:
    path = folder / "model.safetensors"
    path.write_bytes(path.read_bytes()[:-10])
    with pytest.raises(ModelError, match="cannot be read") as raised:
        load_model(folder)
    assert str(path) in raised.value.where


@pytest.mark.parametrize("name", ["../../etc/passwd", "gone.safetensors"])
def test_an_index_names_files_of_its_folder_only(folder: Path, name: str) -> None:
    (folder / "model.safetensors").unlink()
    (folder / "model.safetensors.index.json").write_text(json.dumps({"weight_map": {"a": name}}))
    with pytest.raises(ModelError, match="that the index names are missing"):
        load_model(folder)


@pytest.mark.parametrize("named", [None, ["a.safetensors"], {"a": 1}])
def test_an_index_without_names_is_told(folder: Path, named: Any) -> None:
    (folder / "model.safetensors").unlink()
    (folder / "model.safetensors.index.json").write_text(json.dumps({"weight_map": named}))
    with pytest.raises(ModelError, match="does not name a file for each tensor"):
        load_model(folder)


@pytest.mark.parametrize("content", [None, "{", "[]"])
def test_a_damaged_config_is_named(folder: Path, content: str | None) -> None:
    (folder / "config.json").unlink()
    if content is not None:
        (folder / "config.json").write_text(content)
    with pytest.raises(ModelError) as raised:
        load_model(folder)
    assert "config.json" in raised.value.where


def test_writing_over_a_folder_leaves_it_whole(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    before = {path.name: path.read_bytes() for path in folder.iterdir()}
    other = our_model(hf_model("llama2", seed=5))

    def full(self: Path, target: Path) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(Path, "replace", full)
    with pytest.raises(OSError, match="No space"):
        save_model(folder, other)
    assert {name: (folder / name).read_bytes() for name in before} == before


def test_a_config_that_no_library_could_read_is_not_written(tmp_path: Path) -> None:
    config = DecoderConfig("llama", 10, 8, 8, 1, 1, 1, 8, qk_norm=True)
    with pytest.raises(ModelError, match="mix of biases and norms"):
        save_model(tmp_path, Decoder(config))
    shutil.rmtree(tmp_path)
