"""No call in the sources can run code that came with a file; a new call that could is seen at once."""

from __future__ import annotations

import ast
from functools import cache

import pytest
import yaml

from compress_core.strict_yaml import load_yaml
from tests.sources import REPO, nodes

# as in test_arrows
pytestmark = pytest.mark.xdist_group("sources")

ROOMS = ("compress_core", "results_db", "server", "worker", "web", "cli", "migrations")
#: what is run by hand, on files of our own
BESIDE = ("demo", "benchmarks")
#: modules that make objects, and so code, of bytes
UNSAFE_MODULES = {"pickle", "cPickle", "dill", "cloudpickle", "joblib", "shelve", "marshal"}
#: calls that read what others wrote -> the keyword that makes them safe, and its value
GUARDED = {
    "np.load": ("allow_pickle", False),
    "numpy.load": ("allow_pickle", False),
    "torch.load": ("weights_only", True),
    "AutoConfig.from_pretrained": ("trust_remote_code", False),
    "AutoTokenizer.from_pretrained": ("trust_remote_code", False),
    "AutoModelForCausalLM.from_pretrained": ("trust_remote_code", False),
    "AutoModelForCausalLM.from_config": ("trust_remote_code", False),
}
NEVER = {"eval", "exec", "os.system", "os.popen", "yaml.load", "yaml.unsafe_load", "yaml.full_load", "torch.jit.load"}


def dotted(called: ast.expr) -> str:
    """``a.b.c`` of what is called; ``….c`` where it begins with no name."""
    if isinstance(called, ast.Attribute):
        return f"{dotted(called.value)}.{called.attr}"
    return called.id if isinstance(called, ast.Name) else "…"


@cache
def calls(*rooms: str) -> tuple[tuple[str, str, ast.Call], ...]:
    """(place, dotted name, call) of every call."""
    return tuple(
        (f"{path}:{node.lineno}", dotted(node.func), node)
        for room in rooms
        for path, node in nodes(room)
        if isinstance(node, ast.Call)
    )


def test_remote_code_is_trusted_nowhere() -> None:
    said = [
        (place, ast.unparse(keyword.value))
        for place, _, call in calls(*ROOMS, *BESIDE)
        for keyword in call.keywords
        if keyword.arg == "trust_remote_code"
    ]
    assert len(said) >= 3, "the calls that say so are gone: what do they say now?"
    assert not [place for place, value in said if value != "False"]
    text = "".join(path.read_text(encoding="utf-8") for room in ROOMS for path in (REPO / room).rglob("*.py"))
    assert '"trust_remote_code": True' not in text


@pytest.mark.parametrize("name", GUARDED)
def test_calls_that_read_others_files_say_that_they_run_nothing(name: str) -> None:
    keyword, value = GUARDED[name]
    unguarded = [
        place
        for place, called, call in calls(*ROOMS)
        if called == name
        and not any(
            given.arg == keyword and isinstance(given.value, ast.Constant) and given.value.value is value
            for given in call.keywords
        )
    ]
    assert not unguarded


def test_no_call_runs_text() -> None:
    found = [(place.partition(":")[0], name) for place, name, _ in calls(*ROOMS, *BESIDE) if name in NEVER]
    # the one loader of our own is a safe one that refuses more
    assert found == [("compress_core/strict_yaml.py", "yaml.load")]
    with pytest.raises(yaml.YAMLError, match="python/object"):
        load_yaml("!!python/object/apply:os.getcwd []")


def test_no_program_is_started_through_a_shell() -> None:
    assert not [
        place
        for place, _, call in calls(*ROOMS, *BESIDE)
        for keyword in call.keywords
        if keyword.arg == "shell" and not (isinstance(keyword.value, ast.Constant) and keyword.value.value is False)
    ]


@pytest.mark.parametrize("room", ROOMS)
def test_nothing_is_unpickled(room: str) -> None:
    found = set()
    for path, node in nodes(room):
        names = []
        if isinstance(node, ast.Import):
            names = [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom):
            names = [node.module or ""]
        found |= {f"{path}: {name}" for name in names if name.partition(".")[0] in UNSAFE_MODULES}
    assert not found
