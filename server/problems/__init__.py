"""The catalogue of problems, for people and programs."""
