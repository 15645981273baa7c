"""Run a command to which the operating system refuses some calls.

``python refuse_calls.py NUMBER:ERRNO... -- COMMAND...``: a filter in the operating system answers
each of these system calls with an error, for the command and all that it starts.
"""

from __future__ import annotations

import ctypes
import os
import struct
import sys

PR_SET_NO_NEW_PRIVS = 38
PR_SET_SECCOMP = 22
SECCOMP_MODE_FILTER = 2
LOAD, JUMP_IF_EQUAL, RETURN = 0x20, 0x15, 0x06
REFUSE, ALLOW = 0x00050000, 0x7FFF0000


class Program(ctypes.Structure):
    """``struct sock_fprog``."""

    _fields_ = (("length", ctypes.c_ushort), ("filter", ctypes.c_char_p))


def main(arguments: list[str]) -> None:
    """Install the filter, and become the command."""
    split = arguments.index("--")
    instructions = [(LOAD, 0, 0, 0)]  # the number of the call
    for refusal in arguments[:split]:
        number, _, code = refusal.partition(":")
        instructions += [(JUMP_IF_EQUAL, 0, 1, int(number)), (RETURN, 0, 0, REFUSE | int(code))]
    instructions.append((RETURN, 0, 0, ALLOW))
    packed = b"".join(struct.pack("HBBI", *instruction) for instruction in instructions)
    libc = ctypes.CDLL(None, use_errno=True)
    for call in (
        (PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0),
        (PR_SET_SECCOMP, SECCOMP_MODE_FILTER, ctypes.byref(Program(len(instructions), packed))),
    ):
        if libc.prctl(*call) != 0:
            code = ctypes.get_errno()
            raise OSError(code, os.strerror(code))
    command = arguments[split + 1 :]
    os.execvp(command[0], command)


if __name__ == "__main__":
    main(sys.argv[1:])
