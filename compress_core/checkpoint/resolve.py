"""From what a user wrote to a local directory: a path, or a hub repository at a pinned revision."""

from __future__ import annotations

from pathlib import Path

from compress_core.errors import CheckpointError
from compress_core.hub import is_commit, is_hub_id

#: weights, configuration and tokenizer; never pickles, never code
ALLOWED_FILES = ("*.safetensors", "*.json", "tokenizer.model", "merges.txt", "vocab.txt", "LICENSE*")


def resolve_model(source: str, revision: str | None = None) -> Path:
    """The local directory of a model: ``source`` itself where it exists, else a download from the hub.

    Raises:
        CheckpointError: no such path and no hub id, a hub id without a 40-digit commit, or a download that failed.
    """
    path = Path(source).expanduser()
    return path if path.exists() else fetch_model(source, revision)


def fetch_model(source: str, revision: str | None) -> Path:
    """The folder of a hub model in the hub's cache, downloaded if need be; no local folder is looked at.

    Raises:
        CheckpointError: no hub id, no 40-digit commit, or a download that failed.
    """
    if not is_hub_id(source):
        raise CheckpointError(f"{source} does not exist: give a directory, or a hub id ORGANISATION/NAME")
    if revision is None or not is_commit(revision):
        raise CheckpointError(
            f"{source} is no local path, and as a hub id it needs a pinned revision (the 40 hex digits of a commit), "
            f"not {revision!r}: a branch could change between two steps of a study"
        )
    return _download(source, revision)


def hub_cache() -> Path:
    """Where the hub's client keeps what it has fetched."""
    from huggingface_hub.constants import HF_HUB_CACHE

    return Path(HF_HUB_CACHE).expanduser().resolve()


def _download(source: str, revision: str) -> Path:
    from huggingface_hub import snapshot_download
    from huggingface_hub.errors import HfHubHTTPError, LocalEntryNotFoundError

    try:
        return Path(snapshot_download(source, revision=revision, allow_patterns=list(ALLOWED_FILES)))
    except (HfHubHTTPError, LocalEntryNotFoundError, OSError) as error:
        raise CheckpointError(
            f"cannot fetch {source} at {revision}: {error}; download it where there is a network and give its path"
        ) from error
