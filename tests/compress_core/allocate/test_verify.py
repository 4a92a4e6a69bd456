"""The verifier: it passes what is right, names what is not, and needs nothing of the solver."""

from __future__ import annotations

import copy
import hashlib
import inspect
import json
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from compress_core.allocate import (
    AllocationProblem,
    Budget,
    Constraints,
    certificate_document,
    certificate_text,
    check_constraints,
    optimal_allocation,
    verify,
)
from compress_core.allocate.verify import PROBLEM, digest, enumerate_again, recompute
from compress_core.config import CompressionConfig
from compress_core.errors import ConfigError
from compress_core.matrix import PROJECTIONS, MatrixKey, MatrixSpec

CASES: dict[str, dict[str, Any]] = {
    "free": {},
    "masks": {"limits": [{"matrices": {"projections": ["down"]}, "min_b_q": 3}]},
    "groups": {"groups": [{"projections": ["q", "k", "v"]}, {"projections": ["gate", "up"]}]},
    "b_q": {
        "groups": [{"projections": ["q", "k", "v"], "agree": "b_q"}, {"projections": ["k", "v"]}],
        "pins": [{"matrices": {"layers": [0], "projections": ["q"]}, "config": {"b_q": 3}}],
    },
    "few": {"max_configs": 2},
    "few and groups": {"max_configs": 3, "groups": [{"projections": ["gate", "up"], "agree": "b_q"}]},
}


def document_of(problem: AllocationProblem, written: dict[str, Any], budget: str = "3.5 bpw", **more: Any) -> Any:
    constraints = Constraints.from_dict(written)
    solution = optimal_allocation(problem, Budget.parse(budget), constraints=constraints).solution
    assert solution is not None
    return json.loads(certificate_text(certificate_document(problem, solution, constraints=constraints, **more)))


def failed(document: dict[str, Any], **options: Any) -> list[str]:
    return [check.name for check in verify(document, **options) if not check.passed]


def signed(document: dict[str, Any]) -> dict[str, Any]:
    """The document with hashes that fit whatever was changed."""
    document["problem_hash"] = digest({name: document[name] for name in PROBLEM})
    document["digest"] = digest({k: v for k, v in document.items() if k != "digest"})
    return document


@pytest.mark.parametrize("case", CASES)
@pytest.mark.parametrize("budget", ["3.5 bpw", "30 bpw"])
def test_what_is_right_passes(small_problem: AllocationProblem, case: str, budget: str) -> None:
    document = document_of(small_problem, CASES[case], budget, about={"model": "tiny"})
    assert failed(document) == []
    assert check_constraints(document).passed
    names = [check.name for check in verify(document)]
    numbers = ["bytes", "budget", "objective", "multiplier", "tolerance", "bound", "gap", "proof"]
    assert names == ["digest", "problem", "choice", *numbers]


def test_the_text_is_stable_and_a_line_a_row(small_problem: AllocationProblem) -> None:
    document = document_of(small_problem, {})
    text = certificate_text(document)
    assert certificate_text(json.loads(text)) == text
    other = copy.deepcopy(document)
    other["nbytes"][3][2] += 1
    changed = [a != b for a, b in zip(text.splitlines(), certificate_text(other).splitlines(), strict=True)]
    assert sum(changed) == 1


def replaced(value: Any) -> Any:
    """Another value of the same form."""
    match value:
        case bool():
            return not value
        case int() | float():
            return value * 1.5 + 1
        case str():
            return value[::-1] + "x"
        case None:
            return 1
        case list():
            return [replaced(value[0]), *value[1:]]
        case _:
            return {**value, "x": "y"}


def test_every_field_is_covered_by_the_digest(small_problem: AllocationProblem) -> None:
    document = document_of(small_problem, CASES["b_q"], about={"model": "tiny"}, files={"model.safetensors": "00"})
    for name in document:
        special = {"certificate": "format", "version": "format", "problem_hash": "problem"}
        expected = special.get(name, "digest")
        assert expected in failed({**document, name: replaced(document[name])}), name
        assert failed({k: v for k, v in document.items() if k != name}), name
        if name != "digest":
            assert "digest" in failed({**document, name: replaced(document[name])}) or expected == "format"


