"""What deduplication and a learned classifier each buy: bits per byte on clean held-out text, at equal tokens.

    python benchmarks/data/quality.py --work /tmp/quality
    python benchmarks/data/quality.py --work /tmp/quality \\
        --max-mb 2 --seeds 3 --token-budget 40000 --heldout-tokens 20000    # a short look

The web is played by files of this machine. Good pages are the documentation of Python packages; rubbish are licences,
change logs, file lists and data tables of Debian and Python packages, as much of it. A third of all pages are copied,
few of them many times, with lines lost as mirrors lose them. Packages are dealt out by a hash of their names: some are
held out (documentation alone), some are examples for the classifier, the rest is the web; so neither the classifier nor
a proxy has seen anything of what it is judged by. The arms are the web as it is, the web without duplicates, and of
that what the classifier thinks good; small models are trained alike on equal numbers of tokens of each.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import random
import subprocess
import sys
import time
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

import yaml

from liuyi.core.artifact import Artifact
from liuyi.core.errors import DataError
from liuyi.core.home import Home
from liuyi.core.refs import resolve_artifact
from liuyi.data.select.thresholds import Thresholds
from liuyi.data.sources.distributions import chosen
from liuyi.data.sources.python_docs import read_distributions
from liuyi.data.text import decode

ARMS = ("all", "deduplicated", "deduplicated and classified")
_PAGE_CHARS = 12_000
_COPIED = 1 / 3
_MOST_COPIES = 60
_LINES_LOST = 0.03
_RUBBISH = (
    ("/usr/share/doc", ("*/copyright", "*/changelog*")),
    ("/var/lib/dpkg/info", ("*.list", "*.md5sums", "*.symbols")),
    (Path(yaml.__file__).parents[1], ("*/RECORD", "*/licenses/**/*", "*/LICENSE*", "**/*.csv", "**/*.json")),
)

Page = dict[str, str]


def good_pages(max_bytes: int) -> Iterator[Page]:
    """Documentation of the Python packages that are installed."""
    documents, _ = read_distributions(chosen(), max_bytes=max_bytes, max_bytes_per_source=max_bytes // 8)
    for document in documents:
        yield {"text": document.text[:_PAGE_CHARS], "cluster": document.cluster, "kind": "good"}


def rubbish_pages(max_bytes: int) -> Iterator[Page]:
    """Licences, change logs, file lists and data of the packages that are installed, in an order by hash."""
    files = sorted({path for root, kinds in _RUBBISH for kind in kinds for path in Path(root).glob(kind)})
    files.sort(key=lambda path: hashlib.sha256(str(path).encode()).digest())
    held = 0
    for path in files:
        text = _text(path)
        if held < max_bytes and len(text) > 200:
            held += len(text.encode())
            yield {"text": text, "cluster": _package(path), "kind": "rubbish"}


def _text(path: Path) -> str:
    try:
        return decode(path.read_bytes()[: 4 * _PAGE_CHARS])[:_PAGE_CHARS] if path.is_file() else ""
    except (OSError, DataError):
        return ""


def _package(path: Path) -> str:
    parts = path.parts
    if "site-packages" in parts:
        return parts[parts.index("site-packages") + 1].split("-")[0]
    return path.stem.split(":")[0] if "info" in parts else parts[4]


def part(page: Page) -> str:
    """`heldout`, `examples` or `web`, by a hash of the package."""
    number = hashlib.sha256(page["cluster"].encode()).digest()[0] % 10
    return "heldout" if number < 2 else "examples" if number < 4 else "web"


def copies(page: Page, chance: random.Random) -> Iterator[Page]:
    """The page itself, and for some pages copies, few or many, each with lines lost and a line of its own."""
    yield page
    if chance.random() < _COPIED:
        for number in range(min(_MOST_COPIES, int(1 / (1 - chance.random())))):
            lines = [line for line in page["text"].split("\n") if chance.random() > _LINES_LOST]
            yield page | {
                "text": "\n".join([f"Mirror {number} of {page['cluster']}", *lines]),
                "kind": f"copies of {page['kind']}",
            }


def write_pages(path: Path, pages: Iterable[Page]) -> dict[str, float]:
    """Write rows; gives megabytes by kind."""
    sizes: dict[str, float] = {}
    with path.open("w", encoding="utf-8") as file:
        for page in pages:
            sizes[page["kind"]] = sizes.get(page["kind"], 0) + len(page["text"].encode()) / 1e6
            file.write(json.dumps(page, ensure_ascii=False) + "\n")
    return sizes


def keep_everything() -> dict[str, Any]:
    """Thresholds that drop duplicates and nothing else: what is measured here is not the rules."""
    kept: dict[str, Any] = {"languages": [], "drop_generated": False, "drop_placeholder": False}
    for name, field in Thresholds.model_fields.items():
        if field.default is None or "similarity" in name or name == "min_han_ratio":
            continue
        bounds = {type(bound).__name__: bound for bound in field.metadata}
        if name.startswith("max_"):
            kept[name] = bounds["Le"].le if "Le" in bounds else 1e9
        elif name.startswith("min_"):
            kept[name] = bounds["Ge"].ge
    return kept


def recipe(options: argparse.Namespace) -> dict[str, Any]:
    """The steps from files to verdict."""
    select = {
        "step": "data.select",
        "corpus": "${scored.corpus}",
        "heldout_fraction": 0,
        "mask_pii": False,
        **keep_everything(),
    }
    steps: dict[str, Any] = {
        name: {"step": "data.files", "path": f"{name}.jsonl"} for name in ("web", "heldout", "good", "rubbish")
    }
    steps |= {
        "cleaned": {"step": "data.clean", "corpus": "${web.corpus}"},
        "classifier": {"step": "data.train_classifier", "good": "${good.corpus}", "bad": "${rubbish.corpus}"},
        "scored": {
            "step": "data.score",
            "corpus": "${cleaned.corpus}",
            "classifier": "${classifier.classifier}",
        },
        "deduplicated": select,
        "classified": select | {"min_quality_score": 0.5},
        "tokenizer": {"step": "data.tokenizer", "texts": "${web.corpus}", "vocab_size": 2048},
    }
    sources = {
        "all": "web.corpus",
        "unique": "deduplicated.train",
        "best": "classified.train",
        "clean": "heldout.corpus",
    }
    for name, corpus in sources.items():
        steps[f"tokens_{name}"] = {
            "step": "data.tokens",
            "corpus": f"${{{corpus}}}",
            "tokenizer": "${tokenizer.tokenizer}",
        }
    steps["ablation"] = {
        "step": "pretrain.ablate",
        "arms": ["${tokens_all.tokens}", "${tokens_unique.tokens}", "${tokens_best.tokens}"],
        "heldout": "${tokens_clean.tokens}",
        "tokenizer": "${tokenizer.tokenizer}",
        "labels": list(ARMS),
        "pairs": "all",
        "size": options.size,
        "seeds": options.seeds,
        "token_budget": options.token_budget,
        "heldout_tokens": options.heldout_tokens,
        "points": 1,
    }
    return {"recipe": "quality", "steps": steps}


def print_results(folder: Path, wall_s: float) -> None:
    """The classifier's figures, what each arm holds, and the differences between arms."""
    home = Home(folder)

    def made(name: str) -> Artifact:
        return home.store.open(resolve_artifact(home, f"last/{name}"))

    scored = made("classifier").manifest.metrics
    print(f"classifier: AUC {scored['auc']:.3f}, precision {scored['precision']:.3f}, recall {scored['recall']:.3f}")
    for name, arm in zip(("tokens_all", "tokens_unique", "tokens_best"), ARMS, strict=True):
        print(f"{arm}: {made(name).manifest.metrics['bytes'] / 1e6:.1f} MB")
    for one in json.loads(made("ablation").file("verdict.json").read_text(encoding="utf-8"))["comparisons"]:
        print(
            f"{one['before_name']} → {one['after_name']}: {one['before']:.3f} → {one['after']:.3f} bits per byte, "
            f"{one['delta']:+.3f} ({one['low']:+.3f} to {one['high']:+.3f}), p = {one['p_adjusted']:.2g} after Holm"
        )
    print(f"{wall_s:.0f} s")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--work", type=Path, required=True, help="a folder for files, runs and artifacts")
    parser.add_argument("--max-mb", type=float, default=4, help="megabytes of documentation in all, and of rubbish")
    parser.add_argument("--size", default="1m", help="parameters of a proxy")
    parser.add_argument("--seeds", type=int, default=4)
    parser.add_argument("--token-budget", type=int, default=300_000, help="tokens that each proxy trains on")
    parser.add_argument("--heldout-tokens", type=int, default=60_000)
    options = parser.parse_args()
    options.work.mkdir(parents=True, exist_ok=True)

    begin = time.perf_counter()
    pages = [*good_pages(int(options.max_mb * 1e6)), *rubbish_pages(int(options.max_mb * 1e6))]
    chance = random.Random(1)
    dealt: dict[tuple[str, str], list[Page]] = {
        (name, kind): [] for name in ("web", "heldout", "examples") for kind in ("good", "rubbish")
    }
    for page in pages:
        dealt[part(page), page["kind"]].append(page)
    web = (*dealt["web", "good"], *dealt["web", "rubbish"])
    sizes = write_pages(options.work / "web.jsonl", (copy for page in web for copy in copies(page, chance)))
    write_pages(options.work / "heldout.jsonl", dealt["heldout", "good"])
    for kind in ("good", "rubbish"):
        write_pages(options.work / f"{kind}.jsonl", dealt["examples", kind])
    (options.work / "recipe.yaml").write_text(yaml.safe_dump(recipe(options), sort_keys=False), encoding="utf-8")
    print("the web: " + ", ".join(f"{size:.1f} MB {kind}" for kind, size in sizes.items()))

    liuyi = [str(Path(sys.executable).with_name("liuyi")), "--home", str(options.work / "home")]
    subprocess.run([*liuyi, "run", str(options.work / "recipe.yaml")], check=True)
    print_results(options.work / "home", time.perf_counter() - begin)


if __name__ == "__main__":
    main()
