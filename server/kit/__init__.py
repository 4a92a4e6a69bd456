"""What every domain of the server shares: units of work, problems, pages, idempotency, host checks, event streams."""
