"""The service as an ASGI application: its routes, and what each answers.

A request's way: `guarded`, its body, a place in the queue, `_pixels`, the batcher, an answer.
"""

import asyncio
import base64
import hmac
import io
import ipaddress
import math
import threading
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Collection, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import asynccontextmanager, contextmanager, suppress
from dataclasses import dataclass
from functools import partial
from importlib.resources import files
from typing import Any
from urllib.parse import urlsplit

import numpy as np
from numpy.typing import NDArray
from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, generate_latest
from starlette.applications import Starlette
from starlette.exceptions import HTTPException
from starlette.requests import ClientDisconnect, Request
from starlette.responses import HTMLResponse, JSONResponse, Response
from starlette.routing import Route

import rnn_runtime
from rnn_runtime.classifier import Classifier
from rnn_runtime.cores import usable_memory
from rnn_runtime.errors import Argument, ImageError, ModelError, ProviderError, SettingsError
from rnn_runtime.images.decode import Decoded, claimed_pixels, decode_image
from rnn_runtime.images.fit import to_image
from rnn_runtime.serve.batcher import Answer, Batcher
from rnn_runtime.serve.protocol import (
    BINARY_HEADER,
    EXTENSIONS,
    InferRequest,
    RequestError,
    describe_model,
    format_answer,
    parse_request,
)
from rnn_runtime.text import shorten

VERSION = "1"  # of the model: a service has one
_BODY_SECONDS = 30  # for a whole body
_INPUT_BYTES = 256 << 20  # of images as the model takes them, in all requests; fewer where the memory is small
_INPUT_SHARE = 6  # of the memory
_BODIES = 16  # of the largest size, as many bytes as all bodies may take together
_READY_SECONDS = 5  # for an image to show that the model runs
_READY_AGAIN = 1.0  # seconds for which such an answer holds
_WARM_UP = 32  # images at the start, which have the model's threads started
_LONG_BODY = 1 << 16  # bytes of a request that takes too long to read in the event loop
_REFUSED = 400  # the least status of an error
_UNAVAILABLE, _RETRY_LATER = 503, {"Retry-After": "1"}
_LONGEST_PLACE = 200  # characters of a path that an error repeats
_SECONDS = (0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0)
_IMAGES = (1, 2, 4, 8, 16, 32, 64, 128, 256, 512, 1024)
# The page loads nothing from elsewhere, and can't be made to.
_PAGE_POLICY = (
    "default-src 'none'; connect-src 'self'; img-src 'self' blob: data:; script-src 'unsafe-inline'; "
    "style-src 'unsafe-inline'; base-uri 'none'; form-action 'none'; frame-ancestors 'none'"
)


@dataclass(frozen=True, slots=True)
class ServeLimits:
    """What a service accepts.

    Attributes:
        batch_size: The most images per batch, and per request; of large images, as many as take 256 MiB.
        queue: The most requests that wait for the model. Further ones are refused with status 503.
        body: The most bytes of a request's body. All bodies together may have 16 times as many.
        pixels: The most pixels of image files that are decoded at once, and so of a single one. Each takes up to 20
            bytes while it is decoded (lossless WebP).
    """

    batch_size: int = 256
    queue: int = 256
    body: int = 16 << 20
    pixels: int = 32_000_000


LIMITS = ServeLimits()


def make_app(
    classifier: Classifier,
    *,
    name: str = "rnn",
    limits: ServeLimits = LIMITS,
    token: str | None = None,
    allowed_hosts: Collection[str] = ("*",),
) -> Starlette:
    """Make the web service of a model, as an ASGI application for any server.

    Its `state` has two values that may be changed while it runs: `token`, and `ending`, with which each answer asks
    the client to close its connection.

    Args:
        classifier: The model.
        name: Its name in the Open Inference Protocol.
        limits: What it accepts.
        token: What requests must have in their header `Authorization: Bearer TOKEN`, except those about health; None
            for no such header.
        allowed_hosts: The names by which requests may call the service, besides localhost and IP addresses; `*` for
            any. A page elsewhere can have its own name lead to this machine (DNS rebinding), and would read answers.

    Raises:
        SettingsError: the threads for decoding and for the model can't be started.
        ModelError, ProviderError: the model doesn't run.
    """
    service = _Service(classifier, name, limits, frozenset(map(str.lower, allowed_hosts)))
    model = "/v2/models/{name}"
    routes = [
        service.route("GET", "/", service.page),
        service.route("GET", "/metrics", service.metrics),
        service.queued_route("/classify", service.classify),
        service.route("GET", "/v2", service.server_metadata),
        service.route("GET", "/v2/health/live", service.live, is_open=True),
        service.route("GET", "/v2/health/ready", service.ready, is_open=True),
    ]
    for prefix in (model, model + "/versions/{version}"):
        routes += [
            service.route("GET", prefix, service.model_metadata),
            service.route("GET", prefix + "/ready", service.model_ready),
            service.queued_route(prefix + "/infer", service.infer),
        ]
    app = Starlette(routes=routes, exception_handlers={HTTPException: _http_error})
    app.router.redirect_slashes = False  # such an answer repeats the host that the request named
    app.state.token, app.state.ending = token, False
    return app


