"""`liuyi init`: a folder with a recipe for one's own data that runs as it is."""

from __future__ import annotations

import json
import re
import shlex
from pathlib import Path

import click

from liuyi.cli.common import console
from liuyi.cli.samples import write_chats, write_texts
from liuyi.cli.scaffold import Plan, recipe_text
from liuyi.core.errors import LiuyiError

HOME = ".liuyi"
SCHEMA = "recipe.schema.json"


@click.command()
@click.argument("folder", metavar="DIR", type=click.Path(path_type=Path, file_okay=False))
@click.option("--texts", type=click.Path(path_type=Path, exists=True), help="A folder of your texts.")
@click.option("--chats", type=click.Path(path_type=Path, exists=True), help="A file of your conversations (JSONL).")
@click.option(
    "--model",
    type=click.Path(path_type=Path),
    help="A base model: a folder in Hugging Face's layout, with its tokenizer.json.",
)
@click.pass_context
def command(ctx: click.Context, folder: Path, texts: Path | None, chats: Path | None, model: Path | None) -> None:
    """Write a small commented recipe into DIR, with a home of its own beside it.

    It trains on your texts, on your conversations, or on both, from scratch or from your base model. Where it needs
    data and you give none it adds a few sample files; the whole sample runs in about a minute.
    """
    from liuyi.core.recipe import parse_recipe, recipe_schema

    if model is not None:
        _demand_model(model)
    needs_texts = texts is None and model is None
    needs_chats = chats is None and texts is None
    plan = Plan(
        name=re.sub(r"[^a-z0-9]+", "-", folder.resolve().name.lower()).strip("-") or "mine",
        texts=_as_named(texts, folder) if texts else "texts" if needs_texts else None,
        chats=_as_named(chats, folder) if chats else "chats.jsonl" if needs_chats else None,
        model=_as_named(model, folder) if model else None,
        sample_texts=needs_texts,
        sample_chats=needs_chats,
    )
    wanted = [folder / "recipe.yaml"]
    wanted += [folder / "texts"] * needs_texts + [folder / "chats.jsonl"] * needs_chats
    for path in wanted:
        if path.exists():
            raise LiuyiError("this is here already", where=str(path), hint="choose another folder, or move it away")

    (folder / HOME).mkdir(parents=True, exist_ok=True)
    if needs_texts:
        console().print(f"{folder / 'texts'}: {write_texts(folder / 'texts')} sample documents", soft_wrap=True)
    if needs_chats:
        console().print(f"{folder / 'chats.jsonl'}: {write_chats(folder / 'chats.jsonl')} sample conversations")
    text = recipe_text(plan)
    parse_recipe(text, "recipe.yaml", folder=folder.resolve())
    (folder / "recipe.yaml").write_text(text, encoding="utf-8")
    (folder / HOME / SCHEMA).write_text(json.dumps(recipe_schema(), indent=1), encoding="utf-8")
    _ignore(folder / ".gitignore")
    console().print(f"{folder / 'recipe.yaml'}: what to change is said in it", soft_wrap=True)
    go = "" if folder.resolve() == Path.cwd() else f"cd {shlex.quote(str(folder))} && "
    console().print(f"\nnow: {go}liuyi run .", soft_wrap=True)


def _demand_model(folder: Path) -> None:
    """Raises LiuyiError for a folder that is no model, or has no tokenizer, before a recipe is written for it."""
    if not folder.is_dir():
        hint = ""
        if re.fullmatch(r"[\w-][\w.-]*/[\w-][\w.-]*", str(folder)):
            hint = f"a model of Hugging Face's hub is fetched first: hf download {folder} --local-dir {folder.name}"
        raise LiuyiError("--model: there is no such folder", where=str(folder), hint=hint)
    for name in ("config.json", "tokenizer.json"):
        if not (folder / name).is_file():
            raise LiuyiError(f"--model: the folder has no {name}", where=str(folder))


def _as_named(path: Path, folder: Path) -> str:
    """A path as the recipe in `folder` names it: relative if it lies below, else absolute."""
    full, base = path.resolve(), folder.resolve()
    return full.relative_to(base).as_posix() if full.is_relative_to(base) else str(full)


def _ignore(path: Path) -> None:
    """Have git leave the home alone."""
    lines = path.read_text(encoding="utf-8").splitlines() if path.exists() else []
    if f"{HOME}/" not in lines:
        path.write_text("\n".join([*lines, f"{HOME}/"]) + "\n", encoding="utf-8")
