"""Read-only SQL on the views."""
