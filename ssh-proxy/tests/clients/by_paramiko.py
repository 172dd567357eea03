"""paramiko through the front; see common.py."""

import common
import paramiko

client = paramiko.SSHClient()
client.load_host_keys(common.known_hosts)
client.connect(common.HOST, common.port, common.user, common.token, allow_agent=False, look_for_keys=False)
transport = client.get_transport()


def command():
    stdin, stdout, stderr = client.exec_command(common.COMMAND)
    stdin.write("in")
    stdin.channel.shutdown_write()
    said = (stdout.read(), stderr.read(), stdout.channel.recv_exit_status())
    assert said == common.COMMAND_SAYS, said


def terminal():
    channel = client.invoke_shell("xterm", width=77, height=33)
    common.shell(channel.sendall, lambda: channel.recv(65536), lambda: channel.resize_pty(88, 44))
    assert channel.recv_exit_status() == 5


def files():
    sftp = client.open_sftp()
    sftp.put(str(common.BLOB), str(common.folder / "far"))
    sftp.get(str(common.folder / "far"), str(common.folder / "back"))


def forward():
    channel = transport.open_channel("direct-tcpip", (common.HOST, common.service), (common.HOST, 1))
    common.talk(channel.sendall, channel.shutdown_write, lambda: channel.recv(65536))


def many():
    channels = [transport.open_session() for _ in range(common.MANY)]
    for channel in channels:
        channel.exec_command("cat")
    for number, channel in reversed(list(enumerate(channels))):
        channel.sendall(b"%d" % number)
        channel.shutdown_write()
    for number, channel in enumerate(channels):
        assert channel.makefile().read() == b"%d" % number
        assert channel.recv_exit_status() == 0


common.run({"command": command, "terminal": terminal, "files": files, "forward": forward, "many": many})
client.close()
