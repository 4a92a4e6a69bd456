"""Every kind of problem that this service answers with: the one table of slugs.

A slug is a promise: programs branch on it. It may get another sentence, never another meaning; tests hold that every
problem raised anywhere is in the table, with one of its statuses.
"""

from __future__ import annotations

from dataclasses import dataclass

TYPE = "urn:bitbudget:problem:"


@dataclass(frozen=True, slots=True)
class ProblemKind:
    """One slug: what it means, and what the caller can do about it."""

    slug: str
    statuses: tuple[int, ...]
    meaning: str
    cure: str

    @property
    def type(self) -> str:
        """The ``type`` of RFC 9457."""
        return TYPE + self.slug

    @property
    def title(self) -> str:
        """The same words at every occurrence, as RFC 9457 asks."""
        return self.slug.replace("-", " ").capitalize().replace("Sql", "SQL")


_TABLE: tuple[tuple[str, int | tuple[int, ...], str, str], ...] = (
    # the request itself
    ("invalid-request", 422, "A field, parameter or header has no valid value.", "Read errors: field and message."),
    ("malformed-body", 400, "The body cannot be read as JSON.", "Send UTF-8 JSON, nested less deeply."),
    ("invalid-yaml", 422, "The body is not valid YAML, or names a key twice.", "Mend the line that the detail names."),
    ("too-large", 413, "The body is larger than the server reads.", "Send less, or raise the server's limit."),
    ("body-timeout", 408, "The body took too long to arrive.", "Send it again over a faster line."),
    ("unsupported-media-type", 415, "The body's Content-Type is not read here.", "Send the type that is named."),
    ("not-found", 404, "No route, or no row with this id.", "List what there is; /openapi.json has the routes."),
    ("method-not-allowed", 405, "The path exists, the method does not.", "Use a method of the Allow header."),
    ("http-error", (408, 410, 411, 414, 416, 421, 426, 429, 431, 501), "Refused by the HTTP layer.", "See the status."),
    # who asks
    ("host-not-allowed", (400, 403), "The Host header is foreign or malformed.", "Set BITBUDGET_ALLOWED_HOSTS."),
    ("cross-site-request", 403, "A page of another site sent an unsafe request.", "Send it from our own page."),
    ("token-missing", 401, "The server asks for a token.", "Send Authorization: Bearer, or log in at /login."),
    ("token-invalid", 401, "The token is unknown, expired or revoked.", "Make one: bitbudget tokens create."),
    ("scope-missing", 403, "The token's scope does not reach so far.", "Use a token of the scope that is named."),
    # repeating
    ("idempotency-key-reused", 422, "The Idempotency-Key was used for another request.", "Choose a new key."),
    # naming many
    ("no-filter", 422, "The request would reach everything.", "Give at least one filter."),
    # files and models
    ("path-not-allowed", 403, "A path leads outside the allowed folders.", "Add its folder to BITBUDGET_MODEL_ROOTS."),
    ("path-not-usable", 422, "A path that cannot be looked up.", "Give the path of a folder or file that exists."),
    ("model-not-found", 422, "No checkpoint lies there, or the hub id is none.", "Check source and revision."),
    ("model-not-fetched", 409, "The hub model is not on disk yet.", "Wait for its fetch job."),
    ("text-not-found", 422, "The text named is not there.", "Check the path, or pin the hub dataset."),
    ("archive-not-found", 422, "The calibration archive named is not there.", "Check the path."),
    ("shapes-unknown", 422, "A hub model's shapes cannot be read from here.", "Plan where there is a network."),
    ("unknown-device", 422, "No rates are known of this device.", "POST /api/v1/probes on it first."),
    # states
    ("wrong-state", 409, "The job or study is not in a state that allows this.", "Look at its state first."),
    (
        "already-retired",
        409,
        "The measurement counts no more already.",
        "List measurements: its cell's new one has another id.",
    ),
    ("nothing-stale", 409, "Nothing of the study is stale.", "Nothing needs to be computed again."),
    ("conflict", 409, "Another request wrote the same thing at the same moment.", "Send this one again."),
    # what is missing to compute
    ("calibration-missing", 409, "The model has no calibration yet.", "POST /api/v1/calibrations first."),
    ("nothing-measured", 409, "No config is measured under this calibration.", "POST /api/v1/sweeps first."),
    ("sensitivity-missing", 409, "Matrices have no sensitivity by the method.", "POST /api/v1/sensitivities first."),
    ("no-certificate", 409, "Nothing is proven of this kind of allocation.", "Allocate with kind optimal."),
    ("certificate-stale", 409, "What the allocation was chosen from was measured anew.", "Allocate again."),
    ("not-comparable", 422, "Evaluations on different windows cannot be compared.", "Evaluate on equal texts."),
    ("unknown-matrix", 422, "No such layer, projection or expert.", "Choose out of those that are named."),
    # what compress_core refuses: its errors' codes
    ("compress-core-error", 422, "The numerics refused.", "Read the detail."),
    ("invalid-config", 422, "A compression config or option is not valid.", "Read which field and why."),
    ("rank-too-large", 422, "A rank exceeds the matrix.", "At most min(out_features, in_features)."),
    ("invalid-checkpoint", 422, "A checkpoint is missing, cut or no safetensors.", "Fetch or convert it again."),
    ("unsupported-architecture", 422, "Decoder layers or projections are not found.", "See the guide's list."),
    ("non-finite-values", 422, "NaN or infinity in what was given.", "No retry helps: mend the source."),
    ("invalid-calibration", 422, "Calibration data is missing, too short or of another model.", "Give more text."),
    ("invalid-packed-file", 422, "A packed file disagrees with its own header.", "Compress again."),
    ("fit-failed", 422, "Too few or degenerate observations.", "Measure more configs."),
    ("infeasible-budget", 422, "No allocation fits the budget.", "Ask for at least smallest_bytes."),
    ("device-not-found", 422, "The device asked for is not there.", "Name one that is."),
    ("out-of-memory", 422, "Device or host ran out of memory.", "Smaller batches may help."),
    ("work-in-progress", 422, "Another process works in the same folder.", "Wait, send it again."),
    ("interrupted", 422, "Asked to stop.", "Send it again."),
    # exports and streams
    ("parquet-not-installed", 501, "The server has no library for Parquet.", "pip install 'bitbudget[server]'."),
    ("too-many-streams", 503, "As many event streams are open as the server allows.", "Close some, or wait."),
    # SQL console
    ("sql-not-allowed", 422, "The query does more than read the public views.", "GET /api/v1/sql/views lists them."),
    ("sql-invalid", 422, "The database does not understand the query.", "Read the detail."),
    ("sql-timeout", 422, "The query took longer than it may.", "Ask for less, or filter more."),
    ("sql-too-large", 422, "The answer or a value in it is too large.", "Ask for fewer rows or columns."),
    ("sql-busy", 429, "As many queries run as may at once.", "Wait as Retry-After says."),
    ("sql-unavailable", 503, "The database is away, or is not fenced against queries.", "Read the detail."),
    # the server's side
    ("database-unavailable", 503, "The database is locked or away; nothing was written.", "Wait, send it again."),
    ("internal-error", 500, "An unexpected error; the log has it under trace_id.", "Report it with its trace_id."),
)

PROBLEMS: dict[str, ProblemKind] = {
    slug: ProblemKind(slug, status if isinstance(status, tuple) else (status,), meaning, cure)
    for slug, status, meaning, cure in _TABLE
}

#: what Starlette and FastAPI raise by status alone
BY_STATUS: dict[int, str] = {
    400: "malformed-body",
    404: "not-found",
    405: "method-not-allowed",
    413: "too-large",
    415: "unsupported-media-type",
}
