"""The checks of `liuyi doctor`: Python, packages, home, store, ledger, disk."""

from __future__ import annotations

import importlib.metadata
import os
import platform
import re
import shutil
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from liuyi.cli.common import size_text
from liuyi.core.errors import LiuyiError
from liuyi.core.home import Home

Status = Literal["ok", "absent", "warning", "broken"]
OLDEST_PYTHON = (3, 11)
LITTLE_DISK_BYTES = 2 * 2**30
LITTLE_MEMORY_BYTES = 4 * 2**30
OPTIONAL = {
    "resiliparse": "texts of web pages and web archives: pip install 'liuyi[web]'",
    "protego": "crawling web sites: pip install 'liuyi[crawl]'",
    "python-docx": "texts of Word and PDF files: pip install 'liuyi[docs]'",
    "datasets": "data sets as Hugging Face keeps them: pip install 'liuyi[datasets]'",
    "lingua-language-detector": "languages of short texts: pip install 'liuyi[language]'",
    "wordllama": "duplicates by meaning: pip install 'liuyi[semantic]'",
    "reasoning-gym": "problems with answers that can be checked: pip install 'liuyi[synthesis]'",
    "ray": "cleaning on several machines: pip install 'liuyi[ray]'",
    "torchao": "training in fp8 and 8-bit AdamW: pip install 'liuyi[torchao]'",
    "tensorboard": "curves in TensorBoard while training: pip install 'liuyi[tensorboard]'",
    "mlflow-skinny": "curves in MLflow: pip install 'liuyi[mlflow]'",
    "trackio": "curves in trackio: pip install 'liuyi[trackio]'",
    "wandb": "curves in Weights & Biases: pip install 'liuyi[wandb]'",
    "opentelemetry-sdk": "traces of served requests: pip install 'liuyi[otel]'",
    "psycopg": "a ledger on PostgreSQL: pip install 'liuyi[postgres]'",
    "s3fs": "a store on S3: pip install s3fs",
    "gcsfs": "a store on Google Cloud Storage: pip install gcsfs",
    "adlfs": "a store on Azure: pip install adlfs",
    "pytest": "the tests: pip install 'liuyi[test]'",
}
"""Packages that are not needed, and what they would enable."""


@dataclass(frozen=True)
class Check:
    """One thing that was looked at."""

    section: str
    name: str
    status: Status
    value: str
    note: str = ""


def checks(home: Home) -> list[Check]:
    """Everything, in the order in which it is shown. Creates the home if it can be created."""
    return [*_system(), *_required(), *_optional(), *_places(home)]


def _system() -> list[Check]:
    import psutil

    from liuyi.core.cores import cores
    from liuyi.core.machine import cpu_model

    version = platform.python_version()
    old = sys.version_info < OLDEST_PYTHON
    memory = psutil.virtual_memory()
    little = memory.available < LITTLE_MEMORY_BYTES
    return [
        Check("System", "Python", "broken" if old else "ok", version, "3.11 or newer is needed" if old else ""),
        Check("System", "system", "ok", platform.platform()),
        Check("System", "CPU", "ok", cpu_model(), f"{cores()} cores for this process"),
        Check(
            "System",
            "memory",
            "warning" if little else "ok",
            f"{size_text(memory.available)} free of {size_text(memory.total)}",
            "the quickstart wants about 4 GiB" if little else "",
        ),
        _gpu(),
        _kernels(),
    ]


def _kernels() -> Check:
    from liuyi.kernels.library import INSTRUCTION_SETS, KernelsAbsent, kernels
    from liuyi.kernels.model import KV_FORMATS
    from liuyi.kernels.parts import WEIGHT_FORMATS

    try:
        library = kernels()
    except KernelsAbsent as absent:
        why = absent.message + (f": {absent.hint}" if absent.hint else "")
        return Check("System", "native kernels", "absent", "none", f"{why}; the CPU computes with torch")
    note = f"weights in {', '.join(WEIGHT_FORMATS)}; keys and values in {', '.join(KV_FORMATS)}"
    unknown = [name.upper() for name in INSTRUCTION_SETS[INSTRUCTION_SETS.index(library.compiled) + 1 :]]
    if unknown:
        note += f"; the compiler that built them did not know {' and '.join(unknown)}"
    return Check("System", "native kernels", "ok", library.instruction_set.upper(), note)


def _gpu() -> Check:
    import torch

    if torch.cuda.is_available():
        properties = torch.cuda.get_device_properties(0)
        return Check("System", "GPU", "ok", properties.name, f"{size_text(properties.total_memory)} of memory")
    why = "this torch is built for CPUs" if torch.version.cuda is None else "torch sees no CUDA device"
    return Check("System", "GPU", "absent", "none", f"{why}; everything runs on the CPU")


def _required() -> list[Check]:
    found = []
    for requirement in importlib.metadata.requires("liuyi") or ():
        if "extra ==" not in requirement:
            name = re.match(r"[\w.-]+", requirement)
            assert name
            found.append(_package("Needed packages", name[0], "broken", f"pip install '{requirement}'"))
    broken = [check for check in found if check.status == "broken"]
    whole = Check("Needed packages", "packages", "ok", f"all {len(found)} are installed")
    return broken or [whole]


def _optional() -> list[Check]:
    return [_package("Not needed", name, "absent", enables) for name, enables in OPTIONAL.items()]


def _package(section: str, name: str, otherwise: Status, note: str) -> Check:
    try:
        return Check(section, name, "ok", importlib.metadata.version(name))
    except importlib.metadata.PackageNotFoundError:
        return Check(section, name, otherwise, "not installed", note)


def _places(home: Home) -> list[Check]:
    free = shutil.disk_usage(_nearest(home.path)).free
    little = free < LITTLE_DISK_BYTES
    return [
        _home(home),
        _store(home),
        _ledger(home),
        Check(
            "Places",
            "disk",
            "warning" if little else "ok",
            f"{size_text(free)} free",
            "the quickstart wants about 2 GiB" if little else "",
        ),
    ]


def _home(home: Home) -> Check:
    try:
        home.path.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        return Check("Places", "home", "broken", str(home.path), f"cannot be created: {error.strerror}")
    writable = os.access(home.path, os.W_OK | os.X_OK)
    return Check(
        "Places", "home", "ok" if writable else "broken", str(home.path), "" if writable else "cannot be written to"
    )


def _store(home: Home) -> Check:
    try:
        store = home.store
        store.discard(store.stage("corpus"))
        count = sum(1 for _ in store.digests())
    except (LiuyiError, OSError) as error:
        return Check("Places", "store", "broken", str(home.path / "store"), _line(error))
    return Check("Places", "store", "ok", store.url, f"{count:,} artifacts")


def _ledger(home: Home) -> Check:
    try:
        ledger = home.ledger
        runs = len(ledger.runs(limit=None))
    except (LiuyiError, OSError) as error:
        return Check("Places", "ledger", "broken", str(home.path), _line(error))
    return Check("Places", "ledger", "ok", ledger.url, f"{runs:,} runs")


def _line(error: Exception) -> str:
    return " ".join(str(error).split())


def _nearest(path: Path) -> Path:
    """The path itself, or the nearest folder above it that exists."""
    return next(folder for folder in (path, *path.parents) if folder.exists())
