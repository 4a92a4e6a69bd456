"""The demo's tokenizer: byte-level BPE learnt from the training documents."""

from __future__ import annotations

from collections.abc import Iterable

from transformers import PreTrainedTokenizerFast, Qwen2Tokenizer

from compress_core.text.stdlib import SEPARATOR


def train_tokenizer(texts: Iterable[str], vocab_size: int) -> PreTrainedTokenizerFast:
    """Learn ``vocab_size`` tokens, the document separator among them; every byte has a token.

    The pieces that words are cut into before merging are Qwen2's: ``AutoTokenizer`` rebuilds them from
    the model's type whatever tokenizer.json says, so any other choice would read one way through
    transformers and another through the file.
    """
    blank = Qwen2Tokenizer(vocab={SEPARATOR: 0}, merges=[], unk_token=SEPARATOR)
    return blank.train_new_from_iterator(texts, vocab_size, show_progress=False)


def byte_lengths(tokenizer: PreTrainedTokenizerFast) -> list[int]:
    """UTF-8 bytes that each token id stands for (the byte-level alphabet has one character a byte)."""
    special = set(tokenizer.all_special_tokens)
    tokens = tokenizer.convert_ids_to_tokens(list(range(len(tokenizer))))
    return [len(t.encode()) if t in special else len(t) for t in tokens]
