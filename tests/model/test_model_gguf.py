"""GGUF files that another library wrote: tensors, model, tokenizer, and what is wrong with damaged ones."""

from __future__ import annotations

import dataclasses
import math
import random
import resource
import struct
from pathlib import Path
from typing import Any

import gguf
import numpy as np
import pytest
import torch
from chat_templates import SMOLLM2
from tiny_models import hf_model, our_model

from liuyi.core.errors import ModelError
from liuyi.core.home import Home
from liuyi.model.checkpoint import load_model
from liuyi.model.decoder import Decoder, init_weights
from liuyi.model.exchange import import_model
from liuyi.model.gguf import GGUF
from liuyi.model.gguf_export import export_gguf
from liuyi.model.gguf_import import load_gguf
from liuyi.model.gguf_vocabulary import read_vocabulary
from liuyi.model.loss import linear_cross_entropy
from liuyi.model.tokenizer import Tokenizer, train_bpe

Kind = gguf.GGMLQuantizationType
NAMES = {
    "model.embed_tokens": "token_embd",
    "model.norm": "output_norm",
    "lm_head": "output",
    "input_layernorm": "attn_norm",
    "post_attention_layernorm": "ffn_norm",
    "self_attn.q_proj": "attn_q",
    "self_attn.k_proj": "attn_k",
    "self_attn.v_proj": "attn_v",
    "self_attn.o_proj": "attn_output",
    "self_attn.q_norm": "attn_q_norm",
    "self_attn.k_norm": "attn_k_norm",
    "mlp.gate_proj": "ffn_gate",
    "mlp.up_proj": "ffn_up",
    "mlp.down_proj": "ffn_down",
}
TEXTS = ["turn on the kitchen lights, 123 4567", "    def f(x):\n\n        return 'é' 中文\t!!"] * 3


@pytest.fixture(scope="module")
def tokenizer() -> Tokenizer:
    return train_bpe(TEXTS, 262)


def _writer(path: Path, model: Decoder, arch: str, tokenizer: Tokenizer | None, pre: str = "smollm") -> gguf.GGUFWriter:
    config = model.config
    writer = gguf.GGUFWriter(path, arch)
    writer.add_block_count(config.num_hidden_layers)
    writer.add_context_length(config.max_position_embeddings)
    writer.add_embedding_length(config.hidden_size)
    writer.add_feed_forward_length(config.intermediate_size)
    writer.add_head_count(config.num_attention_heads)
    writer.add_head_count_kv(config.num_key_value_heads)
    writer.add_key_length(config.head_dim)
    writer.add_rope_freq_base(config.rope_theta)
    writer.add_layer_norm_rms_eps(config.rms_norm_eps)
    if config.sliding_window:
        writer.add_sliding_window(config.sliding_window)
    writer.add_tokenizer_model("gpt2")
    writer.add_tokenizer_pre(pre)
    if tokenizer is None:
        writer.add_token_list([f"t{at}" for at in range(config.vocab_size)])
        writer.add_token_merges([])
    else:
        written = [tokenizer.backend.id_to_token(at) for at in range(tokenizer.vocab_size)]
        writer.add_token_list(written)
        writer.add_token_types([3 if token in tokenizer.special_tokens else 1 for token in written])
        import json

        merges = json.loads(tokenizer.backend.to_str())["model"]["merges"]
        writer.add_token_merges([" ".join(merge) for merge in merges])
        writer.add_eos_token_id(2)
        writer.add_pad_token_id(3)
        writer.add_chat_template(SMOLLM2)
    return writer


