"""The report: what is gathered, that nothing in it can run, and that its pictures are true."""

from __future__ import annotations

import io
import json
import re
from html.parser import HTMLParser
from xml.etree import ElementTree

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from rich.console import Console

from liuyi.core.effect import Bars, Comparison, Curves, Effect, Sample, Samples, Series, Table
from liuyi.core.errors import DataError
from liuyi.evaluate import figures
from liuyi.evaluate.report import build_report, page, print_report, read_report
from liuyi.evaluate.report.svg import bar_rows, curves_chart, forest_rows, ticks
from liuyi.evaluate.report.terminal import spark
from liuyi.evaluate.stats import compare
from liuyi.train.curves import thinned

EVIL = "<script>alert('x')</script>&\"'><img src=http://evil.example/x onerror=alert(1)> {{ 7*7 }} 中文"


def comparison(**changes) -> Comparison:
    base = {
        "metric": "exact match",
        "unit": "%",
        "before_name": "before",
        "after_name": "after",
        "before": 0.5,
        "after": 0.625,
        "delta": 0.125,
        "low": 0.04,
        "high": 0.21,
        "p_value": 0.012,
        "test": "McNemar exact",
        "items": 200,
        "clusters": 200,
        "minimum_detectable": 0.08,
    }
    return Comparison(**{**base, **changes})


def effect(text: str = "plain", **changes) -> Effect:
    base = {
        "stage": "fine-tuning",
        "title": f"Title {text}",
        "summary": f"Summary {text}",
        "comparisons": (comparison(metric=f"metric {text}"), comparison(subset=f"subset {text}", low=-0.1)),
        "decision": "promoted",
        "blocks": (
            Bars(title=f"bars {text}", bars=((f"label {text}", 3.5), ("minus", -1.0)), unit=f"u {text}", note=text),
            Table(title=f"table {text}", columns=(f"column {text}", "n"), rows=((f"cell {text}", 2),)),
            Curves(
                title=f"curves {text}",
                x_label=f"x {text}",
                y_label=f"y {text}",
                series=(Series(name=f"series {text}", x=(0, 1, 2), y=(1, float("nan"), 3)),) * 2,
            ),
            Samples(title=f"samples {text}", samples=(Sample(title=f"s {text}", text=f"t {text}", note=f"n {text}"),)),
        ),
    }
    return Effect(**{**base, **changes})


@pytest.fixture
def published(publish):
    def make(made: Effect, kind: str = "verdict", step: str = "evaluate.compare", **files):
        return publish(kind, step=step, effect__json=made.model_dump_json(), **files)

    return make


class Elements(HTMLParser):
    """Every element with its attributes, and the text outside of them."""

    def __init__(self, html: str) -> None:
        super().__init__()
        self.found: list[tuple[str, dict[str, str | None]]] = []
        self.text = ""
        self.feed(html)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.found.append((tag, dict(attrs)))

    def handle_data(self, data: str) -> None:
        self.text += data


def test_untrusted_text_stays_text(published) -> None:
    html = page(build_report([published(effect(EVIL))], title=EVIL))
    elements = Elements(html)
    assert not {tag for tag, _ in elements.found} & {"script", "img", "iframe", "link", "object", "form"}
    for tag, attributes in elements.found:
        assert not [name for name in attributes if name.startswith("on")], tag
        assert set(attributes) & {"src", "srcset", "action"} == set()
        assert attributes.get("href", "#").startswith("#"), "links lead into the page only"
    for part in (
        "Title",
        "Summary",
        "metric",
        "subset",
        "bars",
        "label",
        "cell",
        "column",
        "curves",
        "series",
        "t ",
        "n ",
    ):
        assert f"{part.strip()} {EVIL}" in elements.text, part
    assert "default-src 'none'" in html
    assert "url(" not in html
    assert "@import" not in html


def test_the_page_holds_every_figure(published) -> None:
    text = " ".join(Elements(page(build_report([published(effect())]))).text.split())
    for shown in (
        "50.0 %",
        "62.5 %",
        "+12.5 points",
        "+4.0 … +21.0",
        "0.012",
        "200",
        "promoted",
        "could see 8.0 points",
    ):
        assert shown in text, shown


