"""The recipe that `liuyi init` writes, put together from parts for what its user has: texts, conversations, a model."""

from __future__ import annotations

import re
from dataclasses import dataclass


@dataclass(frozen=True)
class Plan:
    """What there is to work with; paths are as the recipe names them, `None` where there is none."""

    name: str
    texts: str | None
    chats: str | None
    model: str | None
    sample_texts: bool = False
    """The texts are the few sample files, so that small figures do."""
    sample_chats: bool = False


def recipe_text(plan: Plan) -> str:
    """The recipe, commented, ready to run."""
    parts = [HEADER.format(name=plan.name, description=_description(plan))]
    effects: list[str] = []
    if plan.texts is not None:
        parts.append(TEXTS.format(path=_quoted(plan.texts), fraction=0.15 if plan.sample_texts else 0.05))
        effects.append("select.train")
    if plan.chats is not None:
        parts.append(CHATS.format(path=_quoted(plan.chats), fraction=0.2 if plan.sample_chats else 0.1))
    if plan.model is not None:
        parts.append(MODEL.format(path=_quoted(plan.model)))
    else:
        learned_from = ["select.train"] * (plan.texts is not None) + ["chats.train"] * (plan.chats is not None)
        parts.append(TOKENIZER.format(texts=_list(learned_from)))
        effects.append("tokenizer.tokenizer")
    if plan.texts is not None:
        parts.append(_pretraining(plan))
        effects += ["pretrain.checkpoint", "pretraining.verdict"]
    if plan.chats is not None:
        parts.append(_fine_tuning(plan))
        effects += ["sft.checkpoint", "fine_tuning.verdict"]
    parts.append(REPORT.format(effects=_list(effects)))
    return "\n".join(parts)


def _description(plan: Plan) -> str:
    did = ["pretraining on our texts"] * (plan.texts is not None)
    did += ["fine-tuning on our conversations"] * (plan.chats is not None)
    start = "from a base model" if plan.model is not None else "from scratch"
    return f"{' and '.join(did).capitalize()}, {start}, every stage measured"


def _pretraining(plan: Plan) -> str:
    if plan.model is not None:
        return TOKENS.format(tokenizer="base.checkpoint") + CONTINUE
    size, epochs = ("1m", 12) if plan.sample_texts else ("5m", 1)
    return TOKENS.format(tokenizer="tokenizer.tokenizer") + FROM_SCRATCH.format(size=size, epochs=epochs)


def _fine_tuning(plan: Plan) -> str:
    start = "pretrain.checkpoint" if plan.texts is not None else "base.checkpoint"
    pace = GENTLE_PACE if plan.model is not None else ""
    epochs = 6 if plan.sample_chats and plan.model is None else 3
    max_tokens = 16 if plan.sample_chats else 128
    return FINE_TUNING.format(start=start, pace=pace, epochs=epochs, max_tokens=max_tokens)


def _list(references: list[str]) -> str:
    return "\n".join(f"      - ${{{reference}}}" for reference in references)


def _quoted(path: str) -> str:
    """A path as a YAML scalar: as it is, or in single quotes, where only a quote needs care."""
    return path if re.fullmatch(r"[\w./-]+", path) else "'" + path.replace("'", "''") + "'"


HEADER = """\
# yaml-language-server: $schema=.liuyi/recipe.schema.json
#
#   liuyi run .                         run this recipe; finished work is not done again
#   liuyi run . --set seed=2            … with another value
#   liuyi steps pretrain.train          what a step can be told, and what it is told by default
#   liuyi report                        what came of it, stage by stage
#
# Under `steps`, what is written ${{step.output}} is an input: what another step makes. Everything else is a
# parameter. Paths start at this file's folder. A changed file or parameter means that what depends on it is
# run again, and nothing else.

recipe: {name}
description: {description}
seed: 1

steps:"""

TEXTS = """\
  # Documents: every txt, md, rst, html, jsonl, csv and parquet file below this folder
  docs:
    step: data.files
    path: {path}
    license: unknown            # an SPDX identifier, for what does not state its own

  # Cleaning measures and decides nothing; select decides. Move a threshold, and only select is run again.
  clean:
    step: data.clean
    corpus: ${{docs.corpus}}
  select:
    step: data.select
    corpus: ${{clean.corpus}}
    min_words: 40
    heldout_fraction: {fraction}      # kept out of training, to measure with
"""

