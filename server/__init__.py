"""The HTTP service: validates, writes the job, answers questions from the database. Never imports torch."""
