"""Questions that more than one room asks of the tables."""