def chosen_cell(document: dict[str, Any]) -> tuple[int, int]:
    """A matrix and its config."""
    return 4, document["choice"][4]


def with_cheaper_cell(document: dict[str, Any]) -> None:
    i, j = chosen_cell(document)
    document["errors"][i][j] *= 0.5


def with_lighter_cell(document: dict[str, Any]) -> None:
    i, j = chosen_cell(document)
    document["nbytes"][i][j] -= 8


def with_worse_choice(document: dict[str, Any]) -> None:
    document["choice"][4] = (document["choice"][4] + 1) % len(document["menu"])


def with_cheaper_rivals(document: dict[str, Any]) -> None:
    for i, j in enumerate(document["choice"]):
        for other in range(len(document["menu"])):
            if other != j and document["errors"][i][other] is not None:
                document["errors"][i][other] /= 2


TAMPERED: dict[str, tuple[Callable[[dict[str, Any]], None], set[str]]] = {
    "a cell's error": (with_cheaper_cell, {"objective", "bound"}),
    "a cell's bytes": (with_lighter_cell, {"bytes"}),
    "errors of the configs not chosen": (with_cheaper_rivals, {"bound"}),
    "weights": (lambda d: d["weights"].__setitem__(4, d["weights"][4] * 2), {"objective"}),
    "choice": (with_worse_choice, {"bytes", "objective"}),
    "choice beyond the menu": (lambda d: d["choice"].__setitem__(0, 99), {"choice"}),
    "choice of another form": (lambda d: d["choice"].__setitem__(0, "0"), {"choice"}),
    "a matrix less": (lambda d: d["matrices"].pop(), {"choice"}),
    "a config less": (lambda d: d["menu"].pop(), {"choice"}),
    "budget below the bytes": (lambda d: d.update(budget=d["total_bytes"] - 1), {"budget"}),
    "a larger budget": (lambda d: d.update(budget=d["budget"] + 10_000), {"bound"}),
    "total bytes": (lambda d: d.update(total_bytes=d["total_bytes"] - 1), {"bytes"}),
    "objective": (lambda d: d.update(objective=d["objective"] * (1 - 1e-6)), {"objective", "gap"}),
    "lower bound": (lambda d: d.update(lower_bound=d["objective"]), {"bound", "gap"}),
    "lower bound and gap": (lambda d: d.update(lower_bound=d["objective"], gap=0.0), {"bound"}),
    "gap": (lambda d: d.update(gap=0.0), {"gap"}),
    "multiplier": (lambda d: d.update(multiplier=d["multiplier"] * 1.1), {"bound"}),
    "negative multiplier": (lambda d: d.update(multiplier=-d["multiplier"]), {"multiplier", "bound"}),
    "prices": (lambda d: d["prices"][3].__setitem__(0, d["prices"][3][0] + 0.01), {"bound"}),
    "optimal": (lambda d: d.update(optimal=False), {"proof"}),
    "proof": (lambda d: d.update(proof="bound met", tolerance=0.0), {"proof"}),
    "unknown proof": (lambda d: d.update(proof="trust me"), {"proof"}),
    "not proven after all": (lambda d: d.update(proof="work limit reached"), {"proof"}),
    "fewer configs than taken": (lambda d: d.update(max_configs=1), {"choice"}),
    "a chosen cell forbidden": (lambda d: d["allowed"].__setitem__(4, "0" * len(d["menu"])), {"choice"}),
    "matrices said to agree": (lambda d: d.update(members=[0] * len(d["members"])), {"choice"}),
    "an endless tolerance": (lambda d: d.update(proof="bound met", tolerance=1e9), {"tolerance"}),
    "a limit that cuts the sum": (lambda d: d.update(max_configs=-1), {"choice"}),
    "classes counted from behind": (lambda d: d["members"].__setitem__(3, -1), {"choice"}),
    "a component too many": (lambda d: d["components"].append(0), {"choice"}),
    "not a number": (lambda d: d.update(lower_bound=float("nan")), {"bound", "gap"}),
    "a cell without an error": (lambda d: d["errors"][4].__setitem__(d["choice"][4], None), {"choice"}),
    "no prices": (lambda d: d.update(prices=[]), {"format"}),
    "version": (lambda d: d.update(version=2), {"format"}),
}


