"""What the scripts of Python clients share: their arguments, and what is tried."""

import pathlib
import sys

feature = sys.argv[1]
port = int(sys.argv[2])
user, token = sys.argv[3:5]
known_hosts = sys.argv[5]
folder = pathlib.Path(sys.argv[6])
service = int(sys.argv[7])

HOST = "127.0.0.1"
COMMAND = "cat; echo err >&2; exit 9"
COMMAND_SAYS = (b"in", b"err\n", 9)
MANY = 30
ECHOED = bytes(range(256)) * 1200
BLOB = folder / "blob"


def until(hear, mark):
    """Reads until the mark is there."""
    heard = b""
    while mark not in heard:
        more = hear()
        assert more, heard
        heard += more
    return heard


def shell(say, hear, resize):
    """Asks a shell for its terminal's size before and after a change, and has it exit with 5."""
    # The quotes tell the answer from the echo of the question.
    say(b"stty size; tty; echo e''nd\n")
    first = until(hear, b"end\r\n")
    assert b"33 77" in first and b"/dev/pts/" in first, first
    resize()
    say(b"stty size; echo e''nd\n")
    second = until(hear, b"end\r\n")
    assert b"44 88" in second, second
    say(b"exit 5\n")


def talk(say, close, hear):
    """Talks to the service: it speaks first, echoes, and goes away after our end."""
    heard = b""
    while len(heard) < 6:
        more = hear()
        assert more, heard
        heard += more
    assert heard == b"hello\n", heard
    say(ECHOED)
    close()
    back = b""
    while more := hear():
        back += more
    assert back == ECHOED, len(back)


def run(features):
    """Does what the first argument says."""
    features[feature]()
    print("good")
