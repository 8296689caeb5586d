"""Optimisers: AdamW for everything (its state in 32 or 8 bits), or Muon for the matrices inside the layers and AdamW
for the rest.

State is kept by parameter name as plain tensors, so that a checkpoint needs no pickle and a resumed run is exact.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

import torch
from torch import Tensor, nn
from torch.distributed.tensor import DTensor

from liuyi.train.adamw8bit import AdamW8bit
from liuyi.train.corruption import checksum, in_64_bits
from liuyi.train.one_pass import OnePassAdamW
from liuyi.train.parallel.gradients import like, local
from liuyi.train.parallel.orthogonal import orthogonal_pieces

OptimiserName = Literal["muon", "adamw", "adamw8bit"]
NEWTON_SCHULZ = (3.4445, -4.7750, 2.0315)
"""Coefficients of Jordan et al. 2024, "Muon: An optimizer for hidden layers in neural networks"."""


@dataclass(frozen=True)
class OptimiserConfig:
    """What to step with. Learning rates are peaks, scaled by the schedule."""

    name: OptimiserName = "adamw"
    lr: float = 1e-3
    embed_lr: float | None = None
    """For embeddings and the output head; `lr` when left out."""
    score_lr: float | None = None
    """For the value head of a reward model; `lr` when left out."""
    scalar_lr: float | None = None
    """For norms and biases; `lr` when left out."""
    weight_decay: float = 0.0
    """Of matrices inside the layers. All decay is decoupled: a step takes `lr * decay` of the weights away."""
    embed_weight_decay: float = 0.0
    """Of embeddings and the output head."""
    norm_weight_decay: float = 0.0
    """Of norms and biases."""
    betas: tuple[float, float] = (0.9, 0.95)
    eps: float = 1e-8
    momentum: float = 0.95
    newton_schulz_steps: int = 5
    b_lr_ratio: float = 1.0
    """Learning rate of an adapter's B relative to that of its A (LoRA+, arXiv 2402.12354)."""
    layer_decay: float = 1.0
    """Learning rate of each layer relative to that of the layer above it; that of the embeddings to the first layer's
    (arXiv 1801.06146)."""


