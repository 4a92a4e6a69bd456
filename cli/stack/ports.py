"""Is the port free?"""

from __future__ import annotations

import errno
import socket

from cli.errors import StackError


def free_port(host: str, port: int) -> int:
    """``port`` if nothing listens on it, or a free one where ``port`` is 0.

    Raises:
        StackError: the port is taken, or the host is not an address of this machine.
    """
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    with socket.socket(family, socket.SOCK_STREAM) as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind((host, port))
        except OSError as error:
            if error.errno == errno.EADDRINUSE:
                raise StackError(
                    f"port {port} of {host} is in use by another program",
                    cure="stop that program, or choose a port: --port 8001 (make demo PORT=8001); 0 takes a free one",
                ) from error
            raise StackError(
                f"cannot listen on {host}:{port}: {error.strerror}", cure="choose another with BITBUDGET_HOST, --port"
            ) from error
        return int(probe.getsockname()[1])
