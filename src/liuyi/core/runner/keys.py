"""What makes two pieces of work the same: the step key, and the seed that follows from it."""

from __future__ import annotations

import functools
import importlib.metadata
import os
from collections.abc import Iterable
from pathlib import Path

from liuyi.core.digest import sha256_json
from liuyi.core.step import Params, Step


def step_key(
    step: Step, params: Params, inputs: Iterable[tuple[str, str]], *, seed: int, device: str, folder: Path
) -> str:
    """SHA-256 of everything the outcome depends on.

    `inputs` are (port, digest) in the recipe's order; `folder` is where paths of own data start, whose content counts.
    Raises LiuyiError or OSError if that content cannot be read.
    """
    said = [
        step.name,
        step.version,
        params.model_dump(mode="json", context={"folder": folder}),
        [list(pair) for pair in inputs],
        seed,
        device,
    ]
    return sha256_json([*said, step.fingerprint(params)] if step.fingerprint else said)


def derived_seed(seed: int, step: Step) -> int:
    """The seed of one step, in [0, 2³¹): the same wherever in a recipe the step stands and whatever it is called."""
    return int(sha256_json([seed, step.name])[:16], 16) % 2**31


@functools.cache
def device_class() -> str:
    """`cuda` where torch can use an NVIDIA device, else `cpu`; torch itself is not imported to know."""
    if os.environ.get("CUDA_VISIBLE_DEVICES") in ("", "-1") or not Path("/dev/nvidiactl").exists():
        return "cpu"
    return "cpu" if importlib.metadata.version("torch").endswith("+cpu") else "cuda"
