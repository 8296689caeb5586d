"""AdamW in one pass over memory: gradient scaled, moments and weight stepped, its working copy written, words summed.

The formula is `torch.optim.AdamW`'s, which also takes what the native kernel does not: tensors on other devices, in
other dtypes, or cut up over processes. Results agree to rounding. The sums are those of `train/corruption.py`.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from liuyi.kernels.training import (
    LANES,
    AdamWSettings,
    AdamWTensor,
    Gradient,
    Sums,
    takes_gradient,
    training_kernels,
)
from liuyi.model.working import WorkingCopy, working_copy


class OnePassAdamW(torch.optim.AdamW):
    """`torch.optim.AdamW(fused=True)`, native where it can be."""

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self._reserved: dict[Tensor, dict[str, Tensor]] = {}

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

    def reserve_state(self) -> None:
        """Take memory for the state that native steps will make, all at once and untouched. What is first taken between
        two steps lies scattered where the activations were, and those of the next step find no place there."""
        if training_kernels() is None:
            return
        fresh = [p for group in self.param_groups for p in group["params"] if _is_plain(p) and not self.state.get(p)]
        memory = torch.empty(2 * sum(map(Tensor.numel, fresh)))
        moments = iter(torch.split(memory, [parameter.numel() for parameter in fresh for _ in range(2)]))
        for parameter in fresh:
            first, second = (next(moments).view_as(parameter) for _ in range(2))
            self._reserved[parameter] = {"step": torch.zeros(()), "exp_avg": first, "exp_avg_sq": second}

    def step_natively(self, grad_scale: float) -> tuple[Sums, set[int]]:
        """Step the parameters that can be, by their gradient times `grad_scale`, and drop their gradients.

        Returns the sums of all words of these weights and of their state before and after, and the `id` of all these
        tensors.
        """
        native = training_kernels()
        if native is None:
            return Sums(), set()
        stepped: list[nn.Parameter] = []
        tensors: list[AdamWTensor] = []
        for group in self.param_groups:
            settings = _settings(group, grad_scale)
            for parameter in filter(_fits, group["params"]):
                stepped.append(parameter)
                tensors.append(self._tensor(parameter, settings))
        sums = native.adamw(tensors)
        torch.autograd.graph.increment_version(stepped)
        for parameter in stepped:
            parameter.grad = None
            if kept := _written_copy(parameter):
                kept.was_written(parameter)
        return sums, {id(tensor) for parameter in stepped for tensor in (parameter, *self.state[parameter].values())}

    def _tensor(self, parameter: nn.Parameter, settings: AdamWSettings) -> AdamWTensor:
        assert parameter.grad is not None
        state = self.state[parameter]
        if not state:
            if parameter not in self._reserved:
                self.reserve_state()
            state.update(self._reserved.pop(parameter))
            for moment in state["exp_avg"], state["exp_avg_sq"]:
                moment.zero_()
        kept = _written_copy(parameter)
        places = (tensor.data_ptr() for tensor in (parameter, state["exp_avg"], state["exp_avg_sq"], state["step"]))
        return AdamWTensor(settings, Gradient.of(parameter.grad), *places, kept.values.data_ptr() if kept else None)


def _settings(group: dict[str, Any], grad_scale: float) -> AdamWSettings:
    (beta1, beta2), lr = group["betas"], group["lr"]
    return AdamWSettings(
        beta1=beta1, beta2=beta2, lr=lr, eps=group["eps"], decay=lr * group["weight_decay"], grad_scale=grad_scale
    )


def _written_copy(parameter: Tensor) -> WorkingCopy | None:
    """The copy that a step writes, if one is kept."""
    kept = working_copy(parameter)
    return kept if kept and kept.values.dtype == torch.bfloat16 else None


def _fits(parameter: Tensor) -> bool:
    return parameter.grad is not None and _is_plain(parameter) and takes_gradient(parameter.grad)


def _is_plain(parameter: Tensor) -> bool:
    """Whether the native kernel takes a weight."""
    plain = type(parameter) is nn.Parameter and parameter.device.type == "cpu" and parameter.is_contiguous()
    return plain and parameter.dtype == torch.float32 and parameter.numel() % LANES == 0
