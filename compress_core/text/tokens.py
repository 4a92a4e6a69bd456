"""TokenWindows: equally long windows of token ids, and how they were made."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from compress_core.errors import CalibrationError, CheckpointError, ConfigError

_VOCABULARY_FILES = ("tokenizer.json", "tokenizer.model", "vocab.json", "vocab.txt")
#: characters that are tokenised at once, and of the pieces of what is longer
_WHOLE, _PIECE = 8_000_000, 2_000_000


@dataclass(frozen=True, eq=False)
class TokenWindows:
    """N windows of T token ids each."""

    #: (N, T) int32
    ids: NDArray[np.int32]
    #: (N,) UTF-8 bytes of the text behind each window's tokens 1 … T−1, the predicted ones
    n_bytes: NDArray[np.int64]

    @property
    def n_windows(self) -> int:
        return int(self.ids.shape[0])

    @property
    def length(self) -> int:
        return int(self.ids.shape[1])

    @property
    def n_tokens(self) -> int:
        return int(self.ids.size)

    @property
    def sha256(self) -> str:
        """Hash (hex) of the exact ids, with their shape."""
        digest = hashlib.sha256(f"{self.ids.shape[0]}x{self.ids.shape[1]}:".encode())
        digest.update(np.ascontiguousarray(self.ids, dtype="<i4").tobytes())
        return digest.hexdigest()

    def check_vocabulary(self, vocab_size: int) -> None:
        """Refuse ids that the model has no embedding for.

        Raises:
            CalibrationError: tokenizer and model do not belong together.
        """
        if self.ids.size and (int(self.ids.min()) < 0 or int(self.ids.max()) >= vocab_size):
            raise CalibrationError(
                f"token id {int(self.ids.max())} is outside the model's vocabulary of {vocab_size}: "
                "the tokenizer belongs to another model"
            )


def fixed_windows(model_path: Path, text: str, length: int, *, limit: int | None = None) -> TokenWindows:
    """The field's standard: the joined text cut into windows of ``length`` tokens that do not overlap.

    The text is tokenised as a whole, with the special tokens that the tokenizer adds by itself (a Llama's text
    begins with one BOS); the remainder that fills no window is dropped. ``limit`` keeps that many windows, evenly
    spread over the text.

    Raises:
        CalibrationError: the text does not fill one window.
        CheckpointError: no usable tokenizer.
    """
    ids, ends = _tokenise(model_path, text)
    n_windows = _n_windows(ids, length, wanted=1)
    starts = np.arange(n_windows, dtype=np.int64) * length
    if limit is not None and limit < n_windows:
        if limit < 1:
            raise ConfigError(f"limit must be 1 or more, not {limit}")
        starts = starts[(np.arange(limit) * n_windows) // limit]
    return _cut(ids, ends, starts, length)


def sampled_windows(model_path: Path, text: str, *, samples: int, length: int, seed: int) -> TokenWindows:
    """``samples`` windows that do not overlap, drawn without replacement from a seeded grid over the text.

    Raises:
        CalibrationError: the text is too short; says how many samples it could give.
        CheckpointError: no usable tokenizer.
    """
    if samples < 1:
        raise ConfigError(f"samples must be 1 or more, not {samples}")
    ids, ends = _tokenise(model_path, text)
    n_windows = _n_windows(ids, length, wanted=samples)
    rng = np.random.default_rng(seed)
    offset = int(rng.integers(0, ids.size - n_windows * length + 1))
    starts = offset + np.sort(rng.permutation(n_windows)[:samples]).astype(np.int64) * length
    return _cut(ids, ends, starts, length)


def _n_windows(ids: NDArray[np.int32], length: int, *, wanted: int) -> int:
    if length < 2:
        raise ConfigError(f"a window needs a length of 2 tokens or more, not {length}")
    n_windows = ids.size // length
    if n_windows < wanted:
        raise CalibrationError(
            f"the text has {ids.size} tokens, enough for {n_windows} windows of {length}; {wanted} were asked for: "
            "take fewer or shorter windows, or more text"
        )
    return n_windows


def _cut(ids: NDArray[np.int32], ends: NDArray[np.int64], starts: NDArray[np.int64], length: int) -> TokenWindows:
    windows = np.stack([ids[start : start + length] for start in starts])
    return TokenWindows(windows, ends[starts + length - 1] - ends[starts])


def _tokenise(model_path: Path, text: str) -> tuple[NDArray[np.int32], NDArray[np.int64]]:
    """Token ids, and for each the UTF-8 byte at which it ends in the text.

    A tokenizer takes hundreds of bytes a token while it works. Texts of more than ``_WHOLE`` characters go through it
    in pieces that end at blank lines; where two pieces meet, a token or two may differ from those of the whole.
    """
    tokenizer = load_tokenizer(model_path)
    ids: list[NDArray[np.int32]] = []
    ends: list[NDArray[np.int64]] = []
    n_bytes = 0
    for number, piece in enumerate(_pieces(text)):
        encoding = tokenizer(
            piece,
            # a BOS belongs to the beginning of the text alone
            add_special_tokens=number == 0,
            return_offsets_mapping=True,
            return_attention_mask=False,
            return_token_type_ids=False,
            verbose=False,
        )
        ids.append(np.asarray(encoding["input_ids"], dtype=np.int32))
        byte_ends, n_more = _byte_ends(piece, [end for _, end in encoding["offset_mapping"]])
        ends.append(n_bytes + byte_ends)
        n_bytes += n_more
    return np.concatenate(ids), np.concatenate(ends)


def _pieces(text: str) -> Iterator[str]:
    if len(text) <= _WHOLE:
        yield text
        return
    begin = 0
    while begin < len(text):
        end = begin + _PIECE
        if end < len(text):
            blank = text.rfind("\n\n", begin, end)
            end = blank + 2 if blank > begin else end
        yield text[begin:end]
        begin = end


def _byte_ends(text: str, character_ends: list[int]) -> tuple[NDArray[np.int64], int]:
    """For each token the UTF-8 byte at which it ends, and the bytes of the text."""
    code_points = np.frombuffer(text.encode("utf-32-le"), dtype=np.uint32)
    widths = 1 + (code_points >= 0x80) + (code_points >= 0x800) + (code_points >= 0x10000).astype(np.int64)
    byte_ends = np.concatenate([[0], np.cumsum(widths)])
    return byte_ends[np.maximum.accumulate(np.asarray(character_ends, dtype=np.int64))], int(byte_ends[-1])


def load_tokenizer(model_path: Path) -> Any:
    """The checkpoint's own fast tokenizer, from local files, never running code from them.

    Raises:
        CheckpointError: there is none.
    """
    from transformers import AutoTokenizer

    # transformers makes an empty tokenizer of a family where the files are missing
    if not any((Path(model_path) / name).exists() for name in _VOCABULARY_FILES):
        raise CheckpointError(f"{model_path} has no tokenizer: add the model's tokenizer.json")
    try:
        tokenizer = AutoTokenizer.from_pretrained(model_path, local_files_only=True, trust_remote_code=False)
    except (OSError, ValueError, KeyError, TypeError, ImportError) as error:
        raise CheckpointError(f"{model_path} has no usable tokenizer: {error}") from error
    if not tokenizer.is_fast:
        raise CheckpointError(f"{model_path} has no fast tokenizer: add its tokenizer.json")
    return tokenizer
