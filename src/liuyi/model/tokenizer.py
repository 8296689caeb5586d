"""The tokenizer: a byte-level BPE from Hugging Face files, or trained here."""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator, Sequence
from functools import cached_property
from pathlib import Path
from typing import Any

import tokenizers
from tokenizers import AddedToken, decoders, models, pre_tokenizers, trainers

from liuyi.core.errors import ModelError
from liuyi.model.chat import CHATML
from liuyi.model.files import read_json, write_text

DOCUMENT_END, MESSAGE_START, MESSAGE_END, PAD = "<|endoftext|>", "<|im_start|>", "<|im_end|>", "<|pad|>"
SPECIAL_TOKENS = (DOCUMENT_END, MESSAGE_START, MESSAGE_END, PAD)
"""Special tokens of a tokenizer trained here, by id."""

TURN_ENDS = (MESSAGE_END, "<|eot_id|>", "<|eom_id|>", "<|end_of_text|>", DOCUMENT_END, "</s>")
"""Tokens that end a turn in the families' templates."""


class Tokenizer:
    """Text to token ids and back. `encode` adds nothing of its own; special tokens in the text are recognised."""

    def __init__(self, backend: tokenizers.Tokenizer, settings: dict[str, Any] | None = None) -> None:
        """`settings` are the contents of `tokenizer_config.json`."""
        backend.no_padding()
        backend.no_truncation()
        self.backend = backend
        self.settings: dict[str, Any] = dict(settings or {})

    @classmethod
    def load(cls, folder: Path) -> Tokenizer:
        """Read `tokenizer.json` and, if they are there, `tokenizer_config.json` and `chat_template.jinja`.

        Raises ModelError naming the file that is missing or cannot be read.
        """
        path = folder / "tokenizer.json"
        if not path.exists():
            hint = (
                "transformers makes one of other files: AutoTokenizer.from_pretrained(folder).save_pretrained(folder)"
            )
            raise ModelError("the folder has no tokenizer.json", where=str(folder), hint=hint)
        try:
            backend = tokenizers.Tokenizer.from_file(str(path))
        except Exception as error:
            raise ModelError(f"the tokenizer cannot be read: {error}", where=str(path)) from error
        settings: dict[str, Any] = {}
        path = folder / "tokenizer_config.json"
        if path.exists():
            settings = read_json(path)
        path = folder / "chat_template.jinja"
        if path.exists():
            try:
                settings["chat_template"] = path.read_text(encoding="utf-8")
            except (OSError, UnicodeDecodeError) as error:
                raise ModelError(f"the chat template cannot be read: {error}", where=str(path)) from error
        made = cls(backend, settings)
        for name in ("bos_token", "eos_token", "pad_token"):
            if not isinstance(made._named(name), str):
                raise ModelError(f"'{name}' must be a text", where=str(folder / "tokenizer_config.json"))
        return made

    def save(self, folder: Path) -> None:
        """Write `tokenizer.json` and `tokenizer_config.json`, the same bytes for the same tokenizer."""
        write_text(folder / "tokenizer.json", self.backend.to_str(pretty=True))
        settings = {
            "tokenizer_class": "PreTrainedTokenizerFast",
            "clean_up_tokenization_spaces": False,
            **self.settings,
        }
        write_text(folder / "tokenizer_config.json", json.dumps(settings, indent=2, ensure_ascii=False, sort_keys=True))

    def encode(self, text: str) -> list[int]:
        """Token ids of a text."""
        return _ids(self.backend, text)

    def encode_ordinary(self, text: str) -> list[int]:
        """Token ids of a text in which special tokens are not recognised: their names are text like any other."""
        return _ids(self._ordinary, text)

    @cached_property
    def _ordinary(self) -> tokenizers.Tokenizer:
        backend = tokenizers.Tokenizer.from_str(self.backend.to_str())
        backend.encode_special_tokens = True
        return backend

    def encode_batch(self, texts: Sequence[str]) -> list[list[int]]:
        """Token ids of several texts, on all threads."""
        return [
            list(encoding.ids) for encoding in self.backend.encode_batch_fast(list(texts), add_special_tokens=False)
        ]

    def decode(self, ids: Sequence[int], *, skip_special_tokens: bool = False) -> str:
        """The text of token ids."""
        return str(self.backend.decode(list(ids), skip_special_tokens=skip_special_tokens))

    @property
    def vocab_size(self) -> int:
        """Number of token ids, the added ones among them."""
        return int(self.backend.get_vocab_size(with_added_tokens=True))

    def token_id(self, token: str) -> int | None:
        """The id of a token, None if it is not one."""
        id_ = self.backend.token_to_id(token)
        return None if id_ is None else int(id_)

    def token_bytes(self, token_id: int) -> bytes:
        """The bytes that a token stands for; a special token's are its name.

        Raises ModelError for an id outside the vocabulary.
        """
        if not 0 <= token_id < len(self.all_token_bytes):
            raise ModelError(f"there is no token {token_id}: the vocabulary has {len(self.all_token_bytes)}")
        return self.all_token_bytes[token_id]

    @cached_property
    def is_byte_level(self) -> bool:
        """Whether tokens are runs of bytes, so that texts encoded one after the other decode to their joint text."""
        return "ByteLevel" in _types_in(json.loads(self.backend.to_str()).get("decoder"))

    @cached_property
    def all_token_bytes(self) -> list[bytes]:
        """`token_bytes` of every id. Raises ModelError if a token is not made of bytes as the others are."""
        added = self.backend.get_added_tokens_decoder()
        from_characters = _byte_of_character() if self.is_byte_level else None
        pieces: list[bytes] = []
        for token_id in range(self.vocab_size):
            token = self.backend.id_to_token(token_id) or ""
            if token_id in added:
                pieces.append(added[token_id].content.encode())
            elif from_characters is not None:
                unknown = set(token) - from_characters.keys()
                if unknown:
                    raise ModelError(f"the token {token_id} has {sorted(unknown)}, which stand for no bytes")
                pieces.append(bytes(from_characters[character] for character in token))
            elif len(token) == 6 and token.startswith("<0x"):
                pieces.append(bytes([int(token[3:5], 16)]))
            else:
                pieces.append(token.replace("▁", " ").encode())
        return pieces

    @property
    def special_tokens(self) -> dict[str, int]:
        """Special tokens by name."""
        added = self.backend.get_added_tokens_decoder().items()
        return {token.content: int(id_) for id_, token in sorted(added) if token.special}

    @property
    def bos_token(self) -> str:
        """The token that begins a text, empty if there is none."""
        return self._named("bos_token")

    @property
    def eos_token(self) -> str:
        """The token that ends a document, empty if there is none."""
        return self._named("eos_token")

    @property
    def pad_token(self) -> str:
        """The token that fills rows, empty if there is none."""
        return self._named("pad_token")

    @property
    def bos_id(self) -> int | None:
        """Id of the token that begins a text."""
        return self.token_id(self.bos_token) if self.bos_token else None

    @property
    def eos_id(self) -> int | None:
        """Id of the token that ends a document."""
        return self.token_id(self.eos_token) if self.eos_token else None

    @property
    def pad_id(self) -> int | None:
        """Id of the token that fills rows."""
        return self.token_id(self.pad_token) if self.pad_token else None

    @property
    def stop_ids(self) -> tuple[int, ...]:
        """Every token that ends an answer: the document's end and the ends of turns of known templates."""
        special = self.special_tokens
        ends = {special[token] for token in TURN_ENDS if token in special}
        return tuple(sorted(ends | ({self.eos_id} if self.eos_id is not None else set())))

    @property
    def chat_template(self) -> str:
        """The Jinja template of conversations, empty if the tokenizer has none."""
        template = self.settings.get("chat_template") or ""
        if isinstance(template, list):
            named = {entry.get("name"): entry.get("template") for entry in template if isinstance(entry, dict)}
            template = named.get("default") or ""
        return str(template)

    @chat_template.setter
    def chat_template(self, template: str) -> None:
        self.settings["chat_template"] = template

    def _named(self, name: str) -> str:
        token = self.settings.get(name)
        return (token.get("content") if isinstance(token, dict) else token) or ""


