"""The formats by name, and which of them a chat template speaks."""

from __future__ import annotations

import hashlib
import secrets
import string
from collections.abc import Callable, Collection
from dataclasses import dataclass, replace

from liuyi.infer.tools import hermes, llama, mistral, plain
from liuyi.infer.tools.reader import ToolReader
from liuyi.infer.tools.shape import Shape

_ALPHABET = string.ascii_letters + string.digits


@dataclass(frozen=True)
class ToolFormat:
    """One way of writing tool calls."""

    name: str
    reader: Callable[[Collection[str]], ToolReader]
    """Makes a reader, given the names of the functions on offer."""
    shape: Shape
    tags: tuple[str, ...] = ()
    """Tokens that the reader has to see by name, even where they are special."""
    parallel: bool = True
    """Templates of this format can tell of several calls at once."""
    template_knows: bool = True
    """The model's template describes the functions; otherwise `plain.told` does."""
    id_prefix: str = "call_"
    id_characters: int = 24

    def new_id(self) -> str:
        """An id for a call."""
        return self.id_prefix + "".join(secrets.choice(_ALPHABET) for _ in range(self.id_characters))

    def fitting_id(self, id: str) -> str:
        """The id that stands for one from elsewhere in the model's template: itself, unless templates refuse it."""
        if self.id_prefix or (len(id) == self.id_characters and id.isascii() and id.isalnum()):
            return id
        return hashlib.sha256(id.encode()).hexdigest()[: self.id_characters]


HERMES = ToolFormat(
    "hermes",
    hermes.HermesReader,
    Shape(tag=hermes.OPEN, before="\n", after=f"\n{hermes.CLOSE}", each=True, between="\n"),
    tags=(hermes.OPEN, hermes.CLOSE),
)
LLAMA = ToolFormat(
    "llama",
    llama.LlamaReader,
    Shape(prelude=llama.PYTHON_TAG, head='{"name": "NAME", "parameters": '),
    tags=(llama.PYTHON_TAG,),
    parallel=False,
)
# Mistral's templates take ids of nine letters and digits and no others.
MISTRAL = ToolFormat(
    "mistral",
    mistral.MistralReader,
    Shape(tag=mistral.TAG, before="[", after="]", between=", "),
    tags=(mistral.TAG,),
    id_prefix="",
    id_characters=9,
)
MISTRAL_ARGS = ToolFormat(
    "mistral-args",
    mistral.MistralReader,
    Shape(tag=mistral.TAG, each=True, head=f"NAME{mistral.ARGS}", tail=""),
    tags=(mistral.TAG, mistral.ARGS, mistral.CALL_ID),
    id_prefix="",
    id_characters=9,
)
PLAIN = ToolFormat("plain", plain.PlainReader, Shape(between="\n"), template_knows=False)

FORMATS = {form.name: form for form in (HERMES, LLAMA, MISTRAL, MISTRAL_ARGS, PLAIN)}


def format_of(template: str) -> ToolFormat:
    """The format that a chat template teaches its model; plain JSON where it teaches none that is known."""
    if mistral.TAG in template:
        if mistral.ARGS in template:
            return MISTRAL_ARGS
        # The first of these tokenizers has a space between the tag and the list.
        spaced = f"{mistral.TAG} [" in template
        return replace(MISTRAL, shape=replace(MISTRAL.shape, before=" [")) if spaced else MISTRAL
    if hermes.OPEN in template and "<function=" not in template:
        return HERMES
    if llama.PYTHON_TAG in template and '"parameters"' in template:
        return LLAMA
    return PLAIN
