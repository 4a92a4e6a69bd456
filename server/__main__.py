"""``python -m server``: the service where BITBUDGET_HOST and BITBUDGET_PORT say, until SIGTERM or Ctrl-C.

What it listens on and what it asks of a request (tokens off loopback) come from the same settings: a uvicorn with a
``--host`` of its own could listen where the application believes that only this machine asks.

Exit codes: 0 stopped as asked; 1 an error, which the log names; 3 it could not start.
"""

from __future__ import annotations

import logging
import os
import signal
from types import FrameType

import uvicorn

from results_db.settings import Settings

#: seconds that open requests and event streams have after SIGTERM
GRACE_S = 5


def main() -> None:
    """Serve until a signal; settings come from BITBUDGET_* variables."""
    settings = Settings()
    # uvicorn stops in good order at a signal and then raises it again for whoever listened before
    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, _stopped_as_asked)
    uvicorn.run(
        "server.app:create_app",
        factory=True,
        host=settings.host,
        port=settings.port,
        log_config=None,
        server_header=False,
        timeout_graceful_shutdown=GRACE_S,
        # a proxy's X-Forwarded-* decide nothing here
        proxy_headers=False,
    )


def _stopped_as_asked(_number: int, _frame: FrameType | None) -> None:
    # uvicorn has closed everything; taking the interpreter down object by object would cost seconds on a busy machine
    logging.shutdown()
    os._exit(0)


if __name__ == "__main__":
    main()