@pytest.mark.parametrize("case", TAMPERED)
def test_a_change_with_new_hashes_is_named(small_problem: AllocationProblem, case: str) -> None:
    """Whoever changes a number can also change the hashes: then the mathematics no longer fits."""
    document = document_of(small_problem, {})
    assert document["proof"] == "core exhausted"
    tamper, expected = TAMPERED[case]
    tamper(document)
    assert expected <= set(failed(signed(document))), verify(document)


@pytest.mark.parametrize("field", ["constraints", "allowed", "members", "components", "labels", "max_configs", "menu"])
def test_constraints_that_were_changed_are_named(small_problem: AllocationProblem, field: str) -> None:
    document = document_of(small_problem, {**CASES["b_q"], "max_configs": 4})
    assert check_constraints(document).passed
    match field:
        case "constraints":
            document[field]["pins"] = []
        case "allowed":
            document[field][9] = "000001"
        case "labels":
            document[field] = [0] * len(document["menu"])
        case "max_configs":
            document[field] = None
        case "menu":
            document[field][0]["b_q"] = 3
        case _:
            document[field] = list(range(len(document[field])))
    found = check_constraints(document)
    assert not found.passed
    assert field in found.said or "built again" in found.said


def test_a_weaker_claim_is_told_as_it_is(small_problem: AllocationProblem) -> None:
    """The uniform choice as a certificate: valid, not optimal, with what could be gained at most."""
    document = document_of(small_problem, {"max_configs": 1})
    proof = verify(document)[-1]
    assert proof.passed
    assert (
        "column sets exhausted, which is not checked here; by the bound alone no allocation is better by" in proof.said
    )


def test_a_missing_price_proves_nothing(small_problem: AllocationProblem) -> None:
    """With the prices of b_q 3 and 4 gone, a choice that is the best at b_q 2 must not pass for the best of all."""
    written = CASES["few and groups"] | {"max_configs": 2}
    document = document_of(small_problem, written)
    others = {"vetoes": [{"matrices": {}, "configs": {"b_q": b_q}} for b_q in (3, 4)]}
    worse = document_of(small_problem, written | others)
    assert worse["objective"] > 2 * document["objective"]
    problem_and_constraints = {*PROBLEM, "constraints", "allowed", "members", "components", "labels", "max_configs"}
    forged = worse | {name: document[name] for name in problem_and_constraints}
    forged["prices"] = [[row[0], *(None for _ in row[1:])] for row in forged["prices"]]
    assert check_constraints(forged).passed
    assert failed(signed(forged)) == ["bound"]


def test_where_little_more_than_the_least_bytes_are_allowed(small_problem: AllocationProblem) -> None:
    """Nothing fits beside the smallest configs: that, and not the bound at λ, is the proof."""
    smallest = small_problem.smallest_bytes
    assert smallest is not None
    for room in (0, 1, 40):
        document = document_of(small_problem, {}, f"{smallest + room} bytes")
        assert document["optimal"]
        assert failed(document, prove=True) == [], room


def test_enumeration_agrees(small_problem: AllocationProblem) -> None:
    document = document_of(small_problem, CASES["masks"])
    assert failed(document, prove=True) == []
    assert verify(document, prove=True)[-1].name == "enumeration"
    # an allocation that is feasible, and almost the best
    almost = copy.deepcopy(document)
    i = next(i for i, j in enumerate(almost["choice"]) if j)
    worse = [j for j, w in enumerate(almost["nbytes"][i]) if w < almost["nbytes"][i][almost["choice"][i]]]
    almost["choice"][i] = next(j for j in worse if almost["allowed"][i][j] == "1")
    rows = range(len(almost["choice"]))
    cells = [almost["errors"][i][almost["choice"][i]] * almost["weights"][i] for i in rows]
    almost.update(
        total_bytes=sum(almost["nbytes"][i][almost["choice"][i]] for i in rows),
        objective=float(np.sum(cells)),
        gap=float(np.sum(cells)) - almost["lower_bound"],
    )
    almost = signed(almost)
    assert failed(almost) == []
    assert failed(almost, prove=True) == ["enumeration"]
    assert not enumerate_again(document_of(small_problem, CASES["few"])).passed


