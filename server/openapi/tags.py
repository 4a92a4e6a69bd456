"""The nouns of the API in the order in which a newcomer meets them."""

from __future__ import annotations

TAGS: dict[str, str] = {
    "studies": "Phases 0 to 5 of the plan for one model, as a tree of jobs with gates between them.",
    "plans": "What a study would cost before it is started, and how fast the workers' devices are.",
    "models": "Checkpoints: local folders of safetensors, or hub ids pinned to a commit.",
    "calibrations": "Second moments H of the activations, from which errors get their weights.",
    "sensitivities": "Nats of KL per unit of error, matrix by matrix, and what was measured for them.",
    "sweeps": "Requests to measure configs on matrices.",
    "measurements": "Error and bytes of one (matrix, config); a bad one can be invalidated.",
    "fits": "Models of the error over bits and rank.",
    "allocations": "One config per matrix under a byte budget, with the proof of its optimality.",
    "compressions": "Packed models on disk.",
    "evaluations": "Metrics of a model on a text, with their intervals.",
    "validations": "Predicted beside realised loss, on text that nothing was chosen on.",
    "gates": "The plan's criteria, decided from the database.",
    "jobs": "Units of work: look, follow, cancel, retry, pause; many at once.",
    "queue": "The queue's switch, and what waits in it.",
    "workers": "The processes that run jobs.",
    "sql": "Read-only questions in SQL to the public views.",
    "exports": "Whole tables as files: JSON lines, CSV, Parquet.",
    "health": "Whether the service lives, is ready, and how it does.",
    "problems": "Every kind of problem that this API answers with.",
}
