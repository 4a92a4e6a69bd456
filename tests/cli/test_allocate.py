"""`bitbudget allocate`, `frontier`, `certificate` and `verify`, on a real stack with a real sweep."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import pytest
import yaml

from cli.commands.allocate import budget_fields
from cli.errors import CliError


@pytest.mark.parametrize(
    ("text", "fields"),
    [
        ("123_456", {"bytes": 123456}),
        ("20 GB", {"bytes": 20 * 10**9}),
        ("2.5bpw", {"bits_per_weight": 2.5}),
        ("25%", {"fraction": 0.25}),
        ("uniform:b_q=2,rank=64,codebook=e8", {"uniform": {"b_q": 2, "rank": 64, "codebook": "e8"}}),
    ],
)
def test_budgets_as_people_write_them(text: str, fields: dict[str, object]) -> None:
    assert budget_fields(text) == fields


@pytest.mark.parametrize("text", ["", "lots", "20 G", "uniform:bits=2", "0"])
def test_what_is_no_budget_is_refused(text: str) -> None:
    with pytest.raises(CliError, match=r"budget|unit"):
        budget_fields(text)


@pytest.fixture
def swept(run: Callable, model: str, text: str) -> tuple[str, ...]:
    """Options that name a model of which every matrix is measured at two configs, under a calibration of its own."""
    calibrate = run(
        "submit", "calibrate", f"model={model}", "text.kind=file", f"text.path={text}",
        "windows.length=32", "windows.count=3", "--wait", "--json",
    )  # fmt: skip
    assert calibrate.code == 0, calibrate.err
    configs = "[{b_q: 2, codebook: scalar}, {b_q: 4, codebook: scalar}]"
    calibration = calibrate.json["result"]["calibration_id"]
    sweep = run(
        "submit", "sweep", f"model={model}", f"calibration_id={calibration}", f"configs={configs}", "--wait", "--json"
    )
    assert sweep.code == 0, sweep.err
    return "--model", model, "--calibration", calibration


@pytest.mark.slow
@pytest.mark.xdist_group("stack")
def test_from_a_budget_to_a_verified_certificate(run: Callable, swept: tuple[str, ...], tmp_path: Path) -> None:
    chosen = (*swept, "--objective", "error")
    shown = run("allocate", "3.5 bpw", *chosen, "--name", "mine", "--overrides", str(tmp_path / "o.yaml"))
    assert shown.code == 0, shown.err
    assert "mine (optimal)" in shown.out
    assert "proven optimal" in shown.out
    assert "layer" in shown.out
    found = run("allocate", "3.5 bpw", *chosen, "--json").json
    assert yaml.safe_load((tmp_path / "o.yaml").read_text())["matrices"].keys() == {
        f"{item['layer_idx']}.{item['projection']}" for item in found["items"]
    }

    small = run("allocate", "1 bpw", *chosen)
    assert small.code == 2
    assert "smallest" in small.err
    missing = run("allocate", "3.5 bpw", *swept)
    assert missing.code == 2
    assert "POST /api/v1/sensitivities" in missing.err
    many = run("allocate", "5 bpw", *chosen, "--kind", "uniforms", "--set", "count=2", "--json").json
    assert len(many["allocation_ids"]) == 2

    table = run("frontier", *chosen, "--points", "5")
    assert table.code == 0
    assert "One config everywhere" in table.out
    points = run("frontier", *chosen, "--json").json["points"]
    assert any(point["matrix_bytes"] <= found["budget_bytes"] for point in points)

    file = tmp_path / "certificate.json"
    file.write_text(run("certificate", found["id"]).out)
    held = run("verify", str(file))
    assert held.code == 0, held.out
    assert "FAILED" not in held.out
    assert "the certificate holds" in held.err
    assert run("verify", str(file), "--prove", "--json").json["holds"] is True

    document = json.loads(file.read_text())
    document["objective"] *= 0.9
    forged = tmp_path / "forged.json"
    forged.write_text(json.dumps(document))
    told = run("verify", str(forged))
    assert told.code == 1
    assert "FAILED  objective" in told.out

    packed = tmp_path / "packed"
    packed.mkdir()
    (packed / "model.safetensors").write_bytes(b"weights")
    file.write_text(run("certificate", found["id"], "--weights", str(packed)).out)
    assert run("verify", str(file), "--weights", str(packed)).code == 0
    (packed / "model.safetensors").write_bytes(b"others")
    changed = run("verify", str(file), "--weights", str(packed))
    assert changed.code == 1
    assert "FAILED  files" in changed.out


@pytest.mark.parametrize("content", ["", "[1]", "{"])
def test_what_is_no_certificate(bitbudget: Callable, tmp_path: Path, content: str) -> None:
    file = tmp_path / "c.json"
    file.write_text(content)
    outcome = bitbudget("verify", str(file))
    assert outcome.code == 2
    assert "Traceback" not in outcome.err
    assert bitbudget("verify", str(tmp_path / "none.json")).code == 2
    file.write_text("{}")
    assert bitbudget("verify", str(file)).code == 1
