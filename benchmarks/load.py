"""Send one request again and again over several connections, and print how many answers came per second."""

import asyncio
import sys
import time
from pathlib import Path


async def _ask(address: tuple[str, int], request: bytes, end: float) -> int:
    """Requests that were answered with 200 over one kept connection."""
    reader, writer = await asyncio.open_connection(*address)
    answered = 0
    while time.perf_counter() < end:
        writer.write(request)
        head = await reader.readuntil(b"\r\n\r\n")
        assert head.startswith(b"HTTP/1.1 200"), head
        length = next(line for line in head.lower().split(b"\r\n") if line.startswith(b"content-length:"))
        await reader.readexactly(int(length.partition(b":")[2]))
        answered += 1
    writer.close()
    return answered


async def load(address: tuple[str, int], request: bytes, connections: int, seconds: float) -> float:
    """Answers per second."""
    start = time.perf_counter()
    asked = (_ask(address, request, start + seconds) for _ in range(connections))
    return sum(await asyncio.gather(*asked)) / (time.perf_counter() - start)


if __name__ == "__main__":
    host, port, path, connections, seconds = sys.argv[1:]
    print(asyncio.run(load((host, int(port)), Path(path).read_bytes(), int(connections), float(seconds))))
