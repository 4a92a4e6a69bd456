"""StudyConfig: what a study's YAML may say. Unknown fields are refused, every default is the plan's or ours."""

from __future__ import annotations

from typing import Annotated, Any, Literal, Self

from pydantic import BaseModel, ConfigDict, Field, ValidationInfo, field_validator, model_validator

from compress_core.analyze import GateThresholds
from compress_core.config import BASELINE_CODEBOOKS, CODEBOOK_BITS, CompressionConfig
from compress_core.errors import ConfigError
from results_db.params import BudgetSpec, DatasetSpec, Keep, Seed, TextSpec
from results_db.tables import Gate, Job, Study
from server.kit.answers import page_model, row_model

StudyRow = row_model(Study)
StudyPage = page_model(StudyRow)
StudyDetail = row_model(Study, "StudyDetail", jobs=list[row_model(Job)], gates=list[row_model(Gate)])  # type: ignore[misc]

#: fields of CompressionConfig; what is left out is taken from the grid
ConfigFields = dict[str, Any]


class Section(BaseModel):
    """Root of the sections."""

    model_config = ConfigDict(frozen=True, extra="forbid")


class ModelSection(Section):
    """A local directory, or a hub id with the commit that pins it."""

    source: Annotated[str, Field(min_length=1, max_length=4096)]
    revision: Annotated[str, Field(pattern="^[0-9a-f]{40}$")] | None = None
    name: str | None = None


class SamplingSection(Section):
    """How many windows of what length."""

    samples: Annotated[int, Field(ge=1)]
    length: Annotated[int, Field(ge=8, le=131_072)] = 256
    seed: Seed = 0


class CalibrationSection(SamplingSection):
    samples: Annotated[int, Field(ge=1)] = 64
    #: of weights and activations
    dtype: Literal["float32", "bfloat16"] = "float32"
    #: ``tokens``: H is never stored; the sweep is one job, and whoever needs H computes it layer by layer
    keep: Keep = "hessians"


class SweepSection(Section):
    #: "layer": a job a layer, shared by all workers; "none": one job. null = by layer where the calibration keeps its H
    split: Literal["layer", "none"] | None = None


#: how sensitivities are measured besides re-anchoring, which a study does by itself where it must
ComparedMethod = Literal["kl_anchor", "fisher_diagonal", "fisher_output", "higgs"]


class SensitivitySection(SamplingSection):
    samples: Annotated[int, Field(ge=1)] = 16
    #: one config without a low-rank part and one with, of different bits; default: the grid's second b_q at rank 0, and
    #: its first at a middle rank
    anchors: Annotated[list[ConfigFields], Field(min_length=1)] | None = None
    #: kl_anchor, and the objective's own, are always measured; the others are there for comparison
    methods: list[ComparedMethod] = []
    #: config at which each block's fidelity (cosine, relative error) is measured; null = it is not
    fidelity: ConfigFields | None = None
    #: of method higgs: Frobenius norms of the noise relative to the matrix's
    noise: Annotated[list[Annotated[float, Field(gt=0, lt=1)]], Field(min_length=1, max_length=8)] = [0.05, 0.1]


class ValidationSection(Section):
    """The choice, checked on the select split before anything is packed: predicted against realised joint KL."""

    #: false: the best uniform config is chosen by the objective, nothing is checked, and no guard speaks
    enabled: bool = True
    windows: Annotated[int, Field(ge=2)] = 64
    length: Annotated[int, Field(ge=8, le=131_072)] = 256
    seed: Seed = 0
    #: so many uniform configs of the grid, the best by the objective, compete for the best by held-out loss
    uniforms: Annotated[int, Field(ge=1, le=64)] = 4
    #: random allocations of the same bytes, and how many of them are near the optimum; each cell of the grid is
    #: decomposed once for them, which is about what the sweep takes
    random: Annotated[int, Field(ge=0, le=200)] = 20
    near: Annotated[int, Field(ge=0, le=200)] = 0
    #: the random ones are drawn at so many of the budgets, the first ones; null = at all
    random_budgets: Annotated[int, Field(ge=0)] | None = None
    #: measure sensitivities anew at the optimum, and choose again, where the prediction does not hold
    reanchor: bool = True

    @model_validator(mode="after")
    def _check_near(self) -> Self:
        if self.near > self.random:
            raise ValueError("near counts among random: it cannot be larger")
        return self


