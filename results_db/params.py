"""Parameters of every kind of job: written by the server, read by the worker, one definition for both."""

from __future__ import annotations

from typing import Annotated, Any, Literal, Self

from pydantic import (
    BaseModel,
    ConfigDict,
    Field,
    SerializerFunctionWrapHandler,
    model_serializer,
    model_validator,
)

from results_db.constraints import ConstraintSpec
from results_db.states import JobKind

#: fields of compress_core.config.CompressionConfig, as its to_dict writes them
ConfigFields = dict[str, Any]
#: what numpy, torch and an INTEGER column all take
Seed = Annotated[int, Field(ge=0, lt=2**31)]
#: 5 to 15 µs a character to read. The 100,000 values that YAML may hold (compress_core.strict_yaml) are 6,200 matrices,
#: 650,000 characters as they are written; the 560 of a model of 72B weights take 57,000, 1,568 of a mixture 163,000
OverridesYaml = Annotated[str, Field(min_length=1, max_length=700_000)]
#: what a calibration stores: H of every layer, or only the tokens that H is computed from
Keep = Literal["hessians", "tokens"]


class Params(BaseModel):
    """Root of the parameters: frozen, unknown fields refused."""

    model_config = ConfigDict(frozen=True, extra="forbid")


class TextSpec(Params):
    """Where text comes from. Splits are disjoint by document, whatever the source."""

    kind: Literal["stdlib", "file", "dataset"] = "stdlib"
    #: file: .txt, .jsonl (also .gz) or .parquet; dataset: a folder, or a hub id with its revision. Paths are relative
    #: to the server's working directory
    path: Annotated[str, Field(min_length=1, max_length=4096)] | None = None
    #: field of a JSON record, or column of Parquet or a dataset, that holds the text
    field: Annotated[str, Field(min_length=1, max_length=200)] = "text"
    #: configuration of a dataset, such as "en" of C4
    config: Annotated[str, Field(min_length=1, max_length=200)] | None = None
    #: the dataset's own split that is read; ours are made from it
    dataset_split: Annotated[str, Field(min_length=1, max_length=200)] = "train"
    #: commit of a hub dataset
    revision: Annotated[str, Field(pattern="^[0-9a-f]{40}$")] | None = None
    #: read only so many documents, the first ones; null = all
    max_documents: Annotated[int, Field(ge=1, le=10**9)] | None = None

    @model_serializer(mode="wrap")
    def _without_defaults(self, serialize: SerializerFunctionWrapHandler) -> dict[str, Any]:
        """What a text does not use is not written: texts described before a field existed keep their hashes."""
        fields = type(self).model_fields
        values: dict[str, Any] = serialize(self)
        return {
            name: value
            for name, value in values.items()
            if name in ("kind", "path", "split") or value != fields[name].default
        }

    @property
    def name(self) -> str:
        """Short name for tables: "stdlib", the file's name, or the dataset's with its configuration."""
        if self.path is None:
            return self.kind
        base = self.path.rstrip("/").rsplit("/", 1)[-1]
        return base if self.config is None else f"{base}-{self.config}"

    @property
    def identity(self) -> tuple[str | None, ...]:
        """Two texts that differ here share no file and no split of a dataset, as far as their names tell."""
        return (self.kind, self.path, self.config, self.dataset_split)


class DatasetSpec(TextSpec):
    """A text that models are judged on: its own report split, or all of a file that nothing else is drawn from."""

    split: Literal["report", "whole"] = "report"

    @property
    def text(self) -> TextSpec:
        """The text alone."""
        return TextSpec(**self.model_dump(exclude={"split"}))


class WindowSpec(Params):
    """Which windows of a text's split."""

    length: Annotated[int, Field(ge=8, le=131_072)] = 256
    #: at most so many windows; null = all
    count: Annotated[int, Field(ge=1)] | None = None
    seed: Seed = 0


class FetchParams(Params):
    model_id: str


class CalibrateParams(Params):
    """H from a text, or from an archive of second moments that somebody has already (``npz``)."""

    model_id: str
    text: TextSpec = TextSpec()
    #: windows are drawn from the "calibrate" split
    windows: WindowSpec = WindowSpec(count=64)
    #: of weights and activations; H is summed in float64 from float32 products either way
    dtype: Literal["float32", "bfloat16"] = "float32"
    #: "tokens": H is not stored, every job that needs it computes it layer by layer
    keep: Keep = "hessians"
    #: .npz instead of text and windows; relative to the server's working directory
    npz: str | None = None
    #: what inputs get that the archive lacks; null = they are an error
    npz_fill: Literal["identity"] | None = None

    @model_validator(mode="after")
    def _check_npz(self) -> Self:
        if self.npz is None:
            if self.npz_fill is not None:
                raise ValueError("npz_fill goes with npz: name an archive")
            return self
        for name in ("text", "windows", "dtype"):
            if getattr(self, name) != CalibrateParams.model_fields[name].default:
                raise ValueError(f"npz takes the place of text: leave {name} out")
        if self.keep == "tokens":
            raise ValueError("an archive has no tokens to compute H from: keep must be hessians")
        return self


