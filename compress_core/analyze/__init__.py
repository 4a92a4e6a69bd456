"""What the numbers say: gates and headlines. Needs numpy and scipy only."""

from compress_core.analyze import gates
from compress_core.analyze.clusters import ClusterScore, LayerCluster, LayerClusters, cluster_layers
from compress_core.analyze.headline import Contender, Guard, Headline, gain_from_nll
from compress_core.analyze.thresholds import GateThresholds
from compress_core.analyze.verdict import Estimate, GateResult, Verdict

__all__ = [
    "ClusterScore",
    "Contender",
    "Estimate",
    "GateResult",
    "GateThresholds",
    "Guard",
    "Headline",
    "LayerCluster",
    "LayerClusters",
    "Verdict",
    "cluster_layers",
    "gain_from_nll",
    "gates",
]
