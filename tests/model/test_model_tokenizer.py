"""Tokenizers: trained here, read by `transformers`, and the bytes of every token."""

from __future__ import annotations

import json
import threading
import time
from pathlib import Path

import pytest
from chat_templates import every_byte_tokenizer
from hypothesis import given, settings
from hypothesis import strategies as st

from liuyi.core.errors import ModelError
from liuyi.model.chat import CHATML
from liuyi.model.tokenizer import SPECIAL_TOKENS, Tokenizer, train_bpe

TEXTS = [
    'def turn_on(area: str) -> bool:\n    """Turn on the lights of an area."""\n    return lights[area].on()\n' * 3,
    "The lights in the kitchen are on; turn them off at 22:45, please. Numbers: 1024 4096.\n" * 3,
    "打开厨房的灯。关闭客厅的空调,然后锁上前门。\n" * 3,
] * 4


@pytest.fixture(scope="module")
def trained() -> Tokenizer:
    return train_bpe(TEXTS, 360)


def test_training_gives_the_same_bytes_again(trained: Tokenizer, tmp_path: Path) -> None:
    for name, tokenizer in (("a", trained), ("b", train_bpe(iter(TEXTS), 360))):
        (tmp_path / name).mkdir()
        tokenizer.save(tmp_path / name)
    files = sorted(path.name for path in (tmp_path / "a").iterdir())
    assert files == ["tokenizer.json", "tokenizer_config.json"]
    for name in files:
        assert (tmp_path / "a" / name).read_bytes() == (tmp_path / "b" / name).read_bytes()


def test_what_is_saved_is_what_is_loaded(trained: Tokenizer, tmp_path: Path) -> None:
    trained.save(tmp_path)
    loaded = Tokenizer.load(tmp_path)
    assert [loaded.encode(text) for text in TEXTS] == [trained.encode(text) for text in TEXTS]
    assert loaded.chat_template == trained.chat_template == CHATML
    assert (loaded.bos_id, loaded.eos_id, loaded.pad_id, loaded.stop_ids) == (None, 0, 3, (0, 2))
    assert loaded.special_tokens == {name: at for at, name in enumerate(SPECIAL_TOKENS)}
    assert loaded.vocab_size == 360
    again = tmp_path / "again"
    again.mkdir()
    loaded.save(again)
    assert (again / "tokenizer.json").read_bytes() == (tmp_path / "tokenizer.json").read_bytes()


def test_transformers_encodes_the_same(trained: Tokenizer, tmp_path: Path) -> None:
    from transformers import AutoTokenizer

    trained.save(tmp_path)
    theirs = AutoTokenizer.from_pretrained(tmp_path)
    for text in [*TEXTS, "  two  spaces\t\n\n x<|im_end|>\n", "é́ 🧑‍🚀 �"]:
        ids = trained.encode(text)
        assert theirs(text)["input_ids"] == ids
        assert theirs.decode(ids) == trained.decode(ids)
    assert (theirs.eos_token, theirs.pad_token, theirs.bos_token) == ("<|endoftext|>", "<|pad|>", None)


@settings(max_examples=100, deadline=None)
@given(text=st.text())
def test_every_text_comes_back(trained: Tokenizer, text: str) -> None:
    ids = trained.encode(text)
    assert trained.decode(ids) == text
    assert b"".join(trained.token_bytes(token) for token in ids) == text.encode()
    assert trained.encode_batch([text, text]) == [ids, ids]


@pytest.mark.slow
def test_a_long_text_lets_other_threads_run(trained: Tokenizer) -> None:
    text = " ".join(map(str, range(150_000)))
    encoding = threading.Thread(target=trained.encode, args=[text])
    encoding.start()
    turns = 0
    while encoding.is_alive():
        time.sleep(0.001)
        turns += 1
    assert turns > 20


