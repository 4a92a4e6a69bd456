"""sensitivity: what each matrix costs the model's output, by one method or several, with what is concluded from it.

Every row is recorded as soon as it is known; an attempt that follows a killed one goes on after the last. At the end
the anchors of each method are combined into one estimate a matrix, and one for each class of cells.
"""

from __future__ import annotations

import time
from collections.abc import Collection, Mapping
from dataclasses import dataclass, field
from functools import cached_property, partial
from typing import Any

from sqlalchemy import select
from sqlalchemy.orm import Session

from compress_core import NUMERICS_VERSION, CompressionConfig, MatrixKey
from compress_core.allocate import KLAnchor, class_sensitivities
from compress_core.allocate.anchor_row import anchor_of
from compress_core.allocate.company import LayerSaving, Multiplier, company_multipliers, in_company
from compress_core.calibrate.source import HessianSource
from compress_core.checkpoint import Checkpoint
from compress_core.errors import ConfigError
from compress_core.progress import Progress
from compress_core.sensitivity import company, fisher, higgs, kl, reanchor
from compress_core.sensitivity.approximations import Approximations
from compress_core.sensitivity.bench import Bench
from compress_core.sensitivity.fidelity import LayerFidelity, fidelities
from compress_core.sensitivity.higgs import Noise
from compress_core.sensitivity.result import SensitivityResult
from compress_core.text.tokens import TokenWindows
from results_db.params import SensitivityParams
from results_db.recording import (
    record_estimates,
    record_layer_fidelity,
    record_sensitivity,
    recorded_fidelities,
    recorded_sensitivities,
)
from results_db.tables import Calibration, SensitivityAnchor
from worker.anchor_rows import estimate_row, key_of, sensitivity_row
from worker.context import JobContext
from worker.incumbent import GivenIncumbent, get_incumbent
from worker.inputs import draw_windows, get_calibration, hidden_ram_bytes, open_calibration, open_model

#: (matrix, hash of the anchor)
Pair = tuple[MatrixKey, str]
#: in place of a projection, in rows of method "company", which are of whole layers
WHOLE_LAYER = "layer"


def run(params: SensitivityParams, context: JobContext) -> dict[str, Any]:
    """Result: {calibration_id, recorded, reused, n_estimates, incumbent_allocation_id}.

    Rows: of anchors; with KL anchors, of layers in company (method "company": kl = what restoring a layer saves where
    all matrices are at the anchor, anchor_error = Σ kl of its matrices, each alone); of layers' fidelity where that is
    asked for.
    """
    model, checkpoint = open_model(context, params.model_id)
    incumbent = None
    if params.incumbent_allocation_id is not None:
        wanted_id = params.incumbent_allocation_id
        incumbent = context.recorder.read(lambda session: get_incumbent(session, params.model_id, wanted_id))
    of_incumbent = None if incumbent is None else incumbent.calibration_id
    calibration = get_calibration(context, model, params.calibration_id or of_incumbent)
    wanted = wanted_pairs(checkpoint, params, incumbent)
    n_layer_rows = len(company_configs(params)) + (1 if params.fidelity else 0)
    total = sum(map(len, wanted.values())) + checkpoint.n_layers * n_layer_rows
    context.progress.begin(total, message="reading the text")
    tokens = draw_windows(context, checkpoint, params.text, "measure", params.windows)
    job = _SensitivityJob(params, context, checkpoint, calibration, tokens, incumbent, wanted, total)
    job.run()
    return {
        "calibration_id": calibration.id,
        "recorded": job.recorded,
        "reused": job.reused,
        "n_estimates": job.estimate(),
        "incumbent_allocation_id": params.incumbent_allocation_id,
    }


