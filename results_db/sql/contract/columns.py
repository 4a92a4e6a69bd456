"""The words in which a view is described, and columns that mean the same in every view."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

#: what both databases hold: ``time`` is UTC, on SQLite the text ``YYYY-MM-DD HH:MM:SS.ffffff``; ``boolean`` is 0 or 1
#: there
Kind = Literal["text", "integer", "real", "boolean", "time"]


@dataclass(frozen=True, slots=True)
class Column:
    """One column of a view."""

    name: str
    kind: Kind
    #: "bytes", "seconds", "nats per token", …; None where a number counts or a text names
    unit: str | None
    meaning: str


@dataclass(frozen=True, slots=True)
class View:
    """One view of the contract."""

    name: str
    #: ends the sentence "a row is …"
    row_is: str
    columns: tuple[Column, ...]


def text(name: str, meaning: str) -> Column:
    return Column(name, "text", None, meaning)


def integer(name: str, meaning: str, unit: str | None = None) -> Column:
    return Column(name, "integer", unit, meaning)


def real(name: str, meaning: str, unit: str | None = None) -> Column:
    return Column(name, "real", unit, meaning)


def boolean(name: str, meaning: str) -> Column:
    return Column(name, "boolean", None, meaning)


def time(name: str, meaning: str) -> Column:
    return Column(name, "time", "UTC", meaning)


#: name -> column, for names that mean one thing wherever they stand
_SHARED: dict[str, Column] = {
    column.name: column
    for column in (
        text("model", "name of the model; names may repeat, model_id does not"),
        text("study", "name of the study; null outside a study"),
        integer("layer_idx", "decoder layer, from 0"),
        text("projection", "q, k, v, o, gate, up or down"),
        integer("expert_idx", "expert of the layer; -1 where there are no experts"),
        integer("b_q", "bits of a weight in Q, 2 to 8"),
        integer("rank", "rank of the factors L and R; 0 = none"),
        integer("factor_bits_l", "bits of an entry of L"),
        integer("factor_bits_r", "bits of an entry of R"),
        text("codebook", "trellis, e8, scalar, raw, rtn or gptq"),
        integer("states", "states of the trellis; null for other codebooks, in fits for all"),
        real("calibration_weighted_error", "tr(D H Dᵀ) / tr(W H Wᵀ), D = W − Ŵ", "1"),
        real("normalized_mse", "‖W − Ŵ‖² / ‖W‖²", "1"),
        real("raw_mse", "mean of (W − Ŵ)²", "weight²"),
        integer("nbytes", "size as serialised", "bytes"),
        real("bits_per_weight", "8 × bytes / weights", "bits"),
        integer("out_features", "rows of the weight"),
        integer("in_features", "columns of the weight"),
        text("config_hash", "identifies every field of the compression config"),
        text("device_kind", "cpu or cuda; results of the two are kept apart"),
        integer("numerics_version", "raised when results change; errors of two versions must not be mixed"),
        time("created_at", "when the row was written"),
        text("model_id", "id of the model: models_overview.id"),
        text("calibration_id", "id of the calibration: calibrations_overview.id"),
        text("sweep_id", "id of the sweep that measured it: sweeps_overview.id"),
        text("study_id", "id of the study; null outside a study: studies_overview.id"),
        text("job_id", "id of the job: jobs_overview.id"),
        text("allocation_id", "id of the allocation: allocations_overview.id"),
        text("compression_id", "id of the packed model; null = the original: compressions_overview.id"),
        text("token_hash", "hash of the exact tokens: equal hashes are equal texts, window by window"),
        time("stale_at", "since when something that it was computed from counts no more; null = it stands"),
        text("stale_reason", "what counts no more; null = it stands"),
        real("seconds", "how long it took", "seconds"),
    )
}


def shared(names: str) -> tuple[Column, ...]:
    """The columns of these names, separated by blanks.

    Raises:
        KeyError: a name has no shared meaning.
    """
    return tuple(_SHARED[name] for name in names.split())
