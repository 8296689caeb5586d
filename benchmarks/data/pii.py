"""Personal data planted in sentences: how much of it is found, and how much of what is found was planted.

    python benchmarks/data/pii.py [--pieces 400] [--missed 5] [--texts FOLDER]

Values are made by the formulas of their kinds (check digits too) in the ways that people write them. Decoys look alike
but are nobody's: serial numbers, times, versions, digests, examples of documentation. A span counts as right if it is
of the planted kind and covers the planted value, and nothing else, to the character. With `--texts`, what is found in a
folder of documents that hold hardly any personal data is counted by kind, and some of it shown: false alarms, mostly.
Intervals are Wilson's, at 95 %.
"""

from __future__ import annotations

import argparse
import hashlib
import random
import string
from collections import Counter
from collections.abc import Callable
from pathlib import Path

from liuyi.data.clean.pii import find, is_identity_card, luhn
from liuyi.data.sources.files import Reading, read_files
from liuyi.data.sources.location import find_files
from liuyi.evaluate.stats import wilson

Maker = Callable[[random.Random], str]

SENTENCES = (
    "Please write to {} before Friday.",
    "Contact: {}",
    "The customer gave {} as theirs, and asked for a reply.",
    "user={}; active",
    "({})",
    "| name | {} |",
    '"value": "{}",',
    "他的资料是{}，请尽快处理。",
    "联系方式：{}",
    "【{}】已经登记，谢谢！",
    "本人{}特此声明",
)
NAMES = ("li.wei", "anna_k", "j.smith+news", "wangfang1988", "o-neill", "zhang.san", "r2d2", "maria.da.silva")
HOSTS = (
    "gmail.com",
    "163.com",
    "mail.uni-bonn.de",
    "qq.com",
    "acme.co.uk",
    "kernel.org",
    "corp.internal.io",
    "sina.com.cn",
)


def digits(rng: random.Random, count: int) -> str:
    return "".join(rng.choices(string.digits, k=count))


def email(rng: random.Random) -> str:
    return f"{rng.choice(NAMES)}{rng.randrange(99)}@{rng.choice(HOSTS)}"


def chinese_mobile(rng: random.Random) -> str:
    number = rng.choice(("130", "139", "150", "158", "166", "177", "186", "198", "191")) + digits(rng, 8)
    parted = rng.choice(("{0}{1}{2}", "{0}-{1}-{2}", "{0} {1} {2}")).format(number[:3], number[3:7], number[7:])
    if rng.random() < 0.1:
        return number.translate({ord(digit): ord(digit) + 0xFEE0 for digit in string.digits})
    return rng.choice(("", "", "+86 ", "+86", "86-")) + parted


def chinese_landline(rng: random.Random) -> str:
    area = rng.choice(("010", "021", "0755", "0571", "028"))
    number = rng.choice("2345678") + digits(rng, 7)
    return rng.choice(
        (f"{area}-{number}", f"({area}) {number}", f"（{area}）{number}", f"400-{number[:3]}-{number[3:7]}")
    )


def other_phone(rng: random.Random) -> str:
    area, exchange, line = f"{rng.randrange(201, 989)}", f"{rng.randrange(200, 999)}", digits(rng, 4)
    return rng.choice(
        (
            f"({area}) {exchange}-{line}",
            f"{area}-{exchange}-{line}",
            f"+1 {area} {exchange} {line}",
            f"+1-{area}-{exchange}-{line}",
            f"+44 20 {digits(rng, 4)} {digits(rng, 4)}",
            f"+49 {rng.randrange(151, 179)} {digits(rng, 8)}",
            f"+33 6 {digits(rng, 2)} {digits(rng, 2)} {digits(rng, 2)} {digits(rng, 2)}",
            f"+81-90-{digits(rng, 4)}-{digits(rng, 4)}",
            f"+85290{digits(rng, 6)}",
        )
    )


def identity_card(rng: random.Random) -> str:
    while True:
        born = f"{rng.randrange(1940, 2015)}{rng.randrange(1, 13):02}{rng.randrange(1, 29):02}"
        body = f"{rng.choice(('110105', '310104', '440306', '510107', '330102'))}{born}{digits(rng, 3)}"
        for check in "0123456789X":
            if is_identity_card(body + check):
                return body + (check.lower() if rng.random() < 0.2 else check)


def bank_card(rng: random.Random) -> str:
    prefix, length = rng.choice((("4", 16), ("5412", 16), ("6222", 19), ("6217", 19), ("371", 15), ("6011", 16)))
    body = prefix + digits(rng, length - len(prefix) - 1)
    number = next(body + check for check in string.digits if luhn(body + check))
    if length == 15:
        return number
    between = rng.choice(("", " ", "-"))
    return between.join(number[place : place + 4] for place in range(0, length, 4))


def ip_address(rng: random.Random) -> str:
    if rng.random() < 0.3:
        groups = (rng.randrange(0x2400, 0x2600), *(rng.randrange(1, 0xFFFF) for _ in range(2)))
        return f"{':'.join(f'{group:x}' for group in groups)}::{rng.randrange(1, 0xFFFF):x}"
    network = rng.choice((23, 45, 61, 93, 104, 114, 139, 185, 202))
    return f"{network}.{rng.randrange(256)}.{rng.randrange(256)}.{rng.randrange(1, 255)}"