class Optimiser:
    """Steps a model's trainable parameters; `lr` of every group is its peak times the schedule's factor."""

    def __init__(self, model: nn.Module, config: OptimiserConfig) -> None:
        self.config = config
        self.parameters = {name: p for name, p in model.named_parameters() if p.requires_grad}
        embed_lr = config.lr if config.embed_lr is None else config.embed_lr
        score_lr = config.lr if config.score_lr is None else config.score_lr
        scalar_lr = config.lr if config.scalar_lr is None else config.scalar_lr
        rates = {"matrix": config.lr, "embedding": embed_lr, "score": score_lr, "scalar": scalar_lr}
        decays = {
            "matrix": config.weight_decay,
            "embedding": config.embed_weight_decay,
            "score": 0.0,
            "scalar": config.norm_weight_decay,
        }
        layers = 1 + max(map(layer_number, self.parameters), default=-1)
        groups: dict[tuple[str, float, bool], dict[str, Any]] = {}
        for name, parameter in self.parameters.items():
            kind, share = _kind(name, parameter), _share(name, layers, config)
            group: dict[str, Any] = {"params": [], "lr": rates[kind] * share, "weight_decay": decays[kind]}
            # One call of the fused step takes no mixture: biases may be cut up where norms are whole.
            groups.setdefault((kind, share, isinstance(parameter, DTensor)), group)["params"].append(parameter)
        muon = [group for (kind, *_), group in groups.items() if kind == "matrix" and config.name == "muon"]
        adamw = [group for group in groups.values() if all(group is not other for other in muon)]
        self.optimisers: list[torch.optim.Optimizer] = []
        if muon:
            self.optimisers.append(
                Muon(muon, config.lr, config.weight_decay, config.momentum, config.newton_schulz_steps)
            )
        if config.name == "adamw8bit":
            self.optimisers.append(AdamW8bit(adamw, betas=config.betas, eps=config.eps))
        elif adamw:
            self.optimisers.append(OnePassAdamW(adamw, betas=config.betas, eps=config.eps, fused=True))
        for optimiser in self.optimisers:
            for group in optimiser.param_groups:
                group["peak_lr"] = group["lr"]

    def keep_gradients_as_made(self, as_made: bool) -> None:
        """Whether gradients may stay in the dtype of the products that made them: where a step uses each weight once,
        nothing is added to them that a rounded sum would lose."""
        for optimiser in self.optimisers:
            if isinstance(optimiser, OnePassAdamW):
                optimiser.keep_gradients_as_made(as_made)

    def reserve_state(self) -> None:
        """Take memory for state that the first step will make, before activations lie where it would."""
        for optimiser in self.optimisers:
            if isinstance(optimiser, OnePassAdamW):
                optimiser.reserve_state()

    def step(self, factor: float, grad_scale: float = 1.0) -> tuple[int, int]:
        """One step with every peak learning rate times `factor`, by the gradients times `grad_scale`.

        Returns the checksums of weights and state before and after. Gradients are used up.
        """
        before = after = 0
        stepped: set[int] = set()
        for optimiser in self.optimisers:
            for group in optimiser.param_groups:
                group["lr"] = group["peak_lr"] * factor
            if isinstance(optimiser, OnePassAdamW):
                sums, done = optimiser.step_natively(grad_scale)
                before, after = before + sums.before, after + sums.after
                stepped |= done
        before += checksum(tensor for tensor in self.tensors() if id(tensor) not in stepped)
        grads = [local(parameter.grad) for parameter in self.parameters.values() if parameter.grad is not None]
        if grads:
            torch._foreach_mul_(grads, grad_scale)
            for optimiser in self.optimisers:
                optimiser.step()
        after += checksum(tensor for tensor in self.tensors() if id(tensor) not in stepped)
        return in_64_bits(before), in_64_bits(after)

    def tensors(self) -> Iterator[Tensor]:
        """What this process holds of weights and state."""
        yield from map(local, self.parameters.values())
        yield from map(local, self.state().values())

    def zero_grad(self) -> None:
        for parameter in self.parameters.values():
            parameter.grad = None

    def state(self) -> dict[str, Tensor]:
        """The state's own tensors (not copies), as `<parameter>:<entry>`."""
        names: dict[Tensor, str] = {parameter: name for name, parameter in self.parameters.items()}
        return {
            f"{names[parameter]}:{entry}": value
            for optimiser in self.optimisers
            for parameter, entries in optimiser.state.items()
            for entry, value in entries.items()
        }

    def load_state(self, state: Iterable[tuple[str, Tensor]]) -> None:
        """Put back what `state` gave, tensor by tensor: what is there already takes the values, and the rest goes."""
        owners = {
            parameter: optimiser
            for optimiser in self.optimisers
            for group in optimiser.param_groups
            for parameter in group["params"]
        }
        given = set()
        for key, value in state:
            given.add(key)
            name, entry = key.rsplit(":", 1)
            parameter = self.parameters[name]
            entries = owners[parameter].state[parameter]
            mine = entries.get(entry)
            if mine is not None and (mine.shape, mine.dtype) == (value.shape, value.dtype):
                mine.copy_(value)
            else:
                entries[entry] = value.to(parameter.device).clone()
        for key in self.state().keys() - given:
            name, entry = key.rsplit(":", 1)
            parameter = self.parameters[name]
            entries = owners[parameter].state[parameter]
            del entries[entry]
            if not entries:
                del owners[parameter].state[parameter]


def layer_number(name: str) -> int:
    """Which of the decoder's layers a parameter is of; -1 for the rest."""
    _, inside, rest = name.partition(".layers.")
    return int(rest.partition(".")[0]) if inside else -1


def _kind(name: str, parameter: Tensor) -> str:
    if parameter.ndim < 2:
        return "scalar"
    if name.endswith("score.weight"):
        return "score"
    return "embedding" if any(part in name for part in ("embed", "lm_head")) else "matrix"


def _share(name: str, layers: int, config: OptimiserConfig) -> float:
    """A parameter's learning rate relative to others of its kind."""
    share = config.b_lr_ratio if name.endswith("lora_B") else 1.0
    layer = layer_number(name)
    if layer >= 0:
        return share * config.layer_decay ** (layers - 1 - layer)
    return share * config.layer_decay**layers if "embed" in name else share


