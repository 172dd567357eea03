"""Runs a command in a terminal of its own: a shell's size, a change of it, an exit status.

terminal.py COMMAND [WORD ...]
"""

import fcntl
import os
import pty
import struct
import sys
import termios


def size(fd, rows, columns):
    fcntl.ioctl(fd, termios.TIOCSWINSZ, struct.pack("HHHH", rows, columns, 0, 0))


def until(fd, mark):
    heard = b""
    while mark not in heard:
        try:
            heard += os.read(fd, 65536)
        except OSError as error:
            raise AssertionError(heard) from error
    return heard


master, slave = pty.openpty()
size(master, 33, 77)
child = os.fork()
if child == 0:
    os.close(master)
    os.setsid()
    fcntl.ioctl(slave, termios.TIOCSCTTY, 0)
    for fd in range(3):
        os.dup2(slave, fd)
    os.execvp(sys.argv[1], sys.argv[1:])
os.close(slave)
# Root's prompt: what is typed before it a client may flush.
until(master, b"# ")
# The quotes tell the answer from the echo of the question.
os.write(master, b"stty size; tty; echo e''nd\n")
first = until(master, b"end\r\n")
assert b"33 77" in first and b"/dev/pts/" in first, first
size(master, 44, 88)
# The client hears of the change by a signal, so it may come after the next question.
second = b""
while b"44 88" not in second:
    os.write(master, b"stty size; echo e''nd\n")
    second = until(master, b"end\r\n")
os.write(master, b"exit 5\n")
try:
    while os.read(master, 65536):
        pass
except OSError:
    pass  # How Linux tells the end of a terminal.
_, status = os.waitpid(child, 0)
assert os.waitstatus_to_exitcode(status) == 5, status
print("good")
