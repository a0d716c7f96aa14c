"""A folder that one process at a time may write to."""

import errno
import fcntl
import os
import socket
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from llava_sp.utils.errors import UserError
from llava_sp.utils.logging import get_logger

logger = get_logger(__name__)

LOCK_NAME = ".lock"

NO_LOCKS = (errno.ENOLCK, errno.ENOSYS, errno.EOPNOTSUPP)
"""How file systems say that they have no locks."""


@contextmanager
def locked(folder: Path) -> Iterator[None]:
    """Holds a folder while the block runs; the lock ends with the process, however that ends.

    Raises:
        UserError: Another process holds it.
    """
    # A POSIX lock is the process's own: a child, such as a data loader's worker, does not keep it alive.
    handle = os.open(folder / LOCK_NAME, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o666)
    try:
        try:
            fcntl.lockf(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except (BlockingIOError, PermissionError):
            holder = os.read(handle, 200).decode(errors="replace").strip()
            raise UserError(
                f"{folder} is in use by another run ({holder or 'just starting'}). Wait for its end, stop it, or give "
                "another --output_dir."
            ) from None
        except OSError as error:
            if error.errno not in NO_LOCKS:
                raise
            logger.warning("%s is on a disk without locks (%s); only one run at a time may use it.", folder, error)
        with suppress(OSError):  # a full disk is no reason not to start: that may make room
            os.ftruncate(handle, 0)
            os.write(handle, f"process {os.getpid()} on {socket.gethostname()}\n".encode())
        yield
    finally:
        os.close(handle)
