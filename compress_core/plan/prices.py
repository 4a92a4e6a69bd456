"""What each step of a study costs: how many of what, seconds, bytes of memory and of disk."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from typing import Any

from compress_core.calibrate.inputs import input_name
from compress_core.config import UNROTATED_CODEBOOKS, CompressionConfig
from compress_core.grid import fitting
from compress_core.matrix import NO_EXPERT, MatrixSpec
from compress_core.plan import footprint
from compress_core.plan.footprint import BASE, BASE_DEVICE, FLOAT32, Footprint
from compress_core.plan.operations import EXACT_WIDTH, Kind, Size
from compress_core.plan.rates import Rates, Unpriced
from compress_core.plan.shapes import ModelShapes, hessian_bytes, inputs_of

#: matrices so many times larger than those that were timed are far off, and then by what factor times may be off
_FAR, _FAR_UNCERTAINTY = 8.0, 2.0
#: (out_features, in_features, config_hash) → mean seconds that the database holds
Known = Mapping[tuple[int, int, str], float]


@dataclass(frozen=True, slots=True)
class StepPrice:
    """One row of a plan."""

    step: str
    #: what is counted, and how many
    unit: str
    count: int
    #: on the device; None = not priced
    seconds: float | None
    #: bytes at the peak: of the host, and of the card (None on a CPU)
    memory: int | None = None
    device_memory: int | None = None
    #: bytes that stay on the disk, and bytes there while the step runs
    disk: int = 0
    scratch: int = 0
    #: what takes most memory
    largest: str | None = None
    notes: tuple[str, ...] = ()

    def to_dict(self) -> dict[str, Any]:
        """JSON-able."""
        return asdict(self) | {"notes": list(self.notes)}


@dataclass
class Pricer:
    """Prices the steps of one model on one device.

    A time is None where a codebook was never measured on the device; ``unpriced`` then says which.
    """

    shapes: ModelShapes
    rates: Rates | None
    known: Known = field(default_factory=dict)
    #: whether the jobs run on a card
    on_card: bool = False
    #: bytes of a weight or activation of the calibration
    observed_size: int = FLOAT32
    #: configs without a rate, for people
    unpriced: set[str] = field(default_factory=set)
    #: cells whose seconds the database knows
    n_known: int = 0

    @property
    def extrapolates(self) -> float | None:
        """How many times larger than any that was timed the largest matrix is; None where it is not much larger."""
        if self.rates is None or self.rates.largest is None:
            return None
        times = max(spec.n_weights for spec in self.shapes.matrices) / self.rates.largest
        return times if times > _FAR else None

    @property
    def uncertainty(self) -> float | None:
        """Factor by which the times may be off either way."""
        if self.rates is None:
            return None
        return max(self.rates.uncertainty, _FAR_UNCERTAINTY) if self.extrapolates else self.rates.uncertainty

    def cells(self, configs: Sequence[CompressionConfig]) -> int:
        """How many (matrix, config) there are; ranks cut to the matrix, equal configs counted once."""
        return sum(len(_clamped(spec, configs)) for spec in self.shapes.matrices)

    # --- the steps

    def calibrate(self, windows: int, length: int, *, keeps_hessians: bool = True) -> StepPrice:
        """H of every input from so many windows of so many tokens; or their tokens alone."""
        tokens = windows * length
        disk, seconds = 0, None if self.rates is None else 0.0
        if keeps_hessians:
            disk = sum(hessian_bytes(specs) for specs in self.shapes.layers())
            seconds = self._observing_seconds(tokens, length)
            if seconds is not None and self.rates is not None:
                seconds += disk / self.rates.disk_write
        found = (
            footprint.calibrate(self.shapes, tokens, self.observed_size)
            if keeps_hessians
            else Footprint(0, 0, "the text")
        )
        return self._row("calibrate", "tokens", tokens, seconds, found, disk=disk + 4 * tokens)

    def sensitivity(
        self, anchors: Sequence[CompressionConfig], windows: int, length: int,
        *, observed_tokens: int = 0, noises: int = 0, gradients: int = 0,
    ) -> StepPrice:  # fmt: skip
        """KL of the model with one matrix replaced, for every matrix and anchor, and with one layer restored.

        Args:
            noises: replacements of each matrix besides, by noise, which nothing has to be decomposed for.
            gradients: passes forward and back of the whole model, of methods that need them.
            observed_tokens: of a calibration that keeps no Hessians, whose forward passes are paid here again.
        """
        tokens = windows * length
        pairs = [(spec, config) for spec in self.shapes.matrices for config in _clamped(spec, anchors)]
        seconds = self._sum(self._alone(spec, config) for spec, config in pairs)
        if seconds is not None and self.rates is not None:
            rates, shapes = self.rates, self.shapes
            below = _suffix_sums([self._layer_operations(specs, tokens, length) for specs in shapes.layers()])
            head = 2 * tokens * shapes.vocab_size * shapes.hidden_size
            replaced = [spec for spec, _ in pairs] + noises * list(shapes.matrices)
            forward = sum(below[spec.key.layer_idx] + head for spec in replaced) + below[0] + head
            # every layer restored in turn where all matrices are at an anchor: what comes before it is run once
            forward += len(anchors) * (2 * below[0] + sum(below) + (len(below) + 2) * head)
            # a pass back costs two forward
            forward += 3 * gradients * (below[0] + head)
            seconds += forward / rates.forward + len(replaced) * tokens * shapes.vocab_size / rates.logits
            seconds += self._inputs_seconds(anchors) + self._read_seconds()
        seconds = self._plus_observing(seconds, observed_tokens, length)
        found = self._observing(footprint.sensitivity(self.shapes, tokens), observed_tokens)
        return self._row("sensitivity", "matrix × anchor", len(pairs), seconds, found)

    def sweep(
        self, configs: Sequence[CompressionConfig], matrices: Iterable[MatrixSpec] | None = None,
        *, observed_tokens: int = 0, length: int = 0,
    ) -> StepPrice:  # fmt: skip
        """Error of every config on every matrix; ranks cut to the matrix, equal configs counted once."""
        specs = list(self.shapes.matrices if matrices is None else matrices)
        cells = {spec: _clamped(spec, configs) for spec in specs}
        seconds = self._sum(self._matrix_seconds(spec, own) for spec, own in cells.items())
        if seconds is not None:
            seconds += self._inputs_seconds(configs, specs) + self._read_seconds(specs)
        seconds = self._plus_observing(seconds, observed_tokens, length)
        found = self._observing(footprint.sweep(self.shapes), observed_tokens)
        return self._row("sweep", "matrix × config", sum(map(len, cells.values())), seconds, found)

    def compress(
        self, menu: Sequence[CompressionConfig], nbytes: int, *, observed_tokens: int = 0, length: int = 0
    ) -> StepPrice:
        """One packed model; which config each matrix gets is not known yet: the mean of the menu is taken."""

        def mean(spec: MatrixSpec) -> float | None:
            own = _clamped(spec, menu)
            total = self._sum(self._alone(spec, config) for config in own)
            return None if total is None else total / len(own)

        seconds = self._sum(mean(spec) for spec in self.shapes.matrices)
        if seconds is not None and self.rates is not None:
            seconds += self._inputs_seconds(menu) + self._read_seconds() + nbytes / self.rates.disk_write
        seconds = self._plus_observing(seconds, observed_tokens, length)
        found = self._observing(footprint.sweep(self.shapes), observed_tokens)
        return self._row("compress", "packed models", 1, seconds, found, disk=nbytes)

    def validate(
        self, menu: Sequence[CompressionConfig], per_matrix: int, allocations: int, windows: int, length: int,
        *, observed_tokens: int = 0,
    ) -> StepPrice:  # fmt: skip
        """Joint KL of so many allocations: each distinct cell decomposed once, all of them taken through each layer.

        Args:
            menu: configs that they are made of.
            per_matrix: how many of them a matrix has at most.
        """
        tokens = windows * length
        cells = {spec: _clamped(spec, menu) for spec in self.shapes.matrices}

        def decomposed(spec: MatrixSpec) -> float | None:
            own = cells[spec]
            alone = self._sum(self._alone(spec, config) for config in own)
            together = self._sum(self._one(kind, spec, config) for kind, config in _work(own))
            if alone is None or together is None:
                return None
            # ranks of the same bits share their start; few of many configs may not
            return min(together, alone / len(own) * per_matrix)

        seconds = self._sum(decomposed(spec) for spec in self.shapes.matrices)
        if seconds is not None and self.rates is not None:
            rates, shapes = self.rates, self.shapes
            operations = sum(self._layer_operations(specs, tokens, length) for specs in shapes.layers())
            # the original's logits are made again beside each allocation's
            operations += 2 * tokens * shapes.vocab_size * shapes.hidden_size
            each = operations / rates.forward + tokens * shapes.vocab_size / rates.logits
            seconds += (allocations + 1) * each + self._inputs_seconds(menu) + self._read_seconds()
        seconds = self._plus_observing(seconds, observed_tokens, length)
        found = self._observing(footprint.validate(self.shapes, tokens, allocations), observed_tokens)
        return self._row("validate", "allocations", allocations, seconds, found)

    def evaluate(self, windows: int, length: int, *, packed: bool) -> StepPrice:
        """Perplexity on so many windows."""
        tokens = windows * length
        seconds = None
        if self.rates is not None:
            rates, shapes = self.rates, self.shapes
            operations = sum(self._layer_operations(specs, tokens, length) for specs in shapes.layers())
            seconds = (operations + 2 * tokens * shapes.vocab_size * shapes.hidden_size) / rates.forward
            seconds += tokens * shapes.vocab_size / rates.logits + self._read_seconds()
            if packed:
                seconds += self._sum(self._one("matrix", spec) for spec in shapes.matrices) or 0.0
        return self._row("evaluate", "windows", windows, seconds, footprint.evaluate(self.shapes, tokens))

    # --- their parts

    def _row(
        self, step: str, unit: str, count: int, seconds: float | None, found: Footprint, *, disk: int = 0
    ) -> StepPrice:
        host = BASE + found.host + (0 if self.on_card else found.device)
        device = BASE_DEVICE + found.device if self.on_card else None
        return StepPrice(
            step, unit, count, seconds, host, device, disk, found.scratch, found.largest
        )  # fmt: skip

    def _observing(self, found: Footprint, tokens: int) -> Footprint:
        """With H computed anew, where the calibration keeps only its tokens."""
        return footprint.while_observing(found, self.shapes, tokens, self.observed_size) if tokens else found

    def _matrix_seconds(self, spec: MatrixSpec, configs: Sequence[CompressionConfig]) -> float | None:
        """All configs of one matrix in one go: one start for all ranks."""
        left, seconds = [], 0.0
        for config in configs:
            stored = self.known.get((spec.out_features, spec.in_features, config.config_hash))
            if stored is None:
                left.append(config)
            else:
                seconds += stored
                self.n_known += 1
        measuring = self._one("measure", spec)
        if measuring is None:
            return seconds if not left else None
        seconds += measuring * (len(configs) + 1)  # W itself is measured once
        if left:
            parts = self._sum(self._one(kind, spec, config) for kind, config in _work(left))
            if parts is None:
                return None
            seconds += parts
        return seconds

    def _alone(self, spec: MatrixSpec, config: CompressionConfig) -> float | None:
        """One config on its own; its error is told or its codes are packed."""
        work = [*_work([config]), ("measure", None)]
        return self._sum(self._one(kind, spec, found) for kind, found in work)

    def _one(self, kind: Kind, spec: MatrixSpec, config: CompressionConfig | None = None) -> float | None:
        if self.rates is None:
            return None
        size = Size(spec.out_features, spec.in_features, config.rank if config else 0)
        try:
            seconds = self.rates.seconds(kind, size, config)
            if kind in ("start", "rank") and spec.in_features > EXACT_WIDTH:
                # factorisations of a wide H are not kept
                seconds += self.rates.seconds("feedback", size, config)
        except Unpriced:
            self.unpriced.add(f"{config.codebook} at {config.b_q} bits" if config else kind)
            return None
        return seconds

    def _inputs_seconds(
        self, configs: Sequence[CompressionConfig], matrices: Iterable[MatrixSpec] | None = None
    ) -> float:
        """Rotating and factorising H once an input, seed and codebook."""
        ours = [config for config in configs if config.codebook not in UNROTATED_CODEBOOKS]
        seeds, codebooks = {c.seed for c in ours}, {c.codebook: c for c in ours}
        widths = {
            (spec.key.layer_idx, input_name(spec.key)): spec
            for spec in (self.shapes.matrices if matrices is None else matrices)
        }
        work: list[tuple[Kind, CompressionConfig | None]] = [("input", None) for _ in seeds]
        work += [("feedback", config) for config in codebooks.values()]
        return self._sum(self._one(kind, spec, config) for spec in widths.values() for kind, config in work) or 0.0

    def _observing_seconds(self, tokens: int, length: int) -> float | None:
        """A forward pass with the second moments of every input."""
        if self.rates is None:
            return None
        forward = moments = 0.0
        for specs in self.shapes.layers():
            forward += self._layer_operations(specs, tokens, length)
            for name, width in inputs_of(specs).items():
                share = self.shapes.routed_share if "." in name else 1.0
                moments += share * tokens * width**2
        return forward / self.rates.forward + moments / self.rates.product + self._read_seconds()

    def _plus_observing(self, seconds: float | None, tokens: int, length: int) -> float | None:
        """H computed anew where the calibration keeps only its tokens."""
        if seconds is None or not tokens:
            return seconds
        again = self._observing_seconds(tokens, length)
        return None if again is None else seconds + again

    def _layer_operations(self, specs: Sequence[MatrixSpec], tokens: int, length: int) -> float:
        """Of one layer's forward pass: its matrices, and attention over ``length`` positions."""
        weights = sum(
            spec.n_weights * (1.0 if spec.key.expert_idx == NO_EXPERT else self.shapes.routed_share) for spec in specs
        )
        attention = next((spec.out_features for spec in specs if spec.key.projection == "q"), 0)
        return tokens * (2 * weights + 4 * length * attention)

    def _read_seconds(self, matrices: Sequence[MatrixSpec] | None = None) -> float:
        if self.rates is None:
            return 0.0
        share = 1.0 if matrices is None else sum(s.n_weights for s in matrices) / max(1, self.shapes.n_weights)
        return share * self.shapes.original_bytes / self.rates.disk_read

    @staticmethod
    def _sum(parts: Iterable[float | None]) -> float | None:
        """None where a part is; every part is looked at, so that all that is unpriced is named."""
        found = list(parts)
        return None if any(part is None for part in found) else float(sum(part for part in found if part is not None))


def _clamped(spec: MatrixSpec, configs: Iterable[CompressionConfig]) -> list[CompressionConfig]:
    return list(fitting(spec, configs).values())


def _work(configs: Iterable[CompressionConfig]) -> list[tuple[Kind, CompressionConfig | None]]:
    """What one matrix pays for: W rotated once a seed, Q of rank 0 once a codebook and bits, then each rank."""
    work: list[tuple[Kind, CompressionConfig | None]] = []
    starts, seeds = set(), set()
    for config in configs:
        if config.codebook in UNROTATED_CODEBOOKS:
            work.append(("gptq" if config.codebook == "gptq" else "rtn", config))
            continue
        if config.seed not in seeds:
            seeds.add(config.seed)
            work.append(("matrix", None))
        start = (config.seed, config.codebook, config.b_q, config.states)
        if start not in starts:
            starts.add(start)
            work.append(("start", config))
        if config.rank:
            work.append(("rank", config))
    return work


def _suffix_sums(values: Sequence[float]) -> list[float]:
    """Sum from each position on."""
    sums: list[float] = []
    for value in reversed(values):
        sums.append(value + (sums[-1] if sums else 0.0))
    return sums[::-1]
