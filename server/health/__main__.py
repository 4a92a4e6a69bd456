"""``python -m server.health``: whether the server of this machine is ready; for containers and for scripts.

It asks /readyz on the port of BITBUDGET_PORT. Exit codes: 0 ready; 1 not ready, or nobody answers.
"""

from __future__ import annotations

import http.client
import json
import sys

from results_db.loopback import asked_host
from results_db.settings import Settings

_TIMEOUT_S = 5.0


def main() -> int:
    """Say on stderr what is not ready; the exit code."""
    settings = Settings()
    host = asked_host(settings.host)
    try:
        connection = http.client.HTTPConnection(host, settings.port, timeout=_TIMEOUT_S)
        connection.request("GET", "/readyz")
        answer = connection.getresponse()
        status, body = answer.status, answer.read()
    except (OSError, http.client.HTTPException) as error:
        sys.stderr.write(f"no server answers at {host}, port {settings.port}: {error}\n")
        return 1
    if status == 200:
        return 0
    sys.stderr.write(f"the server answers {status}: {_wanting(body)}\n")
    return 1


def _wanting(body: bytes) -> str:
    """The checks that failed, in their own words; the whole answer where it has no checks."""
    try:
        checks = json.loads(body)["checks"]
        return "; ".join(f"{name}: {check['detail']}" for name, check in checks.items() if not check["ok"])
    except (ValueError, KeyError, TypeError):
        return body[:500].decode(errors="replace")


if __name__ == "__main__":
    sys.exit(main())
