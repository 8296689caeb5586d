"""Ollama's Modelfile for a GGUF file: the chat template in Go's language, the default system message, stops.

text, notes = modelfile(config, tokenizer, "./model.gguf", licences=["apache-2.0"])
"""

from __future__ import annotations

import re
from collections.abc import Sequence

from liuyi.core.errors import ModelError
from liuyi.model.config import DecoderConfig
from liuyi.model.tokenizer import Tokenizer
from liuyi.model.turns import turn_format

_MOST_CONTEXT = 8192
"""Ollama reserves keys and values for the whole context at once."""
_SHOWN_CHARS = 60


def modelfile(
    config: DecoderConfig, tokenizer: Tokenizer, weights: str, licences: Sequence[str] = ()
) -> tuple[str, list[str]]:
    """The text of a Modelfile over the file `weights`, and what in it is not as in the model's own template.

    A model without a chat template goes on from what it is given. Raises ModelError if the chat template cannot be
    written in Go's language, or a text cannot be quoted.
    """
    lines, notes = [f"FROM {weights}"], []
    if tokenizer.chat_template:
        form = turn_format(tokenizer)
        lines.append(f"TEMPLATE {_quoted(form.go_template())}")
        if form.default_system:
            lines.append(f"SYSTEM {_quoted(form.default_system)}")
        if not form.has_system:
            notes.append("the chat template has no place of its own for system messages: they are left out")
        if "strftime_now" in tokenizer.chat_template:
            notes.append("the date that the chat template writes is today's from now on")
        if "tools" in tokenizer.chat_template:
            notes.append("the Modelfile's template knows no tools")
    else:
        lines.append(f"TEMPLATE {_quoted('{{ .Prompt }}')}")
    lines.append(f"PARAMETER num_ctx {min(config.max_position_embeddings, _MOST_CONTEXT)}")
    names = {at: name for name, at in tokenizer.special_tokens.items()}
    lines += ["PARAMETER stop " + _quoted(names[at], '"') for at in tokenizer.stop_ids if at in names]
    lines += [f"LICENSE {_quoted(licence)}" for licence in licences]
    return "\n".join(lines) + "\n", notes


def _quoted(text: str, quotes: str = '"""') -> str:
    """The text in quotes. For Ollama these end where the first line ends with them, and what follows is a command."""
    if re.search(rf"{quotes}[^\S\r\n]*[\r\n]", text):
        raise ModelError(
            f"a Modelfile cannot hold a line that ends with {quotes}",
            where=text[:_SHOWN_CHARS],
            hint="export the model as gguf, and write the Modelfile yourself",
        )
    return f"{quotes}{text}{quotes}"
