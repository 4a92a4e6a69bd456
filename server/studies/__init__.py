"""Studies: phases 0 to 5 of the plan for one model."""