class GridSection(Section):
    """Every b_q with every rank."""

    codebook: str = CompressionConfig.codebook
    #: of the trellis; without effect for the other codebooks
    states: int = CompressionConfig.states
    b_q: Annotated[list[int], Field(min_length=1)]
    rank: Annotated[list[int], Field(min_length=1)]
    factor_bits: int | list[int] = 4
    seed: int = 0
    iterations: int = CompressionConfig.iterations

    @model_validator(mode="after")
    def _check(self) -> Self:
        if self.codebook in BASELINE_CODEBOOKS:
            raise ValueError(f"codebook {self.codebook!r} is a baseline: name its bits in baselines.{self.codebook}")
        for name in ("b_q", "rank"):
            values = getattr(self, name)
            if len(set(values)) != len(values):
                raise ValueError(f"{name} names a value twice")
        try:
            self.configs()
        except ConfigError as error:
            raise ValueError(str(error)) from error
        return self

    def defaults(self) -> ConfigFields:
        """The fields that all configs of the study share unless they say otherwise."""
        return {
            "codebook": self.codebook,
            "states": self.states,
            "factor_bits": self.factor_bits,
            "seed": self.seed,
            "iterations": self.iterations,
        }

    def complete(self, fields: ConfigFields) -> CompressionConfig:
        """A config with what it leaves out taken from the grid.

        Raises:
            ConfigError: the fields make no config.
        """
        return CompressionConfig.from_dict(self.defaults() | fields)

    def configs(self) -> list[CompressionConfig]:
        """b_q × rank, in the order given."""
        return [self.complete({"b_q": b_q, "rank": rank}) for b_q in self.b_q for rank in self.rank]

    def rank0(self) -> list[CompressionConfig]:
        """The same bits without a low-rank part."""
        return [self.complete({"b_q": b_q, "rank": 0}) for b_q in self.b_q]


class BaselinesSection(Section):
    """Bits of each baseline; an empty list leaves it out."""

    #: plain round-to-nearest
    rtn: list[int] = [2, 3, 4]
    #: GPTQ with a scale a row; as many more allocations, compressions and evaluations as round-to-nearest takes
    gptq: list[int] = []

    @field_validator(*BASELINE_CODEBOOKS)
    @classmethod
    def _check(cls, bits: list[int], info: ValidationInfo) -> list[int]:
        allowed = CODEBOOK_BITS[str(info.field_name)]
        unknown = [b for b in bits if b not in allowed]
        if unknown:
            raise ValueError(f"{info.field_name} has no {unknown[0]} bits: choose out of {allowed}")
        return bits

    def menus(self) -> dict[str, list[CompressionConfig]]:
        """The configs of each baseline that is wanted, by its codebook."""
        found = {
            name: [CompressionConfig(b_q=bits, codebook=name) for bits in getattr(self, name)]
            for name in BASELINE_CODEBOOKS
        }
        return {name: configs for name, configs in found.items() if configs}

    def configs(self) -> list[CompressionConfig]:
        """All of them."""
        return [config for configs in self.menus().values() for config in configs]


class Phase0Section(Section):
    """The plan's pilot: one uniform config against a manual high/low split at its bytes."""

    uniform: ConfigFields
    high: ConfigFields
    low: ConfigFields


class EvaluationSection(Section):
    #: texts to measure perplexity on; default: the study's own text. ``split: whole`` takes all of a held-out file
    datasets: Annotated[list[DatasetSpec], Field(min_length=1)] | None = None
    length: Annotated[int, Field(ge=8, le=131_072)] = 256
    #: at most so many windows; null = all
    windows: Annotated[int, Field(ge=2)] | None = None
    seed: Seed = 0


class FitSection(Section):
    #: "auto" fits all forms and chooses by cross-validation
    form: Literal["auto", "additive", "multiplicative", "log_linear", "monotone"] = "auto"