class Muon(torch.optim.Optimizer):
    """Nesterov momentum, orthogonalised: for each matrix the step nearest to its momentum with all singular values 1.

    The step is scaled by `0.2 sqrt(max(rows, columns))`, which gives it the root mean square of an AdamW step, so
    learning rates carry over (Liu et al. 2025, "Muon is Scalable for LLM Training"). Matrices of one shape are
    orthogonalised together.
    """

    def __init__(
        self,
        params: Iterable[nn.Parameter] | Iterable[dict[str, Any]],
        lr: float,
        weight_decay: float = 0.0,
        momentum: float = 0.95,
        newton_schulz_steps: int = 5,
    ) -> None:
        super().__init__(
            params,
            {"lr": lr, "weight_decay": weight_decay, "momentum": momentum, "newton_schulz_steps": newton_schulz_steps},
        )

    @torch.no_grad()
    def step(self, closure: None = None) -> None:  # type: ignore[override]
        """One step of every matrix that has a gradient."""
        for group in self.param_groups:
            alike: dict[tuple[Any, ...], list[Tensor]] = {}
            for parameter in group["params"]:
                if parameter.grad is not None:
                    cut = isinstance(parameter, DTensor) and (*parameter.shape, parameter.placements)
                    alike.setdefault(cut or tuple(sorted(parameter.shape)), []).append(parameter)
            for matrices in alike.values():
                self._step_alike(matrices, group)

    def _step_alike(self, matrices: Sequence[Tensor], group: Mapping[str, float]) -> None:
        """One step of matrices of one shape, or its transpose; those that are cut up are all cut in one way."""
        lr, long = group["lr"], max(matrices[0].shape)
        directions = [self._direction(matrix, group["momentum"]) for matrix in matrices]
        for matrix, update in zip(matrices, _orthogonal(directions, int(group["newton_schulz_steps"])), strict=True):
            weights = local(matrix)
            if group["weight_decay"]:
                weights.mul_(1 - lr * group["weight_decay"])
            weights.add_(update, alpha=-lr * 0.2 * long**0.5)

    def _direction(self, matrix: Tensor, momentum: float) -> Tensor:
        """Nesterov's look ahead of the momentum, which is brought up to date; cut up as the matrix is."""
        assert matrix.grad is not None
        state = self.state[matrix]
        if "momentum" not in state:
            state["momentum"] = torch.zeros_like(matrix)
        grad, velocity = local(matrix.grad), local(state["momentum"])
        velocity.lerp_(grad, 1 - momentum)
        return like(matrix, torch.lerp(grad, velocity, momentum))


def _orthogonal(directions: Sequence[Tensor], steps: int) -> Sequence[Tensor]:
    """What this process holds of each direction, orthogonalised."""
    if isinstance(directions[0], DTensor):
        return orthogonal_pieces(directions, lambda whole: _orthogonalise_any(whole, steps))  # type: ignore[arg-type]
    short, long = sorted(directions[0].shape)
    updates = directions[0].new_empty(len(directions), short, long)
    for update, direction in zip(updates, directions, strict=True):
        update.copy_(direction if direction.shape[0] == short else direction.T)
    updates = orthogonalise(updates, steps)
    return [
        update if direction.shape[0] == short else update.T
        for update, direction in zip(updates, directions, strict=True)
    ]


def _orthogonalise_any(matrices: Tensor, steps: int) -> Tensor:
    """`orthogonalise` for matrices that may have more rows than columns."""
    tall = matrices.shape[-2] > matrices.shape[-1]
    return orthogonalise(matrices.mT, steps).mT if tall else orthogonalise(matrices, steps)


def orthogonalise(matrices: Tensor, steps: int = 5) -> Tensor:
    """Nearly `U Vᵀ` of each matrix `U S Vᵀ` in `[count, rows, columns]`, `rows <= columns`, by Newton–Schulz."""
    a, b, c = NEWTON_SCHULZ
    x = matrices / (matrices.norm(dim=(-2, -1), keepdim=True) + 1e-7)
    for _ in range(steps):
        gram = x @ x.mT
        x = torch.baddbmm(x, torch.baddbmm(gram, gram, gram, beta=b, alpha=c), x, beta=a)
    return torch.as_tensor(x)
