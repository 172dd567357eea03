"""libssh by ssh-python through the front; see common.py."""

import common
import os
from ssh import options
from ssh.session import Session

SERVER_KNOWN_OK = 1

session = Session()
session.options_set(options.HOST, common.HOST)
session.options_set_port(common.port)
session.options_set(options.USER, common.user)
session.options_set(options.KNOWNHOSTS, common.known_hosts)
session.connect()
assert session.is_server_known() == SERVER_KNOWN_OK
session.userauth_password(common.user, common.token)


def read(channel, stderr=False):
    size, more = channel.read(65536, is_stderr=stderr)
    assert size >= 0, size
    return more


def all_of(channel, stderr=False):
    heard = b""
    while more := read(channel, stderr):
        heard += more
    return heard


def say(channel, data):
    while data:
        _, sent = channel.write(data)
        data = data[sent:]


def command():
    channel = session.channel_new()
    channel.open_session()
    channel.request_exec(common.COMMAND)
    say(channel, b"in")
    channel.send_eof()
    said = (all_of(channel), all_of(channel, True), channel.get_exit_status())
    assert said == common.COMMAND_SAYS, said


def terminal():
    channel = session.channel_new()
    channel.open_session()
    channel.request_pty_size("xterm", 77, 33)
    channel.request_shell()
    common.shell(lambda data: say(channel, data), lambda: read(channel), lambda: channel.change_pty_size(88, 44))
    all_of(channel)
    assert channel.get_exit_status() == 5


def files():
    far = str(common.folder / "far")
    sftp = session.sftp_new()
    sftp.init()
    data = common.BLOB.read_bytes()
    with sftp.open(far, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o600) as file:
        for at in range(0, len(data), 32768):
            file.write(data[at:at + 32768])
    with sftp.open(far, os.O_RDONLY, 0) as file, open(common.folder / "back", "wb") as back:
        for _, more in file:
            back.write(more)


def forward():
    channel = session.channel_new()
    channel.open_forward(common.HOST, common.service, common.HOST, 1)
    common.talk(lambda data: say(channel, data), channel.send_eof, lambda: read(channel))


def many():
    channels = []
    for _ in range(common.MANY):
        channel = session.channel_new()
        channel.open_session()
        channel.request_exec("cat")
        channels.append(channel)
    for number, channel in reversed(list(enumerate(channels))):
        say(channel, b"%d" % number)
        channel.send_eof()
    for number, channel in enumerate(channels):
        assert all_of(channel) == b"%d" % number
        assert channel.get_exit_status() == 0


common.run({"command": command, "terminal": terminal, "files": files, "forward": forward, "many": many})
session.disconnect()