#: how a matrix's nats of KL are measured, or predicted
SensitivityMethod = Literal["kl_anchor", "fisher_diagonal", "fisher_output", "higgs", "reanchored"]


class SensitivityParams(Params):
    model_id: str
    calibration_id: str | None = None
    #: one coarse and one fine config; averaged in log
    anchors: Annotated[list[ConfigFields], Field(min_length=1)]
    text: TextSpec = TextSpec()
    #: windows are drawn from the "measure" split
    windows: WindowSpec = WindowSpec(count=16)
    #: those besides kl_anchor are there for comparison; "reanchored" goes alone, with incumbent_allocation_id
    methods: Annotated[list[SensitivityMethod], Field(min_length=1, max_length=5)] = ["kl_anchor"]
    #: config at which each block's fidelity is measured; null = it is not
    fidelity: ConfigFields | None = None
    #: of method higgs: Frobenius norms of the noise relative to the matrix's
    noise: Annotated[list[Annotated[float, Field(gt=0, lt=1)]], Field(min_length=1, max_length=8)] = [
        0.05,
        0.1,
    ]
    #: the allocation around which method "reanchored" measures, one matrix restored at a time
    incumbent_allocation_id: str | None = None

    @model_validator(mode="after")
    def _check_incumbent(self) -> Self:
        if len(set(self.methods)) < len(self.methods):
            raise ValueError("methods must differ")
        if ("reanchored" in self.methods) != (self.incumbent_allocation_id is not None):
            raise ValueError("method reanchored goes with incumbent_allocation_id: give both or neither")
        if "reanchored" in self.methods and len(self.methods) > 1:
            raise ValueError("method reanchored goes alone: ask for the others in a job of their own")
        return self


class MatrixFilter(Params):
    """Which matrices; null = all."""

    layers: list[int] | None = None
    projections: list[str] | None = None

    def passes(self, layer_idx: int, projection: str) -> bool:
        """Whether a matrix is among them."""
        return (self.layers is None or layer_idx in self.layers) and (
            self.projections is None or projection in self.projections
        )


class SweepParams(Params):
    model_id: str
    calibration_id: str | None = None
    configs: Annotated[list[ConfigFields], Field(min_length=1)]
    matrices: MatrixFilter = MatrixFilter()
    #: "layer": a job a layer, shared by all workers; "none": one job. null = by layer where the calibration keeps its H
    split: Literal["layer", "none"] | None = None
    #: measure again what is known: each old row is retired when its new one is recorded
    force: bool = False
    #: set by the server: the job whose sweep the cells of this part belong to
    part_of: str | None = None


class FitParams(Params):
    model_id: str
    calibration_id: str | None = None
    #: "auto" fits all and chooses by cross-validation
    form: Literal["auto", "additive", "multiplicative", "log_linear", "monotone"] = "auto"
    #: only measurements of this codebook; null = the only one that was measured, the baselines rtn and gptq aside
    codebook: str | None = None
    #: and with so many states of the trellis; null = the only number that was measured
    states: int | None = None
    #: and with factors of so many bits; null = the only number that was measured
    factor_bits_l: int | None = None
    factor_bits_r: int | None = None


class BudgetSpec(Params):
    """Exactly one of the fields; GB = 10⁹ bytes. No model needs more than the upper bounds, and a column holds them."""

    bytes: Annotated[int, Field(gt=0, le=10**18)] | None = None
    gb: Annotated[float, Field(gt=0, le=10**9)] | None = None
    bits_per_weight: Annotated[float, Field(gt=0, le=64)] | None = None
    #: of the original's bytes in the scope
    fraction: Annotated[float, Field(gt=0, le=1)] | None = None
    #: the bytes of this config on every matrix
    uniform: ConfigFields | None = None


#: what Σ over the matrices is minimised: "error" = Σ ε; the others weigh the error with a method's sensitivities
Objective = Literal["kl", "error", "higgs", "fisher_diagonal", "fisher_output", "reanchored"]
AllocationKind = Literal[
    "optimal",
    "greedy",
    "minimax",
    "discretised_dp",
    "uniform",
    "best_uniform",
    "uniforms",
    "manual",
    "random",
    "winner",
    "overrides",
]


