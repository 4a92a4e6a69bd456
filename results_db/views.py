"""SQL views: the public contract of the database. Names and columns are kept; new columns go to the end."""

from __future__ import annotations

from collections.abc import Collection

#: view name -> SELECT that is valid on SQLite and on PostgreSQL
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
               j.finished_at, (SELECT count(*) FROM attempts a WHERE a.job_id = j.id) AS attempts, j.priority
        FROM jobs j LEFT JOIN studies s ON s.id = j.study_id
    """,
    "attempts_overview": """
        SELECT a.id, a.job_id, j.kind, j.step, a.number, a.state, w.name AS worker, w.device, a.started_at,
               a.finished_at, a.exit_code, a.signal, a.peak_rss_bytes, a.peak_gpu_bytes
        FROM attempts a JOIN jobs j ON j.id = a.job_id LEFT JOIN workers w ON w.id = a.worker_id
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
               e.created_at
        FROM evaluations e JOIN models mo ON mo.id = e.model_id
        LEFT JOIN compressions c ON c.id = e.compression_id
        LEFT JOIN allocations al ON al.id = c.allocation_id
    """,
    "gates_overview": """
        SELECT g.id, s.name AS study, g.phase, g.name, g.verdict, g.value, g.threshold, g.ci_low, g.ci_high, g.unit,
               g.explanation, g.fallback, g.needed_samples, g.study_id, g.created_at, g.stale_at, g.stale_reason
        FROM gates g JOIN studies s ON s.id = g.study_id
    """,
}


def create_statements() -> list[str]:
    """CREATE VIEW for each, in order."""
    return [f"CREATE VIEW {name} AS {query.strip()}" for name, query in VIEWS.items()]


def drop_statements(existing: Collection[str]) -> list[str]:
    """DROP VIEW for each that exists, in reverse order. An older schema may have a table of a view's name."""
    return [f"DROP VIEW {name}" for name in reversed(VIEWS) if name in existing]
