"""H per distinct input of a model."""
