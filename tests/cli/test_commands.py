"""Commands against the application in this process, and one way through a real stack; on the real small model that the
tests share."""

from __future__ import annotations

import csv
import json
from collections.abc import Callable
from pathlib import Path

import httpx
import pytest
from fastapi.testclient import TestClient

from cli.api import Api
from cli.errors import Unreachable
from results_db.packages import own_version
from results_db.queue.submit import submit_job
from results_db.states import JobKind, JobState


def test_no_server_is_exit_code_3_with_the_cure(bitbudget: Callable) -> None:
    outcome = bitbudget("jobs", "list")
    assert outcome.code == 3
    assert "no bitbudget server answers at http://127.0.0.1:9" in outcome.err
    assert "bitbudget up" in outcome.err
    as_json = json.loads(bitbudget("jobs", "list", "--json").err)
    assert as_json["error"]["exit_code"] == 3


@pytest.mark.parametrize(
    "command",
    ["up", "down", "demo", "submit", "wait", "tail", "sql", "allocate", "frontier", "certificate", "verify"],
)
def test_every_help_has_an_example(bitbudget: Callable, command: str) -> None:
    outcome = bitbudget(command, "--help")
    assert outcome.code == 0
    assert f"bitbudget {command}" in outcome.out.partition("Example")[2]


def test_help_documents_the_exit_codes(bitbudget: Callable) -> None:
    told = bitbudget("--help").out
    assert "4    a NO-GO stopped the study" in told


def test_the_version_is_told(bitbudget: Callable) -> None:
    outcome = bitbudget("--version")
    assert (outcome.code, outcome.out) == (0, f"bitbudget {own_version()}\n")


@pytest.mark.parametrize("arguments", [("nosuch",), ("sql", "--bad"), ("jobs", "cancel"), ("wait",)])
def test_wrong_usage_is_exit_code_2(bitbudget: Callable, arguments: tuple[str, ...]) -> None:
    assert bitbudget(*arguments).code == 2


