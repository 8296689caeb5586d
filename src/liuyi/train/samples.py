"""What the model under training says, every so many steps: short greedy texts, in `samples.jsonl` and in the log.

    {"step": 200, "prompt": "When does it open?", "text": "It opens at 7.", "ended": true}

Greedy texts draw no random number and change no weight. All processes write them together where the model is cut up;
the first one tells. A step that is taken again replaces what was written of it and of later ones.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch.distributed.fsdp import FSDPModule

from liuyi.core.disk import full_disk_is_told
from liuyi.core.errors import DataError
from liuyi.model.attention import fused_attention
from liuyi.model.chat import encode_chat
from liuyi.model.config import DecoderConfig
from liuyi.model.decoder import Decoder
from liuyi.model.tokenizer import Tokenizer
from liuyi.train.curves import SAMPLES_FILE, read_samples
from liuyi.train.params import SamplesParams
from liuyi.train.world import World

DRAWN = 3
"""Prompts that are taken from the data where none are given."""
LOGGED = 160
"""Characters of a sample that the log shows."""


@dataclass(frozen=True)
class Prompt:
    """What a sample goes on from: as it is shown, and as the model reads it."""

    shown: str
    ids: tuple[int, ...]


def text_prompts(texts: Sequence[str], tokenizer: Tokenizer, eos_id: int) -> list[Prompt]:
    """Beginnings of documents; without any, a document from its first word on."""
    return [Prompt(text, (eos_id, *tokenizer.encode_ordinary(text))) for text in texts or ("",)]


Said = Sequence[Mapping[str, Any]]
"""Messages, or tools that may be called."""


def chat_prompts(
    texts: Sequence[str], conversations: Iterable[tuple[Said, Said]], tokenizer: Tokenizer
) -> list[Prompt]:
    """What users say; where no text is given, the first conversations, each with its tools, up to the assistant's first
    words, which may be none: a conversation that the assistant begins asks nothing."""
    asked: list[tuple[Said, Said]] = [([{"role": "user", "content": text}], ()) for text in texts]
    for messages, tools in conversations if not texts else ():
        roles = [message["role"] for message in messages]
        start = messages[: roles.index("assistant")] if "assistant" in roles else messages
        if start and (start, tools) not in asked:
            asked.append((start, tools))
        if len(asked) == DRAWN:
            break
    return [
        Prompt(
            str(messages[-1]["content"]),
            tuple(encode_chat(tokenizer, messages, add_generation_prompt=True, tools=tools)[0]),
        )
        for messages, tools in asked
    ]


@dataclass
class Samples:
    """An onlooker that lets the model speak. Raises DataError for a prompt that leaves it no room."""

    prompts: Sequence[Prompt]
    tokenizer: Tokenizer
    params: SamplesParams
    config: DecoderConfig
    over: Callable[[], bool]
    """Whether the step that was seen last was the run's last."""
    workdir: Path
    log: Callable[[str], None]
    compute_dtype: torch.dtype = torch.float32
    world: World = field(default_factory=World)

    def __post_init__(self) -> None:
        for prompt in self.prompts:
            if len(prompt.ids) >= self.config.context_tokens:
                raise DataError(
                    f"the sample prompt '{prompt.shown[:40]}' has {len(prompt.ids)} tokens",
                    hint=f"the model's context is {self.config.context_tokens}",
                )

    def after_step(self, model: Decoder, row: Mapping[str, Any], figures: Mapping[str, float]) -> None:
        """Let it speak when it is time to."""
        step = row["step"] + 1
        if not self.prompts or (step % self.params.samples_every and not self.over()):
            return
        said = complete(
            model,
            [prompt.ids for prompt in self.prompts],
            max_tokens=self.params.sample_tokens,
            stop={*self.tokenizer.stop_ids, *self.config.eos_token_ids},
            compute_dtype=self.compute_dtype,
            world=self.world,
        )
        if self.world.leads:
            self._keep(step, said)

    def close(self, *, failed: bool) -> None:
        """Nothing is left to do."""

    def _keep(self, step: int, said: Sequence[tuple[list[int], bool]]) -> None:
        rows = [row for row in read_samples(self.workdir) if row["step"] < step]
        for prompt, (ids, ended) in zip(self.prompts, said, strict=True):
            text = self.tokenizer.decode(ids, skip_special_tokens=True)
            rows.append({"step": step, "prompt": prompt.shown, "text": text, "ended": ended})
            self.log(f"step {step}: {_short(prompt.shown)} → {_short(text)}")
        path = self.workdir / SAMPLES_FILE
        with full_disk_is_told("writing samples", self.workdir):
            draft = path.with_suffix(".tmp")
            draft.write_text("".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows), encoding="utf-8")
            draft.rename(path)


