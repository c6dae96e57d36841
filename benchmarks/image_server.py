"""A fast web server for the benchmark of downloads: every path is a different image. Imports nothing heavy.

python -m benchmarks.image_server SECONDS_OF_DELAY
"""

import asyncio
import io
import sys

import numpy as np
from PIL import Image


def serve(delay: float) -> None:
    """Answers every request with a different image, after a delay, until it is killed; prints its port."""
    pixels = np.random.default_rng(0).integers(0, 256, (160, 160, 3), dtype=np.uint8)
    buffer = io.BytesIO()
    Image.fromarray(pixels).save(buffer, "JPEG", quality=95)
    image = buffer.getvalue()

    async def answer(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        try:
            while head := await reader.readuntil(b"\r\n\r\n"):
                await asyncio.sleep(delay)
                body = image + head.split(b" ", 2)[1]  # decoders ignore bytes after a JPEG's end
                writer.write(b"HTTP/1.1 200 OK\r\nContent-Length: %d\r\n\r\n" % len(body) + body)
                await writer.drain()
        except (OSError, asyncio.IncompleteReadError):
            writer.close()

    async def main() -> None:
        server = await asyncio.start_server(answer, "127.0.0.1", 0, backlog=1024)
        print(server.sockets[0].getsockname()[1], flush=True)
        await server.serve_forever()

    asyncio.run(main())


if __name__ == "__main__":
    serve(float(sys.argv[1]))
