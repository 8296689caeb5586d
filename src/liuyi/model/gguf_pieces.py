"""How text is cut into pieces before a byte-level BPE merges them: GGUF files give it by llama.cpp's names.

    backend.pre_tokenizer = cut_like("smollm")
    name_of(backend)                                # "smollm", or None if llama.cpp has no name for it

A tokenizer's own description can be written in many ways, so a name is found by what it does: it must cut texts of
all scripts, and random ones, into the same pieces.
"""

from __future__ import annotations

import random
from dataclasses import dataclass
from functools import cache

import tokenizers
from tokenizers import Regex, normalizers, pre_tokenizers


@dataclass(frozen=True)
class Cut:
    """One named way: expressions that cut one after the other, and whether a whole word that is a token is taken at
    once, without merging."""

    expressions: tuple[str, ...]
    whole_words: bool = False
    nfc: bool = False
    """Whether the model's own tokenizer composes characters first; llama.cpp does not."""


_GPT2 = r"'s|'t|'re|'ve|'m|'ll|'d| ?\p{L}+| ?\p{N}+| ?[^\s\p{L}\p{N}]+|\s+(?!\S)|\s+"
_ENDINGS = r"(?i:'s|'t|'re|'ve|'m|'ll|'d)"
_SPACES = r"\s*[\r\n]+|\s+(?!\S)|\s+"
_LLAMA3 = rf"{_ENDINGS}|[^\r\n\p{{L}}\p{{N}}]?\p{{L}}+|\p{{N}}{{1,3}}| ?[^\s\p{{L}}\p{{N}}]+[\r\n]*|{_SPACES}"
_QWEN2 = _LLAMA3.replace("{1,3}", "")
_LOWER_LAST = r"[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]*[\p{Ll}\p{Lm}\p{Lo}\p{M}]+"
_UPPER_FIRST = r"[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]+[\p{Ll}\p{Lm}\p{Lo}\p{M}]*"
_CASED = rf"[^\r\n\p{{L}}\p{{N}}]?{_LOWER_LAST}{{end}}|[^\r\n\p{{L}}\p{{N}}]?{_UPPER_FIRST}{{end}}|"
_MARKS = rf" ?[^\s\p{{L}}\p{{N}}]+[\r\n/]*|{_SPACES}"

CUTS = {
    "smollm": Cut((r"\p{N}", _GPT2)),
    "qwen2": Cut((_QWEN2,), nfc=True),
    "llama-bpe": Cut((_LLAMA3,), whole_words=True),
    "dbrx": Cut((_LLAMA3,)),
    "tekken": Cut((_CASED.replace("{end}", "") + r"\p{N}|" + _MARKS,), whole_words=True),
    "gpt-4o": Cut((_CASED.replace("{end}", f"{_ENDINGS}?") + r"\p{N}{1,3}|" + _MARKS,)),
    "gpt-2": Cut((_GPT2,)),
    "default": Cut((r"[\p{P}\$\+<=>\^~\|]+", _GPT2, r"\p{N}+", "[0-9][0-9][0-9]")),
}
"""llama.cpp's names, those first that a tokenizer is given where several do the same."""

ALIASES = {
    **dict.fromkeys(("starcoder", "refact", "command-r", "codeshell", "exaone", "minerva-7b", "mellum2"), "smollm"),
    **dict.fromkeys(("deepseek-r1-qwen", "stablelm2", "megrez", "hunyuan", "kormo", "solar-open", "grok-2"), "qwen2"),
    **dict.fromkeys(("llama3", "llama-v3", "falcon3", "falcon-h1", "pixtral", "midm-2.0", "lfm2"), "llama-bpe"),
    **dict.fromkeys(("smaug-bpe", "chatglm-bpe"), "dbrx"),
    **dict.fromkeys(("llama4", "kanana2"), "gpt-4o"),
    **dict.fromkeys(("phi-2", "mpt", "olmo", "jais", "trillion", "exaone4", "gigachat", "granite-docling"), "gpt-2"),
}
"""Other names of the same ways."""

_PROBES = (
    "It's 1234567 o'clock, DON'T you'LL we've I'd'S\r\n\r\n  ok.\n\n\n\tx = y+1;  // done...\n/\n",
    "HelloWorld helloWORLD JSONParser_v2 $3.50 50%  <|x|> #tag @me a/b\\c (a) [b] {c} 'quoted' \"too\"",
    "    def f(a, b):\n        return a**2 != b  \n\n   # ünïcödé ÀÉÎ ß ŒUVRE straße",
    "你好，世界。１２３ 日本語テスト 한국어 여러분 ไทยแลนด์ हिन्दी",
    "١٢٣ العربية עברית Ελληνικά Русский 🙂👍🏽 e\u0301 a\u00a0b\u3000c\u200b",
    "x²³½ ⅧⅨ №5 — “quotes” … ± × ÷ € £ ~^|`+=<>",
)
_CHARACTERS = "aZéßÉǅʰ你あ한אعक्\u0301 \u00a0\u3000 \t\n\r1٢½Ⅷ.,'’!/_-+$|~`<€🙂sSdDtmLl"


def cut_like(name: str) -> pre_tokenizers.PreTokenizer:
    """The pre-tokenizer of a name in `CUTS`."""
    cuts = [pre_tokenizers.Split(Regex(each), behavior="isolated") for each in CUTS[name].expressions]
    return pre_tokenizers.Sequence([*cuts, pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)])


def name_of(backend: tokenizers.Tokenizer) -> str | None:
    """The name of how a byte-level BPE cuts text, None if it is none of `CUTS`."""
    own = backend.pre_tokenizer
    if own is None or not _keeps_text(backend.normalizer):
        return None
    texts = probe_texts()
    found = [own.pre_tokenize_str(text) for text in texts]
    alike = [name for name in CUTS if [_of_name(name).pre_tokenize_str(text) for text in texts] == found]
    at_once = bool(backend.model.ignore_merges)
    exact = [name for name in alike if CUTS[name].whole_words == at_once]
    if exact or not alike:
        return exact[0] if exact else None
    return alike[0] if _merges_reach_every_token(backend) else None


_of_name = cache(cut_like)


@cache
def probe_texts() -> tuple[str, ...]:
    """Texts by which ways to cut are told apart."""
    chance = random.Random(1)
    lengths = (chance.randrange(1, 25) for _ in range(400))
    return (*_PROBES, *("".join(chance.choices(_CHARACTERS, k=length)) for length in lengths))


def _keeps_text(normalizer: normalizers.Normalizer | None) -> bool:
    """Whether text in composed characters, as most is, goes through as it is."""
    return normalizer is None or all(normalizer.normalize_str(text) == text for text in (_PROBES[0], _PROBES[1]))


def _merges_reach_every_token(backend: tokenizers.Tokenizer) -> bool:
    """Whether it makes no difference that whole words are taken at once."""
    merging = tokenizers.Tokenizer.from_str(backend.to_str())
    merging.model.ignore_merges = False
    added = {token.content for token in backend.get_added_tokens_decoder().values()}
    tokens = backend.get_vocab(with_added_tokens=False)
    return all(len(merging.model.tokenize(token)) == 1 for token in tokens if token not in added)