def secret(rng: random.Random) -> str:
    letters, upper = string.ascii_letters + string.digits, string.ascii_uppercase

    def some(count: int, of: str = letters) -> str:
        return "".join(rng.choices(of, k=count))

    return rng.choice(
        (
            f"AKIA{some(16, upper + '234567')}",
            f"ghp_{some(36)}",
            f"github_pat_{some(22)}_{some(59)}",
            f"glpat-{some(20)}",
            f"xoxb-{digits(rng, 12)}-{digits(rng, 12)}-{some(24)}",
            f"sk-proj-{some(48)}",
            f"sk-ant-api03-{some(90)}AA",
            f"sk_live_{some(24)}",
            f"AIza{some(35)}",
            f"hf_{some(34)}",
            f"npm_{some(36)}",
            f"eyJhbGciOiJIUzI1NiJ9.eyJ{some(40)}.{some(43)}",
            f"{digits(rng, 10)}:AA{some(33)}",
            f"https://hooks.slack.com/services/T{some(8, upper)}/B{some(8, upper)}/{some(24)}",
        )
    )


KINDS: dict[str, tuple[str, Maker]] = {
    "mail": ("email", email),
    "Chinese mobile": ("phone", chinese_mobile),
    "Chinese landline": ("phone", chinese_landline),
    "other phone": ("phone", other_phone),
    "identity card": ("identity_card", identity_card),
    "bank card": ("bank_card", bank_card),
    "IP address": ("ip_address", ip_address),
    "key or token": ("secret", secret),
}

DECOYS: tuple[Maker, ...] = (
    lambda rng: f"order {digits(rng, 14)}",
    lambda rng: f"订单号 {digits(rng, 16)}",
    lambda rng: str(rng.randrange(1_500_000_000, 1_800_000_000)),
    lambda rng: str(rng.randrange(1_500_000_000_000, 1_800_000_000_000)),
    lambda rng: f"20{rng.randrange(10, 26)}{rng.randrange(1, 13):02}{rng.randrange(1, 29):02}{digits(rng, 6)}",
    lambda rng: (
        f"{rng.randrange(2000, 2026)}-{rng.randrange(10, 13)}-{rng.randrange(10, 29)} 10:{rng.randrange(10, 60)}:59"
    ),
    lambda rng: hashlib.sha256(digits(rng, 9).encode()).hexdigest(),
    lambda rng: hashlib.md5(digits(rng, 9).encode()).hexdigest(),
    lambda rng: f"version {rng.randrange(30)}.{rng.randrange(30)}.{rng.randrange(300)}.{rng.randrange(9)}",
    lambda rng: f"192.168.{rng.randrange(256)}.{rng.randrange(256)}",
    lambda rng: f"10.{rng.randrange(256)}.0.{rng.randrange(256)}/16",
    lambda rng: f"user{rng.randrange(99)}@example.com",
    lambda rng: f"git@github.com:acme/tool{rng.randrange(99)}.git",
    lambda rng: f"x = {rng.random():.16f}",
    lambda rng: f"ISBN 978-7-{digits(rng, 3)}-{digits(rng, 5)}-{rng.randrange(10)}",
    lambda rng: f"DOI 10.{digits(rng, 4)}/{digits(rng, 8)}",
    lambda rng: f"{rng.randrange(10**5)}:{rng.randrange(10**5)} of {rng.randrange(10**9)} bytes",
    lambda rng: "sk-" + "x" * 24,
    lambda rng: f"-{digits(rng, 9)} {digits(rng, 9)} {digits(rng, 9)}",
)


def planted(rng: random.Random, value: str) -> tuple[str, int, int]:
    """A sentence that holds a value, and where."""
    sentence = rng.choice(SENTENCES)
    start = sentence.index("{}")
    return sentence.replace("{}", value), start, start + len(value)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--pieces", type=int, default=400, help="values of each kind")
    parser.add_argument("--missed", type=int, default=0, help="print as many values of each kind that were missed")
    parser.add_argument("--texts", type=Path, help="a folder of documents with hardly any personal data")
    args = parser.parse_args()
    print(f"{'planted':18} {'recall':>7}  95 % interval")
    right = found = 0
    for name, (kind, make) in KINDS.items():
        rng, missed = random.Random(name), []
        for _ in range(args.pieces):
            text, start, end = planted(rng, make(rng))
            spans = find(text)
            found += len(spans)
            if (start, end, kind) in spans:
                right += 1
            else:
                missed.append(f"{text!r} gave {[(text[one.start : one.end], one.kind) for one in spans]}")
        low, high = wilson(args.pieces - len(missed), args.pieces)
        print(f"{name:18} {1 - len(missed) / args.pieces:7.1%}  {low:.1%} – {high:.1%}")
        for line in missed[: args.missed]:
            print("   ", line)
    rng, alarms = random.Random("decoys"), 0
    for _ in range(args.pieces * len(KINDS)):
        text, _, _ = planted(rng, rng.choice(DECOYS)(rng))
        spans = find(text)
        alarms += len(spans)
        if spans and args.missed:
            print("    false alarm:", repr(text), [(text[one.start : one.end], one.kind) for one in spans])
    low, high = wilson(right, found + alarms)
    print(
        f"precision with as many decoys: {right / (found + alarms):.1%} ({low:.1%} – {high:.1%}); {alarms} false alarms"
    )
    if args.texts:
        _alarms_in(args.texts)


def _alarms_in(folder: Path) -> None:
    kinds: Counter[str] = Counter()
    samples: dict[str, list[str]] = {}
    size = 0
    for document in read_files(find_files(folder), "texts", Reading(extractor="plain")):
        text = getattr(document, "text", "")
        size += len(text.encode())
        for start, end, kind in find(text):
            kinds[kind] += 1
            samples.setdefault(kind, []).append(text[start:end])
    print(f"in {size / 1e6:.1f} MB of {folder}:")
    for kind, count in kinds.most_common():
        shown = random.Random(1).sample(sorted(set(samples[kind])), min(6, len(set(samples[kind]))))
        print(f"  {kind:14} {count:6}  {', '.join(shown)}")


if __name__ == "__main__":
    main()