def wanted_pairs(
    checkpoint: Checkpoint, params: SensitivityParams, incumbent: GivenIncumbent | None
) -> dict[str, set[Pair]]:
    """By method, what is measured: anchors have their rank cut to the matrix.

    Raises:
        ConfigError: anchors that differ only in ranks which no matrix can have.
    """
    specs = checkpoint.matrices()
    anchors = anchors_of(params)
    of_configs = {(change.spec.key, change.anchor.config_hash) for change in kl.anchor_work(checkpoint, anchors)}
    if incumbent is None and len(anchors) > 1 and len(of_configs) == len(specs):
        raise ConfigError("the anchors are one and the same config for every matrix: choose a coarse and a fine one")
    wanted: dict[str, set[Pair]] = {}
    for method in params.methods:
        if method == reanchor.METHOD:
            assert incumbent is not None, "the parameters' own check"
            wanted[method] = {(spec.key, incumbent.anchor.config_hash) for spec in specs}
        elif method == higgs.METHOD:
            wanted[method] = {(spec.key, Noise(norm).config_hash) for spec in specs for norm in params.noise}
        else:
            wanted[method] = of_configs
    return wanted


def company_configs(params: SensitivityParams) -> list[CompressionConfig]:
    """The configs at which layers are measured in company: the KL anchors'."""
    return list(dict.fromkeys(anchors_of(params))) if kl.METHOD in params.methods else []


def anchors_of(params: SensitivityParams) -> list[CompressionConfig]:
    return [CompressionConfig.from_dict(values) for values in params.anchors]