def train_bpe(texts: Iterable[str], vocab_size: int, *, min_frequency: int = 2) -> Tokenizer:
    """A byte-level BPE tokenizer with `vocab_size` tokens, `SPECIAL_TOKENS` and the 256 bytes among them.

    The same texts in the same order give the same bytes. A corpus too small for `vocab_size` gives fewer tokens.
    Raises ModelError if `vocab_size` leaves no room for the bytes.
    """
    least = len(SPECIAL_TOKENS) + 256
    if vocab_size < least:
        raise ModelError(f"a vocabulary of {vocab_size} cannot hold every byte", hint=f"at least {least}")
    backend = tokenizers.Tokenizer(models.BPE())
    # SmolLM's pieces: digits one by one, then GPT-2's words. Other engines know this pair by name.
    backend.pre_tokenizer = pre_tokenizers.Sequence(
        [pre_tokenizers.Digits(individual_digits=True), pre_tokenizers.ByteLevel(add_prefix_space=False)]
    )
    backend.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=vocab_size,
        min_frequency=min_frequency,
        special_tokens=[AddedToken(token, special=True, normalized=False) for token in SPECIAL_TOKENS],
        initial_alphabet=sorted(pre_tokenizers.ByteLevel.alphabet()),
        show_progress=False,
    )
    backend.train_from_iterator(_in_batches(texts), trainer=trainer)
    settings = {
        "bos_token": None,
        "eos_token": DOCUMENT_END,
        "pad_token": PAD,
        "unk_token": None,
        "additional_special_tokens": [MESSAGE_START, MESSAGE_END],
        "chat_template": CHATML,
    }
    return Tokenizer(backend, settings)


def _ids(backend: tokenizers.Tokenizer, text: str) -> list[int]:
    """Token ids of a text. As a batch of one it lets other threads run meanwhile, which `encode` does not, and counts
    no offsets, which takes half of the time."""
    return list(backend.encode_batch_fast([text], add_special_tokens=False)[0].ids)


def _in_batches(texts: Iterable[str], size: int = 256) -> Iterator[list[str]]:
    batch: list[str] = []
    for text in texts:
        batch.append(text)
        if len(batch) == size:
            yield batch
            batch = []
    if batch:
        yield batch


def _types_in(part: Any) -> set[str]:
    """Every `type` in a part of tokenizer.json."""
    if isinstance(part, dict):
        return {str(part.get("type"))}.union(*(_types_in(value) for value in part.values()))
    return set[str]().union(*(_types_in(value) for value in part)) if isinstance(part, list) else set()


def _byte_of_character() -> dict[str, int]:
    """Byte-level BPE writes each byte as a printable character: itself if it is one, else one from U+0100 on."""
    printable = [*range(ord("!"), ord("~") + 1), *range(ord("¡"), ord("¬") + 1), *range(ord("®"), ord("ÿ") + 1)]
    others = [byte for byte in range(256) if byte not in printable]
    return {chr(byte): byte for byte in printable} | {chr(256 + n): byte for n, byte in enumerate(others)}
