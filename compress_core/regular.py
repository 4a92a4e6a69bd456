"""Open a file that is one: a pipe of that name would keep its reader waiting for ever, a device has no end."""

from __future__ import annotations

import errno
import os
import stat
from io import BufferedReader
from pathlib import Path


def open_regular(path: Path) -> BufferedReader:
    """The file, to be read.

    Raises:
        OSError: it cannot be opened, or is a pipe, a socket, a device or a folder.
    """
    # without waiting: the opening of a pipe that nobody writes to does not return
    descriptor = os.open(path, os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC)
    if not stat.S_ISREG(os.fstat(descriptor).st_mode):
        os.close(descriptor)
        raise OSError(errno.EINVAL, "it is no regular file", str(path))
    return os.fdopen(descriptor, "rb")


def read_regular(path: Path, *, limit: int) -> bytes:
    """All of the file, which has at most ``limit`` bytes.

    Raises:
        OSError: as :func:`open_regular`; or it is larger.
    """
    with open_regular(path) as stream:
        content = stream.read(limit + 1)
    if len(content) > limit:
        raise OSError(errno.EFBIG, f"it has more than {limit:,} bytes", str(path))
    return content