class AllocateParams(Params):
    """Which config each matrix gets, by ``kind``.

    "optimal" solves over the menu, with a proof; "greedy", "minimax" and "discretised_dp" are baselines over the same
    menu. "uniform" is one config everywhere; "best_uniform" the best uniform config of the menu within the budget;
    "uniforms" writes the best ``count`` of them, an allocation each. "manual" is the plan's high/low split. "random"
    writes ``count`` seeded allocations just below the budget. "winner" copies the allocation that a validation found
    best. "overrides" takes the YAML as it is.
    """

    model_id: str
    calibration_id: str | None = None
    name: str
    kind: AllocationKind = "optimal"
    objective: Objective = "kl"
    scope: Literal["decoder", "model"] = "decoder"
    budget: BudgetSpec | None = None
    #: an allocation that the new one must not exceed either: for a comparison at no more bytes
    budget_allocation_id: str | None = None
    #: configs to choose from; null = everything measured under the calibration except the baselines rtn and gptq
    menu: list[ConfigFields] | None = None
    uniform: ConfigFields | None = None
    high: ConfigFields | None = None
    low: ConfigFields | None = None
    overrides_yaml: OverridesYaml | None = None
    #: of kind optimal
    constraints: ConstraintSpec | None = None
    #: of kinds random and uniforms: at most so many allocations
    count: Annotated[int, Field(ge=1, le=1000)] | None = None
    #: of kind random
    seed: Seed = 0
    #: of kind random: no further below the budget than this share of it
    within: Annotated[float, Field(gt=0, le=1)] = 0.005
    #: of kind random: how many of count are optima of noised sensitivities
    near: Annotated[int, Field(ge=0, le=1000)] = 0
    #: of objective reanchored: the allocation that the sensitivities were measured at; null = the newest measured
    incumbent_allocation_id: str | None = None
    #: of kind winner: the validation, and the names of its allocations to choose among; empty = all
    validation_id: str | None = None
    among: list[str] = []

    model_config = ConfigDict(
        json_schema_extra={
            "examples": [
                {"model_id": "model_…", "name": "optimal", "budget": {"bits_per_weight": 3}},
                {
                    "model_id": "model_…",
                    "name": "constrained",
                    "budget": {"uniform": {"b_q": 3, "rank": 64}},
                    "constraints": {"groups": [{"projections": ["q", "k", "v"]}], "max_configs": 4},
                },
                {"model_id": "model_…", "name": "random", "kind": "random", "budget": {"gb": 2.5}, "count": 20},
                {"model_id": "model_…", "name": "chosen", "kind": "winner", "validation_id": "val_…"},
            ]
        }
    )


class CompressParams(Params):
    model_id: str
    calibration_id: str | None = None
    allocation_id: str | None = None
    #: how to compress a head that is not the token embedding; null = it stays as it is
    head: ConfigFields | None = None


class EvaluateParams(Params):
    model_id: str
    #: null = the original model
    compression_id: str | None = None
    task: Literal["perplexity"] = "perplexity"
    text: TextSpec = TextSpec()
    #: "whole" = every document, for a file that is a held-out set by itself (WikiText-2's test set)
    split: Literal["measure", "select", "report", "whole"] = "report"
    windows: WindowSpec = WindowSpec()


class ValidateParams(Params):
    """Measure the joint KL and PPL of allocations, beside what was predicted."""

    model_id: str
    calibration_id: str | None = None
    name: Annotated[str, Field(min_length=1, max_length=200)]
    allocation_ids: Annotated[list[str], Field(min_length=1, max_length=1000)]
    text: TextSpec = TextSpec()
    #: never "report": what chooses must not be what judges
    split: Literal["measure", "select"] = "select"
    windows: WindowSpec = WindowSpec(count=32)
    #: ask for re-anchored sensitivities when the calibration check fails
    reanchor: bool = False
    #: the allocation that they are anchored at
    incumbent: str | None = None


class ProbeParams(Params):
    """Measure what the worker's device does in a second."""

    #: configs whose cells are timed; null = both codebooks at the plan's bits
    configs: Annotated[list[ConfigFields], Field(min_length=1, max_length=64)] | None = None
    #: no more than this many seconds of measuring; what the time does not suffice for is extrapolated
    seconds: Annotated[float, Field(ge=1, le=3600)] = 60.0


class GateParams(Params):
    phase: Annotated[int, Field(ge=0, le=6)]
    #: which gates of the phase; the study's own config has the thresholds
    gates: list[str]
    #: ids that the gates look at, resolved from earlier jobs
    context: dict[str, Any] = {}

    model_config = ConfigDict(frozen=True, extra="allow")


PARAMS: dict[JobKind, type[Params]] = {
    JobKind.FETCH: FetchParams,
    JobKind.CALIBRATE: CalibrateParams,
    JobKind.SENSITIVITY: SensitivityParams,
    JobKind.SWEEP: SweepParams,
    JobKind.FIT: FitParams,
    JobKind.ALLOCATE: AllocateParams,
    JobKind.COMPRESS: CompressParams,
    JobKind.EVALUATE: EvaluateParams,
    JobKind.VALIDATE: ValidateParams,
    JobKind.PROBE: ProbeParams,
    JobKind.GATE: GateParams,
}
