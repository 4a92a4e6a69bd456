"""Check a certificate without the solver: ``python verify.py CERTIFICATE.json [--weights FOLDER] [--prove]``.

The file needs Python and numpy, nothing of bitbudget. ``recompute`` is all the mathematics there is: a lower bound of
every allocation that keeps to the certificate's constraints, from multipliers that need not be believed, because any
multipliers give a bound. What the bound leaves open was closed by enumeration; ``--prove`` does that again, in its own
way, where no two matrices must agree.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import math
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

#: the fields that the problem is made of; the others are the answer
PROBLEM = ("matrices", "shapes", "menu", "errors", "weights", "nbytes")
#: what rounding may do to a sum, relative to its largest part
ROUNDING = 1e-9
#: partial choices that ``--prove`` makes before it gives up
MOST_STATES = 50_000_000


class Check(NamedTuple):
    """One thing that was looked at."""

    name: str
    passed: bool
    said: str


def recompute(c: Mapping[str, Any]) -> tuple[int, float, float]:
    """Total bytes, objective and lower bound of a certificate; a price that is missing makes the bound NaN."""
    allowed = np.array([[flag == "1" for flag in row] for row in c["allowed"]])
    weights = np.array(c["weights"], float).reshape(len(allowed), -1)
    cost = np.where(allowed, np.array(c["errors"], float) * weights, np.inf)
    nbytes, chosen = np.array(c["nbytes"]), (np.arange(len(allowed)), np.array(c["choice"]))
    priced, prices = np.zeros((max(c["members"]) + 1, len(c["menu"]))), np.array(c["prices"], float)
    np.add.at(priced, c["members"], cost + c["multiplier"] * nbytes)
    saved = np.where(np.isfinite(priced), np.maximum(prices[:, c["labels"]] - priced, 0), 0).sum(axis=0)
    paid = np.zeros((max(c["components"]) + 1, prices.shape[1]))
    np.add.at(paid, c["components"], np.where(np.isfinite(prices), prices, np.inf))
    bound = math.fsum([*paid.min(axis=1), *-np.sort(saved)[::-1][: c["max_configs"]], -c["multiplier"] * c["budget"]])
    return int(nbytes[chosen].sum()), math.fsum(cost[chosen]), bound


def digest(values: Any) -> str:
    """sha256 of values as JSON without spaces, keys sorted."""
    return hashlib.sha256(json.dumps(values, sort_keys=True, separators=(",", ":")).encode()).hexdigest()


def verify(c: Mapping[str, Any], *, weights: Path | None = None, prove: bool = False) -> list[Check]:
    """Every check of a certificate; it holds where all have passed.

    Args:
        weights: the folder of the packed model whose files the certificate names.
        prove: enumerate again what the bound leaves open.
    """
    kind, version = c.get("certificate"), c.get("version")
    if kind != "bitbudget allocation" or version != 1:
        return [Check("format", False, f"no certificate that this verifier knows: {kind!r}, version {version!r}")]
    checks = [_same("digest", c.get("digest"), digest({k: v for k, v in c.items() if k != "digest"}))]
    try:
        checks.append(_same("problem", c["problem_hash"], digest({k: c[k] for k in PROBLEM})))
        checks.append(_choice(c))
        if checks[-1].passed:
            checks += _numbers(c)
    except (KeyError, TypeError, ValueError, IndexError, AttributeError, OverflowError) as error:
        checks.append(Check("format", False, f"a field is missing or of another form: {type(error).__name__}: {error}"))
        return checks
    if prove and all(check.passed for check in checks):
        checks.append(enumerate_again(c))
    if weights is not None:
        checks.append(_files(c, weights))
    return checks


def _same(name: str, claimed: object, found: object) -> Check:
    return Check(name, claimed == found, f"{found}" if claimed == found else f"{found}, not the {claimed} it claims")


def _choice(c: Mapping[str, Any]) -> Check:
    """Whether each matrix has a config that it may have, and those that must agree do."""
    names, labels, taken = c["matrices"], c["labels"], c["choice"]
    sizes = {len(c[name]) for name in ("matrices", "shapes", "errors", "nbytes", "allowed", "members", "choice")}
    widths = {len(row) for name in ("errors", "nbytes", "allowed") for row in c[name]} | {len(labels), len(c["menu"])}
    if len(sizes) != 1 or len(widths) != 1:
        return Check("choice", False, "the tables are not of one size")
    most = c["max_configs"]
    if min(min(c["members"]), min(c["components"]), min(labels)) < 0 or len(c["components"]) != max(c["members"]) + 1:
        return Check("choice", False, "members, components or labels count from something else than 0")
    if most is not None and (not isinstance(most, int) or most < 1):
        return Check("choice", False, f"at most {most!r} configs is no limit")
    for i, j in enumerate(taken):
        if not isinstance(j, int) or not 0 <= j < len(labels) or c["allowed"][i][j] != "1" or c["errors"][i][j] is None:
            return Check("choice", False, f"matrix {names[i]} may not have config {j}")
    by_class: dict[int, int] = {}
    by_component: dict[int, int] = {}
    for name, member, j in zip(names, c["members"], taken, strict=True):
        if by_class.setdefault(member, j) != j:
            return Check("choice", False, f"matrix {name} has another config than those that it must agree with")
        if by_component.setdefault(c["components"][member], labels[j]) != labels[j] and max(labels) > 0:
            return Check("choice", False, f"matrix {name} has another b_q than those that it must agree with")
    distinct = len(set(taken))
    if most is not None and distinct > most:
        return Check("choice", False, f"{distinct} distinct configs, at most {most} are allowed")
    return Check("choice", True, f"{len(taken)} matrices, {distinct} distinct configs, all allowed")


def _numbers(c: Mapping[str, Any]) -> list[Check]:
    total, objective, bound = recompute(c)
    scale = abs(objective) + c["multiplier"] * c["budget"]
    gap = objective - bound
    possible = max(gap, 0.0)
    share = f" ({possible / objective:.2e} of the objective)" if objective > 0 else ""
    told = f"no allocation is better by more than {possible:.6g}{share}"
    if c["proof"] in ("bound met", "slack budget"):
        met = gap <= c["tolerance"] + ROUNDING * scale
        proof = Check("proof", met and c["optimal"] is True, f"{c['proof']}: {told}")
    elif c["proof"] in ("core exhausted", "column sets exhausted"):
        unchecked = f"{c['proof']}, which is not checked here; by the bound alone {told}"
        proof = Check("proof", c["optimal"] is True, unchecked)
    else:
        honest = c["proof"] == "work limit reached" and c["optimal"] is False
        proof = Check("proof", honest, f"{c['proof']}, not claimed to be optimal; {told}")
    return [
        _same("bytes", c["total_bytes"], total),
        Check("budget", total <= c["budget"], f"{total:,} of {c['budget']:,} bytes"),
        _close("objective", c["objective"], objective, 1e-12 * abs(objective)),
        Check("multiplier", c["multiplier"] >= 0, f"{c['multiplier']:g} a byte"),
        Check("tolerance", 0 <= c["tolerance"] <= ROUNDING * scale, f"rounding may hide {c['tolerance']:g}"),
        _close("bound", c["lower_bound"], min(bound, objective), ROUNDING * scale),
        _close("gap", c["gap"], c["objective"] - c["lower_bound"], ROUNDING * scale),
        proof,
    ]


def _close(name: str, claimed: float, found: float, tolerance: float) -> Check:
    passed = abs(claimed - found) <= tolerance
    return Check(name, passed, f"{found!r}" if passed else f"{found!r}, not the {claimed!r} it claims")


def _files(c: Mapping[str, Any], folder: Path) -> Check:
    """The packed model's files against their hashes."""
    if not isinstance(c.get("files"), dict) or not c["files"]:
        return Check("files", False, "the certificate names no files of a packed model")
    unnamed = {path.relative_to(folder).as_posix() for path in folder.rglob("*.safetensors")} - set(c["files"])
    if unnamed:  # a certificate of some of the weights says nothing of the model
        return Check("files", False, f"{min(unnamed)} is not named")
    for name, claimed in sorted(c["files"].items()):
        path = folder / name
        if not path.is_file():
            return Check("files", False, f"{name} is missing")
        with path.open("rb") as stream:
            found = hashlib.file_digest(stream, "sha256").hexdigest()
        if found != claimed:
            return Check("files", False, f"{name} has sha256 {found}, not {claimed}")
    return Check("files", True, f"{len(c['files'])} files as named")