def test_full_size_is_proven_again(make_instance: Callable[..., tuple]) -> None:
    errors, nbytes, budget = make_instance(280, (2, 3, 4), (0, 16, 64, 128, 256), seed=3, fraction=0.4)
    specs = tuple(MatrixSpec(MatrixKey(i // 7, PROJECTIONS[i % 7]), 512, 512, f"{i}.weight") for i in range(280))
    menu = tuple(CompressionConfig(b_q=b, rank=r) for b in (2, 3, 4) for r in (0, 16, 64, 128, 256))
    problem = AllocationProblem(specs, menu, errors, nbytes, np.ones(280))
    document = document_of(problem, {}, f"{budget} bytes")
    assert document["proof"] == "core exhausted"
    assert failed(document, prove=True) == []


def test_the_files_of_the_packed_model(small_problem: AllocationProblem, tmp_path: Path) -> None:
    (tmp_path / "model.safetensors").write_bytes(b"packed")
    files = {"model.safetensors": hashlib.sha256(b"packed").hexdigest()}
    document = document_of(small_problem, {}, files=files)
    assert failed(document, weights=tmp_path) == []
    (tmp_path / "model.safetensors").write_bytes(b"other")
    assert failed(document, weights=tmp_path) == ["files"]
    (tmp_path / "model.safetensors").write_bytes(b"packed")
    (tmp_path / "more.safetensors").write_bytes(b"packed")
    assert "more.safetensors is not named" in verify(document, weights=tmp_path)[-1].said
    (tmp_path / "model.safetensors").unlink()
    (tmp_path / "more.safetensors").unlink()
    assert "model.safetensors is missing" in verify(document, weights=tmp_path)[-1].said
    assert failed(document_of(small_problem, {}), weights=tmp_path) == ["files"]


def test_it_runs_alone_with_numpy(small_problem: AllocationProblem, tmp_path: Path, repo: Path) -> None:
    shutil.copy(repo / "compress_core/allocate/verify.py", tmp_path / "verify.py")
    path = tmp_path / "allocation.json"
    document = document_of(small_problem, CASES["groups"])

    def run() -> subprocess.CompletedProcess[str]:
        program = [sys.executable, "-I", str(tmp_path / "verify.py"), str(path)]
        return subprocess.run(program, capture_output=True, text=True, check=False, cwd=tmp_path, timeout=60)

    path.write_text(certificate_text(document), encoding="utf-8")
    done = run()
    assert done.returncode == 0, done.stderr
    assert all(line.startswith("ok") for line in done.stdout.splitlines())
    path.write_text(certificate_text({**document, "total_bytes": 1}), encoding="utf-8")
    done = run()
    assert done.returncode == 1
    assert "FAIL bytes: " in done.stdout
    path.write_text("[1]", encoding="utf-8")
    assert run().returncode == 1
    path.write_text("no json", encoding="utf-8")
    assert run().returncode == 2


def test_the_documents_print_the_verifier_as_it_is(repo: Path) -> None:
    text = (repo / "docs/decisions/024-constraints-and-certificates.md").read_text(encoding="utf-8")
    source = inspect.getsource(recompute)
    assert source.strip() in text
    statements = [line for line in source.splitlines()[1:] if line.strip() and '"""' not in line]
    assert len(statements) <= 11


def test_a_solution_of_another_problem_is_refused(small_problem: AllocationProblem) -> None:
    solution = optimal_allocation(small_problem, 10**9).solution
    assert solution is not None
    other = AllocationProblem(
        small_problem.specs[:3],
        small_problem.menu,
        small_problem.errors[:3],
        small_problem.nbytes[:3],
        small_problem.weights[:3],
    )
    with pytest.raises(ConfigError, match="28 matrices is none for 3"):
        certificate_document(other, solution)