class StudyConfig(Section):
    """One study: a model, a text, a grid, budgets, and what a NO-GO does."""

    name: Annotated[str, Field(min_length=1, max_length=200)]
    model: ModelSection
    text: TextSpec = TextSpec()
    calibration: CalibrationSection = CalibrationSection()
    sensitivity: SensitivitySection = SensitivitySection()
    grid: GridSection
    sweep: SweepSection = SweepSection()
    validation: ValidationSection = ValidationSection()
    baselines: BaselinesSection = BaselinesSection()
    phase0: Phase0Section | None = None
    #: default: the bytes of a uniform config (phase 0's, else the middle of the grid)
    budgets: list[BudgetSpec] = []
    scope: Literal["decoder", "model"] = "decoder"
    objective: Literal["kl", "error", "higgs", "fisher_diagonal", "fisher_output"] = "kl"
    evaluation: EvaluationSection = EvaluationSection()
    fit: FitSection = FitSection()
    #: thresholds of the gates that differ from the plan's
    gates: dict[str, float] = {}
    on_no_go: Literal["stop", "continue"] = "stop"
    phases: Annotated[list[Annotated[int, Field(ge=0, le=5)]], Field(min_length=1)] = [0, 1, 2, 3, 4, 5]

    @field_validator("gates")
    @classmethod
    def _check_gates(cls, gates: dict[str, float]) -> dict[str, float]:
        try:
            GateThresholds.from_dict(gates)
        except ConfigError as error:
            raise ValueError(str(error)) from error
        return gates

    @field_validator("budgets")
    @classmethod
    def _check_budgets(cls, budgets: list[BudgetSpec]) -> list[BudgetSpec]:
        for position, budget in enumerate(budgets):
            if len([v for v in budget.model_dump().values() if v is not None]) != 1:
                raise ValueError(
                    f"budget {position} must have exactly one of bytes, gb, bits_per_weight, fraction, uniform"
                )
        return budgets

    @model_validator(mode="after")
    def _check_phases(self) -> Self:
        phases = sorted(set(self.phases))
        # each phase computes from what the one before measured
        needed = {2: 1, 3: 1, 4: 3, 5: 4}
        for phase, before in needed.items():
            if phase in phases and before not in phases:
                raise ValueError(f"phases: phase {phase} needs phase {before}")
        return self

    @model_validator(mode="after")
    def _check_split(self) -> Self:
        if self.sweep.split == "layer" and self.calibration.keep == "tokens":
            raise ValueError(
                "sweep.split: a calibration that keeps its tokens alone is computed again layer by layer, in one pass "
                "through the model: its sweep is one job. Leave split out, or set calibration.keep to hessians"
            )
        return self

    @model_validator(mode="after")
    def _check_configs(self) -> Self:
        """Complete every config once, so that a mistake is told before anything is written."""
        named: dict[str, ConfigFields] = {f"sensitivity.anchors.{i}": f for i, f in enumerate(self.anchors_given)}
        if self.phase0 is not None:
            named |= {f"phase0.{name}": getattr(self.phase0, name) for name in ("uniform", "high", "low")}
        if self.sensitivity.fidelity is not None:
            named["sensitivity.fidelity"] = self.sensitivity.fidelity
        named |= {f"budgets.{i}.uniform": b.uniform for i, b in enumerate(self.budgets) if b.uniform is not None}
        for name, fields in named.items():
            try:
                self.grid.complete(fields)
            except ConfigError as error:
                raise ValueError(f"{name}: {error}") from error
        return self

    @property
    def anchors_given(self) -> list[ConfigFields]:
        return self.sensitivity.anchors or []

    @property
    def methods(self) -> list[str]:
        """How sensitivities are measured: kl_anchor, which gates and predictions need, the objective's, what is asked
        for."""
        own = [] if self.objective in ("kl", "error") else [self.objective]
        return list(dict.fromkeys(["kl_anchor", *own, *self.sensitivity.methods]))

    @property
    def datasets(self) -> list[DatasetSpec]:
        return self.evaluation.datasets or [DatasetSpec(**self.text.model_dump())]


class StudyRequest(BaseModel):
    """The JSON body of POST /studies; with content type application/yaml the body is the config itself."""

    model_config = ConfigDict(extra="forbid")

    config: StudyConfig
