"""The tokenizer of a GGUF file: tokens, merges or scores, special tokens, template; read and written.

    tokenizer = read_vocabulary(file)
    metadata = vocabulary_metadata(tokenizer, vocab_size)   # what llama.cpp needs to cut text as this tokenizer does

There are byte-level BPE (`gpt2`, cut as `gguf_pieces.py` says) and SentencePiece's BPE (`llama`).
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import tokenizers
from tokenizers import AddedToken, decoders, models, normalizers

from liuyi.core.errors import ModelError, did_you_mean
from liuyi.model.gguf import GGUF
from liuyi.model.gguf_pieces import ALIASES, CUTS, cut_like, name_of, probe_texts
from liuyi.model.tokenizer import TURN_ENDS, Tokenizer

_NORMAL, _UNKNOWN, _CONTROL, _USER_DEFINED, _UNUSED, _BYTE = 1, 2, 3, 4, 5, 6
_NAMED = (("bos", "bos"), ("eos", "eos"), ("unk", "unknown"), ("pad", "padding"))
_PREFIX = "tokenizer.ggml."
_SPACE = "▁"


def read_vocabulary(file: GGUF) -> Tokenizer:
    """The tokenizer of a file. Raises ModelError if its kind or the way it cuts text is not supported."""
    kind, tokens = file.metadata.get(f"{_PREFIX}model"), token_list(file)
    readers = {"gpt2": _byte_level, "llama": _sentence_pieces}
    if kind not in readers:
        raise ModelError(
            f"the tokenizer '{kind}' is not supported",
            where=str(file.path),
            hint="'gpt2' and 'llama' are; or import the model from its Hugging Face folder",
        )
    kinds = file.metadata.get(f"{_PREFIX}token_type") or [_NORMAL] * len(tokens)
    if not isinstance(kinds, list) or len(kinds) != len(tokens):
        raise ModelError("has not one token_type for each token", where=str(file.path))
    try:
        backend = readers[kind](file.metadata, tokens, file.path)
    except ModelError:
        raise
    except Exception as error:  # The library's own errors have no class but Exception.
        raise ModelError(f"its tokenizer cannot be used: {error}", where=str(file.path)) from error
    _add_special(backend, tokens, kinds)
    return Tokenizer(backend, _settings(file, tokens))


def token_list(file: GGUF) -> list[str]:
    """The tokens of a file by id. Raises ModelError if it has none."""
    tokens = file.metadata.get(f"{_PREFIX}tokens")
    if not isinstance(tokens, list) or not tokens or not all(isinstance(token, str) for token in tokens):
        raise ModelError("has no 'tokenizer.ggml.tokens' in its metadata", where=str(file.path))
    return tokens


def end_ids(file: GGUF) -> tuple[int, ...]:
    """The tokens that end a text or a turn, as the file names them."""
    size = len(token_list(file))
    named = (file.metadata.get(f"{_PREFIX}{name}_token_id") for name in ("eos", "eot", "eom"))
    return tuple(dict.fromkeys(at for at in named if isinstance(at, int) and at < size))


def _add_special(backend: tokenizers.Tokenizer, tokens: list[str], kinds: list[int]) -> None:
    added = [(token, kind) for token, kind in zip(tokens, kinds, strict=True) if kind in (_CONTROL, _USER_DEFINED)]
    backend.add_special_tokens([_added(token, True) for token, kind in added if kind == _CONTROL])
    backend.add_tokens([_added(token, False) for token, kind in added if kind == _USER_DEFINED])


def _added(token: str, special: bool) -> AddedToken:
    return AddedToken(token, special=special, normalized=False)


def _settings(file: GGUF, tokens: list[str]) -> dict[str, Any]:
    template = file.metadata.get("tokenizer.chat_template")
    settings: dict[str, Any] = {"chat_template": template} if isinstance(template, str) else {}
    for name, key in _NAMED:
        at = file.metadata.get(f"{_PREFIX}{key}_token_id")
        if isinstance(at, int) and at < len(tokens):
            settings[f"{name}_token"] = tokens[at]
    return settings


def _byte_level(metadata: Mapping[str, Any], tokens: list[str], where: Path) -> tokenizers.Tokenizer:
    name = metadata.get(f"{_PREFIX}pre", "default")
    name = ALIASES.get(name, name)
    if name not in CUTS:
        hint = did_you_mean(str(name), [*CUTS, *ALIASES])
        raise ModelError(f"text is cut like '{name}'", where=str(where), hint=hint)
    merges = [tuple(merge.split(" ")) for merge in metadata.get(f"{_PREFIX}merges") or []]
    vocabulary = {token: at for at, token in enumerate(tokens)}
    backend = tokenizers.Tokenizer(models.BPE(vocabulary, merges, ignore_merges=CUTS[name].whole_words))
    backend.pre_tokenizer = cut_like(name)
    if CUTS[name].nfc:
        backend.normalizer = normalizers.NFC()
    backend.decoder = decoders.ByteLevel()
    return backend


def _sentence_pieces(metadata: Mapping[str, Any], tokens: list[str], where: Path) -> tokenizers.Tokenizer:
    """SentencePiece merges the pair that makes the piece with the best score: merges in the order of the scores."""
    scores = metadata.get(f"{_PREFIX}scores")
    if not isinstance(scores, list) or len(scores) != len(tokens):
        raise ModelError("has not one score for each token", where=str(where))
    vocabulary = {token: at for at, token in enumerate(tokens)}
    merges = []
    for at in sorted(range(len(tokens)), key=lambda at: (-scores[at], at)):
        token = tokens[at]
        parts = [(token[:cut], token[cut:]) for cut in range(1, len(token))]
        parts = [part for part in parts if part[0] in vocabulary and part[1] in vocabulary]
        merges += sorted(parts, key=lambda part: (vocabulary[part[0]], vocabulary[part[1]]))
    unknown = metadata.get(f"{_PREFIX}unknown_token_id", 0)
    backend = tokenizers.Tokenizer(
        models.BPE(
            *(vocabulary, merges),
            unk_token=tokens[unknown] if 0 <= unknown < len(tokens) else None,
            fuse_unk=True,
            byte_fallback=True,
        )
    )
    spaces: list[Any] = [normalizers.Replace(" ", _SPACE)]
    end: list[Any] = [decoders.Replace(_SPACE, " "), decoders.ByteFallback(), decoders.Fuse()]
    if metadata.get(f"{_PREFIX}add_space_prefix", True):
        spaces.insert(0, normalizers.Prepend(_SPACE))
        end.append(decoders.Strip(content=" ", left=1))
    backend.normalizer = normalizers.Sequence(spaces)
    backend.decoder = decoders.Sequence(end)
    return backend


def vocabulary_metadata(tokenizer: Tokenizer, vocab_size: int, where: Path) -> dict[str, Any]:
    """What a GGUF file says of a BPE tokenizer; ids up to `vocab_size` without a token become unused ones.

    Raises ModelError naming `where` if llama.cpp could not cut text as the tokenizer does.
    """
    backend = tokenizer.backend
    state = json.loads(backend.to_str())["model"]
    odd = [name for name in ("dropout", "continuing_subword_prefix", "end_of_word_suffix") if state.get(name)]
    if state.get("type") != "BPE" or odd:
        raise ModelError(
            f"a tokenizer of the kind {state.get('type')}{''.join(f' with {name}' for name in odd)} is not written",
            where=str(where),
            hint="BPE is, byte-level or SentencePiece's",
        )
    if tokenizer.vocab_size > vocab_size:
        raise ModelError(f"{tokenizer.vocab_size} tokens do not fit the model's {vocab_size}", where=str(where))
    added = backend.get_added_tokens_decoder()
    tokens, kinds = [], []
    for at in range(vocab_size):
        token = backend.id_to_token(at)
        tokens.append(f"[PAD{at}]" if token is None else token)
        if at in added:
            kinds.append(_CONTROL if added[at].special else _USER_DEFINED)
        else:
            kinds.append(_UNUSED if token is None else _NORMAL)
    merges = [merge if isinstance(merge, str) else " ".join(merge) for merge in state["merges"]]
    own = _named_cut if tokenizer.is_byte_level else _scores
    metadata: dict[str, Any] = {
        f"{_PREFIX}tokens": tokens,
        f"{_PREFIX}token_type": kinds,
        **_special_ids(tokenizer),
        f"{_PREFIX}add_bos_token": adds_bos(tokenizer),
    }
    metadata |= own(tokenizer, tokens, kinds, merges)
    if f"{_PREFIX}model" not in metadata:
        raise ModelError("llama.cpp cannot cut text as this tokenizer does before it merges", where=str(where))
    if tokenizer.chat_template:
        metadata["tokenizer.chat_template"] = tokenizer.chat_template
    return metadata


def _named_cut(tokenizer: Tokenizer, tokens: list[str], kinds: list[int], merges: list[str]) -> dict[str, Any]:
    """How a byte-level BPE cuts text and merges; nothing if that has no name."""
    name = name_of(tokenizer.backend)
    return {} if name is None else {f"{_PREFIX}model": "gpt2", f"{_PREFIX}pre": name, f"{_PREFIX}merges": merges}


def _scores(tokenizer: Tokenizer, tokens: list[str], kinds: list[int], merges: list[str]) -> dict[str, Any]:
    """The pieces of SentencePiece's BPE with scores by the rank of the merge that makes each; nothing if text would
    not be cut as the tokenizer does."""
    rank: dict[str, int] = {}
    for at, merge in enumerate(merges):
        rank.setdefault(merge.replace(" ", ""), at)
    unknown, kinds = tokenizer.token_id("<unk>"), list(kinds)
    for at, token in enumerate(tokens):
        if at == unknown:
            kinds[at] = _UNKNOWN
        elif len(token) == 6 and token.startswith("<0x"):
            kinds[at] = _BYTE
    # What no merge makes is never made by its score.
    scores = [-float(rank.get(token, len(merges))) for token in tokens]
    metadata: dict[str, Any] = {f"{_PREFIX}model": "llama", f"{_PREFIX}scores": scores, f"{_PREFIX}token_type": kinds}
    if unknown is not None:
        metadata[f"{_PREFIX}unknown_token_id"] = unknown
    special = next(iter(tokenizer.special_tokens), "")
    texts = [*probe_texts(), f"a b{special}c d"]
    for prefix in (True, False):
        metadata[f"{_PREFIX}add_space_prefix"] = prefix
        backend = _sentence_pieces(metadata, tokens, Path())
        _add_special(backend, tokens, kinds)
        if all(Tokenizer(backend).encode(text) == tokenizer.encode(text) for text in texts):
            return metadata
    return {}


def adds_bos(tokenizer: Tokenizer) -> bool:
    """Whether the tokenizer puts its first token before a text when asked for special tokens."""
    begun = tokenizer.backend.encode("", add_special_tokens=True).ids
    return tokenizer.bos_id is not None and list(begun[:1]) == [tokenizer.bos_id]


def _special_ids(tokenizer: Tokenizer) -> Mapping[str, int]:
    ids: dict[str, int | None] = {"bos": tokenizer.bos_id, "eos": tokenizer.eos_id, "padding": tokenizer.pad_id}
    unknown = tokenizer.settings.get("unk_token")
    unknown = unknown.get("content") if isinstance(unknown, dict) else unknown
    ids["unknown"] = tokenizer.token_id(unknown) if unknown else None
    # The end of a turn, where it is not the end of a text already.
    turns = (tokenizer.special_tokens.get(token) for token in TURN_ENDS)
    ids["eot"] = next((at for at in turns if at is not None and at != tokenizer.eos_id), None)
    return {f"{_PREFIX}{name}_token_id": at for name, at in ids.items() if at is not None}
