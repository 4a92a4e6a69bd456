"""The corpus is the same everywhere, its splits never meet, and nothing in it is too small to measure."""

import ast
import hashlib
import os
import subprocess
import sys

import pytest

from compress_core.text import TextSource, split_text
from compress_core.text import stdlib as corpus

FINGERPRINT = (
    "import hashlib, sys; from compress_core.text import stdlib as corpus;"
    "print(*(hashlib.sha256(corpus.split_text(s).encode()).hexdigest() for s in corpus.SPLITS));"
    "print(*sorted({m.partition('.')[0] for m in sys.modules} & {'torch', 'numpy', 'transformers'}))"
)
#: in one process, which reads the library once
pytestmark = pytest.mark.xdist_group("stdlib")


@pytest.fixture(scope="module")
def heldout():
    return list(corpus.iter_documents("heldout", kinds=("docs", "source", "topic", "test")))


def test_split_text_is_the_same_in_every_process_and_needs_no_torch():
    # strings hash otherwise there than here
    seed = "2" if os.environ.get("PYTHONHASHSEED") == "1" else "1"
    result = subprocess.run(
        [sys.executable, "-c", FINGERPRINT],
        env=os.environ | {"PYTHONHASHSEED": seed},
        check=True,
        capture_output=True,
        text=True,
    )
    texts, imported = result.stdout.split("\n")[:2]
    assert texts.split() == [hashlib.sha256(corpus.split_text(s).encode()).hexdigest() for s in corpus.SPLITS]
    assert imported == ""


@pytest.mark.parametrize(
    ("name", "part"),
    [
        ("json.decoder", "train"),
        ("logging", "heldout"),
        ("inspect", "heldout"),
        ("argparse", "train"),
        ("tkinter.ttk", "train"),
    ],
)
def test_part_follows_from_the_name_alone(name, part):
    assert corpus.part_of(name) == part


def test_heldout_split_follows_from_the_name_alone():
    places = {name: corpus.heldout_split(name) for name in ("profile", "inspect", "queue")}
    assert places == {"profile": "measure", "inspect": "report", "queue": "select"}


def test_train_and_heldout_share_no_module_and_heldout_has_no_tests(heldout):
    assert {d.kind for d in heldout} == {"docs", "source"}
    assert not any("test" in d.name.split(".") or "tests" in d.name.split(".") for d in heldout)
    train_names = {m.name for m in corpus._modules() if corpus.part_of(m.name) == "train"}
    assert train_names.isdisjoint(d.name for d in heldout)


def test_splits_share_no_document():
    documents = {split: corpus.split_text(split).split(corpus.SEPARATOR) for split in corpus.SPLITS}
    pieces = [piece for parts in documents.values() for piece in set(parts)]
    assert len(pieces) == len(set(pieces))


@pytest.mark.parametrize(
    ("split", "least"),
    [("calibrate", 500_000), ("measure", 100_000), ("select", 100_000), ("report", 300_000)],
)
def test_every_split_is_large_enough(split, least):
    text = corpus.split_text(split)
    assert split_text(TextSource(), split) == text
    assert len(text.encode()) >= least
    assert "\r" not in text
    assert corpus.SEPARATOR in text


def test_unknown_split_is_refused():
    with pytest.raises(ValueError, match="unknown held-out split 'test'"):
        corpus.split_text("test")


def test_docstrings_and_source_part_company():
    source = (
        '"""Head."""\n\nclass A(B):\n    """A thing."""\n    def f(self, x=1):\n        """Only words."""\n\n'
        '    def g(self):\n        """More\n\n        words."""\n        return """kept"""\n'
    )
    docs, code = corpus.docstrings("m", source), corpus.without_docstrings(source)
    assert docs == (
        "module m\n\nHead.\n\nclass m.A(B)\n\nA thing.\n\nm.A.f(self, x=1)\n\nOnly words.\n\n"
        "m.A.g(self)\n\nMore\n\nwords.\n"
    )
    assert code == ('class A(B):\n    def f(self, x=1):\n        pass\n\n    def g(self):\n        return """kept"""\n')


def test_source_stays_parsable_without_its_docstrings(heldout):
    sources = [document.text for document in heldout if document.kind == "source"]
    assert sources
    for text in sources:
        ast.parse(text)


def test_text_is_normalised():
    assert corpus.normalise(b"\xef\xbb\xbfa\r\nb\rc\xff") == "a\nb\nc\ufffd"


def test_overlap_counts_copied_long_lines():
    copied, own = "x" * 50, "y" * 50
    lines = corpus.long_lines([f"    {copied}\nshort"])
    assert corpus.overlap(f"{copied}\n{own}\nshort\n", lines) == 0.5
    assert corpus.overlap("short", lines) == 0.0
