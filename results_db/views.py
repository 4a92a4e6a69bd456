"""SQL views: the public contract of the database. Names and columns are kept; new columns go to the end.

What each view and column means is said in results_db.sql.contract, which a test holds equal to what stands here.

Where the two databases have no words in common, the texts use three of our own: ``SECONDS(later, earlier)``, the text
or number under a key of a JSON object as ``JSON_TEXT(column, key)``, and ``JSON_LENGTH(column)`` of a JSON array.
"""

from __future__ import annotations

import re
from collections.abc import Collection, Mapping

#: view name -> SELECT, but for our own words valid on SQLite and on PostgreSQL
VIEWS: dict[str, str] = {
    "errors": """
        SELECT m.id, mo.name AS model, m.layer_idx, m.projection, m.expert_idx, m.b_q, m.rank,
               m.factor_bits_l, m.factor_bits_r, m.codebook, m.calibration_weighted_error, m.normalized_mse,
               m.raw_mse, m.nbytes, m.bits_per_weight, m.out_features, m.in_features, m.seconds, m.config_hash,
               m.calibration_id, m.model_id, m.sweep_id, m.numerics_version, m.device_kind, m.created_at, m.states
        FROM measurements m JOIN models mo ON mo.id = m.model_id
    """,
    "retired_errors": """
        SELECT m.id, mo.name AS model, m.layer_idx, m.projection, m.expert_idx, m.b_q, m.rank,
               m.factor_bits_l, m.factor_bits_r, m.codebook, m.calibration_weighted_error, m.normalized_mse,
               m.raw_mse, m.nbytes, m.bits_per_weight, m.out_features, m.in_features, m.seconds, m.config_hash,
               m.calibration_id, m.model_id, m.sweep_id, m.numerics_version, m.device_kind, m.created_at, m.states,
               m.measurement_id, m.reason, m.retired_at, m.replaced_by_sweep_id
        FROM retired_measurements m JOIN models mo ON mo.id = m.model_id
    """,
    "sensitivities_overview": """
        SELECT s.id, mo.name AS model, s.layer_idx, s.projection, s.expert_idx, s.method, s.sensitivity, s.kl, s.kl_se,
               s.anchor_error, s.anchor_config_hash, s.n_sequences, s.n_tokens, s.calibration_id, s.model_id,
               s.created_at
        FROM sensitivity_anchors s JOIN models mo ON mo.id = s.model_id
    """,
    "sensitivities": """
        SELECT s.id, mo.name AS model, s.layer_idx, s.projection, s.expert_idx, s.method, s.metric, s.value, s.low,
               s.high, s.log_se, s.raw, s.raw_log_se, s.own_weight, s.n_anchors, s.n_floored, s.token_hash,
               s.calibration_id, s.model_id, s.job_id, s.numerics_version, s.device_kind, s.created_at,
               s.incumbent_hash, s.applies_to
        FROM sensitivity_estimates s JOIN models mo ON mo.id = s.model_id
    """,
    "jobs_overview": """
        SELECT j.id, j.kind, j.state, s.name AS study, j.step, j.phase, j.study_id, j.created_at, j.started_at,
               j.finished_at, (SELECT count(*) FROM attempts a WHERE a.job_id = j.id) AS attempts, j.priority,
               SECONDS(j.finished_at, j.started_at) AS seconds, JSON_TEXT(j.error, code) AS error_code,
               JSON_TEXT(j.error, message) AS error_message, j.max_attempts, JSON_TEXT(j.params, part_of) AS part_of,
               j.trace_id
        FROM jobs j LEFT JOIN studies s ON s.id = j.study_id
    """,
    "attempts_overview": """
        SELECT a.id, a.job_id, j.kind, j.step, a.number, a.state, w.name AS worker, w.device, a.started_at,
               a.finished_at, a.exit_code, a.signal, a.peak_rss_bytes, a.peak_gpu_bytes,
               SECONDS(a.finished_at, a.started_at) AS seconds, JSON_TEXT(a.error, code) AS error_code,
               JSON_TEXT(a.error, message) AS error_message, s.name AS study, w.device_kind, a.available_at,
               a.worker_id, j.study_id, a.created_at
        FROM attempts a JOIN jobs j ON j.id = a.job_id LEFT JOIN workers w ON w.id = a.worker_id
        LEFT JOIN studies s ON s.id = j.study_id
    """,
    "fits_overview": """
        SELECT f.id, mo.name AS model, f.form, f.metric, f.codebook, f.n_observations, f.r2, f.r2_log, f.cv_error,
               f.calibration_id, f.model_id, f.created_at, f.states, f.factor_bits_l, f.factor_bits_r, f.cv_layer_error,
               f.chosen, f.group_id, f.stale_at, f.stale_reason
        FROM fits f JOIN models mo ON mo.id = f.model_id
    """,
    "allocations_overview": """
        SELECT a.id, mo.name AS model, s.name AS study, a.name, a.kind, a.objective, a.scope, a.budget_bytes,
               a.total_bytes, a.matrix_bytes, a.fixed_bytes, a.bits_per_weight, a.objective_value, a.lower_bound,
               a.optimal, a.shadow_price, a.n_distinct_configs, a.model_id, a.study_id, a.created_at,
               a.predicted_kl, a.calibration_id, a.seed, a.stale_at, a.stale_reason
        FROM allocations a JOIN models mo ON mo.id = a.model_id LEFT JOIN studies s ON s.id = a.study_id
    """,
    "allocation_items": """
        SELECT c.id, mo.name AS model, s.name AS study, a.name AS allocation, c.layer_idx, c.projection, c.expert_idx,
               c.b_q, c.rank, c.requested_rank, c.nbytes, c.error, c.sensitivity, c.regret, c.config_hash,
               c.allocation_id, a.model_id, a.study_id
        FROM allocation_choices c JOIN allocations a ON a.id = c.allocation_id
        JOIN models mo ON mo.id = a.model_id LEFT JOIN studies s ON s.id = a.study_id
    """,
    "predicted_vs_realised": """
        SELECT i.id, mo.name AS model, s.name AS study, v.name AS validation, i.name AS allocation, i.kind,
               i.matrix_bytes, i.predicted_kl, i.kl AS realised_kl, i.kl_se AS realised_se,
               CASE WHEN i.predicted_kl > 0 THEN i.kl / i.predicted_kl END AS ratio, i.nll, i.ppl, v.split,
               v.n_windows, v.n_tokens, i.position, i.allocation_id, i.validation_id, v.model_id, v.study_id,
               v.created_at
        FROM validation_items i JOIN validations v ON v.id = i.validation_id
        JOIN models mo ON mo.id = v.model_id LEFT JOIN studies s ON s.id = v.study_id
    """,
    "validations_overview": """
        SELECT v.id, mo.name AS model, s.name AS study, v.name, v.dataset, v.split, v.n_windows, v.n_tokens,
               v.n_allocations, v.spearman, v.spearman_low, v.spearman_high, v.log_slope, v.log_slope_low,
               v.log_slope_high, v.kappa, v.residual_sd, v.calibrated, w.name AS winner, v.winner_allocation_id,
               v.model_id, v.study_id, v.created_at
        FROM validations v JOIN models mo ON mo.id = v.model_id LEFT JOIN studies s ON s.id = v.study_id
        LEFT JOIN allocations w ON w.id = v.winner_allocation_id
    """,
    "layer_fidelity": """
        SELECT f.id, mo.name AS model, f.layer_idx, f.cosine, f.cosine_se, f.relative_error, f.relative_error_se,
               f.n_sequences, f.config_hash, f.calibration_id, f.model_id, f.job_id, f.created_at
        FROM layer_fidelities f JOIN models mo ON mo.id = f.model_id
    """,
    "evaluations_overview": """
        SELECT e.id, mo.name AS model, al.name AS allocation, e.task, e.dataset, e.split, e.metric, e.value, e.ci_low,
               e.ci_high, e.nll, e.bits_per_byte, e.n_items, e.n_tokens, c.actual_bytes, e.compression_id, e.model_id,
               e.created_at, e.seconds, e.device_kind, s.name AS study, j.study_id
        FROM evaluations e JOIN models mo ON mo.id = e.model_id
        LEFT JOIN compressions c ON c.id = e.compression_id
        LEFT JOIN allocations al ON al.id = c.allocation_id
        LEFT JOIN jobs j ON j.id = e.job_id LEFT JOIN studies s ON s.id = j.study_id
    """,
    "gates_overview": """
        SELECT g.id, s.name AS study, g.phase, g.name, g.verdict, g.value, g.threshold, g.ci_low, g.ci_high, g.unit,
               g.explanation, g.fallback, g.needed_samples, g.study_id, g.created_at, g.stale_at, g.stale_reason,
               g.question
        FROM gates g JOIN studies s ON s.id = g.study_id
    """,
    "models_overview": """
        SELECT m.id, m.name, m.source, m.revision, m.architecture, m.n_layers, JSON_LENGTH(m.matrices) AS n_matrices,
               m.original_bytes, m.fixed_bytes,
               (SELECT count(*) FROM calibrations c WHERE c.model_id = m.id) AS n_calibrations,
               (SELECT count(*) FROM measurements e WHERE e.model_id = m.id) AS n_measurements,
               (SELECT count(*) FROM studies s WHERE s.model_id = m.id) AS n_studies, m.fingerprint, m.created_at
        FROM models m
    """,
    "calibrations_overview": """
        SELECT c.id, mo.name AS model, JSON_TEXT(c.text, kind) AS text_kind, JSON_TEXT(c.text, path) AS text_path,
               c.n_samples, c.sample_length, c.n_tokens, c.seed, c.keeps, c.seconds, c.device_kind, c.numerics_version,
               a.nbytes, a.uri, c.token_hash, c.model_id, c.job_id, c.created_at
        FROM calibrations c JOIN models mo ON mo.id = c.model_id LEFT JOIN artefacts a ON a.id = c.artefact_id
    """,
    "sweeps_overview": """
        SELECT s.id, mo.name AS model, st.name AS study, j.state, s.n_cells, coalesce(c.n_recorded, 0) AS n_recorded,
               CAST(JSON_TEXT(j.result, reused) AS integer) AS n_reused, JSON_LENGTH(s.configs) AS n_configs,
               c.device_kind, c.cell_seconds, w.worker_seconds,
               SECONDS(j.finished_at, w.started_at) AS seconds, w.started_at, j.finished_at,
               coalesce(w.n_attempts, 0) AS n_attempts, s.job_id, s.model_id, s.calibration_id, j.study_id, s.created_at
        FROM sweeps s JOIN models mo ON mo.id = s.model_id JOIN jobs j ON j.id = s.job_id
        LEFT JOIN studies st ON st.id = j.study_id
        LEFT JOIN (SELECT sweep_id, count(*) AS n_recorded, sum(seconds) AS cell_seconds,
                          CASE WHEN min(device_kind) = max(device_kind) THEN min(device_kind) ELSE 'mixed' END
                            AS device_kind
                   FROM measurements GROUP BY sweep_id) c ON c.sweep_id = s.id
        LEFT JOIN (SELECT p.whole_id, min(a.started_at) AS started_at, count(*) AS n_attempts,
                          sum(SECONDS(a.finished_at, a.started_at)) AS worker_seconds
                   FROM attempts a JOIN (SELECT id, coalesce(JSON_TEXT(params, part_of), id) AS whole_id
                                         FROM jobs WHERE kind = 'sweep') p ON p.id = a.job_id
                   WHERE a.started_at IS NOT NULL GROUP BY p.whole_id) w ON w.whole_id = s.job_id
    """,
    "compressions_overview": """
        SELECT c.id, mo.name AS model, s.name AS study, al.name AS allocation, al.kind, c.expected_bytes,
               c.actual_bytes, al.matrix_bytes, al.bits_per_weight, c.seconds, c.device_kind, c.numerics_version,
               a.uri, c.content_hash, c.allocation_id, c.calibration_id, c.model_id, c.job_id, al.study_id, c.created_at
        FROM compressions c JOIN models mo ON mo.id = c.model_id JOIN allocations al ON al.id = c.allocation_id
        LEFT JOIN artefacts a ON a.id = c.artefact_id LEFT JOIN studies s ON s.id = al.study_id
    """,
    "evaluation_windows": """
        SELECT i.id, mo.name AS model, al.name AS allocation, e.task, e.dataset, e.split, i.item_idx, i.nll, i.n_tokens,
               e.token_hash, i.evaluation_id, e.compression_id, e.model_id
        FROM evaluation_items i JOIN evaluations e ON e.id = i.evaluation_id JOIN models mo ON mo.id = e.model_id
        LEFT JOIN compressions c ON c.id = e.compression_id
        LEFT JOIN allocations al ON al.id = c.allocation_id
    """,
    "fit_parameters_overview": """
        SELECT p.id, mo.name AS model, f.form, p.name, p.layer_idx, p.projection, p.expert_idx, p.value,
               p.standard_error, p.low, p.high, f.codebook, f.states, f.chosen, p.fit_id, f.calibration_id, f.model_id
        FROM fit_parameters p JOIN fits f ON f.id = p.fit_id JOIN models mo ON mo.id = f.model_id
    """,
    "studies_overview": """
        SELECT s.id, s.name, mo.name AS model, s.state, s.reason, s.on_no_go,
               coalesce(j.n_jobs, 0) AS n_jobs, coalesce(j.n_ended, 0) AS n_ended, coalesce(j.n_failed, 0) AS n_failed,
               coalesce(g.n_gates, 0) AS n_gates, coalesce(g.n_go, 0) AS n_go, coalesce(g.n_no_go, 0) AS n_no_go,
               JSON_TEXT(s.headline, sentence) AS headline, SECONDS(s.finished_at, s.created_at) AS seconds,
               s.finished_at, s.model_id, s.created_at
        FROM studies s JOIN models mo ON mo.id = s.model_id
        LEFT JOIN (SELECT study_id, count(*) AS n_jobs,
                          count(CASE WHEN state IN ('succeeded', 'failed', 'cancelled', 'dead', 'skipped') THEN 1 END)
                            AS n_ended,
                          count(CASE WHEN state IN ('failed', 'dead') THEN 1 END) AS n_failed
                   FROM jobs GROUP BY study_id) j ON j.study_id = s.id
        LEFT JOIN (SELECT study_id, count(*) AS n_gates, count(CASE WHEN verdict = 'GO' THEN 1 END) AS n_go,
                          count(CASE WHEN verdict = 'NO-GO' THEN 1 END) AS n_no_go
                   FROM gates GROUP BY study_id) g ON g.study_id = s.id
    """,
    "workers_overview": """
        SELECT w.id, w.name, w.hostname, w.pid, w.device, w.device_kind, w.device_uuid, w.state, w.heartbeat_at,
               w.drain_requested, coalesce(a.n_attempts, 0) AS n_attempts, coalesce(a.n_lost, 0) AS n_lost,
               a.busy_seconds, a.running_job_id, w.created_at
        FROM workers w
        LEFT JOIN (SELECT worker_id, count(*) AS n_attempts, count(CASE WHEN state = 'lost' THEN 1 END) AS n_lost,
                          sum(SECONDS(finished_at, started_at)) AS busy_seconds,
                          max(CASE WHEN state = 'running' THEN job_id END) AS running_job_id
                   FROM attempts GROUP BY worker_id) a ON a.worker_id = w.id
    """,
    "events": """
        SELECT e.id, e.created_at, j.kind AS job_kind, j.step, s.name AS study, e.kind, e.state,
               JSON_TEXT(e.payload, message) AS message, e.job_id, e.attempt_id, e.study_id
        FROM job_events e JOIN jobs j ON j.id = e.job_id LEFT JOIN studies s ON s.id = e.study_id
    """,
    "probes_overview": """
        SELECT t.id, t.hostname, t.device_kind, t.device_name, t.threads, t.numerics_version, t.seconds, t.job_id,
               t.created_at
        FROM throughputs t
    """,
}

