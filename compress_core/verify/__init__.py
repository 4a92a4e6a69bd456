"""What whole allocations really do to a model: joint KL and losses of many of them in one streamed pass."""
