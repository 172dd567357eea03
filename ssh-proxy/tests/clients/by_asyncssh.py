"""asyncssh through the front; see common.py."""

import asyncio
import asyncssh
import common


async def command(client):
    done = await client.run(common.COMMAND, input=b"in", encoding=None)
    assert (done.stdout, done.stderr, done.exit_status) == common.COMMAND_SAYS, done
    done = await client.run("kill -TERM $$")
    assert done.exit_signal[0] == "TERM", done


async def until(process, mark):
    heard = b""
    while mark not in heard:
        more = await process.stdout.read(65536)
        assert more, heard
        heard += more
    return heard


async def terminal(client):
    process = await client.create_process(term_type="xterm", term_size=(77, 33), encoding=None)
    process.stdin.write(b"stty size; tty; echo e''nd\n")
    first = await until(process, b"end\r\n")
    assert b"33 77" in first and b"/dev/pts/" in first, first
    process.change_terminal_size(88, 44)
    process.stdin.write(b"stty size; echo e''nd\n")
    second = await until(process, b"end\r\n")
    assert b"44 88" in second, second
    process.stdin.write(b"exit 5\n")
    assert (await process.wait()).exit_status == 5


async def files(client):
    far = str(common.folder / "far")
    async with client.start_sftp_client() as sftp:
        await sftp.put(str(common.BLOB), far)
        await sftp.get(far, str(common.folder / "back"))


async def forward(client):
    reader, writer = await client.open_connection(common.HOST, common.service, encoding=None)
    assert await reader.readexactly(6) == b"hello\n"
    writer.write(common.ECHOED)
    writer.write_eof()
    assert await reader.read() == common.ECHOED


async def many(client):
    async def one(number):
        done = await client.run("cat", input=str(number))
        assert (done.stdout, done.exit_status) == (str(number), 0), done

    await asyncio.gather(*(one(number) for number in range(common.MANY)))


async def main():
    features = {"command": command, "terminal": terminal, "files": files, "forward": forward, "many": many}
    async with asyncssh.connect(
        common.HOST, common.port, username=common.user, password=common.token, known_hosts=common.known_hosts,
        client_keys=None, config=None,
    ) as client:
        await features[common.feature](client)


asyncio.run(main())
print("good")
