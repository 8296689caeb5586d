"""The held-out text that proxies are measured on, at several points of their training."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from liuyi.core.artifact import Artifact
from liuyi.core.errors import DataError
from liuyi.model.decoder import Decoder
from liuyi.pretrain.ablate.difference import Floats, cluster_sums
from liuyi.pretrain.bits import Documents, model_bits
from liuyi.train.data import TokenStream
from liuyi.train.mixture import demand_alike


@dataclass(frozen=True)
class HeldOut:
    """One set of held-out documents."""

    label: str
    stream: TokenStream
    documents: Documents

    @property
    def clusters(self) -> NDArray[np.int64]:
        """The number of each document's cluster, `[documents]`."""
        return np.unique(np.array(self.documents.clusters), return_inverse=True)[1].astype(np.int64)

    @property
    def cluster_bytes(self) -> Floats:
        """UTF-8 bytes of each cluster."""
        return cluster_sums(self.documents.bytes.astype(np.float64), self.clusters)

    def by_cluster(self, bits: Floats) -> Floats:
        """Bits `[..., clusters]` of bits `[..., documents]`."""
        return cluster_sums(bits, self.clusters)

    def bits_per_byte(self, bits: Floats) -> Floats:
        """`[...]` from bits `[..., documents]`."""
        return np.asarray(bits.sum(axis=-1) / self.documents.bytes.sum())


def load_heldout(artifacts: Sequence[Artifact], labels: Sequence[str], max_tokens: int, seed: int) -> list[HeldOut]:
    """A sample of documents of at most `max_tokens` from each artifact, of as many clusters as can be.

    Raises DataError where a sample has documents of one cluster only: nothing could then be said of other text.
    """
    found = []
    for artifact, label in zip(artifacts, labels, strict=True):
        documents = sample_evenly(Documents.load(artifact.path), max_tokens, seed)
        if len(set(documents.clusters)) < 2:
            raise DataError(
                f"the held-out documents of '{label}' are of one cluster",
                hint="hold out several packages, sites or books, or allow more `heldout_tokens`",
            )
        found.append(HeldOut(label, TokenStream(artifact.path), documents))
    return found


def sample_evenly(documents: Documents, max_tokens: int, seed: int) -> Documents:
    """Documents of at most `max_tokens` in all, drawn from the clusters in turn: clusters are what intervals count.

    Documents that alone would take twice a cluster's share are drawn last, if there is room.
    """
    if documents.tokens.sum() <= max_tokens:
        return documents
    names, cluster = np.unique(np.array(documents.clusters), return_inverse=True)
    shuffled = np.random.default_rng(seed).permutation(len(documents.ids))
    long = documents.tokens > 2 * max_tokens / len(names)
    turns = np.zeros(len(shuffled), dtype=np.int64)
    seen = np.zeros(len(names), dtype=np.int64)
    for at in shuffled[np.argsort(long[shuffled], kind="stable")]:
        turns[at] = seen[cluster[at]]
        seen[cluster[at]] += 1
    taken, left = [], max_tokens
    for at in shuffled[np.lexsort((turns[shuffled], long[shuffled]))]:
        if documents.tokens[at] <= left:
            taken.append(at)
            left -= int(documents.tokens[at])
    return documents.take(np.sort(np.array(taken, dtype=np.int64)))


def demand_one_tokenizer(streams: Iterable[tuple[str, TokenStream]], heldout: Iterable[HeldOut]) -> None:
    """Raises DataError where tokens to train on, by label, or held-out ones do not look like those of one tokenizer."""
    given = [*streams, *((text.label, text.stream) for text in heldout)]
    names = [name for name, _ in given]
    demand_alike(names, [stream.vocab_size for _, stream in given], [stream.eos_id for _, stream in given])


def demand_apart(arms: Iterable[tuple[str, Sequence[str]]], heldout: Iterable[HeldOut]) -> None:
    """Raises DataError where a document that is held out is also trained on; arms are (label, document ids)."""
    arms = list(arms)
    for text in heldout:
        wanted = set(text.documents.ids)
        for label, ids in arms:
            both = wanted.intersection(ids)
            if both:
                raise DataError(
                    f"{len(both)} held-out documents of '{text.label}' are in the training tokens of '{label}', "
                    f"such as '{min(both)}'",
                    hint="hold documents out before the arms are made, for instance with data.select",
                )


class Curve:
    """A monitor of the training loop: bits of every held-out document after some of its steps."""

    def __init__(self, heldout: Sequence[HeldOut], at_steps: Sequence[int], window: int) -> None:
        self.heldout = heldout
        self.at_steps = list(at_steps)
        self.window = window
        self.bits: list[list[Floats]] = [[] for _ in heldout]

    def after_step(self, model: Decoder, step: int) -> str:
        """Measure where the step is one to measure at; never a reason to stop."""
        measured = len(self.bits[0])
        if measured < len(self.at_steps) and step == self.at_steps[measured]:
            for text, bits in zip(self.heldout, self.bits, strict=True):
                bits.append(model_bits(model, text.stream, text.documents, window=self.window))
            model.train()
        return ""

    def tensors(self) -> dict[str, Tensor]:
        """The bits so far, `[points, documents]` for each set that has any."""
        return {str(at): torch.from_numpy(np.stack(bits)) for at, bits in enumerate(self.bits) if bits}

    def state(self) -> dict[str, Any]:
        """Nothing beside the tensors."""
        return {}

    def load(self, tensors: dict[str, Tensor], state: dict[str, Any]) -> None:
        """Put back what `tensors` gave."""
        self.bits = [list(tensors[str(at)].numpy()) if str(at) in tensors else [] for at in range(len(self.heldout))]
