"""`liuyi data`: look at data, ask where tokens came from, and plan mixtures."""

from __future__ import annotations

import click

from liuyi.cli.lazy import LazyGroup

SECTIONS: dict[str, dict[str, str]] = {
    "Commands": {
        "show": "Show documents: their attributes, kept or dropped, and why.",
        "report": "Write a page about a corpus, its thresholds and tokens.",
        "where": "Lead a token or a training step back to its documents.",
        "mix": "Plan how a budget of tokens is shared among corpora.",
        "contains": "Ask whether training data contains a text.",
    }
}


class DataGroup(LazyGroup):
    """The commands about data."""

    package = "liuyi.cli.data"
    sections = SECTIONS


@click.group(cls=DataGroup)
def command() -> None:
    """Look at data: documents, thresholds, mixtures, and where tokens came from."""
