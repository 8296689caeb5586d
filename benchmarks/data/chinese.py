"""How the default rules treat Chinese: the share of good paragraphs kept, and of planted rubbish dropped, by kind.

    apt-get download manpages-zh debian-reference-zh-cn libreoffice-help-zh-cn
    for package in *.deb; do dpkg -x $package unpacked; done
    python benchmarks/data/chinese.py --texts unpacked [--rows alpaca_zh.json] [--part test] [--sample 20]

Every paragraph is judged as if it were a document. A paragraph counts as good if it stands between empty lines outside
of code, is no heading, row of a table or list item, has 40 Han characters or more, at least as many as other letters,
and holds a sentence that ends with a full stop. `--sample` prints some of them, to check this by eye.
Rubbish is made from `chinese/rubbish.yaml` and from good paragraphs that are garbled; each piece is as long as a good
paragraph must be, so that none is dropped for being short. Intervals are Wilson's, at 95 %.
"""

from __future__ import annotations

import argparse
import itertools
import json
import random
import re
import time
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import pyarrow as pa
import yaml

from liuyi.data.clean.filters import measure
from liuyi.data.select.rules import Attributes, reasons
from liuyi.data.select.thresholds import Thresholds
from liuyi.data.sources.files import Reading, read_files
from liuyi.data.sources.location import find_files
from liuyi.evaluate.stats import wilson

RUBBISH = Path(__file__).parent / "chinese" / "rubbish.yaml"
HAN = re.compile(r"[\u3400-\u9fff]")
_LETTER = re.compile(r"[^\W\d_]")
_NO_PARAGRAPH = re.compile(r"[|#>*•+\-]|(?:\d+\.)*\d+[.)]\s")
_LEAST_HAN = 40
_BATCH = 512

Maker = Callable[[random.Random], str]


def good_paragraphs(text: str) -> Iterator[str]:
    """The paragraphs of a document that count as good."""
    for number, block in enumerate(re.split(r"^```.*$", text, flags=re.MULTILINE)):
        if number % 2:
            continue  # between fences stands code
        for paragraph in re.split(r"\n\s*\n", block):
            paragraph = paragraph.strip()
            han = len(HAN.findall(paragraph))
            if han < _LEAST_HAN or 2 * han < len(_LETTER.findall(paragraph)) or _NO_PARAGRAPH.match(paragraph):
                continue
            if re.search("[。！？]", paragraph):
                yield paragraph


def read_good(texts: Path, rows: Path | None, most: int, rng: random.Random) -> dict[str, list[str]]:
    """Good paragraphs by where they are from, no two the same, at most `most` of each source."""
    found: dict[str, dict[str, None]] = {}
    documents = read_files(find_files(texts), "texts", Reading(extractor="resiliparse"))
    for document in documents:
        if text := getattr(document, "text", ""):
            for paragraph in good_paragraphs(text):
                found.setdefault(_source(document.url), {})[paragraph] = None  # type: ignore[union-attr]
    if rows:
        for row in json.loads(rows.read_text(encoding="utf-8")):
            for paragraph in good_paragraphs(row["output"]):
                found.setdefault(rows.stem, {})[paragraph] = None
    return {
        source: rng.sample(sorted(all_of_it), min(most, len(all_of_it))) for source, all_of_it in sorted(found.items())
    }


def _source(path: str) -> str:
    if match := re.search(r"man/(\w+)/", path):
        return f"man {match.group(1)}"
    return "debian-reference" if "debian-reference" in path else "libreoffice-help"


