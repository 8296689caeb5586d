"""What a mixture is asked to be."""

from __future__ import annotations

from itertools import pairwise
from typing import Annotated, Self

from pydantic import BaseModel, ConfigDict, Field, model_validator

from liuyi.core.step import Params

Weight = Annotated[float, Field(ge=0, allow_inf_nan=False)]
Epochs = Annotated[float, Field(gt=0)]


class Phase(BaseModel):
    """A part of the training with weights of its own."""

    model_config = ConfigDict(extra="forbid", frozen=True)
    until: float = Field(gt=0, le=1, description="where it ends, as a part of the budget; 1 for the last")
    weights: dict[str, Weight] = Field(description="weights by label; a source that is left out has none")
    ramp: bool = Field(False, description="go there in even steps from the weights of the phase before")


class MixParams(Params):
    labels: tuple[str, ...] = Field((), description="what the sources are called, in the order of the input")
    weights: dict[str, Weight] | None = Field(
        None, description="weights by label, of any sum; as much as there is of each when left out"
    )
    temperature: float = Field(
        1.0, gt=0, description="without weights: tokens ** (1 / temperature); above 1 favours what there is little of"
    )
    phases: tuple[Phase, ...] = Field((), description="a curriculum in place of `weights`")
    token_budget: int | None = Field(None, ge=1, description="tokens in all; as many as there are when left out")
    max_epochs: Epochs | dict[str, Epochs] = Field(
        4.0, description="how often a source may be gone through, for all or by label; the surplus goes to the others"
    )

    @model_validator(mode="after")
    def _one_way(self) -> Self:
        if sum((self.weights is not None, self.temperature != 1.0, bool(self.phases))) > 1:
            raise ValueError("give one of weights, temperature and phases")
        ends = [phase.until for phase in self.phases]
        if ends and (ends[-1] != 1 or any(a >= b for a, b in pairwise(ends))):
            raise ValueError("phases must end one after another, the last at 1")
        if self.phases and self.phases[0].ramp:
            raise ValueError("the first phase has no weights to come from")
        for weights in (self.weights, *(phase.weights for phase in self.phases)):
            if weights is not None and not sum(weights.values()):
                raise ValueError("some weight must be above 0")
        return self
