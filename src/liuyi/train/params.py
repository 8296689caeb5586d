"""The parameters that steps with the training loop have."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated, Any, Literal, Self

from pydantic import AfterValidator, Field, ValidationInfo, field_validator, model_validator

from liuyi.core.errors import DataError
from liuyi.core.secrets import without_secrets
from liuyi.core.step import BesideKey, Output, Params
from liuyi.train.inject import parse_faults
from liuyi.train.schedule import ScheduleName

if TYPE_CHECKING:
    from liuyi.train.world import Layout

Recompute = Literal["none", "mlp", "layer"]
ComputeDtype = Annotated[
    Literal["auto", "fp32", "bf16"],
    Field(description="what matrices are multiplied in; auto: bf16 where the machine is clearly faster in it"),
]
Schedule = Annotated[
    ScheduleName,
    Field(
        description="learning rate after the warm-up: held and then falling over the last fifth (wsd), falling as a "
        "cosine or a line, or held"
    ),
]
MOST_ROW_TOKENS, MOST_BATCH_TOKENS = 2**24, 2**32
"""More than any training has had: a slip of the finger, which is told before anything runs."""
MaxSteps = Annotated[int | None, Field(ge=1, description="steps, in place of `epochs`")]


class LoopParams(Params):
    clip_norm: float = Field(1.0, gt=0, description="longest gradient of the mean loss")
    checkpoint_every_s: float = Field(20.0, ge=0, description="seconds between checkpoints; 0: after each step")
    recompute: Annotated[Recompute, BesideKey] = Field(
        "none", description="what is computed again for the gradient rather than kept: saves memory, takes time"
    )
    export: Annotated[tuple[Literal["tensorboard", "mlflow", "trackio", "wandb"], ...], BesideKey] = Field(
        (), description="tools that figures go to while training; each is an extra of this package"
    )
    export_project: Annotated[str, BesideKey] = Field("liuyi", min_length=1, description="project or experiment there")
    export_folder: Annotated[str, BesideKey] = Field(
        "runs", min_length=1, description="folder of TensorBoard's files, relative to the recipe's"
    )
    hang_timeout_s: float = Field(600.0, gt=0, description="seconds without progress after which it starts again")
    verify_every: int = Field(500, ge=0, description="take one step in so many twice and compare; 0 for none")
    inject: str = Field("", description="faults to meet on purpose, such as nan@120,kill:1@300,hang@500,flip@900")

    @field_validator("inject")
    @classmethod
    def _faults(cls, text: str) -> str:
        try:
            parse_faults(text)
        except DataError as error:
            raise ValueError(f"{error.message}; {error.hint}") from None
        return text

    @model_validator(mode="after")
    def _faults_have_ranks(self) -> Self:
        """Faults are for processes that there are."""
        processes: int = getattr(self, "processes", 1)
        for fault in parse_faults(self.inject):
            if fault.rank >= processes:
                raise ValueError(f"{fault} is for rank {fault.rank}, and the last of {processes} is {processes - 1}")
        return self


class KeepParams(LoopParams):
    """Of a step whose checkpoints may be kept beyond the next ones."""

    keep_checkpoints: Annotated[int, BesideKey] = Field(2, ge=1, description="so many of the newest stay")
    keep_every_steps: int = Field(
        0, ge=0, description="steps between milestones, states that are kept and published as `milestones`; 0: none"
    )
    checkpoint_url: Annotated[str, BesideKey, AfterValidator(without_secrets)] = Field(
        "", description="where checkpoints are copied to as well, such as s3://bucket/folder; any fsspec address"
    )


MILESTONES = {
    "milestones": Output(
        "milestones",
        "with keep_every_steps: states to branch off from and to replay steps from",
        when=lambda params: params.keep_every_steps > 0,
    )
}


class ParallelParams(KeepParams):
    """Of a step that several processes can do together. How many changes how fast it is, and nothing but rounding."""

    processes: Annotated[int, BesideKey] = Field(1, ge=1, description="processes that train together, one a device")
    shard: Annotated[int, BesideKey] = Field(1, ge=1, description="parts that weights and optimiser state are cut into")
    tensor: Annotated[int, BesideKey] = Field(1, ge=1, description="parts that each layer's matrices are cut into")
    context: Annotated[int, BesideKey] = Field(1, ge=1, description="parts that each row's tokens are cut into")
    nodes: Annotated[int, BesideKey] = Field(1, ge=1, description="machines that the processes are spread over evenly")
    rendezvous: Annotated[str, BesideKey] = Field("", description="host:port at which several machines meet")

    @model_validator(mode="after")
    def _fit_together(self) -> Self:
        divided = self.shard * self.tensor * self.context
        if self.processes % divided:
            raise ValueError(
                f"shard × tensor × context is {divided}, which does not divide {self.processes} processes; "
                "what is left over of them are copies"
            )
        if self.processes % self.nodes:
            raise ValueError(f"{self.processes} processes cannot be spread evenly over {self.nodes} machines")
        host, _, port = self.rendezvous.rpartition(":")
        if self.nodes > 1 and not (host and port.isdecimal()):
            raise ValueError("several machines need a rendezvous: the name and a free port of one of them, node1:29500")
        if self.rendezvous and self.nodes == 1:
            raise ValueError("a rendezvous is for several machines; nodes is 1")
        if self.tensor > 1 and getattr(self, "fp8", False):
            raise ValueError("'fp8' and 'tensor' do not go together; set tensor: 1")
        return self

    @property
    def sharers(self) -> int:
        """How many processes, or groups of them, share the rows of a global batch."""
        return self.processes // (self.tensor * self.context)

    def demand_shares(self, rows: int, what: str) -> None:
        """Raises ValueError for a batch that cannot be shared evenly."""
        if rows % self.sharers:
            raise ValueError(f"a batch of {rows} {what} cannot be shared evenly by {self.sharers}")

    def layout(self) -> Layout:
        """How the work is laid out over the processes."""
        from liuyi.train.world import Layout

        return Layout.of(self.processes, shard=self.shard, context=self.context, tensor=self.tensor)


class SamplesParams(Params):
    """Of a step whose model may say something while it is trained."""

    samples_every: int = Field(0, ge=0, description="steps between samples of what the model says; 0: none")
    sample_prompts: tuple[str, ...] = Field(
        (), description="what samples go on from or answer; left out: a document's beginning, or prompts of the data"
    )
    sample_tokens: int = Field(64, ge=1, description="longest sample")

    @field_validator("sample_prompts", "sample_tokens")
    @classmethod
    def _has_samples(cls, value: Any, info: ValidationInfo) -> Any:
        default = cls.model_fields[str(info.field_name)].default
        if value != default and not info.data.get("samples_every", 1):
            raise ValueError(f"'{info.field_name}' means nothing without samples; set samples_every")
        return value
