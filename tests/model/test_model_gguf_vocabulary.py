"""Tokenizers in GGUF files: each named way of cutting text, SentencePiece's vocabularies, and what is refused."""

from __future__ import annotations

import random
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import tokenizers
from llama_cpp import LlamaCpp
from test_model_llama_cpp import LINES, SHAPE
from tokenizers import AddedToken, decoders, models, normalizers, pre_tokenizers, processors, trainers

from liuyi.core.errors import ModelError
from liuyi.model.config import DecoderConfig
from liuyi.model.decoder import Decoder, init_weights
from liuyi.model.gguf import GGUF
from liuyi.model.gguf_export import export_gguf
from liuyi.model.gguf_formats import by_name
from liuyi.model.gguf_pieces import ALIASES, CUTS, cut_like, name_of
from liuyi.model.gguf_vocabulary import read_vocabulary, vocabulary_metadata
from liuyi.model.gguf_write import OutTensor, write_gguf
from liuyi.model.tokenizer import SPECIAL_TOKENS, Tokenizer, train_bpe

TEXT = [
    *LINES,
    "camelCase HTTPServer snake_case 12345678 a/b/c (x) [y] {z} ~^|`+=<>$ he's HE'S 你好。日本 <b>\n\n\n  \t x",
] * 2


def _texts(letters: str) -> list[str]:
    chance = random.Random(5)
    return [*TEXT, *("".join(chance.choices(letters, k=40)) for _ in range(200))]


def _model(tokenizer: Tokenizer) -> Decoder:
    model = Decoder(DecoderConfig(family="llama", vocab_size=tokenizer.vocab_size, **SHAPE))
    init_weights(model, seed=1)
    return model


def _bpe(name: str, **model: Any) -> Tokenizer:
    backend = tokenizers.Tokenizer(models.BPE(**model))
    backend.pre_tokenizer, backend.decoder = cut_like(name), decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=420,
        special_tokens=[AddedToken(token, special=True, normalized=False) for token in SPECIAL_TOKENS],
        initial_alphabet=sorted(pre_tokenizers.ByteLevel.alphabet()),
        show_progress=False,
    )
    backend.train_from_iterator(TEXT, trainer)
    backend.add_tokens([AddedToken("<tool>", normalized=False)])
    return Tokenizer(backend, {"eos_token": "<|endoftext|>"})


@pytest.mark.parametrize("name", list(CUTS))
def test_text_is_cut_there_as_the_name_says(name: str, tmp_path: Path) -> None:
    tokenizer = _bpe(name, ignore_merges=CUTS[name].whole_words)
    assert name_of(tokenizer.backend) == name
    path = tmp_path / "m.gguf"
    export_gguf(_model(tokenizer), tokenizer, path)
    theirs, again = LlamaCpp(path), read_vocabulary(GGUF(path))
    # Beyond Latin, llama.cpp approximates what tekken and gpt-4o say of upper and lower case.
    cased = name in ("tekken", "gpt-4o")
    letters = "aZdé \t\n\r.,'!_-/🙂0123456789sSdDtT$~" + ("" if cased else "你あ한ع½ß")
    for text in _texts(letters) if not cased else [text for text in _texts(letters) if "你" not in text]:
        tokens = tokenizer.encode(text)
        assert theirs.encode(text) == tokens, text
        assert again.encode(text) == tokens, text
        assert again.decode(tokens) == text
    for text in ("a<tool>b <tool>", "<|im_start|>x<|im_end|>"):
        assert theirs.encode(text) == again.encode(text) == tokenizer.encode(text)


def test_other_names_stand_for_names_that_are_known() -> None:
    assert set(ALIASES.values()) <= set(CUTS)
    assert not set(ALIASES) & set(CUTS)


def test_a_name_is_found_by_what_a_tokenizer_does() -> None:
    digits = pre_tokenizers.Digits(individual_digits=True)
    words = pre_tokenizers.ByteLevel(add_prefix_space=False)
    for own, name in (
        (pre_tokenizers.Sequence([digits, words]), "smollm"),
        (words, "gpt-2"),
        (pre_tokenizers.ByteLevel(add_prefix_space=True), None),
        (pre_tokenizers.Sequence([words, digits]), None),
        (pre_tokenizers.Whitespace(), None),
    ):
        backend = _bpe("gpt-2").backend
        backend.pre_tokenizer = own
        assert name_of(backend) == name
    lowering = _bpe("gpt-2").backend
    lowering.normalizer = normalizers.Lowercase()
    assert name_of(lowering) is None


