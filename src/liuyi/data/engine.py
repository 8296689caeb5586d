"""Daft, the data engine: on all cores of this machine, or on a Ray cluster; quiet, and telling nobody.

`LIUYI_DATA_ENGINE` says which (`native` or `ray`), and `RAY_ADDRESS` where the cluster is; without one, Ray starts on
this machine. The engine is no part of a step's key: results are the same on either.
"""

from __future__ import annotations

import importlib
import logging
import os
from types import ModuleType
from typing import Any

from liuyi.core.cores import cores as local_cores
from liuyi.core.errors import StepError, did_you_mean

ENGINES = ("native", "ray")
ENGINE_VARIABLE = "LIUYI_DATA_ENGINE"

_QUIET = {
    "DAFT_ANALYTICS_ENABLED": "0",
    "DAFT_PROGRESS_BAR": "0",
    "RAY_USAGE_STATS_ENABLED": "0",
    "RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO": "0",
}


def engine() -> ModuleType:
    """The `daft` module, with the runner that was asked for.

    Raises StepError for an engine that is not known, not installed or not to be reached.
    """
    name = chosen_engine()
    os.environ.update(_QUIET, DAFT_RUNNER=name)
    if name == "ray":
        _join_cluster()
    import daft

    return daft


def chosen_engine() -> str:
    """The engine that the environment names. Raises StepError where there is none of that name."""
    name = os.environ.get(ENGINE_VARIABLE) or "native"
    if name not in ENGINES:
        raise StepError(f"there is no data engine '{name}'", where=ENGINE_VARIABLE, hint=did_you_mean(name, ENGINES))
    return name


def cores() -> int:
    """The cores that the engine, which was asked for before, can use: of this machine or of the cluster."""
    if chosen_engine() == "native":
        return local_cores()
    return max(1, int(_ray().cluster_resources().get("CPU", 1)))


def _join_cluster() -> None:
    """Connect to the cluster at `RAY_ADDRESS`, or start one here that ends with this process."""
    ray = _ray()
    if ray.is_initialized():
        return
    try:
        ray.init(include_dashboard=False, log_to_driver=False, logging_level=logging.ERROR)
    except (ConnectionError, RuntimeError, ValueError) as error:
        raise StepError(
            f"the Ray cluster cannot be reached: {error}",
            where=os.environ.get("RAY_ADDRESS", ""),
            hint="RAY_ADDRESS names a cluster; without it Ray starts on this machine",
        ) from error


def _ray() -> Any:
    try:
        return importlib.import_module("ray")
    except ImportError:
        raise StepError("the engine 'ray' needs Ray", where=ENGINE_VARIABLE, hint="pip install 'liuyi[ray]'") from None
