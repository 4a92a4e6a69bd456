"""Queries worth asking, by name: one text for both databases, with parameters that have defaults."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from typing import Any, Literal

from results_db.sql.result import QueryRefused, Refusal


@dataclass(frozen=True, slots=True)
class Parameter:
    """A ``:name`` of a canned query."""

    name: str
    #: "time" is a text ``YYYY-MM-DD HH:MM:SS``, UTC
    kind: Literal["text", "integer", "time"]
    meaning: str
    #: of a time: hours before now; None = nothing is asked for
    default: str | int | None = None

    def value(self, given: Any, now: datetime) -> str | int | None:
        """What the query is asked with.

        Raises:
            QueryRefused: invalid: it is not of its kind.
        """
        if given is None or given == "":
            if self.kind == "time" and self.default is not None:
                return f"{now - timedelta(hours=int(self.default)):%Y-%m-%d %H:%M:%S}"
            return self.default
        if self.kind == "text":
            return str(given)
        try:
            if self.kind == "integer" and not isinstance(given, bool | float):
                return int(given)
            if self.kind == "time":
                moment = datetime.fromisoformat(str(given))
                return f"{moment.astimezone(UTC) if moment.tzinfo else moment:%Y-%m-%d %H:%M:%S}"
        except (ValueError, OverflowError):  # the latter of a zone's time before the first year
            pass  # told below, with what would do
        wanted = "a whole number" if self.kind == "integer" else "a time such as 2026-01-31 18:00"
        raise QueryRefused(Refusal.INVALID, f"parameter {self.name}: give {wanted}, not {given!r}")


@dataclass(frozen=True, slots=True)
class CannedQuery:
    """A question and its SQL."""

    name: str
    #: as a person would ask it
    title: str
    sql: str
    parameters: tuple[Parameter, ...] = ()

    def values(self, given: Mapping[str, Any], *, now: datetime | None = None) -> dict[str, Any]:
        """Every parameter's value.

        Raises:
            QueryRefused: invalid: it has no such parameter, or the value is not of its kind.
        """
        if unknown := given.keys() - {parameter.name for parameter in self.parameters}:
            known = ", ".join(parameter.name for parameter in self.parameters) or "none"
            raise QueryRefused(Refusal.INVALID, f"{self.name} has no parameter {min(unknown)}: it has {known}")
        moment = now or datetime.now(UTC)
        return {p.name: p.value(given.get(p.name), moment) for p in self.parameters}


_STUDY = Parameter("study", "text", "name of a study; empty = all")
_MODEL = Parameter("model", "text", "name of a model; empty = all")
_LIMIT = Parameter("limit", "integer", "at most so many rows", 10)
_SINCE = Parameter("since", "time", "not older than this, UTC; empty = the last 24 hours", 24)

_QUERIES = (
    CannedQuery(
        "worst-matrices",
        "Which ten matrices are worst at 2 bits?",
        """
        SELECT model, layer_idx, projection, expert_idx, min(calibration_weighted_error) AS best_error,
               max(calibration_weighted_error) AS worst_error, count(*) AS n_configs
        FROM errors WHERE b_q = :bits AND (:model IS NULL OR model = :model)
        GROUP BY model, layer_idx, projection, expert_idx
        ORDER BY best_error DESC, layer_idx, projection LIMIT :limit
        """,
        (Parameter("bits", "integer", "b_q", 2), _MODEL, _LIMIT),
    ),
    CannedQuery(
        "sweep-cost",
        "What did this night's sweep cost?",
        """
        SELECT id, model, study, state, device_kind, n_cells, n_recorded, n_reused, n_attempts, seconds,
               worker_seconds, cell_seconds, worker_seconds / nullif(n_recorded, 0) AS seconds_a_cell, started_at
        FROM sweeps_overview WHERE created_at >= :since ORDER BY created_at DESC
        """,
        (_SINCE,),
    ),
    CannedQuery(
        "failed-attempts",
        "Which attempts failed, and how much memory had they taken?",
        """
        SELECT finished_at, kind, step, study, number, state, worker, device, exit_code, signal, peak_rss_bytes,
               peak_gpu_bytes, seconds, error_code, error_message, job_id
        FROM attempts_overview WHERE state IN ('failed', 'lost') AND (:study IS NULL OR study = :study)
        ORDER BY finished_at DESC LIMIT :limit
        """,
        (_STUDY, _LIMIT),
    ),
    CannedQuery(
        "predicted-vs-realised",
        "Did the predictions come true?",
        """
        SELECT study, validation, allocation, kind, matrix_bytes, predicted_kl, realised_kl, realised_se, ratio, ppl
        FROM predicted_vs_realised WHERE kind <> 'original' AND (:study IS NULL OR study = :study)
        ORDER BY created_at DESC, realised_kl
        """,
        (_STUDY,),
    ),
    CannedQuery(
        "bytes-by-projection",
        "Where did an allocation spend its bytes?",
        """
        SELECT projection, CAST(sum(nbytes) AS bigint) AS nbytes,
               sum(nbytes) * 1.0 / (SELECT sum(nbytes) FROM allocation_items a WHERE a.allocation_id = i.allocation_id)
                 AS share,
               count(*) AS n_matrices, avg(b_q * 1.0) AS mean_b_q, avg(rank * 1.0) AS mean_rank
        FROM allocation_items i
        WHERE allocation_id = coalesce(:allocation, (SELECT id FROM allocations_overview
                                                     ORDER BY created_at DESC, id DESC LIMIT 1))
        GROUP BY projection, allocation_id ORDER BY nbytes DESC
        """,
        (Parameter("allocation", "text", "id of an allocation; empty = the newest"),),
    ),
    CannedQuery(
        "optimal-vs-uniform",
        "How do the packed models compare, bytes and metric?",
        """
        SELECT study, model, allocation, task, dataset, split, metric, value, ci_low, ci_high, nll, actual_bytes
        FROM evaluations_overview WHERE (:study IS NULL OR study = :study)
        ORDER BY created_at DESC, actual_bytes LIMIT :limit
        """,
        (_STUDY, Parameter("limit", "integer", "at most so many rows", 50)),
    ),
    CannedQuery(
        "open-gates",
        "Which gates did not say GO, and why?",
        """
        SELECT study, phase, name, verdict, value, threshold, ci_low, ci_high, unit, needed_samples, explanation,
               fallback, stale_at
        FROM gates_overview WHERE verdict <> 'GO' AND (:study IS NULL OR study = :study)
        ORDER BY created_at DESC, phase
        """,
        (_STUDY,),
    ),
    CannedQuery(
        "most-sensitive",
        "Which matrices are worth their bytes?",
        """
        SELECT model, layer_idx, projection, expert_idx, value, low, high, n_anchors, own_weight
        FROM sensitivities
        WHERE method = :method AND applies_to = 'all' AND (:model IS NULL OR model = :model)
        ORDER BY value DESC, layer_idx, projection LIMIT :limit
        """,
        (_MODEL, Parameter("method", "text", "how they were measured", "kl_anchor"), _LIMIT),
    ),
    CannedQuery(
        "error-by-config",
        "What does a config cost, over all matrices?",
        """
        SELECT model, codebook, states, b_q, rank, avg(bits_per_weight) AS bits_per_weight,
               avg(calibration_weighted_error) AS mean_error, min(calibration_weighted_error) AS least_error,
               max(calibration_weighted_error) AS greatest_error, avg(seconds) AS mean_seconds, count(*) AS n_matrices
        FROM errors WHERE (:model IS NULL OR model = :model)
        GROUP BY model, codebook, states, b_q, rank ORDER BY model, mean_error
        """,
        (_MODEL,),
    ),
    CannedQuery(
        "fit-quality",
        "Which form of error model predicts best?",
        """
        SELECT model, form, codebook, states, metric, n_observations, r2, r2_log, cv_error, cv_layer_error, chosen,
               stale_at, created_at, id
        FROM fits_overview WHERE (:model IS NULL OR model = :model) ORDER BY created_at DESC, cv_error LIMIT :limit
        """,
        (_MODEL, Parameter("limit", "integer", "at most so many rows", 20)),
    ),
    CannedQuery(
        "cost-by-kind",
        "Where did the workers' time go?",
        """
        SELECT kind, device_kind, count(*) AS n_attempts, sum(seconds) AS worker_seconds, max(seconds) AS longest,
               max(peak_rss_bytes) AS peak_rss_bytes, max(peak_gpu_bytes) AS peak_gpu_bytes,
               count(CASE WHEN state IN ('failed', 'lost') THEN 1 END) AS n_failed
        FROM attempts_overview WHERE created_at >= :since
        GROUP BY kind, device_kind ORDER BY worker_seconds DESC
        """,
        (_SINCE,),
    ),
    CannedQuery(
        "workers",
        "Which workers are there, and what do they do?",
        """
        SELECT name, hostname, device, state, heartbeat_at, drain_requested, n_attempts, n_lost, busy_seconds,
               running_job_id
        FROM workers_overview ORDER BY state DESC, heartbeat_at DESC
        """,
    ),
    CannedQuery(
        "what-is-stale",
        "What was computed from something that counts no more?",
        """
        SELECT 'fit' AS what, id, model AS of, stale_at, stale_reason FROM fits_overview WHERE stale_at IS NOT NULL
        UNION ALL
        SELECT 'allocation', id, model, stale_at, stale_reason FROM allocations_overview WHERE stale_at IS NOT NULL
        UNION ALL
        SELECT 'gate', id, study, stale_at, stale_reason FROM gates_overview WHERE stale_at IS NOT NULL
        ORDER BY stale_at DESC
        """,
    ),
    CannedQuery(
        "what-happened",
        "What happened last?",
        """
        SELECT id, created_at, study, job_kind, step, kind, state, message, job_id
        FROM events WHERE kind <> 'progress' AND (:study IS NULL OR study = :study) ORDER BY id DESC LIMIT :limit
        """,
        (_STUDY, Parameter("limit", "integer", "at most so many rows", 50)),
    ),
)


def _dedented(query: CannedQuery) -> CannedQuery:
    lines = query.sql.strip("\n").rstrip().splitlines()
    text = "\n".join(line[8:] for line in lines)
    return CannedQuery(query.name, query.title, text, query.parameters)


#: name -> query
CANNED: dict[str, CannedQuery] = {query.name: _dedented(query) for query in _QUERIES}
