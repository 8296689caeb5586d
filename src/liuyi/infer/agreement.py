"""How near one way to compute a model is to another: perplexity and agreement on real text.

    texts = windows(tokenizer.encode(text), tokens=512, count=8)
    exact = score(decoder_logits(model), texts)                  # float32, torch
    near = score(runner_logits(runner), texts)
    agreement(exact, near).top1                                  # part of tokens whose likeliest successor is the same

Teacher-forced: every token of a text is predicted from those before it in the text, whatever the model would have said.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from liuyi.infer.blocks import blocks_for
from liuyi.infer.runner import Batch, Runner, ids
from liuyi.model.decoder import Decoder

Logits = Callable[[Sequence[int]], Tensor]
"""Logits [tokens, vocab] float32 after every token of a text."""


@dataclass(frozen=True)
class Scores:
    """What a model makes of texts, token for token, all texts one after the other."""

    likeliest: NDArray[np.int64]
    """Its first choice after every token but the last of each text."""
    nll: NDArray[np.float64]
    """−log p of the token that comes, in nats."""

    @property
    def perplexity(self) -> float:
        """e to the mean nll."""
        return float(np.exp(self.nll.mean()))


@dataclass(frozen=True)
class Agreement:
    """One set of scores beside the exact one of the same texts."""

    tokens: int
    top1: float
    """Part of the tokens after which both have the same first choice."""
    top1_error: float
    """Standard error of `top1`, the tokens taken as independent."""
    perplexity: float
    exact_perplexity: float
    nll_increase: float
    """Mean nll less the exact one's, in nats a token."""

    def metrics(self) -> dict[str, float]:
        """For a manifest."""
        return {
            "top1_agreement": self.top1,
            "perplexity": self.perplexity,
            "exact_perplexity": self.exact_perplexity,
            "nll_increase": self.nll_increase,
            "agreement_tokens": float(self.tokens),
        }


def windows(tokens: Sequence[int], length: int, count: int) -> list[Sequence[int]]:
    """The first `count` pieces of `length` tokens; a shorter rest is a piece if nothing else is there."""
    pieces = [tokens[at : at + length] for at in range(0, min(len(tokens), length * count), length)]
    whole = [piece for piece in pieces if len(piece) == length]
    return whole or [piece for piece in pieces if len(piece) > 1]


def score(logits_of: Logits, texts: Sequence[Sequence[int]]) -> Scores:
    """Score texts of at least two tokens, one after the other."""
    likeliest, nll = [], []
    for text in texts:
        logits = logits_of(text)[:-1]
        likeliest.append(logits.argmax(dim=1).numpy())
        wanted = torch.as_tensor(text[1:])
        nll.append(torch.nn.functional.cross_entropy(logits, wanted, reduction="none").double().numpy())
    return Scores(np.concatenate(likeliest), np.concatenate(nll))


def agreement(exact: Scores, near: Scores) -> Agreement:
    """Compare scores of the same texts."""
    same = exact.likeliest == near.likeliest
    top1 = float(same.mean())
    return Agreement(
        tokens=len(same),
        top1=top1,
        top1_error=float(np.sqrt(top1 * (1 - top1) / len(same))),
        perplexity=near.perplexity,
        exact_perplexity=exact.perplexity,
        nll_increase=float((near.nll - exact.nll).mean()),
    )


def decoder_logits(model: Decoder) -> Logits:
    """The decoder's own, in the dtype of its weights."""

    def logits_of(text: Sequence[int]) -> Tensor:
        with torch.inference_mode():
            return model.logits(model(torch.as_tensor(text)[None]))[0].float()

    return logits_of


def runner_logits(runner: Runner) -> Logits:
    """A runner's, which needs room for one text."""

    def logits_of(text: Sequence[int]) -> Tensor:
        return runner.logits(
            Batch(
                tokens=ids(text),
                counts=ids([len(text)]),
                lengths=ids([0]),
                tables=ids([range(blocks_for(len(text)))]),
                rows=ids(range(len(text))),
                adapters=ids([-1]),
            )
        )

    return logits_of
