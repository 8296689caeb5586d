"""Manual pages to text: what `man` shows, as Markdown headings, paragraphs and fenced examples.

Reads the macros of `man(7)` and the common ones of `mdoc(7)`; a page that only points to another gives no text.
"""

from __future__ import annotations

import re
import shlex

_FOLDER = re.compile(r"(?:^|/)man[1-9n]\w*/[^/]+$")
_SUFFIX = re.compile(r"\.[1-9n]\w*")
_COMMENT = re.compile(r'(?<!\\)\\".*')
_FONT = re.compile(r"\\f(?:\[[^\]]*\]|\(..|.)|\\s(?:[-+]?\d|\[[^\]]*\])|\\[&|^/,%:c)]|\\[hv]'[^']*'|\\m\[[^\]]*\]")
_NAMED = re.compile(r"\\(?:\*?\((..)|\*?\[([^\]]+)\]|\*(.))")
_SIGNS = {
    "aq": "'", "cq": "’", "oq": "‘", "dq": '"', "lq": "“", "rq": "”", "bu": "•", "em": "—", "en": "–", "hy": "-",
    "co": "©", "rg": "®", "de": "°", "mu": "×", "ti": "~", "ha": "^", "ga": "`", "rs": "\\", "sl": "/", "ba": "|",
    "->": "→", "<-": "←", "<=": "≤", ">=": "≥", "+-": "±", "R": "®", "T": "™", "Tm": "™", "S": "",
}  # fmt: skip
_ONE = {"-": "-", "e": "\\", " ": " ", "~": " ", "0": " ", "'": "´", "`": "`", ".": ".", "\\": "\\", "t": "\t"}
_END_OF_MACRO = re.compile(r"\.\s*\.")
_FONTS = frozenset({"B", "I", "SM", "SB", "R"})
_JOINED = frozenset({"BR", "BI", "IR", "IB", "RB", "RI"})
_BREAKS = frozenset({"PP", "P", "LP", "Pp", "sp", "br", "HP", "RS", "RE", "Bl", "El", "D1", "bp"})
_INLINE = frozenset(
    {"Nm", "Fl", "Ar", "Op", "Cm", "Pa", "Ev", "Va", "Vt", "Fn", "Fa", "Ft", "Xr", "Em", "Sy", "Li", "Ql", "Dq",
     "Sq", "Pq", "Qq", "Ic", "Dv", "Er", "An", "Lk", "Mt", "Ns", "No", "Aq", "Brq", "Bq", "Oo", "Oc", "St", "Ux", "Tn",
     "UR", "UE", "MR"}
)  # fmt: skip
_DASHED = frozenset({"Fl"})


def is_man_page(name: str) -> bool:
    """Whether a file's path is that of a manual page: `man1/ls.1`, also packed."""
    path = name.lower()
    for packing in (".gz", ".xz", ".bz2", ".zst"):
        path = path.removesuffix(packing)
    return bool(_FOLDER.search(path) and _SUFFIX.fullmatch("." + path.rpartition(".")[2]))


def man_text(source: str) -> str:
    """The text of a manual page; empty where it only points to another or holds no macro of a manual."""
    page = _Page()
    for line in source.split("\n"):
        page.read(line.rstrip())
    return page.text()