class Rubbish:
    """Makes rubbish of each kind, from the phrases of one part, `dev` or `test`, and from good paragraphs."""

    def __init__(self, phrases: dict[str, Any], part: str, good: Sequence[str]) -> None:
        self._phrases, self._part, self._good = phrases, part, good
        joined = [name for name, about in phrases.items() if "between" in about]
        self.kinds: dict[str, Maker] = {name: self._joined(name) for name in joined}
        self.kinds |= {
            "template_lists": self._template_list,
            "repeated_characters": self._laughter,
            "tables_of_numbers": self._numbers,
            "wrongly_decoded": self._wrongly_decoded,
            "shuffled_characters": self._shuffled,
            "disguised_spam": self._disguised,
        }

    def _joined(self, kind: str) -> Maker:
        return lambda rng: self._join(kind, rng.choice(self._phrases[kind]["between"]), rng)

    def _join(self, kind: str, between: str, rng: random.Random) -> str:
        text, phrases = "", list(self._phrases[kind][self._part])
        for turn in itertools.count():
            if turn % len(phrases) == 0:
                rng.shuffle(phrases)
            text += _filled(phrases[turn % len(phrases)], rng)
            if len(HAN.findall(text)) >= _LEAST_HAN:
                return text
            text += between
        raise AssertionError

    def _template_list(self, rng: random.Random) -> str:
        template = rng.choice(self._phrases["template_lists"][self._part])
        places = rng.sample(self._phrases["places"][self._part], 8)
        return rng.choice([" ", "\n", "，", "？"]).join(template.format(place=place) for place in places)

    def _laughter(self, rng: random.Random) -> str:
        text = ""
        while len(text) < 2 * _LEAST_HAN:
            text += rng.choice(self._phrases["laughter"][self._part]) * rng.randint(6, 30)
            text += rng.choice(["", "，", "不是吧", "楼上的", "笑死我了", "太好了"])
        return text

    def _numbers(self, rng: random.Random) -> str:
        if self._part == "dev":
            head, between = "年份 产量 增长率 备注", " "
        else:
            head, between = "序号\t考号\t语文\t数学\t总分", "\t"
        rows = [[str(rng.randrange(1990, 99999)) for _ in range(4)] for _ in range(20)]
        return "\n".join([head, *(between.join(row) for row in rows)])

    def _wrongly_decoded(self, rng: random.Random) -> str:
        wrong = {
            "dev": [("utf-8", "gb18030"), ("gb18030", "latin-1"), ("utf-8", "latin-1"), ("gb18030", "utf-8")],
            "test": [("utf-8", "big5"), ("gb18030", "cp1252"), ("utf-8", "cp1252"), ("gb18030", "big5")],
        }
        written, read = rng.choice(wrong[self._part])
        return rng.choice(self._good).encode(written).decode(read, "replace")

    def _shuffled(self, rng: random.Random) -> str:
        text = rng.choice(self._good)
        if self._part == "dev":
            return "".join(rng.sample(text, len(text)))
        shuffled = iter(rng.sample(found := HAN.findall(text), len(found)))
        return HAN.sub(lambda _: next(shuffled), text)

    def _disguised(self, rng: random.Random) -> str:
        """An advertisement whose words are written so that no list finds them, partly in traditional characters."""
        from opencc import OpenCC

        text = self._join(rng.choice(["advertisement", "gambling"]), rng.choice(["，", " ", "！"]), rng)
        for word, forms in self._phrases["disguises"][self._part].items():
            text = text.replace(word, rng.choice(forms))
        traditional = OpenCC("s2t").convert(text)
        if len(traditional) == len(text):
            text = "".join(rng.choice(pair) for pair in zip(text, traditional, strict=True))
        if self._part == "dev":
            return "".join(letter + ("·" if rng.random() < 0.1 else "") for letter in text)
        return f"❤{text}💋"


def _filled(phrase: str, rng: random.Random) -> str:
    """A phrase with numbers, dates and accounts put in."""
    return phrase.format(
        number=rng.randrange(10, 99999),
        price=rng.choice([88, 168, 299, 599, 999, 1288, 9800]),
        phone=f"1{rng.choice('3578')}{rng.randrange(10**9):09}",
        account=f"{rng.choice('abcdkwx')}{rng.randrange(10**5, 10**9)}",
        date=f"20{rng.randrange(10, 24)}-{rng.randrange(1, 13):02}-{rng.randrange(1, 29):02}",
        time=f"{rng.randrange(24):02}:{rng.randrange(60):02}",
    )


