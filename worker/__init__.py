"""One process per device: claims an attempt, calls compress_core, records what it measured."""
