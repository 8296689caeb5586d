"""Steps done by several processes that are forked with torch in them, rather than started by an elastic agent."""

from __future__ import annotations

import pytest

from liuyi.train import launch
from liuyi.train.rank import work
from ranks import run_ranks


def fork_ranks(monkeypatch: pytest.MonkeyPatch) -> None:
    """Have `launch` do what it does, but for the agent: quick, and without a second start."""

    def forked(folder: object, params: object) -> None:
        assert isinstance(params, launch.ParallelParams)
        assert run_ranks(params.processes, work, folder) == [0] * params.processes

    monkeypatch.setattr(launch, "_run_agent", forked)
