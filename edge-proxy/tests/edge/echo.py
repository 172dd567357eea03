"""The server of websockets.rs: says back what it hears, and speaks permessage-deflate. Prints its port."""

import asyncio

from websockets.asyncio.server import serve


async def echo(connection):
    async for message in connection:
        await connection.send(message)


def chat_if_offered(connection, offered):
    return "chat" if "chat" in offered else None


async def main():
    options = {"max_size": 1 << 20, "ping_interval": None, "select_subprotocol": chat_if_offered}
    async with serve(echo, "127.0.0.1", 0, **options) as server:
        print(server.sockets[0].getsockname()[1], flush=True)
        await server.serve_forever()


asyncio.run(main())