def test_blocks_without_content_are_left_out(published) -> None:
    empty = (
        Bars(title="no bars", bars=()),
        Table(title="no rows", columns=("a",), rows=()),
        Samples(title="no", samples=()),
    )
    html = page(build_report([published(effect(blocks=empty))]))
    assert "no bars" not in html
    assert "no rows" not in html


def test_reports_read_back_and_do_not_depend_on_when_they_are_made(published, run_step) -> None:
    made = published(effect())
    first = run_step("evaluate.report", {"effects": [made, made]}, title="quickstart")["report"]
    assert first.digest == run_step("evaluate.report", {"effects": [made]}, title="quickstart")["report"].digest
    report = read_report(first.path)
    assert [section.digest for section in report.sections] == [made.digest]
    assert report.sections[0].effect.model_dump_json() == effect().model_dump_json()
    assert report.headline() == "1 decision: 1 promoted"
    assert page(report) == first.file("report.html").read_text()


def test_artifacts_without_an_effect_are_left_out(publish, published, run_step) -> None:
    bare = publish("corpus", documents__parquet="x")
    assert len(build_report([bare, published(effect())]).sections) == 1
    with pytest.raises(DataError, match="none of the artifacts"):
        run_step("evaluate.report", {"effects": [bare]})
    broken = publish("verdict", effect__json={"stage": "nonsense"})
    with pytest.raises(DataError, match=f"verdict {broken.digest[:12]}"):
        build_report([broken])


def test_training_curves_of_checkpoints(publish, published) -> None:
    rows = [{"step": n, "loss": 5 - n / 250, "lr": 0.1, "kl": None} for n in range(1000)]
    log = "\n".join(json.dumps(row) for row in rows)
    bare = publish("checkpoint", step="pretrain.train", training__jsonl=log)
    made = published(effect(stage="alignment"), kind="checkpoint", step="align.preference", training__jsonl=log)
    sections = build_report([bare, made]).sections
    assert sections[0].effect.stage == "pretraining"
    curve = sections[0].effect.blocks[0].series[0]
    assert len(curve.x) <= 400
    assert np.interp(500, curve.x, curve.y) == pytest.approx(3.0, abs=0.02)
    assert [block.title for block in sections[1].effect.blocks][-2:] == ["Loss", "Learning rate"]


def test_thinning_keeps_the_mean() -> None:
    values = np.random.default_rng(0).normal(size=5000)
    points = thinned(list(enumerate(values.tolist())))
    assert len(points) <= 400
    assert np.mean([y for _, y in points[:-1]]) == pytest.approx(values[: (len(points) - 1) * 13].mean())


def positions(svg: str, css: str, name: str) -> list[float]:
    root = ElementTree.fromstring(str(svg))
    return [float(node.get(name).rstrip("%")) for node in root.iter() if (node.get("class") or "").startswith(css)]


def test_intervals_are_drawn_where_they_are() -> None:
    rows = forest_rows([comparison(), comparison(delta=-0.125, low=-0.21, high=-0.04)])
    zero = positions(rows[0], "zero", "x1")[0]
    for row, low, delta, high in ((rows[0], 0.04, 0.125, 0.21), (rows[1], -0.21, -0.125, -0.04)):
        left, right = positions(row, "interval", "x1")[0], positions(row, "interval", "x2")[0]
        point = positions(row, "point", "cx")[0]
        assert (point - zero) / (right - left) == pytest.approx(delta / (high - low), rel=0.01)
        assert (left - zero) / (right - left) == pytest.approx(low / (high - low), rel=0.01)
    assert "good" in rows[0]
    assert "bad" in rows[1]
    lower = forest_rows([comparison(better="lower")])[0]
    assert positions(lower, "point", "cx")[0] < positions(lower, "zero", "x1")[0], "a rise is worse: to the left"
    assert "bad" in lower
    assert "unsure" in forest_rows([comparison(p_value=0.2)])[0]


