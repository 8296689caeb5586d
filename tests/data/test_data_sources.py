"""Reading documentation of packages without running any of it, and whatever the files look like."""

from __future__ import annotations

import inspect
import os
import sys
from pathlib import Path

import pytest

from liuyi.core.errors import DataError
from liuyi.data.shares import fair_shares
from liuyi.data.sources.distributions import Distribution, chosen, installed, standard_library, versions
from liuyi.data.sources.docstrings import Unreadable, documented_bytes, literal_texts, module_text
from liuyi.data.sources.python_docs import read_distributions

BOMB = '''"""Reads without running."""
raise RuntimeError("imported")
def kept(a, *b, c=1, **d):
    """Documented."""
'''


def install(
    site: Path, name: str, files: dict[str, bytes | str], metadata: str = "License: MIT\n", readme: str = ""
) -> None:
    """A distribution as pip leaves it: files, METADATA and RECORD."""
    info = f"{name}-1.0.dist-info"
    everything = {
        **files,
        f"{info}/METADATA": f"Metadata-Version: 2.1\nName: {name}\nVersion: 1.0\n{metadata}\n{readme}",
    }
    for path, content in everything.items():
        target = site / path
        target.parent.mkdir(parents=True, exist_ok=True)
        target.write_bytes(content.encode() if isinstance(content, str) else content)
    (site / info / "RECORD").write_text("".join(f"{path},,\n" for path in everything) + f"{info}/RECORD,,\n")


def read(site: Path, **limits: int) -> tuple[dict[str, str], dict[str, str]]:
    """(text by path, reason by file) of everything installed in `site`."""
    documents, rejected = read_distributions(
        list(installed([str(site)])), **{"max_bytes": 10**7, "max_bytes_per_source": 10**7, "workers": 1} | limits
    )
    return {one.url.partition("#")[2]: one.text for one in documents}, {one.file: one.reason for one in rejected}


def test_nothing_is_imported(tmp_path: Path) -> None:
    install(tmp_path, "bomb", {"bomb/__init__.py": BOMB, "bomb/deep/mod.py": BOMB})
    texts, rejected = read(tmp_path)
    assert set(texts) == {"bomb/__init__.py", "bomb/deep/mod.py"}
    assert not rejected
    assert "def kept(a, *b, c, **d)\n\nDocumented." in texts["bomb/deep/mod.py"]
    assert not any(name.partition(".")[0] == "bomb" for name in sys.modules)


def test_hostile_files_are_read_or_named(tmp_path: Path) -> None:
    latin = '# -*- coding: latin-1 -*-\n"""Größe über alles."""\n'.encode("latin-1")
    install(
        tmp_path,
        "odd",
        {
            "odd/latin.py": latin,
            "odd/bom.py": b'\xef\xbb\xbf"""With a mark."""\n',
            "odd/broken.py": 'def f(:\n    """never"""\n',
            "odd/wrong_bytes.py": b'"""\xff\xfe broken."""\n',
            "odd/nul.py": b'"""nul"""\x00\n',
            "odd/deep.py": '"""deep"""\n' + "(" * 400 + ")" * 400,
            "odd/crlf.py": b'"""First\r\nsecond."""\r\n',
            "odd/surrogate.py": '"""An unpaired \\ud800 surrogate."""\n',
            "odd/empty.py": "",
            "odd/silent.py": "x = 1\n",
            "odd/notes.txt": "十分重要的说明。".encode("gb18030"),
            "odd/picture.txt": b"\x89PNG\x00\x00\x00",
            "odd/huge.md": b"# huge\n" * 1_300_000,
        },
    )
    texts, rejected = read(tmp_path, max_bytes=10**9, max_bytes_per_source=10**9)
    assert "Größe über alles." in texts["odd/latin.py"]
    assert "With a mark." in texts["odd/bom.py"]
    assert "First\nsecond." in texts["odd/crlf.py"]
    assert "unpaired \ufffd surrogate" in texts["odd/surrogate.py"]
    assert texts["odd/notes.txt"] == "十分重要的说明。\n"
    assert set(rejected) == {
        "odd/odd/broken.py",
        "odd/odd/wrong_bytes.py",
        "odd/odd/nul.py",
        "odd/odd/deep.py",
        "odd/odd/picture.txt",
        "odd/odd/huge.md",
    }
    assert "line 1" in rejected["odd/odd/broken.py"]
    assert "NUL" in rejected["odd/odd/picture.txt"]
    assert not {"odd/empty.py", "odd/silent.py"} & set(texts)