def test_a_bad_variable_is_named(bitbudget: Callable, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("BITBUDGET_PORT", "eighty")
    outcome = bitbudget("jobs", "list")
    assert outcome.code == 2
    assert "BITBUDGET_PORT" in outcome.err


def test_submit_of_neither_file_nor_kind(ask: Callable) -> None:
    assert "neither a file nor a kind" in ask("submit", "swep").err
    assert "there is no file missing.yaml" in ask("submit", "missing.yaml").err


def test_overrides_are_read_from_their_file(ask: Callable, model: str, tmp_path: Path) -> None:
    missing = ask("submit", "compress", f"model={model}", "overrides=missing.yaml")
    assert missing.code == 2
    assert "missing.yaml cannot be read" in missing.err
    given = tmp_path / "overrides.yaml"
    given.write_text("version: 1\nmatrices:\n  99.q: {b_q: 2}\n")
    refused = ask("submit", "compress", f"model={model}", f"overrides={given}")
    assert refused.code == 2
    assert "99.q" in refused.err


def test_an_unknown_id_is_a_problem_in_words(ask: Callable) -> None:
    outcome = ask("jobs", "show", "job_none")
    assert outcome.code == 2
    assert "(404)" in outcome.err
    assert "job_none" in outcome.err
    assert ask("wait", "study_none").code == 2
    assert ask("tail", "job_none").code == 2


def test_a_missing_model_is_refused_with_the_servers_words(ask: Callable, tmp_path: Path) -> None:
    outcome = ask("submit", "model", "source=./no/such/model", "--json")
    assert outcome.code == 2
    problem = json.loads(outcome.err)["error"]["problem"]
    assert problem["status"] in (403, 422)


def test_a_study_with_a_mistake_names_the_field(ask: Callable, tmp_path: Path, model: str) -> None:
    study = tmp_path / "study.yaml"
    study.write_text(f"name: x\nmodel: {{source: {model}}}\ngrid: {{b_q: [2], rank: [-1]}}\n")
    outcome = ask("submit", str(study))
    assert outcome.code == 2
    assert "rank" in outcome.err
    assert "Traceback" not in outcome.err


@pytest.mark.slow
@pytest.mark.xdist_group("stack")
def test_a_sweep_from_submit_to_export(run: Callable, model: str, text: str, tmp_path: Path) -> None:
    calibrate = run(
        "submit", "calibrate", f"model={model}", "text.kind=file", f"text.path={text}",
        "windows.length=32", "windows.count=2", "--wait", "--json",
    )  # fmt: skip
    assert (calibrate.code, calibrate.json["state"]) == (0, "succeeded")
    calibration = calibrate.json["result"]["calibration_id"]

    sweep = run(
        "submit", "sweep", f"model={model}", f"calibration_id={calibration}",
        "configs=[{b_q: 2, rank: 2}]", "matrices.layers=[0]", "matrices.projections=[q]", "--json",
    )  # fmt: skip
    job = sweep.json["id"]
    waited = run("wait", job)
    assert waited.code == 0
    assert f"{job} succeeded" in waited.err

    events = [json.loads(line) for line in run("tail", job, "--json").out.splitlines()]
    assert [event["state"] for event in events if event["kind"] == "state"][-1] == "succeeded"
    assert [event["id"] for event in events] == sorted(event["id"] for event in events)
    later = run("tail", job, "--json", "--after", str(events[0]["id"])).out.splitlines()
    assert [json.loads(line) for line in later] == events[1:]

    assert job in run("jobs", "list", "--kind", "sweep").out
    assert "Attempts" in run("jobs", "show", job).out

    output = tmp_path / "measurements.csv"
    told = run(
        "export", "measurements", "--format", "csv", "-o", str(output), "--calibration", calibration, "--json"
    ).json
    assert told["nbytes"] == output.stat().st_size
    rows = list(csv.DictReader(output.open()))
    assert [(row["projection"], row["b_q"], row["rank"]) for row in rows] == [("q", "2", "2")]
    assert not output.with_name("measurements.csv.part").exists()

    (cell,) = run("measurements", "list", "--calibration", calibration, "--json").json
    why = ("--reason", "the fan stood still")
    for which in ((str(cell["id"]),), ("--calibration", calibration, "--bits", "2")):
        tried = run("measurements", "invalidate", *which, *why)
        assert "1 measurement would be retired; stale with that: nothing. Nothing is done yet" in tried.err
    for which in ((), (str(cell["id"]), "--layer", "0")):
        assert run("measurements", "invalidate", *which, *why).code == 2
    assert run("measurements", "retired", "--calibration", calibration, "--json").json == []
    done = run("measurements", "invalidate", str(cell["id"]), *why, "--yes", "--json").json
    assert done == [{"dry_run": False, "measurements": 1, "stale": {"fits": [], "allocations": [], "gates": []}}]
    assert "the fan stood still" in run("measurements", "retired", "--calibration", calibration).out
    assert run("measurements", "list", "--calibration", calibration, "--json").json == []
    again = run(
        "submit", "sweep", f"model={model}", f"calibration_id={calibration}", "configs=[{b_q: 2, rank: 2}]",
        "matrices.layers=[0]", "matrices.projections=[q]", "force=true", "--wait", "--json",
    )  # fmt: skip
    assert (again.json["result"]["recorded"], again.json["result"]["replaced"]) == (1, 0)
    (new,) = run("measurements", "list", "--calibration", calibration, "--json").json
    assert new["id"] > cell["id"]
    assert new["calibration_weighted_error"] == cell["calibration_weighted_error"]


def test_cancel_of_what_has_ended_is_a_conflict_in_words(ask: Callable, served: TestClient) -> None:
    with served.app.state.database.write() as session:  # type: ignore[attr-defined]
        job = submit_job(session, JobKind.PROBE, {})
        job.state = JobState.SUCCEEDED.value
        job_id = job.id
    outcome = ask("jobs", "cancel", job_id)
    assert outcome.code == 2
    assert "(409)" in outcome.err


def test_every_table_is_listed_and_exported(ask: Callable, tmp_path: Path) -> None:
    listed = ask("export", "--json").json
    assert {"measurements", "jobs", "evaluation_items"} <= {item["name"] for item in listed}
    assert "model_id" in ask("export").out
    output = tmp_path / "jobs.csv"
    told = ask("export", "jobs", "--format", "csv", "-o", str(output), "--where", "kind=calibrate", "--json").json
    about = json.loads(output.with_name("jobs.csv.schema.json").read_text())
    assert about == told["schema"]
    assert (about["export"], about["filters"]) == ("jobs", {"kind": "calibrate"})
    parquet = tmp_path / "jobs.parquet"
    assert ask("export", "jobs", "--format", "parquet", "-o", str(parquet)).code == 0
    assert parquet.read_bytes()[:4] == b"PAR1"
    refused = ask("export", "jobs", "--where", "b_q=2", "-o", str(tmp_path / "none"))
    assert (refused.code, "filter by" in refused.err) == (2, True)
    assert not (tmp_path / "none").exists()
    assert ask("export", "jobs", "--where", "nonsense").code == 2


def test_many_jobs_at_once(ask: Callable) -> None:
    told = ask("jobs", "cancel", "job_a", "job_b")
    assert told.code == 2
    assert "0 changed, 0 unchanged, 2 refused" in told.err
    dry = ask("jobs", "retry", "--state", "dead", "--json")
    assert (dry.code, dry.json["dry_run"], dry.json["items"]) == (0, True, [])
    done = ask("jobs", "retry", "--state", "dead", "--kind", "sweep", "--yes", "--json")
    assert (done.code, done.json["dry_run"]) == (0, False)
    for arguments in ((), ("job_a", "--state", "failed")):
        outcome = ask("jobs", "cancel", *arguments)
        assert (outcome.code, "cure" in outcome.err) == (2, True)


def test_filters_go_to_the_api_by_its_names(ask: Callable) -> None:
    only = ("--model", "m", "--sweep", "s", "--layer", "0", "--projection", "q", "--bits", "2", "--rank", "0")
    for words in (("list",), ("retired",)):
        assert ask("measurements", *words, *only, "--calibration", "c", "--states", "256", "--json").json == []
    done = ask("measurements", "invalidate", *only, "--reason", "why", "--json").json
    assert [answer["measurements"] for answer in done] == [0]
    assert ask("measurements", "invalidate", "--reason", "why").code == 2
    (head,) = ask("export", "measurements", *only).out.splitlines()
    asked = {"model_id": "m", "sweep_id": "s", "layer_idx": "0", "projection": "q", "b_q": "2", "rank": "0"}
    assert json.loads(head)["schema"]["filters"] == asked
    (head,) = ask("export", "jobs", "--study", "t").out.splitlines()
    assert json.loads(head)["schema"]["filters"] == {"study_id": "t"}


def test_lists_that_are_empty_are_empty(ask: Callable) -> None:
    assert ask("jobs", "list", "--state", "dead", "--json").json == []
    assert isinstance(ask("studies", "list", "--json").json, list)


@pytest.mark.slow
@pytest.mark.xdist_group("stack")
def test_sql_goes_to_the_running_stacks_database(bitbudget: Callable, stack, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("BITBUDGET_VAR_DIR", str(stack.var_dir))
    assert bitbudget("sql", "SELECT count(*) AS n FROM errors", "--json").code == 0


@pytest.mark.parametrize("url", ["http://host:port", "http://[::1", "http://a\tb"])
def test_a_server_that_is_no_url_is_named(bitbudget: Callable, url: str) -> None:
    outcome = bitbudget("jobs", "list", "--server", url)
    assert outcome.code == 2
    assert "is no URL" in outcome.err


@pytest.mark.parametrize("status", [200, 307])
def test_somebody_elses_server_is_told_apart(status: int) -> None:
    other = httpx.MockTransport(lambda _request: httpx.Response(status, text="<html>"))
    with Api("http://127.0.0.1:1", transport=other) as api, pytest.raises(Unreachable, match="no bitbudget server"):
        api.get("/jobs")


@pytest.mark.parametrize("command", [("jobs", "show"), ("jobs", "cancel"), ("studies", "cancel"), ("wait",), ("tail",)])
def test_an_empty_id_is_named(bitbudget: Callable, command: tuple[str, ...]) -> None:
    outcome = bitbudget(*command, "")
    assert outcome.code == 2
    assert "the id is empty" in outcome.err


@pytest.mark.parametrize("output", ["/", "plain/file.csv"])
def test_an_export_to_where_no_file_can_be(bitbudget: Callable, tmp_path: Path, output: str) -> None:
    (tmp_path / "plain").touch()
    outcome = bitbudget("export", "measurements", "-o", output)
    assert outcome.code == 2
    assert "Traceback" not in outcome.err
    assert "error: " in outcome.err


@pytest.mark.parametrize("name", ["DATABASE_URL", "REDIS_URL"])
def test_a_bad_url_is_named_and_its_password_is_not(
    bitbudget: Callable, monkeypatch: pytest.MonkeyPatch, name: str
) -> None:
    monkeypatch.setenv(f"BITBUDGET_{name}", "pg:/me:hunter2@host/db")
    outcome = bitbudget("up")
    assert outcome.code == 2
    assert f"BITBUDGET_{name}: write " in outcome.err
    assert "hunter2" not in outcome.err


def test_settings_that_contradict_each_other_show_no_password(
    bitbudget: Callable, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("BITBUDGET_DATABASE_URL", "postgresql://me:hunter2@host/db")
    monkeypatch.setenv("BITBUDGET_HEARTBEAT_S", "60")
    outcome = bitbudget("jobs", "list")
    assert "must be shorter than lease_s" in outcome.err
    assert "hunter2" not in outcome.err
