"""How well each extractor finds the main text of a page: precision, recall and F1 against annotated pages.

    python benchmarks/data/extraction.py [--pages benchmarks/data/pages] [--repeat 5] [--show zh-news]

Beside this file lie pages in English and Chinese (`NAME.html`), each with its main text as a person would copy it
(`NAME.md`) and with pieces of menus, banners and footers that must not come out (`NAME.without.txt`). Text is compared
as in the article extraction benchmark of Zyte: bags of four neighbouring tokens, where a token is a word, a number or
one Chinese character. A table row survives if its cells stand on one line in order; a line of code, if it is there
with its indentation.
"""

from __future__ import annotations

import argparse
import re
import time
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from liuyi.data.sources.extract import EXTRACTORS, extract

PAGES = Path(__file__).parent / "pages"
_TOKEN = re.compile(r"[\u3400-\u9fff]|[^\W_\u3400-\u9fff]+")
_SHINGLE = 4


@dataclass(frozen=True)
class Page:
    """One annotated page."""

    name: str
    html: str
    gold: str
    without: tuple[str, ...]

    @property
    def language(self) -> str:
        return self.name[:2]


@dataclass
class Score:
    """Counts over some pages."""

    right: int = 0
    found: int = 0
    wanted: int = 0
    rows: int = 0
    rows_kept: int = 0
    code: int = 0
    code_kept: int = 0
    rubbish: int = 0
    rubbish_kept: int = 0

    @property
    def precision(self) -> float:
        return self.right / max(self.found, 1)

    @property
    def recall(self) -> float:
        return self.right / max(self.wanted, 1)

    @property
    def f1(self) -> float:
        return 2 * self.right / max(self.found + self.wanted, 1)

    def add(self, page: Page, text: str) -> None:
        """Count what an extractor made of a page."""
        found, wanted = shingles(text), shingles(page.gold)
        self.right += (found & wanted).total()
        self.found += found.total()
        self.wanted += wanted.total()
        lines = text.split("\n")
        for row in table_rows(page.gold):
            self.rows += 1
            self.rows_kept += any(all_in_order(row, line) for line in lines)
        for code in code_lines(page.gold):
            self.code += 1
            self.code_kept += any(line.rstrip() == code for line in lines)
        self.rubbish += len(page.without)
        self.rubbish_kept += sum(piece in text for piece in page.without)


def read_pages(folder: Path = PAGES) -> list[Page]:
    """The annotated pages of a folder, in the order of their names."""
    return [
        Page(
            path.stem,
            path.read_text(encoding="utf-8"),
            path.with_suffix(".md").read_text(encoding="utf-8"),
            tuple(path.with_suffix(".without.txt").read_text(encoding="utf-8").splitlines()),
        )
        for path in sorted(folder.glob("*.html"))
    ]


def shingles(text: str) -> Counter[tuple[str, ...]]:
    """How often each run of four tokens occurs; a shorter text is one run."""
    tokens = _TOKEN.findall(text.lower())
    return Counter(tuple(tokens[at : at + _SHINGLE]) for at in range(max(len(tokens) - _SHINGLE + 1, 1)))


def table_rows(gold: str) -> list[list[str]]:
    """The cells of each table row."""
    return [[cell.strip() for cell in line.strip("|").split("|")] for line in gold.split("\n") if line.startswith("|")]


def code_lines(gold: str) -> list[str]:
    """The lines between fences that are not blank."""
    return [line for block in gold.split("```")[1::2] for line in block.split("\n") if line.strip()]


def all_in_order(cells: list[str], line: str) -> bool:
    """Whether the cells stand in this line one after the other."""
    at = 0
    for cell in cells:
        at = line.find(cell, at)
        if at < 0:
            return False
        at += len(cell)
    return True


def measure(pages: list[Page], extractor: Callable[[str], str]) -> dict[str, Score]:
    """Scores by language, and of all pages under `all`."""
    scores = {name: Score() for name in ("all", *dict.fromkeys(page.language for page in pages))}
    for page in pages:
        text = extractor(page.html)
        scores["all"].add(page, text)
        scores[page.language].add(page, text)
    return scores


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--pages", type=Path, default=PAGES)
    parser.add_argument("--repeat", type=int, default=5, help="passes over the pages to time, the fastest counts")
    parser.add_argument("--show", help="print what each extractor makes of one page")
    args = parser.parse_args()
    pages = read_pages(args.pages)
    print(f"{len(pages)} pages, {sum(len(page.html) for page in pages) / 1000:.0f} thousand characters of HTML")
    head = ("extractor", "pages", "precision", "recall", "F1", "table rows", "code lines", "rubbish", "pages/s")
    print(("{:12} {:6}" + " {:>10}" * 7).format(*head))
    for name in EXTRACTORS:
        scores = measure(pages, lambda html, name=name: extract(html, name))  # type: ignore[misc]
        times = []
        for _ in range(args.repeat):
            start = time.perf_counter()
            for page in pages:
                extract(page.html, name)
            times.append(time.perf_counter() - start)
        for language, score in scores.items():
            speed = f"{len(pages) / min(times):.0f}" if language == "all" and times else ""
            print(
                f"{name:12} {language:6} {score.precision:10.3f} {score.recall:10.3f} {score.f1:10.3f} "
                f"{f'{score.rows_kept}/{score.rows}':>10} {f'{score.code_kept}/{score.code}':>10} "
                f"{f'{score.rubbish_kept}/{score.rubbish}':>10} {speed:>10}"
            )
        for page in pages:
            if page.name == args.show:
                print(f"--- {name}\n{extract(page.html, name)}\n---")


if __name__ == "__main__":
    main()
