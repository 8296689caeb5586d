"""The parameters that every step with the training loop has."""

from __future__ import annotations

from pydantic import Field, field_validator

from liuyi.core.errors import DataError
from liuyi.core.step import Params
from liuyi.train.inject import parse_faults


class LoopParams(Params):
    clip_norm: float = Field(1.0, gt=0, description="longest gradient of the mean loss")
    checkpoint_every_s: float = Field(20.0, ge=0, description="seconds between checkpoints; 0: after each step")
    hang_timeout_s: float = Field(600.0, gt=0, description="seconds without progress after which it starts again")
    verify_every: int = Field(500, ge=0, description="take one step in so many twice and compare; 0 for none")
    inject: str = Field("", description="faults to meet on purpose, such as nan@120,kill@300,hang@500,flip@900")

    @field_validator("inject")
    @classmethod
    def _faults(cls, text: str) -> str:
        try:
            parse_faults(text)
        except DataError as error:
            raise ValueError(f"{error.message}; {error.hint}") from None
        return text
