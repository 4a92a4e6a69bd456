"""Transitions of jobs and attempts: each a guarded UPDATE with its event in the same transaction."""
