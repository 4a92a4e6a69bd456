"""`bitbudget`: the command line, a client of the HTTP API, and the embedded stack that `up` and `demo` start."""

from __future__ import annotations