def test_no_interval_is_drawn_where_there_is_none() -> None:
    one = compare([0.1], [0.4], clusters=None, kind="real", metric="m")
    assert positions(forest_rows([one])[0], "interval", "x1") == []
    assert figures.show(one).interval == figures.NO_INTERVAL
    assert "no interval: too few items" in figures.sentence(one)


def test_bars_are_as_long_as_their_values() -> None:
    rows = bar_rows(Bars(title="t", bars=(("a", 30.0), ("b", 15.0), ("c", -10.0), ("d", float("nan")))))
    widths = [positions(bar, "bar", "width")[0] for _, _, bar in rows]
    assert widths[:3] == pytest.approx([75, 37.5, 25])
    assert widths[3] == 0
    assert [value for _, value, _ in rows] == ["30", "15", "−10", "–"]


def test_curves_pass_through_their_points() -> None:
    chart = curves_chart(
        Curves(title="t", x_label="x", y_label="y", series=(Series(name="s", x=(0, 5, 10), y=(0, 1, 4)),))
    )
    line = re.search(r'points="([^"]+)"', str(chart))[1]
    (x0, y0), (x1, y1), (x2, y2) = (tuple(map(float, pair.split(","))) for pair in line.split())
    assert x1 - x0 == pytest.approx(x2 - x1, abs=0.2)
    assert (y0 - y1) / (y0 - y2) == pytest.approx(0.25, abs=0.01)


@given(st.floats(-1e6, 1e6), st.floats(1e-6, 1e6), st.integers(2, 9))
def test_ticks_cover_the_range_in_round_steps(low: float, span: float, count: int) -> None:
    span = max(span, 1e-6 * abs(low))  # Less is lost in the digits of the numbers themselves.
    made = ticks(low, low + span, count)
    assert made[0] <= low + 1e-6 * span
    assert made[-1] >= low + span * (1 - 1e-6)
    assert 2 <= len(made) <= count + 3
    step = made[1] - made[0]
    assert any(
        step / 10 ** np.floor(np.log10(step) + 1e-9) == pytest.approx(round_, rel=1e-3) for round_ in (1, 2, 2.5, 5, 10)
    )


def test_the_terminal_shows_the_same_figures(published) -> None:
    console = Console(width=160, record=True, file=io.StringIO())
    report = build_report([published(effect("[bold]not markup[/bold]"))])
    print_report(report, console)
    text = console.export_text()
    for shown in ("50.0 % → 62.5 %", "+12.5 points", "+4.0 … +21.0", "promoted", "[bold]not markup[/bold]", "Summary"):
        assert shown in text, shown
    assert "cell" not in text
    print_report(report, console, details=True)
    text = console.export_text()
    for shown in ("cell [bold]not markup[/bold]", "label [bold]", "curves", "█"):
        assert shown in text, shown


def test_sparks_rise_and_fall() -> None:
    assert spark([0, 1, 2, 3, 4, 5, 6, 7]) == "▁▂▃▄▅▆▇█"
    assert len(spark(list(range(1000)))) <= 40


@pytest.mark.parametrize(
    ("value", "unit", "shown"),
    [
        (0.8125, "%", "81.2 %"),
        (1234567, "", "1,234,567"),
        (2.03391, "bits/byte", "2.034 bits/byte"),
        (-0.0001, "", "−1.00e−04"),
        (-0.00001, "%", "0.0 %"),
        (float("nan"), "", "–"),
        (float("-inf"), "", "−∞"),
        (12345.6, "tokens/s", "12,346 tokens/s"),
    ],
)
def test_numbers(value: float, unit: str, shown: str) -> None:
    assert figures.number(value, unit) == shown


def test_figures_have_the_digits_their_interval_bears() -> None:
    found = figures.show(
        comparison(unit="bits/byte", before=1.98172, after=1.91934, delta=-0.06238, low=-0.1312, high=0.0038)
    )
    assert (found.before, found.after) == ("1.982", "1.919 bits/byte")
    assert (found.change, found.interval) == ("−0.062 bits/byte", "−0.131 … +0.004")
