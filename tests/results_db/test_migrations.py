"""Migrations up, down and up again; the schema that they make is the one that the tables declare; views stand."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pytest
from alembic.autogenerate import compare_metadata
from alembic.migration import MigrationContext
from sqlalchemy import inspect, text

import results_db.tables  # noqa: F401 - completes the metadata
from results_db import Database
from results_db.base import Base
from results_db.migrate import downgrade, upgrade
from results_db.queue.submit import submit_job
from results_db.states import JobKind
from results_db.tables import Job
from results_db.views import VIEWS

#: the public contract: columns are only ever added, at the end
COLUMNS = {
    "errors": (
        "id model layer_idx projection expert_idx b_q rank factor_bits_l factor_bits_r codebook "
        "calibration_weighted_error normalized_mse raw_mse nbytes bits_per_weight out_features in_features seconds "
        "config_hash calibration_id model_id sweep_id numerics_version device_kind created_at states"
    ),
    "retired_errors": (
        "id model layer_idx projection expert_idx b_q rank factor_bits_l factor_bits_r codebook "
        "calibration_weighted_error normalized_mse raw_mse nbytes bits_per_weight out_features in_features seconds "
        "config_hash calibration_id model_id sweep_id numerics_version device_kind created_at states measurement_id "
        "reason retired_at replaced_by_sweep_id"
    ),
    "sensitivities_overview": (
        "id model layer_idx projection expert_idx method sensitivity kl kl_se anchor_error anchor_config_hash "
        "n_sequences n_tokens calibration_id model_id created_at"
    ),
    "sensitivities": (
        "id model layer_idx projection expert_idx method metric value low high log_se raw raw_log_se own_weight "
        "n_anchors n_floored token_hash calibration_id model_id job_id numerics_version device_kind created_at "
        "incumbent_hash applies_to"
    ),
    "layer_fidelity": (
        "id model layer_idx cosine cosine_se relative_error relative_error_se n_sequences config_hash calibration_id "
        "model_id job_id created_at"
    ),
    "models_overview": (
        "id name source revision architecture n_layers n_matrices original_bytes fixed_bytes n_calibrations "
        "n_measurements n_studies fingerprint created_at"
    ),
    "calibrations_overview": (
        "id model text_kind text_path n_samples sample_length n_tokens seed keeps seconds device_kind "
        "numerics_version nbytes uri token_hash model_id job_id created_at"
    ),
    "sweeps_overview": (
        "id model study state n_cells n_recorded n_reused n_configs device_kind cell_seconds worker_seconds seconds "
        "started_at finished_at n_attempts job_id model_id calibration_id study_id created_at"
    ),
    "probes_overview": ("id hostname device_kind device_name threads numerics_version seconds job_id created_at"),
    "fits_overview": (
        "id model form metric codebook n_observations r2 r2_log cv_error calibration_id model_id created_at states "
        "factor_bits_l factor_bits_r cv_layer_error chosen group_id stale_at stale_reason"
    ),
    "fit_parameters_overview": (
        "id model form name layer_idx projection expert_idx value standard_error low high codebook states chosen "
        "fit_id calibration_id model_id"
    ),
    "allocations_overview": (
        "id model study name kind objective scope budget_bytes total_bytes matrix_bytes fixed_bytes bits_per_weight "
        "objective_value lower_bound optimal shadow_price n_distinct_configs model_id study_id created_at "
        "predicted_kl calibration_id seed stale_at stale_reason"
    ),
    "allocation_items": (
        "id model study allocation layer_idx projection expert_idx b_q rank requested_rank nbytes error sensitivity "
        "regret config_hash allocation_id model_id study_id"
    ),
    "compressions_overview": (
        "id model study allocation kind expected_bytes actual_bytes matrix_bytes bits_per_weight seconds device_kind "
        "numerics_version uri content_hash allocation_id calibration_id model_id job_id study_id created_at"
    ),
    "predicted_vs_realised": (
        "id model study validation allocation kind matrix_bytes predicted_kl realised_kl realised_se ratio nll ppl "
        "split n_windows n_tokens position allocation_id validation_id model_id study_id created_at"
    ),
    "validations_overview": (
        "id model study name dataset split n_windows n_tokens n_allocations spearman spearman_low spearman_high "
        "log_slope log_slope_low log_slope_high kappa residual_sd calibrated winner winner_allocation_id model_id "
        "study_id created_at"
    ),
    "evaluations_overview": (
        "id model allocation task dataset split metric value ci_low ci_high nll bits_per_byte n_items n_tokens "
        "actual_bytes compression_id model_id created_at seconds device_kind study study_id"
    ),
    "evaluation_windows": (
        "id model allocation task dataset split item_idx nll n_tokens token_hash evaluation_id compression_id model_id"
    ),
    "jobs_overview": (
        "id kind state study step phase study_id created_at started_at finished_at attempts priority seconds "
        "error_code error_message max_attempts part_of trace_id"
    ),
    "attempts_overview": (
        "id job_id kind step number state worker device started_at finished_at exit_code signal peak_rss_bytes "
        "peak_gpu_bytes seconds error_code error_message study device_kind available_at worker_id study_id created_at"
    ),
    "events": ("id created_at job_kind step study kind state message job_id attempt_id study_id"),
    "workers_overview": (
        "id name hostname pid device device_kind device_uuid state heartbeat_at drain_requested n_attempts n_lost "
        "busy_seconds running_job_id created_at"
    ),
    "studies_overview": (
        "id name model state reason on_no_go n_jobs n_ended n_failed n_gates n_go n_no_go headline seconds "
        "finished_at model_id created_at"
    ),
    "gates_overview": (
        "id study phase name verdict value threshold ci_low ci_high unit explanation fallback needed_samples study_id "
        "created_at stale_at stale_reason question"
    ),
}


@pytest.fixture
def empty(empty_database_url: str) -> Iterator[Database]:
    database = Database(empty_database_url)
    yield database
    database.dispose()


def differences(database: Database) -> list[Any]:
    with database.engine.connect() as connection:
        context = MigrationContext.configure(connection, opts={"compare_type": True, "include_name": _no_views})
        return list(compare_metadata(context, Base.metadata))


def _no_views(name: str | None, kind: str, parents: Any) -> bool:
    return not (kind == "table" and name in VIEWS)


def test_up_down_up_and_each_time_the_schema_is_the_declared_one(empty: Database) -> None:
    upgrade(empty)
    assert differences(empty) == []
    first = set(inspect(empty.engine).get_table_names())
    assert first == set(Base.metadata.tables) | {"alembic_version"}
    downgrade(empty, "base")
    assert set(inspect(empty.engine).get_table_names()) <= {"alembic_version"}
    assert inspect(empty.engine).get_view_names() == []
    upgrade(empty)
    assert set(inspect(empty.engine).get_table_names()) == first
    assert differences(empty) == []


def test_an_upgrade_keeps_what_is_there(empty: Database) -> None:
    upgrade(empty)
    with empty.write() as session:
        job_id = submit_job(session, JobKind.FETCH, {"model_id": "mod_1"}).id
    upgrade(empty)
    with empty.read() as session:
        assert session.get_one(Job, job_id).params == {"model_id": "mod_1"}


def test_views_have_their_columns(database: Database) -> None:
    assert set(COLUMNS) == set(VIEWS)
    with database.engine.connect() as connection:
        for name in VIEWS:
            found = tuple(connection.execute(text(f"SELECT * FROM {name}")).keys())
            assert found == tuple(COLUMNS[name].split()), name


def test_the_query_of_the_issue_works(database: Database) -> None:
    query = "SELECT layer_idx, projection, b_q, rank, calibration_weighted_error FROM errors WHERE b_q = 2"
    with database.engine.connect() as connection:
        assert connection.execute(text(query)).all() == []
