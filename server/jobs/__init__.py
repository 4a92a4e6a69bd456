"""Jobs: list, look, cancel, retry, pause, resume, follow."""
