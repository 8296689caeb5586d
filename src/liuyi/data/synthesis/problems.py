"""Problems whose answers can be checked: made by reasoning-gym (Stojanovski et al. 2025, arXiv 2505.24760), or one's
own with their references.

Only those of reasoning-gym's tasks are taken whose verifiers compare answers. Some others run them as Python (`eval`,
SymPy's `parse_expr`), and what a model writes is not to be run.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from liuyi.core.digest import sha256_json
from liuyi.core.errors import DataError, did_you_mean

if TYPE_CHECKING:
    from liuyi.data.synthesis.rows import Seed

TASKS = (
    "advanced_geometry",
    "aiw",
    "base_conversion",
    "basic_arithmetic",
    "bitwise_arithmetic",
    "calendar_arithmetic",
    "chain_sum",
    "coin_flip",
    "complex_arithmetic",
    "count_bits",
    "count_primes",
    "decimal_arithmetic",
    "decimal_chain_sum",
    "dice",
    "family_relationships",
    "fraction_simplification",
    "gcd",
    "gsm_symbolic",
    "knights_knaves",
    "lcm",
    "leg_counting",
    "number_format",
    "number_sequence",
    "polynomial_equations",
    "power_function",
    "prime_factorization",
    "products",
    "self_reference",
    "simple_equations",
    "simple_geometry",
    "syllogism",
    "time_intervals",
)


@dataclass(frozen=True)
class Problem:
    """A problem, its reference answer, and who checks answers to it."""

    id: str
    task: str
    """A task of reasoning-gym; empty where the reference is compared as mathematics."""
    text: str
    reference: str
    license: str
    cluster: str
    entry: Mapping[str, Any] = field(default_factory=dict)
    """What reasoning-gym's verifier needs beside the answer."""


def gym_problems(tasks: Sequence[str], count: int, seed: int, license: str) -> Iterator[Problem]:
    """`count` problems of each task. Raises DataError for a task that there is not."""
    gym = reasoning_gym()
    for name in tasks:
        if name not in TASKS:
            raise DataError(f"there is no task '{name}' whose answers are compared", hint=did_you_mean(name, TASKS))
        for entry in gym.create_dataset(name, seed=seed, size=count):
            id = sha256_json([name, entry["question"]])
            yield Problem(id, name, entry["question"], str(entry["answer"]), license, id[:16], entry)


def own_problems(seeds: Iterable[Seed]) -> Iterator[Problem]:
    """Conversations as problems: the question, and the answer as its reference."""
    for seed in seeds:
        yield Problem(seed.id, "", seed.instruction, seed.answer, seed.license, seed.cluster)


def different(problems: Iterable[Problem]) -> Iterator[Problem]:
    """The problems, each once: generators make some twice, and inputs may overlap."""
    seen: set[str] = set()
    for problem in problems:
        if problem.id not in seen:
            seen.add(problem.id)
            yield problem


def reasoning_gym() -> Any:
    """The package. Raises DataError with a hint where it is not installed."""
    try:
        import reasoning_gym
    except ImportError:
        raise DataError("problems are made by reasoning-gym", hint="pip install 'liuyi[synthesis]'") from None
    return reasoning_gym


def plain(entry: Mapping[str, Any]) -> str:
    """What a problem was made of, as JSON, whatever types it holds."""
    return json.dumps(entry, default=str, ensure_ascii=False, sort_keys=True)
