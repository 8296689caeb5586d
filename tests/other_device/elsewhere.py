"""A device that is not the CPU, for tests on machines without one: what would run on a GPU meets another device there.

    model.to(elsewhere.DEVICE)
    with pytest.raises(RuntimeError):
        torch.zeros(2, device=elsewhere.DEVICE) + torch.zeros(2)

PyTorch's `PrivateUse1`, implemented in Python: memory and arithmetic are the CPU's, but tensors say that they lie
elsewhere, have no NumPy arrays, and do not go together with tensors of the CPU. Stricter than CUDA in one thing:
indices have to be on the device too, since CUDA would wait to bring them there.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor
from torch.utils import backend_registration

NAME = "elsewhere"
_META = torch._C.DispatchKeySet(torch._C.DispatchKey.Meta)
_CPU = torch._C.DispatchKeySet(torch._C.DispatchKey.CPU)
_aten = torch.ops.aten
_memory: list[Tensor] = []
"""Whatever tensors elsewhere stand on, kept to the end of the process."""
_MAY_MIX = {"copy_", "_copy_from", "_copy_from_and_resize", "set_"}
calls: dict[str, int] = {}
"""How often each operation was computed elsewhere."""
copies_here = 0
"""How often something was copied from there to the CPU, for which CUDA would wait."""


def _elsewhere(near: Tensor) -> Tensor:
    """A tensor elsewhere over the memory of one on the CPU."""
    far: Tensor = torch._C._acc.create_empty_tensor((0,), near.dtype)
    return _point(far, near)


def _point(far: Tensor, near: Tensor) -> Tensor:
    storage = near.untyped_storage()
    _memory.append(near)
    made = torch._C._construct_storage_from_data_pointer(storage.data_ptr(), DEVICE, storage.nbytes())
    _aten.set_.source_Storage_storage_offset.redispatch(
        _CPU, far, made, near.storage_offset(), near.shape, near.stride()
    )
    return far


def _near(far: Tensor) -> Tensor:
    """The same memory as a tensor on the CPU."""
    if far.device.type != NAME:
        return far
    storage = far.untyped_storage()
    if not storage.nbytes():
        return torch.empty(far.shape, dtype=far.dtype)  # which an operation may resize
    cpu = torch.device("cpu")
    made = torch._C._construct_storage_from_data_pointer(storage.data_ptr(), cpu, storage.nbytes())
    near = torch.empty(0, dtype=far.dtype)
    return near.set_(made, far.storage_offset(), far.shape, far.stride())  # type: ignore[call-overload, no-any-return]


def _demand_here(op: Any, tensors: list[Tensor]) -> None:
    if op._schema.name.partition("::")[2] in _MAY_MIX:
        return
    for tensor in tensors:
        if tensor.device.type != NAME and tensor.dim():
            raise RuntimeError(
                f"{op}: expected all tensors to be on the same device, but found one of {list(tensor.shape)} on "
                f"{tensor.device} beside {NAME}"
            )


def _over(value: Any, change: Callable[[Any], Any]) -> Any:
    """The same with each member changed, for lists and tuples."""
    if isinstance(value, list | tuple):
        return type(value)([_over(each, change) for each in value])
    return change(value)


def _compute(op: Any, *args: Any, **kwargs: Any) -> Any:
    """Any operation: on the CPU's memory, with what is new, seen or written put elsewhere again."""
    name = op._schema.name.partition("::")[2]
    calls[name] = calls.get(name, 0) + 1
    numbers = zip(op._schema.arguments, args, strict=False)
    # A number beside a tensor comes as a number, which not every operation takes.
    args = (
        *(torch.tensor(each) if str(wanted.type) == "Tensor" and isinstance(each, int | float) else each
          for wanted, each in numbers),
    )  # fmt: skip
    far: list[Tensor] = []
    nears: dict[int, Tensor] = {}

    def bring(value: Any) -> Any:
        if isinstance(value, Tensor):
            if id(value) not in nears:
                far.append(value)
                nears[id(value)] = _near(value)
            return nears[id(value)]
        return torch.device("cpu") if isinstance(value, torch.device) and value.type == NAME else value

    near_args = tuple(_over(each, bring) for each in args)
    near_kwargs = {key: _over(each, bring) for key, each in kwargs.items()}
    near_kwargs.pop("pin_memory", None)
    _demand_here(op, far)
    found = op(*near_args, **near_kwargs)
    back = {id(nears[id(each)]): each for each in far}
    for each in far:
        near = nears[id(each)]
        if each.device.type == NAME and (near.shape != each.shape or near.stride() != each.stride()):
            _point(each, near)  # an output that was resized
    bases = {each.untyped_storage().data_ptr(): each for each in far if each.device.type == NAME and each.numel()}
    sees = any(value.alias_info is not None and not value.alias_info.is_write for value in op._schema.returns)

    def put(value: Any) -> Any:
        if not isinstance(value, Tensor):
            return value
        if id(value) in back:
            return back[id(value)]
        base = bases.get(value.untyped_storage().data_ptr()) if sees else None
        if base is not None and base.dtype == value.dtype:
            return _aten.as_strided.default.redispatch(_META, base, value.shape, value.stride(), value.storage_offset())
        return _elsewhere(value)

    return _over(found, put)


def _copy(target: Tensor, source: Tensor, non_blocking: bool = False) -> Tensor:
    global copies_here
    copies_here += target.device.type == "cpu" and source.device.type == NAME
    _near(target).copy_(_near(source))
    return target


def _set(far: Tensor, storage: torch.UntypedStorage, offset: int, shape: list[int], stride: list[int]) -> Tensor:
    found: Tensor = _aten.set_.source_Storage_storage_offset.redispatch(_CPU, far, storage, offset, shape, stride)
    return found


backend_registration._setup_privateuseone_for_python_backend(NAME)  # type: ignore[attr-defined]
DEVICE = torch.device(NAME, 0)
_fallback = torch.library.Library("_", "IMPL")
_fallback.fallback(_compute, "PrivateUse1")
_direct = torch.library.Library("aten", "IMPL")
_direct.impl("copy_", _copy, "PrivateUse1")
_direct.impl("set_.source_Storage_storage_offset", _set, "PrivateUse1")
getattr(torch, NAME).get_amp_supported_dtype = list  # type: ignore[attr-defined]


def _clone(storage: torch.UntypedStorage) -> torch.UntypedStorage:
    """As `copy.deepcopy` does it; PyTorch would ask this device for memory of its own."""
    if storage.device.type != NAME:
        return _cpu_clone(storage)
    near = torch._C._construct_storage_from_data_pointer(storage.data_ptr(), torch.device("cpu"), storage.nbytes())
    copied = torch.empty(0, dtype=torch.uint8).set_(near).clone()  # type: ignore[call-overload]
    return _elsewhere(copied).untyped_storage()


_cpu_clone = torch.UntypedStorage.clone
torch.UntypedStorage.clone = _clone  # type: ignore[method-assign, assignment]