#: dialect -> our own word -> what it is there
_WORDS: Mapping[str, Mapping[str, str]] = {
    "sqlite": {
        "SECONDS": r"((julianday(\1) - julianday(\2)) * 86400.0)",
        "JSON_TEXT": r"json_extract(\1, '$.\2')",
        "JSON_LENGTH": r"json_array_length(\1)",
    },
    "postgresql": {
        "SECONDS": r"CAST(extract(epoch FROM (\1 - \2)) AS double precision)",
        "JSON_TEXT": r"(\1 ->> '\2')",
        "JSON_LENGTH": r"jsonb_array_length(\1)",
    },
}


def view_text(name: str, dialect: str) -> str:
    """The view's SELECT in the words of "sqlite" or "postgresql"."""
    text = VIEWS[name].strip()
    for word, meaning in _WORDS[dialect].items():
        text = re.sub(rf"\b{word}\(([\w.]+)(?:, ([\w.]+))?\)", meaning, text)
    return text


def create_statements(dialect: str) -> list[str]:
    """CREATE VIEW for each, in order."""
    return [f"CREATE VIEW {name} AS {view_text(name, dialect)}" for name in VIEWS]


def drop_statements(existing: Collection[str]) -> list[str]:
    """DROP VIEW for each that exists, in reverse order. An older schema may have a table of a view's name."""
    return [f"DROP VIEW {name}" for name in reversed(VIEWS) if name in existing]
