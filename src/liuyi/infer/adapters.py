"""Which adapters an engine has: loaded and dropped by name while it works, kept while a request uses them.

    adapters = AdapterRegistry(runner)
    adapters.load("lights", Adapter.load(folder))
    held = adapters.take("lights")           # a request begins; `held.slot` goes into the runner's batch
    adapters.drop("lights")                  # no new request finds it
    adapters.give_back(held)                 # the last request that used it has ended: its slot is free again

A name that is loaded anew means the new adapter from then on; requests that are running end with the one they began
with. `held.digest` is part of the prefix cache's keys: keys and values made under one adapter serve no other.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Protocol, runtime_checkable

from liuyi.core.errors import ModelError, did_you_mean
from liuyi.infer.errors import RequestError
from liuyi.model.adapter import Adapter

MAX_ADAPTERS = 32
"""Adapters that are there at once, those among them that are dropped but still in use."""


@runtime_checkable
class TakesAdapters(Protocol):
    """What a runner has that can apply adapters to the sequences of a batch."""

    def load_adapter(self, slot: int, adapter: Adapter) -> None:
        """Put an adapter into a slot. Raises ModelError if it does not fit the model."""

    def drop_adapter(self, slot: int) -> None:
        """Forget what is in a slot."""


@dataclass(eq=False)
class HeldAdapter:
    """One adapter in the engine."""

    name: str
    slot: int
    digest: str
    """SHA-256 of what it computes."""
    users: int = 0
    """Requests that it is kept for."""
    dropped: bool = False


class AdapterRegistry:
    """The adapters of one runner. Not safe to use from several threads at once."""

    def __init__(self, runner: object, slots: int = MAX_ADAPTERS) -> None:
        self._runner = runner
        self._by_name: dict[str, HeldAdapter] = {}
        self._free = list(range(slots - 1, -1, -1))
        self._slots = slots

    @property
    def names(self) -> list[str]:
        """The adapters that requests may name."""
        return list(self._by_name)

    def digest(self, name: str) -> str:
        """What an adapter computes, as a SHA-256. Raises RequestError if there is none of that name."""
        return self._find(name).digest

    def load(self, name: str, adapter: Adapter) -> HeldAdapter:
        """Make an adapter known by a name; one that had the name is dropped.

        Raises ModelError if it does not fit the model, if the runner applies none, or if there is no slot left.
        """
        if not isinstance(self._runner, TakesAdapters):
            raise ModelError("the model is run in a way that has no adapters", hint="--weights reference has")
        if adapter.dora:
            raise ModelError(
                "an adapter with DoRA's row lengths is no sum with the weights, and so cannot be applied beside them",
                hint="merge it into the model first: the step finetune.merge, or serve the adapter itself",
            )
        if not self._free:
            raise ModelError(f"all {self._slots} adapters that there may be are there", hint="drop one first")
        slot = self._free[-1]
        self._runner.load_adapter(slot, adapter)
        self._free.pop()
        if name in self._by_name:
            self.drop(name)
        held = self._by_name[name] = HeldAdapter(name, slot, adapter.digest)
        return held

    def drop(self, name: str) -> None:
        """Let no new request find an adapter; it goes when the last one that uses it ends.

        Raises RequestError if there is none of that name.
        """
        held = self._find(name)
        del self._by_name[name]
        held.dropped = True
        self._let_go(held)

    def take(self, name: str) -> HeldAdapter:
        """The adapter of that name for one more request. Raises RequestError if there is none."""
        held = self._find(name)
        held.users += 1
        return held

    def give_back(self, held: HeldAdapter) -> None:
        """A request that took it has ended."""
        held.users -= 1
        self._let_go(held)

    def _find(self, name: str) -> HeldAdapter:
        if name not in self._by_name:
            raise RequestError(
                f"there is no adapter '{name}'",
                param="model",
                code="model_not_found",
                hint=did_you_mean(name, self._by_name),
            )
        return self._by_name[name]

    def _let_go(self, held: HeldAdapter) -> None:
        if held.dropped and not held.users and isinstance(self._runner, TakesAdapters):
            self._runner.drop_adapter(held.slot)
            self._free.append(held.slot)
