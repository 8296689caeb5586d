"""What the native library is told of a row of logits, to draw a token from it or to say how probable one is."""

from __future__ import annotations

import numpy as np

DRAW = np.dtype(
    [
        *((name, np.uintp) for name in ("logits", "allowed", "seen", "counts", "biased", "biases")),
        ("key", np.uint64),
        *((name, np.int32) for name in ("seen_count", "biased_count")),
        *((name, np.float32) for name in ("repetition", "presence", "frequency", "temperature")),
        ("top_k", np.int32),
        *((name, np.float32) for name in ("top_p", "min_p", "typical_p")),
    ],
    align=True,
)
"""`Draw` of `native/draw.h`; arrays are given by their addresses."""

SCORE = np.dtype(
    [
        *((name, np.uintp) for name in ("logits", "logprob", "top_ids", "top_logprobs")),
        *((name, np.int32) for name in ("token", "top")),
    ],
    align=True,
)
"""`Score` of `native/draw.h`."""