def _add_tensors(writer: gguf.GGUFWriter, model: Decoder, arch: str, kind: Any = Kind.F32) -> None:
    config = model.config
    for name, tensor in model.state_dict().items():
        stem, suffix = name.rsplit(".", 1)
        layer = stem.removeprefix("model.layers.").split(".")[0]
        short = NAMES[stem] if stem in NAMES else f"blk.{layer}.{NAMES[stem.split('.', 3)[3]]}"
        if arch == "llama" and stem.endswith(("q_proj", "k_proj")):
            halves = tensor.view(-1, 2, config.head_dim // 2, *tensor.shape[1:])
            tensor = halves.transpose(1, 2).reshape(tensor.shape)
        values = tensor.numpy()
        if values.ndim == 1 or values.shape[1] % 32:
            writer.add_tensor(f"{short}.{suffix}", values)
        else:
            writer.add_tensor(f"{short}.{suffix}", gguf.quants.quantize(values, kind), raw_dtype=kind)


def _finish(writer: gguf.GGUFWriter) -> None:
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()


def _write(path: Path, name: str, tokenizer: Tokenizer | None = None, kind: Any = Kind.F32) -> Decoder:
    model = our_model(hf_model(name))
    arch = {"mistral": "llama"}.get(model.config.family, model.config.family)
    writer = _writer(path, model, arch, tokenizer)
    _add_tensors(writer, model, arch, kind)
    _finish(writer)
    return model


@pytest.mark.parametrize("name", ["llama2", "smollm2", "llama-biased", "mistral", "qwen2", "qwen3"])
def test_a_model_comes_back(name: str, tmp_path: Path) -> None:
    model = _write(tmp_path / "m.gguf", name)
    loaded, _ = load_gguf(tmp_path / "m.gguf")
    tokens = torch.arange(40).view(2, 20)
    with torch.inference_mode():
        assert torch.equal(loaded.logits(loaded(tokens)), model.logits(model(tokens)))
    assert loaded.config.num_parameters == model.config.num_parameters
    assert loaded.config.rms_norm_eps == model.config.rms_norm_eps


def test_a_tokenizer_comes_back(tokenizer: Tokenizer, tmp_path: Path) -> None:
    model = our_model(hf_model("llama2"))
    writer = _writer(tmp_path / "m.gguf", model, "llama", tokenizer)
    _finish(writer)
    loaded = read_vocabulary(GGUF(tmp_path / "m.gguf"))
    for text in [*TEXTS, "a<|im_end|>\nb  c"]:
        assert loaded.encode(text) == tokenizer.encode(text)
        assert loaded.decode(loaded.encode(text)) == text
    assert (loaded.eos_id, loaded.pad_id, loaded.bos_id, loaded.chat_template) == (2, 3, None, SMOLLM2)
    assert loaded.special_tokens == tokenizer.special_tokens


@pytest.mark.parametrize(
    ("pre", "pieces"),
    [
        ("smollm", "ab ' D Ġ 1 2 3 4 ĠC"),
        ("gpt-2", "ab ' D Ġ1234 ĠC"),
        ("llama-bpe", "ab 'D Ġ 123 4 ĠC"),
        ("qwen2", "ab 'D Ġ 1 2 3 4 ĠC"),
    ],
)
def test_text_is_cut_as_the_file_says(pre: str, pieces: str, tokenizer: Tokenizer, tmp_path: Path) -> None:
    model = our_model(hf_model("llama2"))
    _finish(_writer(tmp_path / "m.gguf", model, "llama", tokenizer, pre))
    backend = read_vocabulary(GGUF(tmp_path / "m.gguf")).backend
    assert [piece for piece, _ in backend.pre_tokenizer.pre_tokenize_str("ab'D 1234 C")] == pieces.split(" ")


def test_it_is_imported_as_a_checkpoint_under_its_own_licence(home: Home, tmp_path: Path) -> None:
    model = our_model(hf_model("smollm2"))
    writer = _writer(tmp_path / "small.gguf", model, "llama", None)
    writer.add_license("apache-2.0")
    _add_tensors(writer, model, "llama", Kind.Q8_0)
    _finish(writer)
    artifact = import_model(home, tmp_path / "small.gguf")
    assert (artifact.kind, artifact.manifest.licences) == ("checkpoint", ("apache-2.0",))
    assert artifact.manifest.metrics["parameters"] == model.config.num_parameters
    loaded, _ = load_gguf(tmp_path / "small.gguf")
    tokens = torch.arange(20)[None]
    with torch.inference_mode():
        assert torch.equal(load_model(artifact.path)(tokens), loaded(tokens))
    assert import_model(home, tmp_path / "small.gguf").digest == artifact.digest


def test_what_is_not_supported_is_named(tokenizer: Tokenizer, tmp_path: Path) -> None:
    model = our_model(hf_model("llama2"))
    path = tmp_path / "m.gguf"

    def refused(message: str) -> None:
        with pytest.raises(ModelError, match=message) as raised:
            load_gguf(path)
        assert "m.gguf" in raised.value.where

    writer = _writer(path, model, "gpt2", None)
    _finish(writer)
    refused("architecture 'gpt2' is not supported")
    writer = _writer(path, model, "llama", tokenizer, "strange")
    _add_tensors(writer, model, "llama")
    _finish(writer)
    refused("the shape")
    writer = _writer(path, model, "llama", None)
    writer.add_tensor("rope_freqs.weight", np.arange(1, 5, dtype=np.float32))
    _finish(writer)
    refused("'rope_freqs.weight' are not those of a Llama 3 model")
    writer = _writer(path, model, "llama", None)
    writer.add_tensor("blk.0.attn_sinks.weight", np.ones(4, np.float32))
    _finish(writer)
    refused("holds the tensor 'blk.0.attn_sinks.weight'")
    writer = _writer(path, model, "llama", None)
    _finish(writer)
    refused(r"has no tensor for 'model\.embed_tokens\.weight'")
    writer = _writer(path, model, "llama", None, "strange")
    _add_tensors(writer, model, "llama")
    _finish(writer)
    refused("cut like 'strange'")
    writer = _writer(path, model, "llama", None)
    writer.add_uint16("split.count", 2)
    _finish(writer)
    refused("is one of 2 parts of a model")
    writer = gguf.GGUFWriter(path, "llama")
    _finish(writer)
    refused("has no 'llama.attention.head_count'")
    writer = gguf.GGUFWriter(path, "llama")
    writer.add_tensor("t", np.zeros((4, 66), np.uint8), raw_dtype=Kind.IQ2_XXS)
    _finish(writer)
    with pytest.raises(ModelError, match="format number 16"):
        GGUF(path).tensor("t")


@pytest.mark.parametrize("name", ["smollm2", "llama3", "qwen3"])
def test_no_damage_is_more_than_an_error(name: str, tokenizer: Tokenizer, tmp_path: Path) -> None:
    """Cut short, bytes changed or gone, lengths gone wild: a ModelError or a model, and no great allocation."""
    path = tmp_path / "m.gguf"
    model = our_model(hf_model(name))
    fresh = Decoder(dataclasses.replace(model.config, vocab_size=tokenizer.vocab_size))
    init_weights(fresh, seed=1)
    export_gguf(fresh, tokenizer, path, "F16")
    whole, header, chance = path.read_bytes(), GGUF(path)._data, random.Random(1)
    damaged = [whole[: chance.randrange(len(whole))] for _ in range(15)]
    for _ in range(60):
        changed, at = bytearray(whole), chance.randrange(header)
        match chance.randrange(4):
            case 0:
                changed[at] = chance.randrange(256)
            case 1:
                changed[at : at + 8] = struct.pack("<Q", chance.choice((0, 1, 2**64 - 1, 2**63, 2**40, 2**31)))
            case 2:
                changed[at : at + 4] = struct.pack("<I", chance.choice((0, 8, 9, 2**32 - 1, 2**24)))
            case _:
                del changed[at : at + chance.randrange(1, 9)]
        damaged.append(bytes(changed))
    before, refused = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss, 0
    for content in [*damaged, b"", b"GGUF", b"x" * 100]:
        path.write_bytes(content)
        try:
            load_gguf(path)
        except ModelError:
            refused += 1
    assert refused > 40
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before < 200_000


def test_weights_that_are_not_numbers_are_named(tmp_path: Path) -> None:
    path = tmp_path / "m.gguf"
    _write(path, "smollm2")
    begin = GGUF(path)._data
    content = bytearray(path.read_bytes())
    content[begin : begin + 4] = np.array([np.nan], np.float32).tobytes()
    path.write_bytes(content)
    with pytest.raises(ModelError, match=r"holds values in 'token_embd\.weight' that are not finite"):
        load_gguf(path)
    with pytest.raises(ModelError, match="cannot be read: No such file"):
        load_gguf(tmp_path / "none.gguf")


def test_perplexity_of_a_file_in_q4_1_is_that_of_transformers(tokenizer: Tokenizer, tmp_path: Path) -> None:
    """As SmolLM2-135M-Instruct is packaged: imported, and read by transformers from the file itself."""
    import transformers

    random_model = our_model(hf_model("smollm2"))
    shape = dataclasses.replace(
        random_model.config, vocab_size=tokenizer.vocab_size, hidden_size=64, intermediate_size=96, head_dim=16
    )
    model = Decoder(dataclasses.replace(shape, num_attention_heads=4, num_key_value_heads=2))
    init_weights(model, seed=2, std=0.2)
    path = tmp_path / "small.gguf"
    writer = _writer(path, model, "llama", tokenizer)
    _add_tensors(writer, model, "llama", Kind.Q4_1)
    _finish(writer)

    loaded, read = load_gguf(path)
    text = "".join(TEXTS)
    ids = torch.tensor([read.encode(text)])
    with torch.inference_mode():
        hidden = loaded(ids)[0, :-1]
        ours = linear_cross_entropy(hidden, loaded.head_weight, ids[0, 1:]).item() / hidden.shape[0]
        theirs = transformers.AutoModelForCausalLM.from_pretrained(tmp_path, gguf_file=path.name, dtype=torch.float32)
        expected = theirs.eval()(ids, labels=ids).loss.item()
        unrounded = model(ids)[0, :-1]
        exact = linear_cross_entropy(unrounded, model.head_weight, ids[0, 1:]).item() / hidden.shape[0]
    their_tokenizer = transformers.AutoTokenizer.from_pretrained(tmp_path, gguf_file=path.name)
    assert their_tokenizer(text, add_special_tokens=False)["input_ids"] == ids[0].tolist()
    assert math.exp(ours) == pytest.approx(math.exp(expected), rel=1e-5)
    assert abs(math.expm1(exact - expected)) > 1e-3, "four bits should be seen in the perplexity"
