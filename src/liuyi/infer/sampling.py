"""From logits to tokens: penalties, filters and noise, each a function over a batch of rows.

The order is that of Hugging Face's generation: grammar mask, bias, penalties, temperature, top-k, top-p, min-p,
typical, draw. A draw is the Gumbel-max trick (arXiv 1611.01144): the largest of logit + noise, with noise that is a
hash of (seed, position, token). It needs no normalisation, and rounding in the logits changes a draw only where two
candidates lie that close, so that a request gives the same tokens alone and in a batch.
"""

from __future__ import annotations

import functools
from collections.abc import Collection, Sequence

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from liuyi.infer.runner import Draws, Ids, ids

NEVER = float("-inf")
_HEAD = 128
_SLACK = np.float32(1.0001)
"""What rounding may add to a race."""
_BELOW_ONE = np.float32(1 - 2.0**-24)


def penalise(logits: Tensor, counts: Tensor, repetition: float, presence: float, frequency: float) -> Tensor:
    """Logits of the tokens of a row that were seen in prompt or output, made less likely; all [seen].

    `counts` says how often each is in the output. Repetition (arXiv 1909.05858) divides positive and multiplies
    negative logits; presence and frequency, as OpenAI's API defines them, subtract once and once per occurrence in the
    output.
    """
    logits = torch.where(logits > 0, logits / repetition, logits * repetition)
    return logits - presence * (counts > 0) - frequency * counts


def keep_top_k(logits: Tensor, k: Tensor) -> Tensor:
    """Only the k [rows] largest logits of each row, with those equal to the smallest of them; 0 keeps all."""
    vocab = logits.shape[-1]
    wanted = torch.where(k > 0, k, vocab).clamp(max=vocab)
    highest = int(torch.where(wanted < vocab, wanted, 1).max())
    values = logits.topk(highest, dim=-1).values
    threshold = values.gather(1, (wanted - 1).clamp(max=highest - 1)[:, None])
    threshold = torch.where((wanted < vocab)[:, None], threshold, NEVER)
    return logits.masked_fill(logits < threshold, NEVER)


def keep_top_p(logits: Tensor, p: Tensor) -> Tensor:
    """Only the smallest set of most probable tokens whose mass reaches p [rows] (arXiv 1904.09751).

    Tokens as probable as the last one kept are kept too, so that the set does not depend on the order of equals.
    """
    mass = torch.logsumexp(logits, dim=-1)
    threshold, certain = _mass_threshold(logits.topk(min(_HEAD, logits.shape[-1]), dim=-1).values, mass, p)
    if not bool(certain.all()):
        rows = (~certain).nonzero(as_tuple=True)[0]
        threshold[rows] = _mass_threshold(logits[rows].sort(dim=-1, descending=True).values, mass[rows], p[rows])[0]
    threshold = torch.where(p < 1, threshold, NEVER)
    return logits.masked_fill(logits < threshold[:, None], NEVER)


def _mass_threshold(values: Tensor, mass: Tensor, p: Tensor) -> tuple[Tensor, Tensor]:
    """The smallest logit to keep, [rows], from the head of each row in falling order; whether the head reached p."""
    probabilities = (values - mass[:, None]).exp()
    reached = probabilities.cumsum(dim=-1)
    kept = (reached - probabilities < p[:, None]).sum(dim=-1).clamp(min=1)
    return values.gather(1, kept[:, None] - 1)[:, 0], (reached[:, -1] >= p) | (p >= 1)


def keep_min_p(logits: Tensor, p: Tensor) -> Tensor:
    """Only tokens at least p [rows] times as probable as the most probable one (arXiv 2407.01082)."""
    threshold = logits.amax(dim=-1, keepdim=True) + p.log()[:, None]
    return logits.masked_fill(logits < threshold, NEVER)


def keep_typical(logits: Tensor, p: Tensor) -> Tensor:
    """Only the smallest set of most typical tokens whose mass reaches p [rows] (arXiv 2202.00666).

    A token is typical when its surprise, -log probability, is close to the entropy of its row. Tokens as typical as
    the last one kept are kept too.
    """
    logprobs = logits.log_softmax(dim=-1)
    probabilities = logprobs.exp()
    entropy = -(logprobs * probabilities).nansum(dim=-1, keepdim=True)
    strangeness, order = (-logprobs - entropy).abs().sort(dim=-1, stable=True)
    before = probabilities.gather(1, order).cumsum(dim=-1)
    last = (before < p[:, None]).sum(dim=-1, keepdim=True).clamp(max=logits.shape[-1] - 1)
    threshold = torch.where(p[:, None] < 1, strangeness.gather(1, last), float("inf"))
    return logits.masked_fill((-logprobs - entropy).abs() > threshold, NEVER)


def noise_keys(seeds: NDArray[np.uint64], positions: NDArray[np.uint64]) -> NDArray[np.uint64]:
    """A well-mixed 64-bit key for each (seed, position): SplitMix64 (Steele et al., 2014) over both."""
    with np.errstate(over="ignore"):
        return _splitmix(_splitmix(seeds) + positions * np.uint64(0x9E3779B97F4A7C15))


def gumbel_noise(keys: NDArray[np.uint64], vocab: int) -> NDArray[np.float32]:
    """Standard Gumbel noise [rows, vocab], a pure function of the keys [rows] and the token ids."""
    return np.stack([_gumbel(_uniform(key, _spread(vocab))) for key in keys])


def draw_reference(logits: Tensor, keys: NDArray[np.uint64]) -> list[int]:
    """One token id for each row of softmax(logits [rows, vocab]): the Gumbel-max trick written as its formula."""
    chosen = logits.numpy() + gumbel_noise(keys, logits.shape[-1])
    return [int(token) for token in chosen.argmax(axis=-1)]


