"""The documentation inside a Python file, read through `ast`: nothing is ever imported or run."""

from __future__ import annotations

import ast
import gc
import inspect
import re
import warnings
from collections.abc import Iterator

_DEFINITIONS = (ast.ClassDef, ast.FunctionDef, ast.AsyncFunctionDef)
_TRIPLE = re.compile(rb'"""|\'\'\'')
_DOC_CALL = re.compile(r"_?(?:add|set|attach)_?(?:new)?_?doc(?:s|str|string)?(?:_\w+)?")
"""Functions such as `add_docstr`, which give documentation to objects written in C."""


class Unreadable(Exception):
    """Not Python that this interpreter can parse; the message says why."""


def documented_bytes(source: bytes) -> int:
    """About how many bytes of documentation a file holds: what lies between triple quotes. Much faster than parsing.

    A file documented in single quotes alone counts as none.
    """
    marks = [match.start() for match in _TRIPLE.finditer(source)]
    return sum(end - start for start, end in zip(marks[::2], marks[1::2], strict=False))


def module_text(source: bytes, module: str) -> str:
    """The docstrings of a module, its classes and functions in the order of the file, each under its name.

    Empty where nothing is documented. Raises Unreadable for bytes that do not parse.
    """
    parts = list(_documented(_parse(source), module))
    return "\n\n".join(parts) + "\n" if parts else ""


def literal_texts(source: bytes) -> Iterator[tuple[str, str]]:
    """The texts of a module that is one large literal dictionary, such as `pydoc_data/topics.py`: (key, text)."""
    for node in _parse(source).body:
        if isinstance(node, ast.Assign) and isinstance(node.value, ast.Dict):
            for key, value in zip(node.value.keys, node.value.values, strict=True):
                name, text = _literal(key), _literal(value)
                if name and text:
                    yield name, text


def _parse(source: bytes) -> ast.Module:
    collecting = gc.isenabled()
    gc.disable()  # a tree of a million live nodes makes every collection slow; parsing is three times as fast without
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            return ast.parse(source)
    except (SyntaxError, ValueError) as error:
        line = getattr(error, "lineno", None)
        raise Unreadable(f"{error.args[0]}" + (f" (line {line})" if line else "")) from None
    except (RecursionError, MemoryError):
        raise Unreadable("nested too deeply to parse") from None
    finally:
        if collecting:
            gc.enable()


def _documented(tree: ast.Module, module: str) -> Iterator[str]:
    own = ast.get_docstring(tree)
    is_doc_module = "doc" in module.rpartition(".")[2].lower()
    inner: list[str] = []
    for node in tree.body:
        inner += _assigned_doc(node, is_doc_module) if isinstance(node, ast.Assign) else _in_body([node], "")
    if own or inner:
        yield f"module {module}"
    if own:
        yield own
    yield from inner


def _assigned_doc(node: ast.Assign, is_doc_module: bool) -> Iterator[str]:
    """`besselj = "…"` in a module of documentation, `_shared_docs["sum"] = "…"` anywhere: text under its name."""
    text = inspect.cleandoc(_literal(node.value)).strip()
    target = node.targets[0]
    name = _dotted(target.value if isinstance(target, ast.Subscript) else target)
    if "\n" in text and name and (is_doc_module or "doc" in name.lower()):
        key = _literal(target.slice) if isinstance(target, ast.Subscript) else ""
        yield f"{key or name}\n\n{text}"


def _in_body(body: list[ast.stmt], prefix: str) -> Iterator[str]:
    for node in body:
        if isinstance(node, _DEFINITIONS):
            yield from _definition(node, prefix)
        elif isinstance(node, ast.If | ast.Try | ast.With):
            yield from _in_body(node.body, prefix)
            yield from _in_body(getattr(node, "orelse", []), prefix)
        elif isinstance(node, ast.Expr) and isinstance(node.value, ast.Call):
            yield from _given_doc(node.value)


def _definition(node: ast.ClassDef | ast.FunctionDef | ast.AsyncFunctionDef, prefix: str) -> Iterator[str]:
    text = ast.get_docstring(node)
    name = f"{prefix}{node.name}"
    if text and text.strip():
        yield f"{_signature(node, name)}\n\n{text.strip()}"
    if isinstance(node, ast.ClassDef):
        yield from _in_body(node.body, f"{name}.")


def _signature(node: ast.ClassDef | ast.FunctionDef | ast.AsyncFunctionDef, name: str) -> str:
    if isinstance(node, ast.ClassDef):
        bases = [base for base in map(_dotted, node.bases) if base]
        return f"class {name}({', '.join(bases)})" if bases else f"class {name}"
    arguments = node.args
    names = [argument.arg for argument in arguments.posonlyargs + arguments.args]
    if arguments.vararg:
        names.append(f"*{arguments.vararg.arg}")
    elif arguments.kwonlyargs:
        names.append("*")
    names += [argument.arg for argument in arguments.kwonlyargs]
    if arguments.kwarg:
        names.append(f"**{arguments.kwarg.arg}")
    return f"def {name}({', '.join(names)})"


def _dotted(node: ast.expr) -> str:
    if isinstance(node, ast.Name):
        return node.id
    if isinstance(node, ast.Attribute):
        owner = _dotted(node.value)
        return f"{owner}.{node.attr}" if owner else ""
    return ""


def _given_doc(call: ast.Call) -> Iterator[str]:
    """`add_docstr(torch.abs, "…")`, `add_newdoc("numpy.core", "dtype", "…")`: the text under its name."""
    if not _DOC_CALL.fullmatch(_dotted(call.func).rpartition(".")[2]) or len(call.args) < 2:
        return
    *named, given = call.args
    if isinstance(given, ast.Tuple) and len(given.elts) == 2:
        named, given = [*named, given.elts[0]], given.elts[1]
    text = inspect.cleandoc(_literal(given)).strip()
    if text:
        name = ".".join(filter(None, (_dotted(node) or _literal(node) for node in named)))
        yield f"{name}\n\n{text}" if name else text


def _literal(node: ast.expr | None) -> str:
    """The text of a literal, also inside `"…".format(…)` and `"…" + other`: what is computed is left out."""
    if isinstance(node, ast.Constant) and isinstance(node.value, str):
        return node.value
    if isinstance(node, ast.Call) and isinstance(node.func, ast.Attribute):
        return _literal(node.func.value)
    if isinstance(node, ast.BinOp) and isinstance(node.op, ast.Add):
        return _literal(node.left) + _literal(node.right)
    return ""