def test_what_is_no_documentation_is_left_out(tmp_path: Path) -> None:
    files = {
        "pkg/tests/test_it.py": '"""A test."""\n',
        "pkg/testing.py": '"""A public module."""\n',
        "pkg-1.0.dist-info/top_level.txt": "pkg\n",
        "pkg/requirements-dev.txt": "pytest\n",
        "pkg/__pycache__/x.py": '"""cached"""\n',
        "../outside.txt": "not inside\n",
    }
    install(tmp_path / "site", "pkg", files, readme="A *readme* of the package.\n")
    texts, _ = read(tmp_path / "site")
    assert set(texts) == {"pkg/testing.py", "README"}


def test_a_missing_file_and_a_link_to_itself(tmp_path: Path) -> None:
    install(tmp_path, "gone", {"gone/a.py": '"""A."""\n', "gone/b.py": '"""B."""\n'})
    (tmp_path / "gone/b.py").unlink()
    (tmp_path / "gone/b.py").symlink_to(tmp_path / "gone/b.py")
    texts, rejected = read(tmp_path)
    assert set(texts) == {"gone/a.py"}
    assert not rejected

    library = tmp_path / "lib"
    library.mkdir()
    (library / "os.py").write_text('"""OS."""\n')
    (library / "loop").symlink_to(library, target_is_directory=True)
    (library / "site-packages").mkdir()
    (library / "site-packages/x.py").write_text('"""Not the library\'s."""\n')
    assert [file.path for file in standard_library(library).files] == ["os.py"]


def test_a_file_that_vanishes_after_planning_is_named(tmp_path: Path) -> None:
    install(tmp_path, "gone", {"gone/a.py": '"""A."""\n'})
    planned = list(installed([str(tmp_path)]))
    (tmp_path / "gone/a.py").unlink()
    documents, rejected = read_distributions(planned, max_bytes=10**6, max_bytes_per_source=10**6, workers=1)
    assert not documents
    assert rejected[0].file == "gone/gone/a.py"
    assert "No such file" in rejected[0].reason


def test_same_documents_whatever_the_workers(tmp_path: Path) -> None:
    for name in "abc":
        files = {f"{name}/m{number}.py": f'"""Module {name} {number}. {"word " * number}"""\n' for number in range(60)}
        install(tmp_path, name, files)
    found = list(installed([str(tmp_path)]))
    limits = {"max_bytes": 9000, "max_bytes_per_source": 4000}
    alone, together = (read_distributions(found, workers=workers, **limits) for workers in (1, 2))
    assert alone == together
    by_source: dict[str, int] = {}
    for document in alone[0]:
        by_source[document.source] = by_source.get(document.source, 0) + len(document.text.encode())
    assert set(by_source) == {"a", "b", "c"}
    assert min(by_source.values()) > 2000
    assert max(by_source.values()) < 3000 + 400
    assert len({document.id for document in alone[0]}) == len(alone[0])


def test_small_sources_keep_all_when_large_ones_are_cut(tmp_path: Path) -> None:
    install(tmp_path, "small", {"small.py": '"""Small but whole."""\n'})
    install(tmp_path, "large", {f"large/m{n}.py": f'"""{"long text " * 100}{n}"""\n' for n in range(50)})
    texts, _ = read(tmp_path, max_bytes=10_000)
    assert "small.py" in texts
    assert 8 <= len(texts) <= 12