def draw(logits: Tensor, keys: NDArray[np.uint64]) -> list[int]:
    """`draw_reference`, with the noise computed where it can matter only.

    The largest logit + noise is the smallest of e / p, where e = −log(1 − u) is exponential and u the uniform number
    behind the noise. Since e ≥ u, whatever has u / p above the e / p of any other token cannot win.
    """
    return [_win(row, key) for row, key in zip(logits.numpy(), keys, strict=True)]


def choose(logits: Tensor, draws: Draws | None = None) -> Ids:
    """A token for each row of logits [rows, vocab], as `Runner.choose` has it."""
    tokens = ids(logits.numpy().argmax(axis=-1))
    if draws is not None:
        random = np.flatnonzero(draws.temperatures)
        tokens[random] = draw(
            logits[random] / torch.from_numpy(draws.temperatures[random])[:, None], draws.keys[random]
        )
    return tokens


def _win(logits: NDArray[np.float32], key: np.uint64) -> int:
    alive = np.flatnonzero(logits > NEVER)
    if not len(alive):
        # Of a broken model whose logits are not numbers: as for a greedy request.
        return int(logits.argmax())
    if len(alive) == len(logits):
        return _first_of_race(logits, _uniform(key, _spread(len(logits))))
    return int(alive[_first_of_race(logits[alive], _uniform(key, _spread(len(logits))[alive]))])


def _first_of_race(logits: NDArray[np.float32], uniform: NDArray[np.float32]) -> int:
    with np.errstate(over="ignore", invalid="ignore"):
        weights = np.exp(logits.max() - logits)
        race = uniform * weights
    ahead = int(race.argmin())
    close = np.flatnonzero(race <= _SLACK * -np.log1p(-uniform[ahead]) * weights[ahead])
    if not len(close):
        # An infinite logit wins whatever the noise.
        return ahead
    return int(close[(logits[close] + _gumbel(uniform[close])).argmax()])


def _gumbel(uniform: NDArray[np.float32]) -> NDArray[np.float32]:
    return -np.log(-np.log1p(-uniform))


def _uniform(key: np.uint64, spread: NDArray[np.uint32]) -> NDArray[np.float32]:
    """Numbers between 0 and 1, neither included, for one key and some tokens: the mixing of MurmurHash3."""
    low, high = np.uint32(key & np.uint64(0xFFFFFFFF)), np.uint32(key >> np.uint64(32))
    x = spread ^ low
    y = np.empty_like(x)
    for shift, factor, more in ((16, 0x85EBCA6B, high), (13, 0xC2B2AE35, np.uint32(0))):
        x ^= np.right_shift(x, shift, out=y)
        x *= np.uint32(factor)
        x ^= more
    x ^= np.right_shift(x, 16, out=y)
    # 31 bits: float32 keeps the small numbers, which win races, apart.
    uniform: NDArray[np.float32] = np.right_shift(x, 1, out=x).astype(np.float32)
    uniform += np.float32(0.5)
    uniform *= np.float32(2.0**-31)
    np.minimum(uniform, _BELOW_ONE, out=uniform)
    return uniform


Scored = tuple[float, tuple[tuple[int, float], ...]]
"""Log-probability of a token, and the most probable tokens at its place with theirs, best first."""


def score(logits: Tensor, tokens: Sequence[int], tops: Sequence[int]) -> list[Scored]:
    """Log-softmax of logits [rows, vocab] at `tokens` [rows], and at the `tops[row]` most probable tokens."""
    mass = torch.logsumexp(logits, dim=-1, keepdim=True)
    chosen = (logits.gather(1, torch.tensor(tokens)[:, None]) - mass)[:, 0].tolist()
    if not any(tops):
        return [(value, ()) for value in chosen]
    values, ids = logits.topk(min(max(tops), logits.shape[-1]), dim=-1)
    best = zip(ids.tolist(), (values - mass).tolist(), strict=True)
    return [
        (value, tuple(zip(row_ids, row_values, strict=True))[:top])
        for value, top, (row_ids, row_values) in zip(chosen, tops, best, strict=True)
    ]


def derive_seed(seed: int, number: int) -> int:
    """The seed of the `number`-th of several draws that share one seed."""
    both = np.array([[seed % (1 << 64)], [number % (1 << 64)]], dtype=np.uint64)
    return int(noise_keys(both[0], both[1])[0])


def unpack_mask(bits: NDArray[np.int32], vocab: int) -> Tensor:
    """Allowed tokens [rows, vocab] bool, from bit masks [rows, ceil(vocab / 32)], least significant bit first."""
    unpacked = np.unpackbits(bits.view(np.uint8), axis=1, bitorder="little", count=vocab)
    return torch.from_numpy(unpacked.view(np.bool_))


def mask_without(tokens: Collection[int], vocab: int) -> NDArray[np.int32]:
    """A bit mask, as `unpack_mask` takes it, of all tokens but these: [ceil(vocab / 32)]."""
    allowed = np.arange(32 * -(-vocab // 32)) < vocab
    allowed[list(tokens)] = False
    return np.packbits(allowed, bitorder="little").view(np.int32)


def _splitmix(x: NDArray[np.uint64]) -> NDArray[np.uint64]:
    x = x + np.uint64(0x9E3779B97F4A7C15)
    x = (x ^ (x >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    x = (x ^ (x >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return x ^ (x >> np.uint64(31))


@functools.lru_cache(maxsize=4)
def _spread(vocab: int) -> NDArray[np.uint32]:
    return np.arange(vocab, dtype=np.uint32) * np.uint32(0x9E3779B1)
