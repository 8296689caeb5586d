"""Writing safetensors in one pass: bytes go from the tensors to the file and to SHA-256, and are never held twice.

`safetensors.torch.save_file` makes a copy of every tensor's bytes first, and the digest would need the file read again.
The format is a length, a header in JSON and the bytes (https://huggingface.co/docs/safetensors/index#format).
"""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Mapping
from pathlib import Path

import torch
from torch import Tensor

CHUNK_BYTES = 4 << 20
DTYPES = {
    torch.float64: "F64",
    torch.float32: "F32",
    torch.float16: "F16",
    torch.bfloat16: "BF16",
    torch.float8_e4m3fn: "F8_E4M3",
    torch.float8_e5m2: "F8_E5M2",
    torch.int64: "I64",
    torch.int32: "I32",
    torch.int16: "I16",
    torch.int8: "I8",
    torch.uint8: "U8",
    torch.bool: "BOOL",
}


def write_tensors(tensors: Mapping[str, Tensor], path: Path) -> str:
    """Write contiguous CPU tensors to `path`, flushed to the disk; the SHA-256 of the file."""
    # Wide elements first, so that each lies at a multiple of its own size.
    names = sorted(tensors, key=lambda name: (-tensors[name].element_size(), name))
    header: dict[str, object] = {"__metadata__": {"format": "pt"}}
    end = 0
    for name in names:
        tensor = tensors[name]
        start, end = end, end + tensor.nbytes
        header[name] = {"dtype": DTYPES[tensor.dtype], "shape": list(tensor.shape), "data_offsets": [start, end]}
    text = json.dumps(header).encode()
    text += b" " * (-len(text) % 8)
    digest = hashlib.sha256()
    with path.open("wb", buffering=0) as file:

        def put(data: memoryview) -> None:
            for at in range(0, len(data), CHUNK_BYTES):
                chunk = data[at : at + CHUNK_BYTES]
                digest.update(chunk)
                while len(chunk):
                    chunk = chunk[file.write(chunk) :]

        put(memoryview(len(text).to_bytes(8, "little") + text))
        for name in names:
            if tensors[name].numel():
                put(tensors[name].reshape(-1).view(torch.uint8).numpy().data)
        os.fsync(file.fileno())
    return digest.hexdigest()
