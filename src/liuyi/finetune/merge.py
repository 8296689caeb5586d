"""An adapter and its model as one checkpoint, with the error that merging makes: in the weights, and on text."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from liuyi.core.effect import Effect, Table
from liuyi.core.step import Context
from liuyi.infer.agreement import decoder_logits
from liuyi.infer.quantized import corpus_texts, evalset_texts, take
from liuyi.model.adapter import Adapter
from liuyi.model.checkpoint import load_model, save_model
from liuyi.model.decoder import Decoder
from liuyi.model.load import stored_dtype
from liuyi.model.merge import MergeError, merge_adapter
from liuyi.model.quantize import Format, quantization_of
from liuyi.model.tokenizer import Tokenizer

if TYPE_CHECKING:
    from liuyi.finetune.steps import MergeParams

DTYPES = {"fp32": torch.float32, "bf16": torch.bfloat16}


@dataclass(frozen=True)
class LogitError:
    """Logits of merged weights beside those of the model in float32 with the adapter's exact product."""

    tokens: int
    mean: float
    """Mean difference, relative to the mean size of the exact logits."""
    max: float
    """Largest difference, relative to the largest exact logit."""
    top1: float
    """Part of the tokens after which both have the same first choice."""

    def metrics(self) -> dict[str, float]:
        """For a manifest."""
        return {"logit_error_mean": self.mean, "logit_error_max": self.max, "top1_agreement": self.top1}


def merge_step(ctx: Context, params: MergeParams) -> None:
    """Merge as `params` say and publish the checkpoint."""
    folder = ctx.input("model").path
    tokenizer = Tokenizer.load(folder)
    adapter = Adapter.load(ctx.input("adapter").path)
    model = load_model(folder)
    form = _form(model, params, stored_dtype(folder))
    merged, error = merge_adapter(model, adapter, form)
    texts = _texts(ctx, params, tokenizer)
    logits = logit_error(merge_adapter(model, adapter, torch.float32)[0], merged, texts) if texts else None
    with ctx.output("checkpoint") as out:
        about = {"stage": "fine-tuning", "merged": ctx.input("adapter").digest, "base": ctx.input("model").digest}
        save_model(out.path, merged, tokenizer, {**about, "matrix_errors": dict(error.matrices)})
        _effect(error, logits, str(form).removeprefix("torch.")).save(out.path)
        out.metrics.update({**error.metrics(), **(logits.metrics() if logits else {})})
        for name in ("model", "adapter"):
            out.licences.update(ctx.input(name).manifest.licences)


@torch.no_grad()
def logit_error(exact: Decoder, merged: Decoder, texts: Sequence[Sequence[int]]) -> LogitError:
    """Compare two models on texts (token ids), one after the other."""
    off = size = largest_off = largest = 0.0
    same = tokens = values = 0
    for text in texts:
        ours, theirs = (logits_of(text) for logits_of in map(decoder_logits, (merged, exact)))
        difference: Tensor = (ours - theirs).abs()
        off, size = off + float(difference.double().sum()), size + float(theirs.abs().double().sum())
        largest_off, largest = max(largest_off, float(difference.max())), max(largest, float(theirs.abs().max()))
        same += int((ours.argmax(dim=1) == theirs.argmax(dim=1)).sum())
        tokens, values = tokens + len(text), values + ours.numel()
    return LogitError(tokens, off / size, largest_off / largest, same / tokens)


def _form(model: Decoder, params: MergeParams, stored: torch.dtype) -> torch.dtype | Format:
    if params.format in ("int8", "int4"):
        return "int8" if params.format == "int8" else "int4"
    if params.format != "stored":
        return DTYPES[params.format]
    return quantization_of(model) or stored


def _texts(ctx: Context, params: MergeParams, tokenizer: Tokenizer) -> list[list[int]]:
    if ctx.has("corpus"):
        return take(corpus_texts(ctx.input("corpus").path, tokenizer), params.text_tokens)
    if ctx.has("evalset"):
        return take(evalset_texts(ctx.input("evalset").path, tokenizer), params.text_tokens)
    return []


def _effect(error: MergeError, logits: LogitError | None, form: str) -> Effect:
    figures = error.metrics()
    rows: list[tuple[str, float, float]] = [("weights", figures["matrix_error_mean"], figures["matrix_error_max"])]
    summary = (
        f"{len(error.matrices)} matrices in {form}: rounding moved them by {error.relative_rms_error:.2e} of "
        f"their size, which is {error.change_error:.2%} of what the adapter changes."
    )
    if logits is not None:
        rows.append((f"logits over {logits.tokens:,} tokens", logits.mean, logits.max))
        summary += f" On text {logits.top1:.2%} of the next tokens stay the same."
    table = Table(
        title="Relative error of merging",
        columns=("what", "mean", "largest"),
        rows=tuple(rows),
        note="against the model's weights in float32 with the adapter's exact product",
    )
    return Effect(stage="fine-tuning", title="Merging the adapter", summary=summary, blocks=(table,))
