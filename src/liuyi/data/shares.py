"""Dividing a budget among those who want parts of it."""

from __future__ import annotations

from collections.abc import Sequence


def fair_shares(wanted: Sequence[int], total: int, largest: int | None = None) -> list[int]:
    """Divide `total` so that nobody gets more than they want or than `largest`; what is left over is shared evenly.

    >>> fair_shares([10, 100, 1000], 300)
    [10, 100, 190]
    """
    shares = [0] * len(wanted)
    left = total
    order = sorted(range(len(wanted)), key=lambda index: (wanted[index], index))
    for position, index in enumerate(order):
        share = min(wanted[index], left // (len(order) - position))
        shares[index] = share if largest is None else min(share, largest)
        left -= shares[index]
    return shares