def test_names_of_special_tokens_can_be_text(trained: Tokenizer) -> None:
    text = "a<|im_end|>b"
    assert trained.encode(text)[1] == 2
    ordinary = trained.encode_ordinary(text)
    assert not set(ordinary) & set(trained.special_tokens.values())
    assert trained.decode(ordinary) == text
    assert trained.encode(text)[1] == 2


def test_bytes_of_tokens(trained: Tokenizer) -> None:
    assert [trained.token_bytes(at) for at in range(4)] == [name.encode() for name in SPECIAL_TOKENS]
    assert {trained.token_bytes(at) for at in range(trained.vocab_size)} >= {bytes([byte]) for byte in range(256)}
    for outside in (-1, trained.vocab_size):
        with pytest.raises(ModelError, match=f"no token {outside}"):
            trained.token_bytes(outside)


def test_bytes_of_tokens_of_a_sentencepiece_vocabulary() -> None:
    import tokenizers
    from tokenizers import decoders, models

    vocabulary = {token: at for at, token in enumerate(["<0x0A>", "<0xE4>", "▁the", "灯", "▁"])}
    backend = tokenizers.Tokenizer(models.BPE(vocab=vocabulary, merges=[], byte_fallback=True))
    backend.decoder = decoders.Sequence([decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse()])
    tokenizer = Tokenizer(backend)
    assert tokenizer.all_token_bytes == [b"\n", b"\xe4", b" the", "灯".encode(), b" "]


def test_a_vocabulary_too_small_for_bytes_is_refused_and_a_small_corpus_gives_fewer() -> None:
    with pytest.raises(ModelError, match="cannot hold every byte"):
        train_bpe(TEXTS, 259)
    assert train_bpe([], 1000).vocab_size == 260


def test_templates_are_found_where_folders_keep_them(tmp_path: Path) -> None:
    every_byte_tokenizer().save(tmp_path)
    path = tmp_path / "tokenizer_config.json"
    settings = json.loads(path.read_text())
    assert Tokenizer.load(tmp_path).chat_template == ""
    named = [{"name": "tool_use", "template": "t"}, {"name": "default", "template": "d"}]
    path.write_text(json.dumps({**settings, "chat_template": named, "eos_token": {"content": "</s>"}}))
    loaded = Tokenizer.load(tmp_path)
    assert (loaded.chat_template, loaded.eos_token) == ("d", "</s>")
    (tmp_path / "chat_template.jinja").write_text("j")
    assert Tokenizer.load(tmp_path).chat_template == "j"


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("tokenizer.json", None, "has no tokenizer.json"),
        ("tokenizer.json", "{", "cannot be read"),
        ("tokenizer_config.json", "{", "is not JSON"),
        ("tokenizer_config.json", "[]", "is not a JSON object"),
        ("tokenizer_config.json", '{"bos_token": 5}', "'bos_token' must be a text"),
        ("tokenizer_config.json", '{"eos_token": {"content": ["x"]}}', "'eos_token' must be a text"),
        ("tokenizer_config.json", r'{"chat_template": "\ud800"}', "is not JSON"),
        ("chat_template.jinja", "\xff", "the chat template cannot be read"),
    ],
)
def test_damaged_files_are_named(tmp_path: Path, name: str, content: str | None, message: str) -> None:
    every_byte_tokenizer().save(tmp_path)
    (tmp_path / name).unlink(missing_ok=True)
    if content is not None:
        (tmp_path / name).write_text(content, encoding="latin-1")
    with pytest.raises(ModelError, match=message) as raised:
        Tokenizer.load(tmp_path)
    assert str(tmp_path) in str(raised.value)


def test_a_setting_may_hold_any_character(tmp_path: Path) -> None:
    every_byte_tokenizer().save(tmp_path)
    (tmp_path / "tokenizer_config.json").write_text(r'{"chat_template": "\ud83d\ude00"}')
    assert Tokenizer.load(tmp_path).chat_template == "😀"