def judge(texts: Sequence[str]) -> list[str]:
    """The reason for which the default rules drop each text; empty where they keep it."""
    judged: list[str] = []
    for start in range(0, len(texts), _BATCH):
        batch = texts[start : start + _BATCH]
        table = measure(pa.array(batch, pa.string()))
        table = table.append_column("duplicate_kind", pa.array([""] * len(batch)))
        table = table.append_column("duplicate_similarity", pa.array([1.0] * len(batch), pa.float32()))
        licences = pa.chunked_array([["MIT"] * len(batch)])
        judged += reasons(Attributes(table, licences), Thresholds()).tolist()
    return judged


def report(name: str, wanted: int, judged: Sequence[str], others: Counter[str]) -> None:
    """One line: the share that was treated rightly, and what happened to the rest."""
    low, high = wilson(wanted, len(judged))
    rest = ", ".join(f"{count} {reason}" for reason, count in others.most_common(3))
    print(f"  {name:22} {len(judged):6} {wanted / len(judged):8.1%}  {low:6.1%} – {high:6.1%}  {rest}")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--texts", type=Path, required=True, help="folder with the unpacked packages")
    parser.add_argument("--rows", type=Path, help="JSON rows whose `output` is Chinese text as well")
    parser.add_argument(
        "--rubbish", type=Path, help="real rubbish, a text a line, such as unwanted mail: one more kind"
    )
    parser.add_argument("--part", choices=("dev", "test"), default="test", help="which half of the phrases to use")
    parser.add_argument("--most", type=int, default=2000, help="good paragraphs of one source")
    parser.add_argument("--pieces", type=int, default=200, help="pieces of rubbish of each kind")
    parser.add_argument("--sample", type=int, default=0, help="print as many good paragraphs, to check them by hand")
    parser.add_argument("--lost", type=int, default=0, help="print as many good paragraphs that were dropped")
    parser.add_argument("--show", help="print some rubbish of one kind, with what became of it")
    args = parser.parse_args()

    good = read_good(args.texts, args.rows, args.most, random.Random(1))
    everything = [paragraph for paragraphs in good.values() for paragraph in paragraphs]
    for paragraph in random.Random(2).sample(everything, args.sample):
        print(f"- {paragraph!r}")
    start, size = time.perf_counter(), sum(len(text.encode()) for text in everything)

    print(f"good paragraphs            number    kept  95 % interval   dropped for ({size / 1e6:.1f} MB)")
    fates: list[tuple[str, str]] = []
    for source, paragraphs in good.items():
        judged = judge(paragraphs)
        fates += zip(judged, paragraphs, strict=True)
        report(source, judged.count(""), judged, Counter(filter(None, judged)))
    every = [reason for reason, _ in fates]
    report("all", every.count(""), every, Counter(filter(None, every)))
    print(f"  measured at {size / 1e6 / (time.perf_counter() - start):.1f} MB/s, one core")
    lost = [fate for fate in fates if fate[0]]
    for reason, paragraph in random.Random(3).sample(lost, min(args.lost, len(lost))):
        print(f"    {reason}: {paragraph!r}")

    print(f"rubbish ({args.part} half)       number dropped  95 % interval   dropped for")
    rubbish = Rubbish(yaml.safe_load(RUBBISH.read_text(encoding="utf-8")), args.part, everything)
    total: list[str] = []
    for kind, make in rubbish.kinds.items():
        rng = random.Random(f"{kind} {args.part}")
        texts = [make(rng) for _ in range(args.pieces)]
        judged = judge(texts)
        total += judged
        report(kind, len(judged) - judged.count(""), judged, Counter(reason or "KEPT" for reason in judged))
        if kind == args.show:
            for text, reason in sorted(zip(texts, judged, strict=True), key=lambda pair: pair[1])[:12]:
                print(f"    {reason or 'KEPT'}: {text!r}")
    report("all", len(total) - total.count(""), total, Counter(filter(None, total)))
    if args.rubbish:
        lines = sorted({line.strip() for line in args.rubbish.read_text(encoding="utf-8").splitlines()})
        judged = judge([line for line in lines if len(HAN.findall(line)) >= _LEAST_HAN])
        report(
            args.rubbish.stem, len(judged) - judged.count(""), judged, Counter(reason or "KEPT" for reason in judged)
        )


if __name__ == "__main__":
    main()
