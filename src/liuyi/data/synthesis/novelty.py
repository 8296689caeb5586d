"""Which instructions are new: not what the seeds ask, not what was made before, and not what the tests ask."""

from __future__ import annotations

from collections.abc import Callable, Iterable

from liuyi.data.synthesis.rouge import Seen


class Novelty:
    """Takes instructions one by one, in the order of the rows."""

    def __init__(
        self, seeds: Iterable[tuple[str, str]], threshold: float, in_tests: Callable[[str], str] = lambda text: ""
    ) -> None:
        """`seeds` are (id, instruction), `threshold` is one of ROUGE-L. `in_tests` gives what of a text stands in an
        eval set.
        """
        self._seen = Seen(threshold)
        self.in_tests = in_tests
        for id, instruction in seeds:
            self._seen.add(id, instruction)

    def wrong_with(self, id: str, instruction: str) -> str:
        """Why an instruction is not new; empty where it is, and then it is remembered."""
        if found := self.in_tests(instruction):
            return f"in an eval set: {found}"
        near = self._seen.nearest(instruction)
        if near is not None:
            return f"near duplicate: ROUGE-L {near[1]:.2f} to {near[0][:12]}"
        self._seen.add(id, instruction)
        return ""
