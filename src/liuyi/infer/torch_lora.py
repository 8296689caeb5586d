"""Many LoRA adapters in one batch, beside the torch decoder: each token's rows see its own sequence's adapter.

    bank = AdapterBank(model)
    bank.load(3, adapter)
    with bank.applied(batch):
        hidden = model(...)          # packed tokens [n, 1]

Nothing in the decoder knows of adapters: hooks on its projections add up·(down·x) to the rows of each group of tokens
with the same adapter, so that a batch costs one product with the weights and a small one for each adapter in it
(as in Punica, arXiv 2310.18547).
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.utils.hooks import RemovableHandle

from liuyi.infer.runner import Batch
from liuyi.model.adapter import Adapter, LowRank
from liuyi.model.decoder import Decoder


@dataclass(frozen=True)
class _Pair:
    """One module's matrices where and as the model computes; the scale is in `up`."""

    down: Tensor
    up: Tensor


class AdapterBank:
    """Adapters by slot, and which tokens of the current batch use which."""

    def __init__(self, model: Decoder) -> None:
        self._model = model
        self._pairs: dict[str, dict[int, _Pair]] = {}
        self._hooks: dict[str, RemovableHandle] = {}
        self._groups: list[tuple[int, Tensor | None]] = []

    def load(self, slot: int, adapter: Adapter) -> None:
        """Put an adapter where tokens of that slot find it. Raises ModelError if it does not fit the model."""
        adapter.check(self._model.config)
        self.drop(slot)
        for name, change in adapter.modules.items():
            if name not in self._hooks:
                module = self._model.get_submodule(name)
                self._hooks[name] = module.register_forward_hook(self._hook(name))
            self._pairs.setdefault(name, {})[slot] = self._placed(change)

    def drop(self, slot: int) -> None:
        """Forget what is in a slot, if anything is."""
        for name in list(self._pairs):
            self._pairs[name].pop(slot, None)
            if not self._pairs[name]:
                del self._pairs[name]
                self._hooks.pop(name).remove()

    @contextmanager
    def applied(self, batch: Batch) -> Iterator[None]:
        """Within it, forward passes over the batch's packed tokens use its adapters."""
        slots = np.unique(batch.adapters)
        if len(slots) == 1:
            self._groups = [(int(slots[0]), None)] if slots[0] >= 0 else []
        else:
            of_token = np.repeat(batch.adapters, batch.counts)
            rows = ((int(slot), np.flatnonzero(of_token == slot)) for slot in slots if slot >= 0)
            self._groups = [(slot, torch.from_numpy(where).to(self._model.device)) for slot, where in rows]
        try:
            yield
        finally:
            self._groups = []

    def _placed(self, change: LowRank) -> _Pair:
        place: dict[str, Any] = {"device": self._model.device, "dtype": self._model.dtype}
        return _Pair(change.down.to(**place), (change.up * change.scale).to(**place))

    def _hook(self, name: str) -> Any:
        def add(module: torch.nn.Module, inputs: tuple[Tensor], output: Tensor) -> Tensor | None:
            own = [(self._pairs[name][slot], rows) for slot, rows in self._groups if slot in self._pairs[name]]
            if not own:
                return None
            x = inputs[0]
            for pair, rows in own:
                part = x if rows is None else x[rows]
                more = part @ pair.down.to(x.dtype).T @ pair.up.to(x.dtype).T
                output = output.add_(more) if rows is None else output.index_add_(0, rows, more)
            return output

        return add
