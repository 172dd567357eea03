"""libssh2 by ssh2-python through the front; see common.py. Its files are curl's, and the
binding cannot change a terminal's size."""

import common
import socket
from ssh2 import knownhost
from ssh2.session import Session

wire = socket.create_connection((common.HOST, common.port))
session = Session()
session.handshake(wire)
known = session.knownhost_init()
known.readfile(common.known_hosts)
key, _ = session.hostkey()
known.checkp(common.HOST.encode(), common.port, key,
             knownhost.LIBSSH2_KNOWNHOST_TYPE_PLAIN | knownhost.LIBSSH2_KNOWNHOST_KEYENC_RAW)
session.userauth_password(common.user, common.token)


def all_of(channel, stream=0):
    heard = b""
    while True:
        size, more = channel.read_ex(65536, stream)
        assert size >= 0, size
        if size == 0:
            return heard
        heard += more


def say(channel, data):
    while data:
        _, sent = channel.write(data)
        data = data[sent:]


def over(channel):
    channel.wait_eof()
    channel.close()
    channel.wait_closed()
    return channel.get_exit_status()


def command():
    channel = session.open_session()
    channel.execute(common.COMMAND)
    say(channel, b"in")
    channel.send_eof()
    said = (all_of(channel), all_of(channel, 1), over(channel))
    assert said == common.COMMAND_SAYS, said


def forward():
    channel = session.direct_tcpip(common.HOST, common.service)
    common.talk(lambda data: say(channel, data), channel.send_eof, lambda: channel.read(65536)[1])


def many():
    channels = [session.open_session() for _ in range(common.MANY)]
    for channel in channels:
        channel.execute("cat")
    for number, channel in reversed(list(enumerate(channels))):
        say(channel, b"%d" % number)
        channel.send_eof()
    for number, channel in enumerate(channels):
        assert all_of(channel) == b"%d" % number
        assert over(channel) == 0


common.run({"command": command, "forward": forward, "many": many})
session.disconnect()
