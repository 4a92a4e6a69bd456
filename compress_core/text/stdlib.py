"""Text that exists on every machine with CPython: the standard library's documentation and sources.

Every module gives two documents: its docstrings as prose, and its source without them.
Which split a document belongs to is decided by a hash of its module's *dotted name*, never by its
content or its place on the disk: a model trained under one Python version is never judged under another
on a module that it was trained on.

    train     88 % of the modules, the reference topics of ``help()``, and (for training alone) Lib/test
    heldout   the other modules, divided again into measure, select and report
    calibrate a part of train

The entry is :func:`split_text`, which ``compress_core.text.split_text`` calls. Only the standard library is
imported here.
"""

from __future__ import annotations

import ast
import functools
import hashlib
import importlib
import sys
import sysconfig
import warnings
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

Kind = Literal["docs", "source", "topic", "test"]
Part = Literal["train", "heldout"]
Split = Literal["calibrate", "measure", "select", "report"]

SEPARATOR = "<|endoftext|>"
"""Stands between documents; one token in the demo's tokenizer and in Qwen2's."""

SPLITS: tuple[Split, ...] = ("calibrate", "measure", "select", "report")

_HELDOUT_BELOW = 0.12
_CALIBRATE_BELOW = 0.22
_MEASURE_BELOW, _SELECT_BELOW = 0.30, 0.55

_TESTS = frozenset({"test", "tests", "idle_test"})
# Tables, bundled wheels and machine-specific data: no text that a model should learn or be judged on.
_NO_TEXT = frozenset({"encodings", "ensurepip", "pydoc_data", "this", "antigravity", "site-packages"})
# Distributions leave these out, or the language dropped them: never held out, so that the held-out text
# is the same on every install of one version.
_OPTIONAL = frozenset({"distutils", "idlelib", "lib2to3", "tkinter", "turtle", "turtledemo", "venv"})
_LONG_LINE = 40


@dataclass(frozen=True, slots=True)
class Document:
    """One text. ``name`` is the module's dotted name (``topics.NAME`` for a reference topic)."""

    name: str
    kind: Kind
    text: str


@dataclass(frozen=True, slots=True)
class _Module:
    name: str
    path: Path


def split_text(split: Split) -> str:
    """The text of one of the four disjoint splits: the single entry for calibration and evaluation."""
    return calibration_text() if split == "calibrate" else heldout_text(split)


@functools.cache
def heldout_text(split: Literal["measure", "select", "report"]) -> str:
    """Held-out documents of one split, in hash order, joined by :data:`SEPARATOR`."""
    if split not in ("measure", "select", "report"):
        raise ValueError(f"unknown held-out split {split!r}: measure, select or report")
    modules = [m for m in _modules() if part_of(m.name) == "heldout" and heldout_split(m.name) == split]
    return join(_shuffled(_documents(modules)))


@functools.cache
def calibration_text() -> str:
    """About a megabyte of the documents that the demo model was trained on, in hash order."""
    modules = [m for m in _modules() if part_of(m.name) == "train" and _unit(m.name) < _CALIBRATE_BELOW]
    topics = [t for t in _topics() if _unit(t.name) < _CALIBRATE_BELOW]
    return join(_shuffled([*_documents(modules), *topics]))


def iter_documents(part: Part, *, kinds: Iterable[Kind] = ("docs", "source", "topic")) -> Iterator[Document]:
    """Documents of ``train`` or ``heldout``, in an order fixed by a hash of their names.

    ``test`` among ``kinds`` adds Lib/test where it is installed; it belongs to ``train`` alone, as do
    the topics, because they quote each other at length.
    """
    wanted = frozenset(kinds)
    documents = list(_documents(m for m in _modules() if part_of(m.name) == part))
    if part == "train":
        if "topic" in wanted:
            documents += _topics()
        if "test" in wanted:
            tests = (Document(m.name, "test", _read(m.path)) for m in _test_modules())
            documents += [d for d in tests if d.text.strip()]
    yield from (d for d in _shuffled(documents) if d.kind in wanted)


def part_of(name: str) -> Part:
    """``heldout`` or ``train`` for a module's dotted name; a pure function of the name."""
    if name.partition(".")[0] in _OPTIONAL:
        return "train"
    return "heldout" if _unit(name) < _HELDOUT_BELOW else "train"


def heldout_split(name: str) -> Literal["measure", "select", "report"]:
    """Which of the three held-out splits a held-out module belongs to; a pure function of its name."""
    place = _unit(f"split:{name}")
    return "measure" if place < _MEASURE_BELOW else "select" if place < _SELECT_BELOW else "report"


def join(documents: Iterable[Document]) -> str:
    """The documents' texts with :data:`SEPARATOR` between them."""
    return SEPARATOR.join(d.text for d in documents)


def long_lines(texts: Iterable[str]) -> frozenset[str]:
    """Stripped lines of at least 40 characters: long enough that two texts rarely share one by chance."""
    return frozenset(line for text in texts for line in _long(text))


