"""Run a command on a machine without pidfds: ``python no_pidfd.py COMMAND...``.

A filter in the operating system answers the two calls as Linux before 5.3 does. It holds for the
command and all that it starts.
"""

from __future__ import annotations

import ctypes
import errno
import os
import struct
import sys

PR_SET_NO_NEW_PRIVS = 38
PR_SET_SECCOMP = 22
SECCOMP_MODE_FILTER = 2
LOAD, JUMP_IF_EQUAL, RETURN = 0x20, 0x15, 0x06
REFUSE, ALLOW = 0x00050000 | errno.ENOSYS, 0x7FFF0000
PIDFD_SEND_SIGNAL, PIDFD_OPEN = 424, 434

FILTER = [
    (LOAD, 0, 0, 0),  # the number of the call
    (JUMP_IF_EQUAL, 1, 0, PIDFD_OPEN),
    (JUMP_IF_EQUAL, 0, 1, PIDFD_SEND_SIGNAL),
    (RETURN, 0, 0, REFUSE),
    (RETURN, 0, 0, ALLOW),
]


class Program(ctypes.Structure):
    """``struct sock_fprog``."""

    _fields_ = (("length", ctypes.c_ushort), ("filter", ctypes.c_char_p))


def main() -> None:
    """Install the filter, and become the command."""
    code = b"".join(struct.pack("HBBI", *instruction) for instruction in FILTER)
    program = Program(len(FILTER), code)
    libc = ctypes.CDLL(None, use_errno=True)
    for arguments in (
        (PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0),
        (PR_SET_SECCOMP, SECCOMP_MODE_FILTER, ctypes.byref(program)),
    ):
        if libc.prctl(*arguments) != 0:
            code = ctypes.get_errno()
            raise OSError(code, os.strerror(code))
    os.execvp(sys.argv[1], sys.argv[1:])


if __name__ == "__main__":
    main()
