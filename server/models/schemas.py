"""What a request about models may say."""

from __future__ import annotations

from typing import Annotated

from pydantic import BaseModel, ConfigDict, Field


class ModelRequest(BaseModel):
    """A local directory, or a hub id with the commit that pins it."""

    model_config = ConfigDict(
        extra="forbid",
        json_schema_extra={
            "examples": [
                {"source": "demo/model"},
                {"source": "Qwen/Qwen2-1.5B", "revision": "0000000000000000000000000000000000000000"},
            ]
        },
    )

    source: Annotated[str, Field(min_length=1, max_length=4096)]
    revision: Annotated[str, Field(pattern="^[0-9a-f]{40}$")] | None = None
    #: label for people; default: the last part of source
    name: Annotated[str, Field(min_length=1, max_length=200)] | None = None