def overlap(text: str, lines: frozenset[str]) -> float:
    """Fraction of ``text``'s long lines found in ``lines``: how much of it was copied from there."""
    own = list(_long(text))
    return sum(line in lines for line in own) / len(own) if own else 0.0


def docstrings(name: str, source: str) -> str:
    """A module's documentation in the manner of ``help()``: a heading and the text of every docstring."""
    sections: list[str] = []

    def visit(node: ast.AST, path: str) -> None:
        for child in ast.iter_child_nodes(node):
            if isinstance(child, ast.ClassDef):
                heading = f"class {path}.{child.name}({', '.join(map(ast.unparse, child.bases))})"
            elif isinstance(child, ast.FunctionDef | ast.AsyncFunctionDef):
                heading = f"{path}.{child.name}({ast.unparse(child.args)})"
            else:
                continue
            text = ast.get_docstring(child)
            if text:
                sections.append(f"{heading}\n\n{text}\n")
            visit(child, f"{path}.{child.name}")

    tree = _parse(source)
    head = ast.get_docstring(tree)
    if head:
        sections.append(f"module {name}\n\n{head}\n")
    visit(tree, name)
    return "\n".join(sections)


def without_docstrings(source: str) -> str:
    """The source with every docstring's lines taken out (``pass`` where nothing else is left)."""
    lines = source.split("\n")
    for node in ast.walk(_parse(source)):
        if not isinstance(node, ast.Module | ast.ClassDef | ast.FunctionDef | ast.AsyncFunctionDef):
            continue
        if not ast.get_docstring(node, clean=False):
            continue
        doc, *rest = node.body
        if getattr(node, "lineno", 0) == doc.lineno or (rest and rest[0].lineno == doc.end_lineno):
            continue  # "def f(): 'text'" on one line: nothing to take out by lines
        for i in range(doc.lineno - 1, doc.end_lineno or doc.lineno):
            lines[i] = "\0"
        if not rest and not isinstance(node, ast.Module):
            lines[doc.lineno - 1] = " " * doc.col_offset + "pass"
    return "\n".join(line for line in lines if line != "\0").strip("\n") + "\n"


def normalise(raw: bytes) -> str:
    """UTF-8 with undecodable bytes replaced, ``\\n`` line ends, no byte order mark."""
    text = raw.decode("utf-8", errors="replace").removeprefix("\ufeff")
    return text.replace("\r\n", "\n").replace("\r", "\n")


def _documents(modules: Iterable[_Module]) -> Iterator[Document]:
    for module in modules:
        source = _read(module.path)
        try:
            docs, code = docstrings(module.name, source), without_docstrings(source)
        except SyntaxError:
            continue  # lib2to3 and the like keep files that are wrong on purpose
        if docs:
            yield Document(module.name, "docs", docs)
        if code.strip():
            yield Document(module.name, "source", code)


def _topics() -> list[Document]:
    """The language reference as ``help()`` prints it, one document a topic; empty where not installed."""
    try:
        topics: dict[str, str] = importlib.import_module("pydoc_data.topics").topics
    except ImportError:
        return []
    return [Document(f"topics.{key}", "topic", normalise(text.encode())) for key, text in topics.items()]


@functools.cache
def _all_files() -> tuple[_Module, ...]:
    root = Path(sysconfig.get_path("stdlib"))
    found = []
    for path in root.rglob("*.py"):
        parts = path.relative_to(root).with_suffix("").parts
        if parts[0] in sys.stdlib_module_names or parts[0] == "test":
            dotted = parts[:-1] if parts[-1] == "__init__" and len(parts) > 1 else parts
            found.append(_Module(".".join(dotted), path))
    return tuple(sorted(found, key=lambda m: m.name))


def _modules() -> list[_Module]:
    """Modules of the standard library proper: no tests, no tables."""
    return [
        m
        for m in _all_files()
        if not _TESTS.intersection(m.name.split("."))
        and m.name.partition(".")[0] not in _NO_TEXT
        and m.name != "html.entities"
        and not m.name.startswith("_sysconfigdata")
    ]


def _test_modules() -> list[_Module]:
    return [m for m in _all_files() if _TESTS.intersection(m.name.split("."))]


def _shuffled(documents: Iterable[Document]) -> list[Document]:
    """In hash order, so that a prefix of any length is a fair sample rather than the letter A."""
    return sorted(documents, key=lambda d: (_digest(f"order:{d.kind}:{d.name}"), d.name))


def _long(text: str) -> Iterator[str]:
    return (s for s in map(str.strip, text.split("\n")) if len(s) >= _LONG_LINE)


def _read(path: Path) -> str:
    return normalise(path.read_bytes())


def _parse(source: str) -> ast.Module:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # invalid escapes in old modules are not this caller's concern
        return ast.parse(source)


def _digest(text: str) -> bytes:
    return hashlib.sha256(text.encode()).digest()


def _unit(text: str) -> float:
    """A number in [0, 1) from the text's SHA-256."""
    return int.from_bytes(_digest(text)[:8], "big") / 2**64