def _short(text: str) -> str:
    line = " ".join(text.split())
    return repr(line if len(line) <= LOGGED else line[: LOGGED - 1] + "…")


@torch.no_grad()
def complete(
    model: Decoder,
    prompts: Sequence[Sequence[int]],
    *,
    max_tokens: int,
    stop: Collection[int] = (),
    compute_dtype: torch.dtype | None = None,
    world: World | None = None,
) -> list[tuple[list[int], bool]]:
    """The most likely tokens after each prompt, at most `max_tokens` of them or up to one of `stop`, which is left out;
    and whether there was one. What the model is and does afterwards is left as it was.

    The prompts go forward side by side, all at the same position: a longer one is still read while a shorter one is
    answered. All processes of a `world` take the tokens that its first one finds most likely: they say the same, and
    end together, even where their logits differ in the last bit.
    """
    mode = model.training
    model.eval()
    try:
        # Compiled layers would be compiled anew for every length.
        with torch.compiler.set_stance("force_eager"):
            rows = _go_on(model, prompts, max_tokens, set(stop), compute_dtype, world or World())
    finally:
        model.train(mode)
        for part in model.modules():
            if isinstance(part, FSDPModule):
                part.reshard()
    said = [row[len(prompt) : len(prompt) + max_tokens] for row, prompt in zip(rows, prompts, strict=True)]
    return [(_until(ids, stop), any(id in stop for id in ids)) for ids in said]


def _until(ids: list[int], stop: Collection[int]) -> list[int]:
    return next((ids[:at] for at, id in enumerate(ids) if id in stop), ids)


def _go_on(
    model: Decoder,
    prompts: Sequence[Sequence[int]],
    max_tokens: int,
    stop: set[int],
    dtype: torch.dtype | None,
    world: World,
) -> list[list[int]]:
    """Each prompt and what comes after it, until all have what they need."""
    rows = [list(prompt) for prompt in prompts]
    longest = min(max(map(len, rows)) + max_tokens, model.config.context_tokens)
    cache = RowCache(model.config, longest, model.device)
    unread = min(map(len, rows))
    ended = [False] * len(rows)
    while True:
        tokens = torch.tensor([row[cache.length : cache.length + unread] for row in rows], device=model.device)
        hidden = model(tokens, cache=cache.turn(unread), compute_dtype=dtype)
        likely = world.from_first(model.logits(hidden[:, -1]).float().argmax(dim=-1).tolist())
        cache.length += unread
        unread = 1
        for number, (row, prompt) in enumerate(zip(rows, prompts, strict=True)):
            if len(row) == cache.length:
                row.append(int(likely[number]))
            said = cache.length + 1 - len(prompt)
            ended[number] |= said > 0 and (row[cache.length] in stop or said >= max_tokens)
        if all(ended) or cache.length + 1 >= longest:
            return rows


class RowCache:
    """Keys and values of rows that are all equally long."""

    def __init__(self, config: DecoderConfig, longest: int, device: torch.device) -> None:
        self.config = config
        self.longest = longest
        self.device = device
        self.length = 0
        self.kept: dict[int, tuple[Tensor, Tensor]] = {}

    def turn(self, tokens: int) -> Turn:
        """What one forward pass over that many further tokens of each row sees."""
        return Turn(self, tokens)


class Turn:
    """A `KVCache` for the next tokens of each row."""

    def __init__(self, cache: RowCache, tokens: int) -> None:
        self.cache = cache
        self.end = cache.length + tokens
        self.positions = torch.arange(cache.length, self.end, device=cache.device)[None]

    def attend(self, layer: int, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        """See `KVCache.attend`."""
        cache = self.cache
        if layer not in cache.kept:
            # As many heads as this process has of them.
            shape = (*k.shape[:2], cache.longest, k.shape[3])
            cache.kept[layer] = (k.new_empty(shape), v.new_empty(shape))
        keys, values = cache.kept[layer]
        keys[:, :, cache.length : self.end] = k
        values[:, :, cache.length : self.end] = v
        distance = self.positions[0][:, None] - torch.arange(self.end, device=cache.device)
        window = cache.config.window(layer)
        visible = distance >= 0 if window is None else (distance >= 0) & (distance < window)
        return fused_attention(q, keys[:, :, : self.end], values[:, :, : self.end], visible[None, None])
