"""Constraints of an allocation as requests write them; compress_core.allocate.Constraints checks them."""

from __future__ import annotations

from typing import Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Field, StrictInt

#: a layer or an expert, or a range with both its ends: 3 or "4-7"
Numbers = Annotated[list[StrictInt | str], Field(min_length=1, examples=[[0, "4-7"]])]
Bound = Annotated[StrictInt, Field(ge=0)] | None
BitsBound = Annotated[float, Field(ge=0, le=64)] | None


class _Spec(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid")


class MatrixPatternSpec(_Spec):
    """Matrices by layer, projection and expert; what is left out matches everything."""

    layers: Numbers | None = None
    projections: Annotated[list[str], Field(min_length=1, examples=[["q", "k", "v"]])] | None = None
    experts: Numbers | None = None


class ConfigPatternSpec(_Spec):
    """Configs by their fields, as the matrix takes them; at least one field."""

    codebook: list[str] | None = None
    b_q: Annotated[list[StrictInt], Field(examples=[[2]])] | None = None
    rank: list[StrictInt] | None = None
    factor_bits: list[StrictInt] | None = None


class PinSpec(_Spec):
    """These matrices take this config."""

    matrices: MatrixPatternSpec = MatrixPatternSpec()
    #: fields of a config of the menu
    config: Annotated[dict[str, Any], Field(examples=[{"b_q": 4, "rank": 64}])]


class VetoSpec(_Spec):
    """These matrices take none of these configs."""

    matrices: MatrixPatternSpec = MatrixPatternSpec()
    configs: ConfigPatternSpec


class LimitSpec(_Spec):
    """Bounds for these matrices, both ends included; at least one."""

    matrices: MatrixPatternSpec = MatrixPatternSpec()
    min_b_q: Bound = None
    max_b_q: Bound = None
    min_rank: Bound = None
    max_rank: Bound = None
    min_bits_per_weight: BitsBound = None
    max_bits_per_weight: BitsBound = None


class GroupSpec(_Spec):
    """Projections of one layer that must agree, on the whole config or on the bits of Q."""

    projections: Annotated[list[str], Field(min_length=1, examples=[["q", "k", "v"]])]
    agree: Literal["config", "b_q"] = "config"
    layers: Numbers | None = None
    #: "together": all experts of a layer agree too
    experts: Literal["each", "together"] = "each"


class ConstraintSpec(_Spec):
    """What an allocation must keep to besides its budget; all of it holds at once."""

    pins: Annotated[list[PinSpec], Field(max_length=1000)] = []
    vetoes: Annotated[list[VetoSpec], Field(max_length=1000)] = []
    limits: Annotated[list[LimitSpec], Field(max_length=1000)] = []
    groups: Annotated[list[GroupSpec], Field(max_length=1000)] = []
    #: at most so many distinct configs in the whole model
    max_configs: Annotated[StrictInt, Field(ge=1)] | None = None

    model_config = ConfigDict(
        json_schema_extra={
            "examples": [
                {
                    "pins": [
                        {"matrices": {"layers": [0], "projections": ["q", "k"]}, "config": {"b_q": 4, "rank": 64}}
                    ],
                    "vetoes": [{"matrices": {"projections": ["down"]}, "configs": {"b_q": [2]}}],
                    "limits": [{"matrices": {"layers": ["0-3"]}, "min_b_q": 3, "max_bits_per_weight": 5.5}],
                    "groups": [{"projections": ["q", "k", "v"], "agree": "config"}],
                    "max_configs": 3,
                }
            ]
        }
    )
