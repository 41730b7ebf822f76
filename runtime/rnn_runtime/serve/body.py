"""The body of a request, read within limits of size and time."""

import asyncio

from starlette.requests import ClientDisconnect, Request

from rnn_runtime.serve.protocol import RequestError

_SECONDS = 30  # for a whole body: a client that stalls would keep its place in the queue


async def read_body(request: Request, most_bytes: int) -> bytes:
    """Read a body, whether its length is known in advance or not.

    Raises:
        RequestError: it is longer than `most_bytes`, compressed, a form, or doesn't arrive.
    """
    length = request.headers.get("content-length", "0")
    if not length.isdecimal() or int(length) > most_bytes:
        raise _too_large(most_bytes)
    if "content-length" in request.headers and "transfer-encoding" in request.headers:
        # A proxy may take the one for the body's end, and this server the other (RFC 9112, section 6.3).
        raise RequestError("a request has Content-Length or Transfer-Encoding, not both", 400)
    if request.headers.get("content-encoding", "identity") != "identity":
        raise RequestError("compressed bodies aren't supported. Send it as it is", 415)
    if request.headers.get("content-type", "").startswith("multipart/"):
        raise RequestError("forms aren't supported. Send the file itself: curl --data-binary @digit.png URL", 415)
    parts: list[bytes] = []
    size = 0
    try:
        async with asyncio.timeout(_SECONDS):
            async for part in request.stream():
                size += len(part)
                if size > most_bytes:
                    raise _too_large(most_bytes)
                parts.append(part)
    except TimeoutError:
        raise RequestError(f"the body didn't arrive within {_SECONDS} seconds", 408) from None
    except ClientDisconnect:
        raise RequestError("the client has gone", 400) from None
    return b"".join(parts)


def _too_large(most_bytes: int) -> RequestError:
    return RequestError(f"the body has more than {most_bytes:,} bytes, the limit", 413)