Endpoint = Callable[[Request], Awaitable[Response]]
QueuedEndpoint = Callable[[Request, bytes], Awaitable[Response]]


class _Metrics:
    """Counters of one service. They are its own: other code's metrics in the process don't show up."""

    def __init__(self) -> None:
        self.registry = CollectorRegistry()
        options: dict[str, Any] = {"namespace": "rnn", "registry": self.registry}
        self.requests = Counter("requests", "Requests by route and HTTP status.", ["route", "status"], **options)
        self.seconds = Histogram(
            "request_seconds", "From a request's first byte to its answer.", ["route"], buckets=_SECONDS, **options
        )
        self.under_way = Gauge("requests_under_way", "Requests that wait for their answer.", **options)
        self.arriving = Gauge("bodies_arriving", "Requests whose body hasn't arrived yet.", **options)
        self.unlike = Counter(
            "unlike_images",
            "Images unlike the training images, by their greatest difference.",
            ["difference"],
            **options,
        )
        self.batch = Histogram("batch_images", "Images per run of the model.", buckets=_IMAGES, **options)


@dataclass(slots=True, eq=False)
class _Arriving:
    timeout: asyncio.Timeout
    size: int = 0
    is_given_up: bool = False


class _Bodies:
    """The bodies of requests, within a limit on their bytes.

    Where they take more, the one that has been arriving longest is given up. So clients that send slowly, or stop, keep
    nobody else out.

    Args:
        most_bytes: Of one body.
        most_in_all: Of all bodies that are arriving or wait for their answer.
        arriving: Shows how many are arriving.
    """

    def __init__(self, most_bytes: int, most_in_all: int, arriving: Gauge) -> None:
        self._most_bytes, self._most_in_all, self._gauge = most_bytes, most_in_all, arriving
        self._bytes = 0
        self._arriving: dict[_Arriving, None] = {}  # the oldest first

    @asynccontextmanager
    async def read(self, request: Request) -> AsyncIterator[bytes]:
        """Read a body. It counts until the end of the block.

        Raises:
            RequestError: it is longer than allowed, compressed, a form, doesn't arrive, or is given up.
        """
        length = _check_body_headers(request)
        if length > self._most_bytes:
            raise self._too_large()
        parts: list[bytes] = []
        arriving = None
        try:
            try:
                async with asyncio.timeout(_BODY_SECONDS) as timeout:
                    arriving = _Arriving(timeout)
                    self._arriving[arriving] = None
                    self._gauge.set(len(self._arriving))
                    async for part in request.stream():
                        parts.append(part)
                        self._count(arriving, len(part))
            finally:
                self._arriving.pop(arriving, None)  # type: ignore[arg-type]
                self._gauge.set(len(self._arriving))
            body = b"".join(parts)
            parts.clear()
            yield body
        except TimeoutError:
            if arriving and arriving.is_given_up:
                raise _busy() from None
            raise RequestError(f"the body didn't arrive within {_BODY_SECONDS} seconds", 408) from None
        except ClientDisconnect:
            raise RequestError("the client has gone", 400) from None
        finally:
            if arriving:
                self._bytes -= arriving.size

    def _count(self, arriving: _Arriving, count: int) -> None:
        arriving.size += count
        self._bytes += count
        if arriving.size > self._most_bytes:
            raise self._too_large()
        while self._bytes > self._most_in_all:
            oldest = next(iter(self._arriving))
            if oldest is arriving:
                raise _busy()
            del self._arriving[oldest]
            self._bytes -= oldest.size
            oldest.size, oldest.is_given_up = 0, True
            oldest.timeout.reschedule(asyncio.get_running_loop().time())

    def _too_large(self) -> RequestError:
        return RequestError(f"the body has more than {self._most_bytes:,} bytes, the limit", 413)


