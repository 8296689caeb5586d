"""When a server that refuses wants to be asked again."""

from __future__ import annotations

import email.utils
import time


def retry_after_s(value: str) -> float:
    """Seconds that a `Retry-After` asks for, which is a number or a date (RFC 9110, 10.2.3); 0 for neither."""
    try:
        seconds = float(value)
    except ValueError:
        try:
            seconds = email.utils.parsedate_to_datetime(value).timestamp() - time.time()
        except (ValueError, TypeError, OverflowError):
            return 0.0
    return seconds if 0 < seconds < float("inf") else 0.0
