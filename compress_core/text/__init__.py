"""Text and tokens: sources, disjoint splits, windows. Torch-free."""

from compress_core.text.source import SPLITS, WHOLE, Split, TextSource, iter_documents, split_text

__all__ = ["SPLITS", "WHOLE", "Split", "TextSource", "iter_documents", "split_text"]