def test_taking_words_at_once_matters_only_where_merges_do_not_reach_them() -> None:
    tokenizer = _bpe("qwen2", ignore_merges=True)
    assert name_of(tokenizer.backend) == "qwen2"
    model = tokenizers.Tokenizer.from_str(tokenizer.backend.to_str())
    model.model = models.BPE({**model.get_vocab(), "xyzw": model.get_vocab_size()}, [], ignore_merges=True)
    assert name_of(model) is None


def test_a_first_token_is_added_there_where_it_is_here(tmp_path: Path) -> None:
    tokenizer = _bpe("smollm")
    tokenizer.settings["bos_token"] = "<|im_start|>"
    assert vocabulary_metadata(tokenizer, 500, tmp_path)["tokenizer.ggml.add_bos_token"] is False
    at = tokenizer.token_id("<|im_start|>")
    tokenizer.backend.post_processor = processors.TemplateProcessing(
        single="<|im_start|> $A", special_tokens=[("<|im_start|>", at)]
    )
    export_gguf(_model(tokenizer), tokenizer, tmp_path / "m.gguf")
    theirs = LlamaCpp(tmp_path / "m.gguf")
    assert theirs.vocab.get_add_bos()
    assert list(theirs.vocab.tokenize("hello", True, True)) == tokenizer.backend.encode("hello").ids


def test_a_vocabulary_smaller_than_the_model_is_filled_up(tmp_path: Path) -> None:
    tokenizer = train_bpe(TEXT, 300)
    model = Decoder(DecoderConfig(family="llama", vocab_size=tokenizer.vocab_size + 5, **SHAPE))
    init_weights(model, seed=1)
    export_gguf(model, tokenizer, tmp_path / "m.gguf")
    assert LlamaCpp(tmp_path / "m.gguf").vocab.n_vocab == tokenizer.vocab_size + 5
    with pytest.raises(ModelError, match="300 tokens do not fit the model's 299"):
        vocabulary_metadata(tokenizer, 299, tmp_path)


def test_what_llama_cpp_could_not_cut_is_refused(tmp_path: Path) -> None:
    odd = _bpe("smollm")
    odd.backend.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=True)
    with pytest.raises(ModelError, match="cannot cut text as this tokenizer does"):
        export_gguf(_model(odd), odd, tmp_path / "m.gguf")
    words = tokenizers.Tokenizer(models.WordLevel({"a": 0, "[UNK]": 1}, unk_token="[UNK]"))
    with pytest.raises(ModelError, match="of the kind WordLevel is not written"):
        vocabulary_metadata(Tokenizer(words), 2, tmp_path)


@pytest.fixture(scope="module")
def pieces() -> dict[str, Any]:
    """The metadata of a vocabulary as SentencePiece makes them: every byte, then pieces by falling score."""
    backend = tokenizers.SentencePieceBPETokenizer()
    lines = [" ".join(text.split()) for text in TEXT]
    backend.train_from_iterator(lines, vocab_size=300, show_progress=False)
    learned = sorted(backend.get_vocab(), key=backend.get_vocab().__getitem__)
    learned = [token for token in learned if token != "<unk>"]
    single = [token for token in learned if len(token) == 1]
    longer = [token for token in learned if len(token) > 1]
    tokens = ["<unk>", "<s>", "</s>", *(f"<0x{byte:02X}>" for byte in range(256)), *longer, *single]
    return {
        "general.architecture": "llama",
        "tokenizer.ggml.model": "llama",
        "tokenizer.ggml.tokens": tokens,
        "tokenizer.ggml.scores": [0.0] * 259 + [-float(at) for at in range(len(longer) + len(single))],
        "tokenizer.ggml.token_type": [2, 3, 3] + [6] * 256 + [1] * (len(longer) + len(single)),
        "tokenizer.ggml.bos_token_id": 1,
        "tokenizer.ggml.eos_token_id": 2,
        "tokenizer.ggml.unknown_token_id": 0,
    }


