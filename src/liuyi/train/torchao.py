"""PyTorch's library of number formats, which is an extra: 8-bit optimiser state and fp8 products come from it."""

from __future__ import annotations

import logging

from liuyi.core.errors import StepError


def demand_torchao(purpose: str) -> None:
    """Import torchao, without what it logs of kernels for other devices. Raises StepError where it is missing."""
    before = logging.root.manager.disable
    logging.disable(logging.WARNING)
    try:
        import torchao  # noqa: F401
    except ImportError:
        raise StepError(f"{purpose} needs torchao", hint="pip install 'liuyi[torchao]'") from None
    finally:
        logging.disable(before)