def test_documentation_agrees_with_the_interpreter(tmp_path: Path) -> None:
    """The text holds what `inspect.getdoc` gives for the same, imported, module of the library."""
    import textwrap as module

    text = module_text(Path(inspect.getsourcefile(module) or "").read_bytes(), "textwrap")
    for documented in (module, module.TextWrapper, module.TextWrapper.wrap, module.dedent, module.shorten):
        assert (inspect.getdoc(documented) or "") in text
    assert "def TextWrapper.wrap(self, text)" in text


def test_documentation_given_by_calls_and_variables() -> None:
    source = b'''
add_newdoc("numpy.core", "dtype", """Describes an item.""")
add_newdoc("numpy.core", "flatiter", ("base", """A reference."""))
add_docstr(torch.abs, r"""abs(input) -> Tensor""".format(**common))
_shared_docs["sum"] = """
    Return the sum.

    Of all.
    """
plain = """no
doc"""
print("not documentation", "either")
if True:
    class Inner(base.Base):
        """Inside a condition."""
'''
    text = module_text(source, "m")
    for expected in (
        "numpy.core.dtype\n\nDescribes an item.",
        "numpy.core.flatiter.base\n\nA reference.",
        "torch.abs\n\nabs(input) -> Tensor",
        "sum\n\nReturn the sum.\n\nOf all.",
        "class Inner(base.Base)\n\nInside a condition.",
    ):
        assert expected in text
    assert "no\ndoc" not in text
    assert "either" not in text
    assert "no\ndoc" in module_text(source, "m_docs")


def test_literal_texts() -> None:
    assert list(literal_texts(b'topics = {"if": "The if statement", "n": 3, **other}')) == [("if", "The if statement")]
    with pytest.raises(Unreadable, match="line 1"):
        list(literal_texts(b"topics = {"))


def test_estimate_is_near_the_truth() -> None:
    path = Path(inspect.getsourcefile(inspect) or "")
    text = module_text(path.read_bytes(), "inspect")
    assert 0.7 < documented_bytes(path.read_bytes()) / len(text) < 1.4


def test_choice_of_distributions() -> None:
    names = [one.name for one in chosen(include=("python", "PyYAML"))]
    assert names == ["python", "pyyaml"]
    assert "python" not in [one.name for one in chosen(include=("python", "click"), exclude=("python",))]
    with pytest.raises(DataError, match="numpi") as caught:
        chosen(exclude=("numpi",))
    assert "numpy" in caught.value.hint
    assert f"click=={next(chosen(include=('click',)).__iter__()).version}" in versions()


def test_links_name_package_version_and_path() -> None:
    click = next(iter(chosen(include=("click",))))
    assert click.url("click/core.py") == f"pkg:pypi/click@{click.version}#click/core.py"
    assert Distribution("python", "3.12.1", "PSF-2.0", "", ()).url("os.py") == "pkg:generic/python@3.12.1#os.py"


def test_first_on_the_path_counts(tmp_path: Path) -> None:
    for folder, word in (("one", "first"), ("two", "second")):
        install(tmp_path / folder, "same_name", {"s.py": f'"""The {word}."""\n'})
    found = list(installed([str(tmp_path / "one"), str(tmp_path / "two")]))
    assert [one.name for one in found] == ["same-name"]
    assert os.path.commonpath([found[0].files[0].location, tmp_path / "one"]) == str(tmp_path / "one")


@pytest.mark.parametrize(
    ("wanted", "total", "largest", "shares"),
    [
        ([5, 5], 100, None, [5, 5]),
        ([50, 1, 50], 21, None, [10, 1, 10]),
        ([50, 50], 100, 20, [20, 20]),
        ([], 5, None, []),
    ],
)
def test_fair_shares(wanted: list[int], total: int, largest: int | None, shares: list[int]) -> None:
    assert fair_shares(wanted, total, largest) == shares
