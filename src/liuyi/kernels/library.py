"""Finds and opens the native library, or says why it cannot be used.

    library = kernels()                 # a Library, or KernelsAbsent that names the reason
    library.instruction_set             # "amx", "avx512" or "avx2"

`LIUYI_KERNELS=off` does without it, `LIUYI_KERNELS=avx2` takes the older instructions on a processor that has newer.
"""

from __future__ import annotations

import ctypes
import os
import platform
import sys
from ctypes import POINTER, Structure, c_char_p, c_float, c_int, c_int32, c_int64, c_void_p
from functools import cache
from pathlib import Path

from liuyi.core.errors import LiuyiError

INTERFACE = 10
"""What `native/api.h` must be; another number is a library from another version."""

SETTING = "LIUYI_KERNELS"
INSTRUCTION_SETS = ("avx2", "avx512", "amx")
PATH = Path(__file__).parent / "native" / "libliuyi.so"


def instruction_set_number(name: str) -> int:
    """As in `native/cpu.h`."""
    return 1 + INSTRUCTION_SETS.index(name)


class KernelsAbsent(LiuyiError):
    """The native kernels cannot be used on this machine, or are switched off."""


class KernelsError(LiuyiError):
    """The native kernels refused what they were asked to do."""


class ModelArguments(Structure):
    """As in `native/api.h`."""

    _fields_ = (
        *((name, c_int32) for name in ("vocab", "hidden", "intermediate", "layers", "heads", "kv_heads", "head_dim")),
        ("norm_eps", c_float),
        *((name, c_int32) for name in ("kv_format", "blocks", "threads")),
        ("windows", c_void_p),
    )


class Source(Structure):
    """As in `native/linear.h`."""

    _fields_ = (
        ("format", c_int),
        ("rows", c_int),
        ("values", c_void_p),
        ("scales", c_void_p),
        ("minima", c_void_p),
        ("bias", c_void_p),
    )


class BatchView(Structure):
    """As in `native/plan.h`."""

    _fields_ = (
        *((name, c_int32) for name in ("tokens", "sequences", "most_blocks", "rows", "angles", "angles_by_token")),
        *(
            (name, c_void_p)
            for name in ("ids", "counts", "lengths", "tables", "wanted", "adapters", "cosines", "sines")
        ),
        ("first_layer", c_int32),
        ("end_layer", c_int32),
        ("residual", c_void_p),
        ("temperatures", c_void_p),
        ("keys", c_void_p),
    )


class Library:
    """The functions of the native library, for one instruction set.

    `compiled` is the best set that the library was compiled for: an older compiler leaves out what it does not know.
    """

    def __init__(self, functions: ctypes.CDLL, instruction_set: str, compiled: str) -> None:
        self.functions = functions
        self.instruction_set = instruction_set
        self.compiled = compiled

    def reason(self) -> str:
        """Why the last function of this thread failed."""
        text: bytes = self.functions.liuyi_error()
        return text.decode()


def kernels() -> Library:
    """The native library. Raises KernelsAbsent with the reason if it cannot be used."""
    most = os.environ.get(SETTING, INSTRUCTION_SETS[-1]).lower()
    if most == "off":
        raise KernelsAbsent(f"native kernels are switched off by {SETTING}=off")
    if most not in INSTRUCTION_SETS:
        raise KernelsAbsent(
            f"{SETTING}={most} is not one of off, {', '.join(INSTRUCTION_SETS)}", hint=f"unset {SETTING}"
        )
    return _open(most)


@cache
def _open(most: str) -> Library:
    if not sys.platform.startswith("linux") or platform.machine().lower() not in ("x86_64", "amd64"):
        raise KernelsAbsent(f"there are no native kernels for {platform.machine()} and {platform.system()}")
    if not PATH.exists():
        raise KernelsAbsent(
            "the native kernels were not built", hint="install a C++ compiler (g++ or clang), then install Liuyi again"
        )
    try:
        functions = ctypes.CDLL(str(PATH))
        found = int(functions.liuyi_interface())
    except (OSError, AttributeError) as error:
        raise KernelsAbsent(f"the native library cannot be loaded: {error}", where=str(PATH)) from None
    if found != INTERFACE:
        raise KernelsAbsent(
            f"the native library is of version {found}, this package needs {INTERFACE}",
            where=str(PATH),
            hint="install Liuyi again",
        )
    _declare(functions)
    name: bytes = functions.liuyi_instruction_set(most.encode())
    if name == b"none":
        raise KernelsAbsent("this processor lacks AVX2, which the native kernels need")
    compiled: bytes = functions.liuyi_compiled()
    return Library(functions, name.decode(), compiled.decode())


def _declare(functions: ctypes.CDLL) -> None:
    declared = {
        "error": (c_char_p,),
        "compiled": (c_char_p,),
        "instruction_set": (c_char_p, c_char_p),
        "model_new": (c_void_p, POINTER(ModelArguments), c_char_p),
        "model_free": (None, c_void_p),
        "model_pack": (c_int, c_void_p, c_int, c_int, c_int, POINTER(Source), c_int),
        "model_set_vector": (c_int, c_void_p, c_int, c_int, c_void_p, c_int),
        "model_set_embedding": (c_int, c_void_p, c_int, c_void_p),
        "model_set_adapter": (c_int, c_void_p, *(c_int,) * 4, c_void_p, c_void_p),
        "model_drop_adapter": (c_int, c_void_p, c_int),
        "model_forward": (c_int, c_void_p, POINTER(BatchView), c_int, c_void_p),
        "model_draw": (c_int, c_void_p, c_void_p, c_int, c_void_p),
        "model_score": (c_int, c_void_p, c_void_p, c_int),
        "model_block_bytes": (c_int64, c_void_p),
        "model_weight_bytes": (c_int64, c_void_p),
    }
    for name, (result, *arguments) in declared.items():
        function = getattr(functions, f"liuyi_{name}")
        function.restype = result
        function.argtypes = arguments
