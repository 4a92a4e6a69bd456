"""Stream activations block by block; accumulate H = E[x xᵀ] for every distinct input."""