def test_sentencepiece_s_vocabularies_are_read(pieces: dict[str, Any], tmp_path: Path) -> None:
    size, form = len(pieces["tokenizer.ggml.tokens"]), by_name("F32")
    stand_in = train_bpe(TEXT, 300)
    model = Decoder(DecoderConfig(family="llama", vocab_size=size, **SHAPE))
    init_weights(model, seed=1)
    export_gguf(model, stand_in, tmp_path / "model.gguf", "F32")
    source = GGUF(tmp_path / "model.gguf")
    kept = {name: value for name, value in source.metadata.items() if not name.startswith("tokenizer.")}
    tensors = [
        OutTensor(name, source.shape(name), form, lambda name=name: np.frombuffer(source.data(name), np.uint8))
        for name in source.tensor_names
    ]
    write_gguf(tmp_path / "m.gguf", {**kept, **pieces}, tensors)
    theirs, ours = LlamaCpp(tmp_path / "m.gguf"), read_vocabulary(GGUF(tmp_path / "m.gguf"))
    for text in [*_texts("aZdé \t\n.,'!你🙂0123sS"), "<s>turn on</s>", " two  spaces ", "a</s> b"]:
        assert ours.encode(text) == theirs.encode(text), text
        if "<" not in text:
            assert ours.decode(ours.encode(text)) == text
    assert (ours.bos_id, ours.eos_id, ours.special_tokens) == (1, 2, {"<s>": 1, "</s>": 2})
    assert ours.token_bytes(3 + ord("\n")) == b"\n"


def _sentencepiece_tokenizer(pieces: dict[str, Any], tmp_path: Path) -> Tokenizer:
    write_gguf(tmp_path / "pieces.gguf", pieces, [])
    return read_vocabulary(GGUF(tmp_path / "pieces.gguf"))


@pytest.mark.parametrize("prefix", [True, False])
def test_sentencepiece_s_vocabularies_are_written(prefix: bool, pieces: dict[str, Any], tmp_path: Path) -> None:
    tokenizer = _sentencepiece_tokenizer({**pieces, "tokenizer.ggml.add_space_prefix": prefix}, tmp_path)
    export_gguf(_model(tokenizer), tokenizer, tmp_path / "m.gguf")
    theirs, again = LlamaCpp(tmp_path / "m.gguf"), read_vocabulary(GGUF(tmp_path / "m.gguf"))
    for text in [*_texts("aZdé \t\n.,'!你🙂0123sS"), "<s>turn on</s>", " two  spaces ", "a</s> b"]:
        assert theirs.encode(text) == again.encode(text) == tokenizer.encode(text), text
    assert (again.bos_id, again.eos_id) == (1, 2)


def test_sentencepiece_s_vocabularies_that_llama_cpp_cuts_otherwise_are_refused(
    pieces: dict[str, Any], tmp_path: Path
) -> None:
    tokenizer = _sentencepiece_tokenizer(pieces, tmp_path)
    tokenizer.backend.normalizer = normalizers.Sequence([normalizers.Lowercase(), tokenizer.backend.normalizer])
    with pytest.raises(ModelError, match="cannot cut text as this tokenizer does"):
        vocabulary_metadata(tokenizer, tokenizer.vocab_size, tmp_path)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"tokenizer.ggml.model": "t5"}, "tokenizer 't5' is not supported"),
        ({"tokenizer.ggml.tokens": []}, "has no 'tokenizer.ggml.tokens'"),
        ({"tokenizer.ggml.scores": [0.0]}, "not one score for each token"),
        ({"tokenizer.ggml.token_type": [1, 1]}, "not one token_type for each token"),
    ],
)
def test_damaged_vocabularies_are_named(
    change: dict[str, Any], message: str, pieces: dict[str, Any], tmp_path: Path
) -> None:
    write_gguf(tmp_path / "m.gguf", {**pieces, **change}, [])
    with pytest.raises(ModelError, match=message):
        read_vocabulary(GGUF(tmp_path / "m.gguf"))