@dataclass
class _SensitivityJob:
    """The methods of a job, one after another, on what they share."""

    params: SensitivityParams
    context: JobContext
    checkpoint: Checkpoint
    calibration: Calibration
    tokens: TokenWindows
    incumbent: GivenIncumbent | None
    wanted: Mapping[str, set[Pair]]
    #: rows in all
    total: int
    recorded: int = 0
    reused: int = 0
    #: rows that are done, of this attempt and of others
    _done: int = 0
    _began: float = field(default_factory=time.perf_counter)

    def run(self) -> None:
        """Measure what is not known yet."""
        known = {method: self._known(method) & pairs for method, pairs in self.wanted.items()}
        layers = self._known_layers() if self.params.fidelity else set()
        in_company = sum(len(self._known_company(config)) for config in company_configs(self.params))
        self.reused = self._done = sum(map(len, known.values())) + len(layers) + in_company
        self.context.progress.begin(self.total, reused=self.reused, message=f"{self.reused} of {self.total} are known")
        if self._done == self.total:
            return
        # of this job: another attempt finds what a killed one decomposed
        folder = self._workspace()
        hessians = self._hessians(self._needed(known, layers))
        approximations = Approximations(self.checkpoint, hessians, self.bench.device, keep=True, folder=folder)
        self._measure(approximations, known, layers)
        if hessians is not None:
            hessians.close()
        self.context.store.workspaces.close(folder)

    def estimate(self) -> int:
        """Conclude from the anchors of each method, and record it; the number of estimates."""
        count = 0
        for method, pairs in self.wanted.items():
            anchors = self.context.recorder.read(partial(self._anchors, method, pairs))
            multipliers = self._multipliers() if method == kl.METHOD else {}
            estimates = [
                estimate_row(sensitivity) | {"applies_to": cells}
                for cells, of_cells in class_sensitivities(anchors).items()
                for sensitivity in in_company(of_cells, multipliers).values()
            ]
            values: dict[str, Any] = {
                "metric": "normalized_mse" if method == higgs.METHOD else "calibration_weighted_error",
                "incumbent_hash": "" if self.incumbent is None else self.incumbent.anchor.content_hash,
                "estimates": estimates,
                **self._key(method),
            }
            self.context.recorder.write(partial(_record_estimates, values))
            count += len(estimates)
        return count

    # --- what is shared

    @cached_property
    def bench(self) -> Bench:
        return Bench(
            self.checkpoint,
            self.tokens,
            self.context.device.torch_name,
            batch_tokens=self.context.batch_tokens,
            progress=lambda done, total, message: self.context.progress.note(message),
        )

    def _workspace(self) -> Any:
        job_id = self.context.claim.job_id
        return self.context.store.workspace("sensitivities", f"{job_id} {self.calibration.id} {NUMERICS_VERSION}")

    def _hessians(self, needed: Collection[MatrixKey]) -> HessianSource | None:
        """H of the layers that have anything to decompose; layers that are known are left out."""
        if not needed:
            return None
        layers = {key.layer_idx for key in needed}
        whole = {spec.key for spec in self.checkpoint.matrices() if spec.key.layer_idx in layers}
        return open_calibration(self.context, self.calibration, self.checkpoint, wanted=whole)

    def _needed(self, known: Mapping[str, set[Pair]], layers: Collection[int]) -> set[MatrixKey]:
        """Matrices that must be decomposed at some config."""
        needed: set[MatrixKey] = set()
        for method, pairs in self.wanted.items():
            if method == reanchor.METHOD:  # the whole incumbent, whatever is known of it
                needed |= {key for key, _ in pairs} if pairs - known[method] else set()
            elif method != higgs.METHOD:
                needed |= {key for key, _ in pairs - known[method]}
        if self.params.fidelity:
            needed |= {spec.key for spec in self.checkpoint.matrices() if spec.key.layer_idx not in layers}
        every_layer = self.checkpoint.n_layers
        if any(len(self._known_company(config)) < every_layer for config in company_configs(self.params)):
            needed |= {spec.key for spec in self.checkpoint.matrices()}
        return needed

    # --- the methods

    def _measure(self, approximations: Approximations, known: Mapping[str, set[Pair]], layers: set[int]) -> None:
        params, bench, anchors = self.params, self.bench, anchors_of(self.params)
        if kl.METHOD in known:
            kl.kl_anchors(
                bench, approximations, anchors, done=known[kl.METHOD], on_result=self._record, progress=self._progress()
            )
            for config in company_configs(params):
                if len(known_layers := self._known_company(config)) < self.checkpoint.n_layers:
                    self._measure_company(approximations, config, known_layers)
        if gradients := [method for method in fisher.METHODS if method in known]:
            fisher.fisher_sensitivity(
                bench,
                approximations,
                anchors,
                gradients,
                done={(method, *pair) for method in gradients for pair in known[method]},
                ram_bytes=hidden_ram_bytes(self.context),
                on_result=self._record,
                progress=self._progress(),
            )
        if higgs.METHOD in known:
            noises = [Noise(norm) for norm in params.noise]
            higgs.noise_sensitivity(
                bench, noises, done=known[higgs.METHOD], on_result=self._record, progress=self._progress()
            )
        if self.incumbent is not None:
            reanchor.reanchored_sensitivity(
                bench,
                approximations,
                self.incumbent.anchor,
                self.incumbent.items,
                done={key for key, _ in known[reanchor.METHOD]},
                on_result=self._record,
                progress=self._progress(),
            )
        if params.fidelity:
            config = CompressionConfig.from_dict(params.fidelity)
            fidelities(
                bench,
                approximations,
                config,
                done=layers,
                on_result=partial(self._record_fidelity, config),
                progress=self._progress(),
            )

    def _measure_company(
        self, approximations: Approximations, config: CompressionConfig, known: Collection[int]
    ) -> None:
        alone = self._alone(config)
        found = company.layer_company(
            self.bench,
            approximations,
            config,
            ram_bytes=hidden_ram_bytes(self.context),
            progress=lambda done, total, message: self.context.progress.note(message),
        )
        for layer in found:
            if layer.layer_idx not in known:
                self._record_company(layer, sum(alone[layer.layer_idx]) / self.tokens.n_windows)

    def _progress(self) -> Progress:
        """Of one method, as progress of the job."""
        before = self._done

        def tell(done: int, total: int, message: str) -> None:
            self.context.progress(before + done, self.total, message)

        return tell

    # --- rows

    def _key(self, method: str) -> dict[str, Any]:
        return self._shared | {"method": method}

    @cached_property
    def _shared(self) -> dict[str, Any]:
        return {
            "model_id": self.params.model_id,
            "calibration_id": self.calibration.id,
            "token_hash": self.tokens.sha256,
            "numerics_version": NUMERICS_VERSION,
            "device_kind": self.context.device.kind,
        }

    def _known(self, method: str) -> set[Pair]:
        rows = self.context.recorder.read(lambda session: recorded_sensitivities(session, **self._key(method)))
        return {(MatrixKey(layer, projection, expert), anchor) for layer, projection, expert, anchor in rows}

    def _known_layers(self) -> set[int]:
        config = CompressionConfig.from_dict(self.params.fidelity or {})
        return self.context.recorder.read(
            lambda session: recorded_fidelities(session, config_hash=config.config_hash, **self._shared)
        )

    def _record(self, result: SensitivityResult) -> None:
        values = sensitivity_row(result) | self._key(result.method) | self._text()
        values["n_tokens"] = result.n_sequences * self.tokens.length
        self._count(self.context.recorder.write(lambda session, claim: record_sensitivity(session, claim, **values)))

    def _record_fidelity(self, config: CompressionConfig, fidelity: LayerFidelity) -> None:
        values = {
            "layer_idx": fidelity.layer_idx,
            "config_hash": config.config_hash,
            "config": config.to_dict(),
            "cosine": fidelity.cosine,
            "cosine_se": fidelity.cosine_se,
            "relative_error": fidelity.relative_error,
            "relative_error_se": fidelity.relative_error_se,
            "n_sequences": fidelity.n_sequences,
            **self._shared,
            **self._text(),
        }
        self._count(self.context.recorder.write(lambda session, claim: record_layer_fidelity(session, claim, **values)))

    def _record_company(self, layer: company.LayerCompany, alone: float) -> None:
        result = SensitivityResult(
            MatrixKey(layer.layer_idx, WHOLE_LAYER), layer.config, layer.saved_per_sequence, alone, company.METHOD
        )
        self._record(result)

    def _known_company(self, config: CompressionConfig) -> set[int]:
        return {key.layer_idx for key, anchor in self._known(company.METHOD) if anchor == config.config_hash}

    def _alone(self, config: CompressionConfig) -> dict[int, list[float]]:
        """Of each layer, Σ KL of its matrices at a config, each alone, for each sequence."""
        cut = {
            (spec.key, config.clamped(spec.out_features, spec.in_features).config_hash)
            for spec in self.checkpoint.matrices()
        }
        sums: dict[int, list[float]] = {}
        for anchor in self.context.recorder.read(partial(self._anchors, kl.METHOD, cut)):
            each = anchor.kl_per_sequence or ()
            so_far = sums.setdefault(anchor.matrix.layer_idx, [0.0] * len(each))
            sums[anchor.matrix.layer_idx] = [a + b for a, b in zip(so_far, each, strict=True)]
        return sums

    def _multipliers(self) -> dict[int, Multiplier]:
        """What layers cost in company, over what their matrices cost alone."""
        savings = []
        for config in company_configs(self.params):
            alone = self._alone(config)
            pairs = {(MatrixKey(layer, WHOLE_LAYER), config.config_hash) for layer in range(self.checkpoint.n_layers)}
            for row in self.context.recorder.read(partial(self._anchors, company.METHOD, pairs)):
                layer = row.matrix.layer_idx
                savings.append(LayerSaving(layer, config.config_hash, row.kl_per_sequence or (), alone[layer]))
        return company_multipliers(savings)

    def _text(self) -> dict[str, Any]:
        """Of a row that is recorded now."""
        now = time.perf_counter()
        seconds, self._began = now - self._began, now
        return {"text": self.params.text.model_dump(exclude_none=True), "seconds": seconds}

    def _count(self, is_new: bool) -> None:
        self.recorded += is_new
        self._done += 1
        self.context.progress.check()

    def _anchors(self, method: str, pairs: Collection[Pair], session: Session) -> list[KLAnchor]:
        """What this job asked for, whoever measured it."""
        rows = session.scalars(select(SensitivityAnchor).filter_by(**self._key(method)).order_by(SensitivityAnchor.id))
        return [anchor_of(row) for row in rows if (key_of(row), row.anchor_config_hash) in pairs]


def _record_estimates(values: Mapping[str, Any], session: Session, claim: Any) -> None:
    record_estimates(session, claim, **values)