class _PixelBudget:
    """How many pixels are decoded at once, in any number of threads; further images wait."""

    def __init__(self, most: int) -> None:
        self._most, self._free = most, most
        self._changed = threading.Condition()

    @contextmanager
    def hold(self, data: bytes) -> Iterator[None]:
        """Wait until there is room for an image, and keep it for the block.

        Raises:
            ImageError: the image is larger than all room.
        """
        with self._changed:
            pixels = claimed_pixels(data)  # one at a time: for WebP, even this takes 8 bytes a pixel
            if pixels > self._most:
                raise ImageError(f"the image has more than {self._most:,} pixels, the limit of this service")
            self._changed.wait_for(lambda: self._free >= pixels)
            self._free -= pixels
        try:
            yield
        finally:
            with self._changed:
                self._free += pixels
                self._changed.notify_all()


class _Service:
    def __init__(self, classifier: Classifier, name: str, limits: ServeLimits, allowed_hosts: frozenset[str]) -> None:
        self._classifier, self._name, self._limits, self._hosts = classifier, name, limits, allowed_hosts
        self._spec = classifier.image_spec
        self._metrics = _Metrics()
        self._image_bytes, self._input_bytes = math.prod(self._spec.shape), 0
        self._most_input_bytes = min(_INPUT_BYTES, usable_memory() // _INPUT_SHARE)
        self._most_images = max(1, min(limits.batch_size, self._most_input_bytes // self._image_bytes))
        self._bodies = _Bodies(limits.body, _BODIES * limits.body, self._metrics.arriving)
        self._budget = _PixelBudget(limits.pixels)
        self._decoders = ThreadPoolExecutor(classifier.threads, thread_name_prefix="decode")
        try:  # all threads now: a service that can't start one later would answer nothing
            self._batcher = Batcher(classifier, self._most_images, self._metrics.batch.observe)
            classifier.predict_proba(np.zeros((min(self._most_images, _WARM_UP), *self._spec.shape), np.uint8))
            start_all(self._decoders, classifier.threads)
        except RuntimeError as error:
            raise SettingsError(
                f"{error}: the limit on processes and threads (ulimit -u, or the container's) is too low. Raise it, or "
                "choose fewer ",
                Argument("threads"),
            ) from None
        self._under_way = 0
        self._probe: asyncio.Task[Any] | None = None
        self._probed = 0.0
        self._page = files("rnn_runtime.serve").joinpath("page.html").read_text(encoding="utf-8")

    def queued_route(self, path: str, endpoint: QueuedEndpoint) -> Route:
        """A route for POST whose requests wait in the queue once their body has arrived."""

        async def in_queue(request: Request) -> Response:
            async with self._bodies.read(request) as body:
                if self._under_way >= self._limits.queue:
                    raise _busy()
                self._under_way += 1
                self._metrics.under_way.set(self._under_way)
                try:
                    return await endpoint(request, body)
                finally:
                    self._under_way -= 1
                    self._metrics.under_way.set(self._under_way)

        return self.route("POST", path, in_queue)

    def route(self, method: str, path: str, endpoint: Endpoint, *, is_open: bool = False) -> Route:
        """A route whose endpoint is guarded.

        Args:
            method: `GET` or `POST`.
            path: As in Starlette, with names in braces.
            endpoint: What answers.
            is_open: Whether requests need no token, and may call the service by any name.
        """

        async def guarded(request: Request) -> Response:
            start = time.perf_counter()
            response = (None if is_open else self._refusal(request)) or await _answer(endpoint, request)
            response.headers["X-Content-Type-Options"] = "nosniff"
            if request.app.state.ending:
                response.headers["Connection"] = "close"
            # With 503, the body is there, or the time for it is over.
            if method == "POST" and _REFUSED <= response.status_code != _UNAVAILABLE and _closes(request):
                await _read_to_the_end(request)
            self._metrics.requests.labels(path, response.status_code).inc()
            self._metrics.seconds.labels(path).observe(time.perf_counter() - start)
            return response

        return Route(path, guarded, methods=[method])

    def _refusal(self, request: Request) -> Response | None:
        """The answer to a request that isn't allowed; None for one that is."""
        token: str | None = request.app.state.token
        if token is not None:
            scheme, _, given = request.headers.get("authorization", "").partition(" ")
            if hmac.compare_digest(given.encode("latin-1"), token.encode()) and scheme.lower() == "bearer":
                return None
            return _error("a token is needed: Authorization: Bearer TOKEN", 401, {"WWW-Authenticate": "Bearer"})
        host = request.headers.get("host", "")
        if "*" in self._hosts or not host or is_local_name(host, self._hosts):
            return None
        return _error(
            f"requests may not call this service {shorten(repr(host), _LONGEST_PLACE)}. Its operator can allow that: "
            "rnn-serve --allowed-host NAME",
            421,
        )

    async def page(self, _: Request) -> Response:
        return HTMLResponse(self._page, headers={"Content-Security-Policy": _PAGE_POLICY})

    async def metrics(self, _: Request) -> Response:
        return Response(generate_latest(self._metrics.registry), media_type="text/plain; version=0.0.4")

    async def live(self, _: Request) -> Response:
        return JSONResponse({})

    async def ready(self, _: Request) -> Response:
        """Whether the model answers: an image goes the way of all others."""
        now = time.monotonic()
        if self._probe is None or (self._probe.done() and now - self._probed > _READY_AGAIN):
            black = np.zeros((1, *self._spec.shape), np.uint8)
            self._probe, self._probed = asyncio.create_task(self._batcher.run(black, ["probabilities"])), now
        try:
            await asyncio.wait_for(asyncio.shield(self._probe), _READY_SECONDS)
        except TimeoutError:
            raise RequestError(f"the model hasn't answered within {_READY_SECONDS} seconds", _UNAVAILABLE) from None
        except (ModelError, ProviderError) as error:
            raise RequestError(str(error), _UNAVAILABLE) from None
        return JSONResponse({})

    async def server_metadata(self, _: Request) -> Response:
        return JSONResponse({"name": "rnn-serve", "version": rnn_runtime.__version__, "extensions": list(EXTENSIONS)})

    async def model_metadata(self, request: Request) -> Response:
        self._check_model(request)
        classes = len(self._classifier.class_names)
        return JSONResponse(describe_model(self._name, VERSION, self._spec, classes))

    async def model_ready(self, request: Request) -> Response:
        self._check_model(request)
        return JSONResponse({"name": self._name, "ready": True})

    async def infer(self, request: Request, body: bytes) -> Response:
        self._check_model(request)
        parse = partial(parse_request, body, request.headers.get(BINARY_HEADER), self._spec, self._most_images)
        asked = await self._in_thread(parse) if len(body) > _LONG_BODY else parse()
        with self._room_for(asked.count):
            found = await self._run(*await self._pixels(asked), list(asked.outputs))
        answer, headers = format_answer(self._name, VERSION, asked, found.values, found.unlike)
        return Response(answer, headers=headers)

    async def classify(self, request: Request, body: bytes) -> Response:
        top = _parse_top(request.query_params.get("top", "3"))
        wants_input = _parse_flag("input", request.query_params.get("input", "false"))
        with self._room_for(1):
            images, aspect_ratios = await self._pixels(InferRequest(None, (body,), {}))
            found = await self._run(images, aspect_ratios, ["probabilities"])
        (probabilities,), (unlike,) = found.values["probabilities"], found.unlike
        names = self._classifier.class_names
        ranked = [
            {"label": names[i], "probability": float(probabilities[i])}
            for i in np.argsort(-probabilities, kind="stable")[:top]
        ]
        answer = {**ranked[0], "top": ranked, "unlike": unlike}
        return JSONResponse({**answer, "input": _as_data_url(images[0])} if wants_input else answer)

    def _check_model(self, request: Request) -> None:
        name, version = request.path_params["name"], request.path_params.get("version", VERSION)
        if name != self._name:
            raise RequestError(f"there is no model {name!r}. This service has {self._name!r}", 404)
        if version != VERSION:
            raise RequestError(f"there is no version {version!r}. The model has version {VERSION!r}", 404)

    @contextmanager
    def _room_for(self, images: int) -> Iterator[None]:
        """Keep memory for images as the model takes them, until the end of the block.

        Raises:
            RequestError: other requests have it all.
        """
        size = images * self._image_bytes
        if self._input_bytes and self._input_bytes + size > self._most_input_bytes:
            raise _busy()
        self._input_bytes += size
        try:
            yield
        finally:
            self._input_bytes -= size

    async def _run(self, images: NDArray[np.uint8], aspect_ratios: list[float], outputs: list[str]) -> Answer:
        """What the model says; images unlike the training images are counted."""
        answer = await self._batcher.run(images, outputs, aspect_ratios)
        for difference in filter(None, answer.unlike):
            self._metrics.unlike.labels(difference).inc()
        return answer

    async def _pixels(self, request: InferRequest) -> tuple[NDArray[np.uint8], list[float]]:
        """The model's input for a request, and what its images' aspect ratios were before; empty for pixels."""
        if request.images is not None:
            return 255 - request.images if self._spec.invert else request.images, []
        found = await asyncio.gather(*(self._in_thread(partial(self._decode, data)) for data in request.encoded))
        for i, image in enumerate(found):
            if isinstance(image, ImageError):
                raise RequestError(f"image {i}: {image}" if request.count > 1 else str(image), 422)
        own = self._spec.width / self._spec.height
        return np.stack([image.pixels for image in found]), [image.aspect_ratio or own for image in found]

    def _decode(self, data: bytes) -> Decoded | ImageError:
        try:
            with self._budget.hold(data):
                return decode_image(data, self._spec)
        except ImageError as error:
            return error

    async def _in_thread(self, function: Callable[[], Any]) -> Any:
        return await asyncio.get_running_loop().run_in_executor(self._decoders, function)


async def _answer(endpoint: Endpoint, request: Request) -> Response:
    """What an endpoint answers, or the reason why it can't."""
    try:
        return await endpoint(request)
    except RequestError as error:
        return _error(str(error), error.status, _RETRY_LATER if error.status == _UNAVAILABLE else None)
    except (ModelError, ProviderError) as error:
        return _error(str(error), 500)
    except asyncio.CancelledError:  # the time for what is under way is over
        return _error("the service is ending", _UNAVAILABLE, _RETRY_LATER)


def start_all(pool: ThreadPoolExecutor, count: int) -> None:
    """Start all threads of a pool.

    Raises:
        RuntimeError: one of them can't be started.
    """
    barrier = threading.Barrier(count)
    try:
        for started in [pool.submit(barrier.wait) for _ in range(count)]:
            started.result()
    except BaseException:
        barrier.abort()
        raise


def is_local_name(host: str, names: Collection[str]) -> bool:
    """Whether a header `Host` is an IP address, localhost or one of `names`: no name of a page elsewhere."""
    try:
        name = urlsplit(f"//{host}").hostname or ""
    except ValueError:
        return False
    with suppress(ValueError):
        return bool(ipaddress.ip_address(name))
    return name == "localhost" or name in names


def _check_body_headers(request: Request) -> int:
    """The announced length of a body, 0 where it isn't known.

    Raises:
        RequestError: the length is no number, or the body is compressed or a form.
    """
    length = request.headers.get("content-length", "0")
    if not (length.isascii() and length.isdecimal()):
        raise RequestError("Content-Length must be a number")
    if "content-length" in request.headers and "transfer-encoding" in request.headers:
        # A proxy may take the one for the body's end, and this server the other (RFC 9112, section 6.3).
        raise RequestError("a request has Content-Length or Transfer-Encoding, not both", 400)
    if request.headers.get("content-encoding", "identity") != "identity":
        raise RequestError("compressed bodies aren't supported. Send it as it is", 415)
    if request.headers.get("content-type", "").startswith("multipart/"):
        raise RequestError("forms aren't supported. Send the file itself: curl --data-binary @digit.png URL", 415)
    return int(length)


def _closes(request: Request) -> bool:
    """Whether the connection ends with the answer."""
    asked = request.headers.get("connection", "").lower()
    return bool(request.app.state.ending) or asked == "close" or request.scope["http_version"] == "1.0"


async def _read_to_the_end(request: Request) -> None:
    """Read what is left of a body: if it were lost, the system would reset the connection, and the answer with it."""
    with suppress(TimeoutError, ClientDisconnect, RuntimeError):  # Starlette's, if it was read already
        async with asyncio.timeout(_BODY_SECONDS):
            async for _ in request.stream():
                pass


def _busy() -> RequestError:
    return RequestError("too many requests are under way. Try again", _UNAVAILABLE)


def _parse_top(text: str) -> int:
    if not (text.isascii() and text.isdecimal() and len(text) < 10 and int(text) >= 1):
        raise RequestError(f"top must be a whole number from 1 up, not {text[:40]!r}")
    return int(text)


def _parse_flag(name: str, text: str) -> bool:
    if text not in ("true", "false"):
        raise RequestError(f"{name} must be true or false, not {text[:40]!r}")
    return text == "true"


def _as_data_url(pixels: NDArray[np.uint8]) -> str:
    """Pixels as a PNG that a page can show."""
    file = io.BytesIO()
    to_image(pixels).save(file, "PNG")
    return "data:image/png;base64," + base64.b64encode(file.getvalue()).decode("ascii")


def _error(text: str, status: int, headers: dict[str, str] | None = None) -> Response:
    return JSONResponse({"error": text}, status, headers)


async def _http_error(request: Request, error: Exception) -> Response:
    """What Starlette refuses itself: unknown paths and methods."""
    assert isinstance(error, HTTPException)
    place = shorten(f"{request.method} {request.url.path}", _LONGEST_PLACE)
    return _error(f"{place}: {error.detail.lower()}", error.status_code, dict(error.headers or {}))