def enumerate_again(c: Mapping[str, Any]) -> Check:
    """Show by enumeration that no allocation is better by more than the tolerance.

    With reduced costs r ≥ 0 a choice costs Σ r + λ·(unused bytes) above the bound, so rows whose other configs all cost
    the gap or more stay as they are, and partial choices that cost it are dropped, as are those that another one beats.
    """
    if max(c["components"]) + 1 < len(c["members"]) or c["max_configs"] is not None:
        return Check("enumeration", False, "not offered where matrices must agree or the number of configs is limited")
    _, objective, bound = recompute(c)
    allowed = np.array([[flag == "1" for flag in row] for row in c["allowed"]])
    weights = np.array(c["weights"], float).reshape(len(allowed), -1)
    priced = np.where(allowed, np.array(c["errors"], float) * weights, np.inf) + c["multiplier"] * np.array(c["nbytes"])
    reduced = priced - priced.min(axis=1, keepdims=True)
    limit = objective - bound - c["tolerance"] - 1e-12 * abs(objective)
    base = reduced.argmin(axis=1)
    nbytes = np.array(c["nbytes"], dtype=np.int64)
    room = c["budget"] - int(nbytes[np.arange(len(base)), base].sum())
    rows = sorted((np.sort(r[r < limit])[1:2].tolist(), i) for i, r in enumerate(reduced) if (r < limit).sum() > 1)
    used, cost, made = np.zeros(1, dtype=np.int64), np.zeros(1), 1
    options = [np.flatnonzero(reduced[i] < limit) for _, i in rows]
    shifts = [nbytes[i, o] - nbytes[i, base[i]] for (_, i), o in zip(rows, options, strict=True)]
    # the least bytes that the rows still to come can take
    least = np.append(np.cumsum([s.min() for s in shifts[::-1]])[::-1], 0).astype(np.int64)
    for at, (_, i) in enumerate(rows):
        used = (used[None, :] + shifts[at][:, None]).ravel()
        cost = (cost[None, :] + reduced[i, options[at]][:, None]).ravel()
        fits = (cost < limit) & (used + least[at + 1] <= room)
        order = np.flatnonzero(fits)[np.argsort(used[fits], kind="stable")]
        used, cost = used[order], cost[order]
        # of two partial choices the lighter one that is no worse without the price of its bytes wins
        pure = cost - c["multiplier"] * used
        keep = pure < np.append(np.inf, np.minimum.accumulate(pure)[:-1]) if len(pure) else fits[:0]
        used, cost, made = used[keep], cost[keep], made + len(order)
        if made > MOST_STATES:
            return Check("enumeration", False, f"given up after {made:,} partial choices")
    final = cost[used <= room] + c["multiplier"] * (room - used[used <= room])
    better = final[final < limit]
    if len(better):
        return Check("enumeration", False, f"an allocation is better by {objective - bound - better.min():.6g}")
    return Check("enumeration", True, f"nothing better among {made:,} partial choices over {len(rows)} open matrices")


def main(arguments: Sequence[str] | None = None) -> int:
    """Check the file that is named; 0 where all holds, 1 where it does not, 2 where it is no file of JSON."""
    parser = argparse.ArgumentParser(description="Check an allocation's certificate without trusting the solver.")
    parser.add_argument("certificate", type=Path)
    parser.add_argument("--weights", type=Path, help="folder of the packed model, to check its files")
    parser.add_argument("--prove", action="store_true", help="enumerate again what the bound leaves open")
    chosen = parser.parse_args(arguments)
    try:
        document = json.loads(chosen.certificate.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        sys.stderr.write(f"{chosen.certificate}: {error}\n")
        return 2
    checks = verify(document if isinstance(document, dict) else {}, weights=chosen.weights, prove=chosen.prove)
    for check in checks:
        sys.stdout.write(f"{'ok  ' if check.passed else 'FAIL'} {check.name}: {check.said}\n")
    return 0 if all(check.passed for check in checks) else 1


if __name__ == "__main__":
    sys.exit(main())
