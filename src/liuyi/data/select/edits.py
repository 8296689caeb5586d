"""Which changes of kept texts are asked for; `edit` makes them."""

from __future__ import annotations

from pydantic import Field

from liuyi.core.step import Params

CUT, MASKED = "repeated", "pii"
"""The attributes that hold spans: lists of (start, end, kind)."""


class Edits(Params):
    """How kept texts are changed."""

    cut_repeated: bool = Field(True, description="cut out lines and passages marked as repeated, where they are marked")
    mask_pii: bool = Field(True, description="put placeholders such as [EMAIL] in the place of personal data")
    simplify_chinese: bool = Field(False, description="write documents in traditional Chinese in simplified characters")

    @property
    def spans(self) -> tuple[str, ...]:
        """The attributes of spans that these edits ask for."""
        return (CUT,) * self.cut_repeated + (MASKED,) * self.mask_pii
