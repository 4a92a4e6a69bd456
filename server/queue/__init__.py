"""The queue as a whole: its switch, what is in it, and who works on it."""