CHATS = """\
  # Conversations: one JSON object a line, such as
  # {{"messages": [{{"role": "user", "content": "…"}}, {{"role": "assistant", "content": "…"}}]}}
  chats:
    step: data.chats_file
    path: {path}
    heldout_fraction: {fraction}       # kept out of training, to measure with
"""

MODEL = """\
  # The base model: a folder with config.json, *.safetensors and tokenizer.json
  base:
    step: pretrain.import_hf
    folder: {path}
"""

TOKENIZER = """\
  tokenizer:
    step: data.tokenizer
    vocab_size: 4096            # at most; a small text gives fewer
    texts:
{texts}
"""

TOKENS = """\
  tokens:
    step: data.tokens
    corpus: ${{select.train}}
    tokenizer: ${{{tokenizer}}}
  heldout_tokens:
    step: data.tokens
    corpus: ${{select.heldout}}
    tokenizer: ${{{tokenizer}}}
"""

FROM_SCRATCH = """\

  # A model from scratch. Effect: bits per byte on documents held out, beside simpler models of the same text.
  pretrain:
    step: pretrain.train
    tokens: ${{tokens.tokens}}
    tokenizer: ${{tokenizer.tokenizer}}
    size: {size}                    # parameters: 1m learns in a minute on a laptop, 20m in hours
    epochs: {epochs}
  bits:
    step: pretrain.evaluate
    model: ${{pretrain.checkpoint}}
    tokens: ${{heldout_tokens.tokens}}
    corpus: ${{select.heldout}}
    train_tokens: ${{tokens.tokens}}
  pretraining:
    step: evaluate.compare
    stage: pretraining
    title: Bits per byte on documents held out
    before: ${{bits.evaluation}}
    metric: bits_model
    baselines: [bits_5gram, bits_xz, bits_unigram, bits_untrained]
    per: bytes
    unit: bits/byte
    better: lower
    subsets: []
"""

CONTINUE = """\

  # The base model goes on with our texts. Effect: bits per byte on documents held out, before and after.
  pretrain:
    step: pretrain.train
    model: ${base.checkpoint}
    tokens: ${tokens.tokens}
    tokenizer: ${base.checkpoint}
    epochs: 1
    optimiser: adamw
    lr: 5e-5
  bits_before:
    step: pretrain.evaluate
    model: ${base.checkpoint}
    tokens: ${heldout_tokens.tokens}
    corpus: ${select.heldout}
    train_tokens: ${tokens.tokens}
    label: base
  bits:
    step: pretrain.evaluate
    model: ${pretrain.checkpoint}
    tokens: ${heldout_tokens.tokens}
    corpus: ${select.heldout}
    train_tokens: ${tokens.tokens}
    label: continued
  pretraining:
    step: evaluate.compare
    stage: pretraining
    title: Bits per byte on documents held out
    before: ${bits_before.evaluation}
    after: ${bits.evaluation}
    metric: bits_model
    per: bytes
    unit: bits/byte
    better: lower
    subsets: []
"""

GENTLE_PACE = """\
    optimiser: adamw
    lr: 5e-5
    seq_len: 1024               # tokens; longer conversations are left out
"""

FINE_TUNING = """\
  # Fine-tuning learns what the assistant says. Effect: right answers to conversations held out; the gate keeps
  # the earlier model unless the new one is proven better.
  sft:
    step: finetune.sft
    model: ${{{start}}}
    chats: ${{chats.train}}
    epochs: {epochs}
{pace}  before:
    step: evaluate.generate
    model: ${{{start}}}
    evalset: ${{chats.heldout}}
    label: before
    max_tokens: {max_tokens}
  after:
    step: evaluate.generate
    model: ${{sft.checkpoint}}
    evalset: ${{chats.heldout}}
    label: fine-tuned
    max_tokens: {max_tokens}
  fine_tuning:
    step: evaluate.gate
    stage: fine-tuning
    incumbent: ${{{start}}}
    candidate: ${{sft.checkpoint}}
    before: ${{before.evaluation}}
    after: ${{after.evaluation}}
    training:
      - ${{chats.train}}
"""

REPORT = """\
  report:
    step: evaluate.report
    effects:
{effects}
"""