class _Page:
    """A page while it is read line by line."""

    def __init__(self) -> None:
        self._blocks: list[str] = []
        self._words: list[str] = []
        self._code: list[str] | None = None
        self._table: list[str] | None = None
        self._skipping = ""
        """What is passed over: the definition of a macro, or the format of a table."""
        self._tag_next = False

    def read(self, line: str) -> None:
        if self._skipping:
            done = _END_OF_MACRO.fullmatch(line) if self._skipping == "macro" else line.endswith(".")
            self._skipping = "" if done else self._skipping
        elif line[:1] in (".", "'"):
            self._request(line[1:].lstrip())
        elif self._code is not None:
            self._code.append(_plain(line))
        elif self._table is not None:
            self._row(line, self._table)
        elif not line.strip():
            self._end()
        else:
            self._add(_plain(line).strip())

    def text(self) -> str:
        self._close_code()
        self._end()
        return "\n\n".join(self._blocks) if any(block.startswith("#") for block in self._blocks) else ""

    def _request(self, line: str) -> None:
        line = _COMMENT.sub("", line).rstrip()
        name, _, rest = line.partition(" ")
        words = _words(rest)
        if name in ("SH", "SS", "Sh", "Ss"):
            self._close_code()
            self._end()
            if words:
                self._blocks.append(f"{'#' if name in ('SH', 'Sh') else '##'} {' '.join(words)}")
        elif name in ("nf", "EX", "Bd"):
            self._end()
            self._code = [] if self._code is None else self._code
        elif name in ("fi", "EE", "Ed"):
            self._close_code()
        elif name in ("TP", "TQ"):
            self._end()
            self._tag_next = True
        elif name in ("IP", "It"):
            self._end()
            tag = _of_mdoc(words) if name == "It" else " ".join(words[:1])
            if tag.strip():
                self._blocks.append(tag.strip())
        elif name == "TS":
            self._end()
            self._table, self._skipping = [], "format"
        elif name == "TE":
            self._blocks.append("\n".join(self._table or ()))
            self._table = None
        elif name in ("de", "ig", "am"):
            self._skipping = "macro"
        elif name in _BREAKS:
            self._code.append("") if self._code is not None else self._end()
        elif name in _FONTS | _JOINED | _INLINE or name == "Nd":
            self._inline(name, words)

    def _inline(self, name: str, words: list[str]) -> None:
        if name in _FONTS:
            text = " ".join(words)
        elif name in _JOINED:
            text = "".join(words)
        else:
            text = _of_mdoc([name, *words]) if name != "Nd" else "— " + " ".join(words)
        if self._code is not None:
            self._code.append(text)
        elif text:
            self._add(text)

    def _add(self, text: str) -> None:
        if self._tag_next:
            self._tag_next = False
            self._blocks.append(text)
        else:
            self._words.append(text)

    def _row(self, line: str, rows: list[str]) -> None:
        if line not in ("_", "=", "T}") and line.strip():
            rows.append("| " + " | ".join(_plain(cell).strip() for cell in line.split("\t")) + " |")

    def _end(self) -> None:
        if self._words:
            self._blocks.append(_flowed(self._words))
            self._words = []

    def _close_code(self) -> None:
        if self._code is not None:
            code = "\n".join(self._code).strip("\n")
            if code:
                self._blocks.append(f"```\n{code}\n```")
            self._code = None


def _flowed(lines: list[str]) -> str:
    """Lines as one paragraph; between two Chinese or Japanese characters a line's end is no space."""
    text = lines[0]
    for line in lines[1:]:
        text += line if text[-1:] >= "\u2e80" and line[:1] >= "\u2e80" else f" {line}"
    return text


def _of_mdoc(words: list[str]) -> str:
    """The words of a line of mdoc, its macros taken away, flags with their dash."""
    said: list[str] = []
    dash = False
    for word in words:
        if word in _INLINE:
            dash = word in _DASHED
        else:
            said.append(f"-{word}" if dash and not word.startswith("-") else word)
            dash = False
    return " ".join(said)


def _words(text: str) -> list[str]:
    """The arguments of a macro, quoted ones as one."""
    lexer = shlex.shlex(text, posix=True, punctuation_chars="")
    lexer.whitespace, lexer.whitespace_split, lexer.quotes, lexer.escape, lexer.commenters = " \t", True, '"', "", ""
    try:
        words = list(lexer)
    except ValueError:  # a quote that is not closed
        words = text.replace('"', "").split()
    return [_plain(word) for word in words]


def _plain(text: str) -> str:
    """Without escapes: fonts and sizes go, named signs become what they mean."""
    text = _FONT.sub("", _COMMENT.sub("", text))
    text = _NAMED.sub(lambda found: _SIGNS.get(next(filter(None, found.groups())), ""), text)
    return re.sub(r"\\(.)", lambda found: _ONE.get(found[1], ""), text)
