"""AdamW in one pass over memory: gradient scaled, moments and weight stepped, its working copy written, words summed.

The formula is `torch.optim.AdamW`'s, which also takes what the native kernel does not: tensors on other devices, in
other dtypes, or cut up over processes. Results agree to rounding. The sums are those of `train/corruption.py`.
"""

from __future__ import annotations

import struct
from collections.abc import Callable
from functools import cache, partial
from typing import Any

import torch
from torch import Tensor, nn

from liuyi.kernels.training import LANES, AdamWSettings, Sums, TrainingKernels, takes_gradient, training_kernels
from liuyi.model.working import WorkingCopy, working_copy


class OnePassAdamW(torch.optim.AdamW):
    """`torch.optim.AdamW(fused=True)`, native where it can be."""

    @torch.no_grad()
    def step(self, closure: None = None) -> None:  # type: ignore[override]
        """As `torch.optim.AdamW`, whose fused step does not count its writes: a working copy would seem up to date."""
        super().step(closure)
        stepped = [p for group in self.param_groups for p in group["params"] if p.grad is not None]
        torch.autograd.graph.increment_version(stepped)

    def keep_gradients_as_made(self, as_made: bool) -> None:
        """From the next backward pass on, whether gradients of weights with a working copy stay in the dtype that they
        come in, as far as the native kernel takes them, or become the weight's. None may be there now."""
        if training_kernels() is None:
            return
        for group in self.param_groups:
            for parameter in group["params"]:
                if working_copy(parameter) is not None and _is_plain(parameter):
                    parameter.grad_dtype = None if as_made else parameter.dtype

    def step_natively(self, grad_scale: float) -> tuple[Sums, set[int]]:
        """Step the parameters that can be, by their gradient times `grad_scale`, and drop their gradients.

        Returns the sums of all words of these weights and of their state before and after, and the `id` of all these
        tensors.
        """
        sums, stepped = Sums(), list[nn.Parameter]()
        native = training_kernels()
        for group in self.param_groups if native else ():
            settings = cache(partial(_settings, group, grad_scale))
            for parameter in filter(_fits, group["params"]):
                assert native
                self._step_one(native, parameter, settings, sums)
                stepped.append(parameter)
        torch.autograd.graph.increment_version(stepped)
        for parameter in stepped:
            if kept := _written_copy(parameter):
                kept.was_written(parameter)
        return sums, {id(tensor) for parameter in stepped for tensor in (parameter, *self.state[parameter].values())}

    @torch.no_grad()
    def _step_one(
        self,
        native: TrainingKernels,
        parameter: nn.Parameter,
        settings: Callable[[float], AdamWSettings],
        sums: Sums,
    ) -> None:
        grad = parameter.grad
        assert grad is not None
        state = self.state[parameter]
        if not state:
            state["step"] = torch.zeros((), dtype=torch.float32)
            state["exp_avg"], state["exp_avg_sq"] = torch.zeros_like(parameter), torch.zeros_like(parameter)
        taken = state["step"].item()
        sums.before += _word(taken)
        sums.after += _word(taken + 1)
        state["step"].fill_(taken + 1)
        kept = _written_copy(parameter)
        copy = kept.values if kept else None
        first, second = state["exp_avg"], state["exp_avg_sq"]
        native.adamw(settings(taken + 1), grad, parameter, first, second, copy, sums)
        parameter.grad = None


def _settings(group: dict[str, Any], grad_scale: float, step: float) -> AdamWSettings:
    (beta1, beta2), lr = group["betas"], group["lr"]
    return AdamWSettings(
        lr=lr,
        beta1=beta1,
        beta2=beta2,
        eps=group["eps"],
        decay=lr * group["weight_decay"],
        correction1=1 - beta1**step,
        correction2=1 - beta2**step,
        grad_scale=grad_scale,
    )


def _written_copy(parameter: Tensor) -> WorkingCopy | None:
    """The copy that a step writes, if one is kept."""
    kept = working_copy(parameter)
    return kept if kept and kept.values.dtype == torch.bfloat16 else None


def _word(number: float) -> int:
    """A float32 number's bits."""
    return int.from_bytes(struct.pack("<f", number), "little")


def _fits(parameter: Tensor) -> bool:
    return parameter.grad is not None and _is_plain(parameter) and takes_gradient(parameter.grad)


def _is_plain(parameter: Tensor) -> bool:
    """Whether the native kernel takes a weight."""
    plain = type(parameter) is nn.Parameter and parameter.device.type == "cpu" and parameter.is_contiguous()
    return plain and parameter.dtype == torch.float32 and parameter.numel() % LANES == 0
