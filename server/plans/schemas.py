"""What a plan is asked for, and what it says."""

from __future__ import annotations

from typing import Annotated, Any

from pydantic import BaseModel, ConfigDict, Field

from server.studies.schemas import StudyConfig


class PlanRequest(BaseModel):
    """The JSON body of POST /plans; with content type application/yaml the body is the config itself."""

    model_config = ConfigDict(
        extra="forbid",
        json_schema_extra={
            "examples": [
                {
                    "config": {
                        "name": "seven billion",
                        "model": {"source": "Qwen/Qwen2-7B"},
                        "grid": {"b_q": [2, 3, 4], "rank": [0, 64]},
                        "objective": "error",
                        "phases": [1, 2, 3],
                    },
                    "device": "RTX 3090",
                }
            ]
        },
    )

    config: StudyConfig
    #: "cpu", or a card by name: one that a probe measured, or one whose published peaks are known
    device: Annotated[str, Field(max_length=200)] | None = None


class PlannedModel(BaseModel):
    name: str
    #: where the shapes come from
    origin: str
    n_layers: int
    n_matrices: int
    n_weights: int
    original_bytes: int


class PlannedDevice(BaseModel):
    name: str
    kind: str
    #: "measured", "estimated" from a card's published peaks, or "unknown"
    source: str
    #: times may be off by this factor either way
    uncertainty: float | None
    #: share of the processor that the probe had
    busy: float | None
    memory: int | None
    device_memory: int | None


class PlannedStep(BaseModel):
    step: str
    #: what is counted
    unit: str
    count: int
    #: jobs of the study
    jobs: int
    #: under the load that the probe found; null = not priced
    seconds: float | None
    #: of the study's seconds; null where some are not known
    share: float | None
    #: bytes at the peak, of the host and of the card
    memory: int | None
    device_memory: int | None
    #: bytes that stay on the disk, and bytes there while the step runs
    disk: int
    scratch: int
    #: what takes most memory
    largest: str | None


class PlanTotals(BaseModel):
    jobs: int
    #: matrix × config of the sweep, and those of them that belong to the grid: the others are rank 0 and baselines
    cells: int
    grid_cells: int
    seconds: float | None
    #: on a machine that does nothing else
    idle_seconds: float | None
    #: with the uncertainty taken off and put on
    low_seconds: float | None
    high_seconds: float | None
    memory: int | None
    device_memory: int | None
    disk: int


class PlanFinding(BaseModel):
    """Something that does not fit."""

    step: str
    what: str
    needed: int
    available: int
    cure: str
    message: str


class Plan(BaseModel):
    """What a study costs, and whether it fits."""

    model: PlannedModel
    device: PlannedDevice
    steps: list[PlannedStep]
    totals: PlanTotals
    fits: bool
    findings: list[PlanFinding]
    #: what was assumed, and what would make the plan surer
    notes: list[str]
    #: body of POST /probes that measures what this plan needs
    probe: dict[str, Any]
