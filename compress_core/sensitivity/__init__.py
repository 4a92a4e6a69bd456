"""How much the model feels the compression of one matrix (KL anchors) or of one layer (fidelity)."""
