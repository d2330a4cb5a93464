"""One running job to a folder: a lock that the system takes back when its holder ends.

A POSIX lock (`fcntl.lockf`) on `folder/.lock`. It belongs to the process, is gone with
it, however it ends, and is passed on to the server by NFS. The file stays; its text
says who had it last, for messages alone.
"""

import errno
import fcntl
import os
import socket
import warnings

# Held by this process, by folder: the open file, and the process, since a fork has
# the list but not the locks.
_held = {}
_NO_LOCKS = {errno.ENOLCK, errno.ENOSYS, errno.EOPNOTSUPP, errno.ENOTSUP}


def acquire(folder):
    """Takes the folder for this process, or keeps it.

    Args:
        folder: `pathlib.Path` of a folder that is there.

    Returns:
        `None`; a string, who has it, where another process does.

    Raises:
        OSError: The folder cannot be written to.
    """
    folder = folder.resolve()
    if _held.get(folder, (None, None))[1] == os.getpid():
        return None
    handle = os.open(folder / ".lock", os.O_RDWR | os.O_CREAT, 0o666)
    try:
        fcntl.lockf(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError as error:
        holder = os.read(handle, 200).decode("utf-8", "replace").strip()
        os.close(handle)
        if error.errno in (errno.EACCES, errno.EAGAIN):
            return holder or "a process that did not say which"
        if error.errno not in _NO_LOCKS:
            raise
        warnings.warn(
            f"The file system of {folder} has no locks ({error.strerror}): nothing"
            " keeps a second job from saving there.",
            stacklevel=2,
        )
        return None
    _held[folder] = handle, os.getpid()
    _sign(handle)
    return None


def holds(folder):
    """Whether this process has the folder's lock."""
    return _held.get(folder.resolve(), (None, None))[1] == os.getpid()


def release(folder):
    """Gives the folder to whoever asks next, if this process has it."""
    if holds(folder):
        os.close(_held.pop(folder.resolve())[0])


def _sign(handle):
    try:
        os.ftruncate(handle, 0)
        os.write(handle, f"process {os.getpid()} on {socket.gethostname()}\n".encode())
    except OSError:
        # A full disk has a lock, if no room for a name.
        pass
