"""Models of the error E_i(b, r). Needs numpy and scipy only."""
