"""What a training is told, whether it makes a model to keep or one of many small ones to compare."""

from __future__ import annotations

from typing import Annotated, Literal, Self

from pydantic import Field, field_validator, model_validator

from liuyi.core.errors import DataError
from liuyi.core.step import BesideKey
from liuyi.pretrain.size import config_for_size, parse_size
from liuyi.train.params import MOST_BATCH_TOKENS, MOST_ROW_TOKENS, ComputeDtype, LoopParams
from liuyi.train.schedule import ScheduleName


class DecoderParams(LoopParams):
    """Size, rows, start and optimiser of a decoder; how long it trains is said by those that build on this."""

    size: str | None = Field(None, description="parameters of a new model, such as 5m; sets all that is left out below")
    hidden_size: int | None = Field(None, ge=2, le=2**17, description="width of a new model")
    num_hidden_layers: int | None = Field(None, ge=1, le=2**12, description="layers of a new model")
    experts: int | None = Field(
        None, ge=2, le=2**16, description="experts in each layer of a new model, in place of one MLP"
    )
    experts_per_token: int = Field(2, ge=1, description="how many of the experts a token goes through")
    seq_len: int = Field(256, ge=8, le=MOST_ROW_TOKENS, description="tokens in a packed row")
    batch_tokens: int | None = Field(None, ge=8, le=MOST_BATCH_TOKENS, description="tokens in a step's global batch")
    micro_rows: int | None = Field(None, ge=1, description="rows computed at once; less takes less memory")
    init: Literal["bigram", "random"] = Field("bigram", description="what a new model knows before its first step")
    tie_embeddings: bool = Field(False, description="one matrix for embedding and head; needs `init: random`")
    optimiser: Literal["muon", "adamw", "adamw8bit"] = Field(
        "muon", description="muon: of the matrices inside the layers, with adamw for the rest"
    )
    lr: float | None = Field(None, gt=0, description="peak learning rate of the matrices")
    embed_lr: float | None = Field(None, gt=0, description="peak learning rate of embeddings and head")
    weight_decay: float = Field(0.0, ge=0, description="of the matrices inside the layers; a step takes lr times it")
    embed_weight_decay: float = Field(0.0, ge=0, description="of embeddings and head")
    norm_weight_decay: float = Field(0.0, ge=0, description="of norms and biases")
    schedule: ScheduleName = Field(
        "wsd",
        description="learning rate after the warm-up: held and then falling over `decay` (wsd), falling as a cosine or "
        "a line, or held",
    )
    warmup: float = Field(0.02, ge=0, lt=1, description="part of all steps")
    decay: float = Field(0.5, ge=0, le=1, description="part of all steps in which `wsd` falls to zero")
    compute_dtype: ComputeDtype = "auto"
    fp8: bool = Field(False, description="multiply the layers' matrices in eight-bit floats; for GPUs that can")
    compile: Annotated[bool, BesideKey] = Field(
        False, description="compile the layers: faster on GPUs, some ten seconds before the first step"
    )

    @field_validator("size")
    @classmethod
    def _is_a_size(cls, text: str | None) -> str | None:
        try:
            # The vocabulary is not known yet; with a larger one more would fit.
            config_for_size(parse_size(text or "1m"), vocab_size=2**20, seq_len=8, eos_id=0, pad_id=None)
        except DataError as error:
            raise ValueError(f"{error.message}; {error.hint}") from None
        return text

    @model_validator(mode="after")
    def _starts_as_it_can(self) -> Self:
        if self.tie_embeddings and self.init == "bigram":
            raise ValueError("tied embeddings cannot hold a table of bigrams; set init: random")
        return self

    @model_validator(mode="after")
    def _experts_can_be_chosen(self) -> Self:
        if self.experts is None and self.experts_per_token != type(self).model_fields["experts_per_token"].default:
            raise ValueError("'experts_per_token' means nothing without 'experts'")
        if self.experts is not None and self.experts_per_token > self.experts:
            raise ValueError(f"a token cannot go through {self.experts_per_token} of {self.experts} experts")
        return self

    @model_validator(mode="after")
    def _decays_where_it_is_asked(self) -> Self:
        if self.schedule != "wsd" and self.decay != type(self).model_fields["decay"].default:
            raise ValueError(f"'decay' is for the schedule wsd, and this one is {self.schedule}")
        return self
