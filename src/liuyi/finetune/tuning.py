"""What a step trains: the parameters that say so, and the artifact that comes of it.

All weights, some of the layers, or an adapter: fine-tuning, preferences and reward models share these. Whatever is set
without being used by the method is refused.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any, Literal, Self

from pydantic import Field, ValidationInfo, field_validator, model_validator

from liuyi.core.step import Context, Output, Staging
from liuyi.train.params import MILESTONES, ParallelParams

if TYPE_CHECKING:
    from collections.abc import Iterator

    from liuyi.model.decoder import Decoder
    from liuyi.model.lora import LoraConfig
    from liuyi.model.tokenizer import Tokenizer
    from liuyi.train.tuning import Tuning

Projection = Literal["q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj"]
_OF_LORA = ("rank", "alpha", "rslora", "dora", "pissa", "base", "targets", "b_lr_ratio")
_OF_FREEZE = ("train_layers", "train_modules")


class TuningParams(ParallelParams):
    """Parameters of a step that trains a model."""

    method: Literal["full", "freeze", "lora"] = Field("full", description="train all weights, some, or an adapter")
    rank: int = Field(16, ge=1, description="lora: inner size of the adapter's products")
    alpha: float = Field(32.0, gt=0, description="lora: the products are scaled by alpha / rank")
    rslora: bool = Field(False, description="lora: scale by alpha / √rank, so that large ranks learn as fast")
    dora: bool = Field(False, description="lora: train the length of every row of a matrix too (DoRA)")
    pissa: bool = Field(False, description="lora: begin with the largest singular values of each matrix (PiSSA)")
    base: Literal["full", "nf4"] = Field("full", description="lora: keep the frozen matrices in four bits (QLoRA)")
    targets: tuple[Projection, ...] = Field(
        ("q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj"),
        min_length=1,
        description="lora: the projections that it changes",
    )
    b_lr_ratio: float = Field(1.0, gt=0, description="lora: learning rate of B relative to that of A (LoRA+ takes 16)")
    train_layers: int = Field(0, ge=0, description="freeze: how many of the last layers are trained")
    train_modules: tuple[str, ...] = Field((), description="freeze: modules that are trained too, such as lm_head")
    layer_decay: float = Field(1.0, gt=0, le=1, description="learning rate of a layer relative to the one above it")

    @field_validator(*_OF_LORA, *_OF_FREEZE)
    @classmethod
    def _is_used(cls, value: Any, info: ValidationInfo) -> Any:
        """A value other than the default's is refused where the method does not use it."""
        wanted = "lora" if info.field_name in _OF_LORA else "freeze"
        default = cls.model_fields[str(info.field_name)].default
        if value != default and info.data.get("method", wanted) != wanted:
            raise ValueError(
                f"'{info.field_name}' means nothing with method: {info.data['method']}; it is for {wanted}"
            )
        return value

    @model_validator(mode="after")
    def _trains_something(self) -> Self:
        if self.method == "freeze" and not (self.train_layers or self.train_modules):
            raise ValueError("with method: freeze, say what is trained: train_layers or train_modules")
        return self

    @model_validator(mode="after")
    def _adapters_are_beside_whole_matrices(self) -> Self:
        if self.method == "lora" and self.tensor > 1:
            raise ValueError("'tensor' divides the matrices that an adapter is beside; 'shard' goes with adapters")
        return self

    def lora(self) -> LoraConfig | None:
        """The adapter; None where none is trained."""
        from liuyi.model.lora import LoraConfig

        if self.method != "lora":
            return None
        return LoraConfig(
            rank=self.rank,
            alpha=self.alpha,
            rslora=self.rslora,
            dora=self.dora,
            pissa=self.pissa,
            nf4=self.base == "nf4",
            targets=self.targets,
        )

    def tuning(self) -> Tuning:
        """The same for `train.tuning.prepare`."""
        from liuyi.train.tuning import Tuning

        return Tuning(self.method, self.lora(), self.train_layers, self.train_modules)


TUNED_OUTPUTS = {
    "checkpoint": Output("checkpoint", "the trained model", when=lambda params: params.method != "lora"),
    "adapter": Output("adapter", "with method: lora, what was trained beside it", when=lambda p: p.method == "lora"),
    **MILESTONES,
}


def tuned_output(params: TuningParams) -> str:
    """Which of `TUNED_OUTPUTS` is given."""
    return "adapter" if params.method == "lora" else "checkpoint"


def save_tuned(
    out: Staging, ctx: Context, params: TuningParams, model: Decoder, tokenizer: Tokenizer, about: Mapping[str, Any]
) -> None:
    """Write what was trained, what `about` says of it as `liuyi.json`, and the training's log."""
    from liuyi.model.checkpoint import save_model
    from liuyi.model.files import write_json
    from liuyi.model.lora import lora_adapter
    from liuyi.train.looking import keep_logs

    lora = params.lora()
    if lora is None:
        save_model(out.path, model, tokenizer, about)
    else:
        adapter = lora_adapter(model, lora)
        adapter.save(out.path)
        write_json(out.path / "liuyi.json", {**about, "base": ctx.input("model").digest, "base_format": params.base})
        out.metrics["parameters"] = adapter.num_parameters
    keep_logs(ctx.workdir, out.path)


def trained_note(model: Decoder) -> str:
    """How much of a model is trained, for the log."""
    trained, kept = _sizes(model)
    return f"{trained:,} of {trained + kept:,} values are trained"


def _sizes(model: Decoder) -> tuple[int, int]:
    def count(chosen: Iterator[Any]) -> int:
        return sum(parameter.numel() for parameter in chosen)

    trained = count(parameter for parameter in model.parameters() if parameter.requires_grad)
    kept = count(parameter for parameter in model.parameters() if not parameter.requires_grad)
    # Weights in four bits are buffers.
    kept += sum(2 * buffer.numel() for name, buffer in model.named_buffers() if name.endswith(".codes"))
    return trained, kept
