"""The main text of web pages: measured on annotated pages, with tables and code whole."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest

sys.path.append(str(Path(__file__).parents[2] / "benchmarks" / "data"))

import extraction

from liuyi.core.errors import DataError
from liuyi.data.sources.extract import EXTRACTORS, check_extractor, extract

PROSE = "<p>" + "The miller opened the gate when the tide had turned, and the wheel began to move. " * 5 + "</p>"
MORE = "<p>" + "Two pairs of stones were driven by one wheel, one from the Eifel and one from Derbyshire. " * 4 + "</p>"


@pytest.fixture(scope="module")
def pages() -> list[extraction.Page]:
    return extraction.read_pages()


def test_the_pages_are_sound(pages: list[extraction.Page]) -> None:
    """Every annotated word stands in its page, and what must not come out stands there too, but not in the text."""
    assert len(pages) >= 20
    assert {page.language for page in pages} == {"en", "zh"}
    for page in pages:
        whole = "".join(extract(page.html.replace("<nav", "<div").replace("</nav", "</div"), "plain").split())
        for piece in page.without:
            assert piece not in page.gold, page.name
            assert piece in page.html, page.name
        for line in page.gold.split("\n"):
            cells = [cell for row in extraction.table_rows(line) for cell in row] or [line.lstrip("#-0123456789. ")]
            assert all("".join(cell.split()) in whole for cell in cells if "```" not in cell), (page.name, line)


@pytest.mark.parametrize(("extractor", "f1"), [("trafilatura", 0.93), ("resiliparse", 0.86), ("plain", 0.82)])
def test_extractors_on_annotated_pages(extractor: str, f1: float, pages: list[extraction.Page]) -> None:
    scores = extraction.measure(pages, lambda html: extract(html, extractor))  # type: ignore[arg-type]
    assert scores["all"].f1 > f1
    assert scores["all"].rows_kept >= scores["all"].rows - 1
    assert scores["all"].code_kept >= scores["all"].code - 3
    if extractor == "trafilatura":
        assert min(scores["en"].f1, scores["zh"].f1) > 0.92
        assert scores["all"].rubbish_kept < 6


def test_the_measure_is_right() -> None:
    page = extraction.Page("en-x", "", "one two three four five\n\n| a | b |\n\n```\n  x = 1\n```\n", ("menu",))
    perfect, half = extraction.Score(), extraction.Score()
    perfect.add(page, page.gold)
    assert (perfect.precision, perfect.recall, perfect.f1) == (1, 1, 1)
    assert (perfect.rows_kept, perfect.code_kept, perfect.rubbish_kept) == (1, 1, 0)
    half.add(page, "menu one two three four five b a x = 1")
    assert half.f1 < 0.7
    assert (half.rows_kept, half.code_kept, half.rubbish_kept) == (0, 0, 1)
    assert extraction.shingles("中文 words 也算") == extraction.shingles("中文words也算")


def test_code_keeps_its_white_space_and_its_signs() -> None:
    code = 'if a[0] < b and c:\n    print("<p> \\\\d+")\n\n    # *done*'
    escaped = code.replace("&", "&amp;").replace("<", "&lt;")
    page = f"<body><article><h1>Title</h1>{PROSE}<pre class='x'>{escaped}</pre>{PROSE}</article></body>"
    for extractor in EXTRACTORS:
        assert code in extract(page, extractor), extractor
    assert f"```\n{code}\n```" in extract(page, "trafilatura")


def test_signs_are_not_escaped() -> None:
    taken = "<p>Take [a] * 2_000 &lt; b, or C:\\x, and 2<sup>10</sup>.</p>"
    page = f"<body><article><h1>Title</h1>{PROSE}{taken}</article></body>"
    assert "Take [a] * 2_000 < b, or C:\\x, and 210." in extract(page, "trafilatura")


def test_tables_of_layout_are_opened_and_tables_of_data_are_not() -> None:
    data = "<table><tr><td><p>a</p></td><td><p>b</p></td></tr><tr><td><p>c</p></td><td><p>d</p></td></tr></table>"
    page = f"<body><table><tr><td>menu</td><td><h1>Title</h1>{PROSE}{MORE}{data}</td></tr></table></body>"
    lines = extract(page, "trafilatura").split("\n")
    assert any(line.split() == ["|", "a", "|", "b", "|"] for line in lines)
    assert any(line.startswith("The miller opened") for line in lines)


def test_the_title_comes_first_and_once() -> None:
    outside = f"<body><div class='top'><h1>The tide mill</h1></div><article>{PROSE}{MORE}</article></body>"
    inside = f"<body><article><h1>The tide mill</h1>{PROSE}{MORE}</article></body>"
    for page in (outside, inside):
        text = extract(page, "trafilatura")
        assert text.startswith("# The tide mill\n")
        assert text.count("The tide mill") == 1


@pytest.mark.parametrize("extractor", EXTRACTORS)
def test_what_is_no_page_gives_no_error(extractor: str) -> None:
    for page in (
        "",
        " ",
        "<",
        "<html></html>",
        "plain words",
        "\x00",
        "<table>" * 2000,
        "<!--",
        "<?xml version='1.0'?>",
    ):
        assert isinstance(extract(page, extractor), str)  # type: ignore[arg-type]


def test_a_missing_library_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    import importlib.util

    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    with pytest.raises(DataError, match="trafilatura, which is not installed") as caught:
        check_extractor("trafilatura")
    assert "liuyi[web]" in caught.value.hint
    check_extractor("plain")
