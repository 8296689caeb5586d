"""The pages hold together: links lead somewhere, every page is found, and what they name is in the tree."""

from __future__ import annotations

import re
import shlex
from pathlib import Path

import click
import pytest
import yaml

from liuyi.cli.main import cli
from liuyi.core.step import all_steps

ROOT = Path(__file__).parent.parent
PAGES = sorted([*ROOT.glob("*.md"), *ROOT.glob("docs/**/*.md")])
CODE = re.compile(r"^```.*?^```", re.M | re.S)


def name(page: Path) -> str:
    return str(page.relative_to(ROOT))


def links(page: Path) -> list[tuple[Path, str]]:
    """The files that a page leads to, and the headings in them."""
    found = re.findall(r"\]\(([^)\s]+)\)", CODE.sub("", page.read_text(encoding="utf-8")))
    local = [link.partition("#") for link in found if not link.startswith(("https://", "http://"))]
    return [((page.parent / file).resolve() if file else page, heading) for file, _, heading in local]


def anchors(page: Path) -> set[str]:
    """What GitHub calls the headings of a page."""
    headings = re.findall(r"^#+ (.+)$", CODE.sub("", page.read_text(encoding="utf-8")), re.M)
    return {re.sub(r"[^\w\- ]", "", heading.lower()).replace(" ", "-") for heading in headings}


@pytest.mark.parametrize("page", PAGES, ids=name)
def test_links_lead_to_files_and_headings(page: Path) -> None:
    for target, heading in links(page):
        assert target.exists(), target
        assert not heading or heading in anchors(target), f"{target}#{heading}"


def test_every_page_is_found_from_the_readme() -> None:
    found, todo = set(), [ROOT / "README.md"]
    while todo:
        page = todo.pop()
        if page not in found and page.suffix == ".md":
            found.add(page)
            todo += [target for target, _ in links(page)]
    assert set(PAGES) <= found


@pytest.mark.parametrize("page", PAGES, ids=name)
def test_files_that_are_named_exist(page: Path) -> None:
    """What stands in backticks and looks like a file of the project, from its root or from the package."""
    folders = "|".join(path.name for path in [*ROOT.iterdir(), *(ROOT / "src/liuyi").iterdir()] if path.is_dir())
    for file in re.findall(rf"`((?:{folders})/[\w./]+\.(?:py|sh|yaml|cpp|h))\b", page.read_text(encoding="utf-8")):
        assert (ROOT / file).exists() or (ROOT / "src/liuyi" / file).exists(), file


def fenced(page: Path, languages: str) -> list[str]:
    return re.findall(rf"^```(?:{languages})\n(.*?)^```", page.read_text(encoding="utf-8"), re.M | re.S)


@pytest.mark.parametrize("page", PAGES, ids=name)
def test_commands_have_the_options_that_they_are_shown_with(page: Path) -> None:
    for line in "\n".join(fenced(page, "sh|bash")).replace("\\\n", " ").splitlines():
        if not line.startswith("liuyi "):
            continue
        words, command = shlex.split(line, comments=True)[1:], cli
        known = {"--home", "--debug"}
        while words and isinstance(command, click.Group):
            command = command.get_command(click.Context(command), words.pop(0))
            assert command is not None, line
            known |= {option for parameter in command.params for option in parameter.opts}
        assert {word.partition("=")[0] for word in words if word.startswith("--")} <= known, line


@pytest.mark.parametrize("page", [page for page in PAGES if fenced(page, "yaml")], ids=name)
def test_steps_have_the_fields_that_they_are_shown_with(page: Path) -> None:
    """Blocks of whole steps, in recipes or by themselves."""
    for block in fenced(page, "yaml"):
        read = yaml.safe_load(block)
        steps = read.get("steps", read) if isinstance(read, dict) else {}
        for shown in steps.values():
            if isinstance(shown, dict) and "step" in shown:
                step = all_steps()[shown.pop("step")]
                assert set(shown) <= {*step.inputs, *step.params.model_fields}, (step.name, set(shown))
