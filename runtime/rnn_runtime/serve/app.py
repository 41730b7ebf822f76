"""The service as an ASGI application: its routes, and what each answers.

A request's way: `guard`, `read_body`, `_pixels`, the batcher, an answer.
"""

import asyncio
import base64
import hmac
import io
import time
from collections.abc import Awaitable, Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import partial
from importlib.resources import files
from typing import Any

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
from rnn_runtime.errors import ImageError, ModelError, ProviderError
from rnn_runtime.images.decode import Decoded, decode_image
from rnn_runtime.images.fit import to_image
from rnn_runtime.serve.batcher import Batcher
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
_BODY_SECONDS = 30  # for a whole body: a client that stalls would keep its place in the queue
_LONG_BODY = 1 << 16  # bytes of a request that takes too long to read in the event loop
_RETRY_LATER = {"Retry-After": "1"}
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
        batch_size: The most images per batch, and per request.
        queue: The most requests under way. Further ones are refused with status 503.
        body: The most bytes of a request's body.
    """

    batch_size: int = 256
    queue: int = 256
    body: int = 16 << 20


LIMITS = ServeLimits()


def make_app(
    classifier: Classifier, *, name: str = "rnn", limits: ServeLimits = LIMITS, token: str | None = None
) -> Starlette:
    """Make the web service of a model, as an ASGI application for any server.

    Args:
        classifier: The model.
        name: Its name in the Open Inference Protocol.
        limits: What it accepts.
        token: What requests must have in their header `Authorization: Bearer TOKEN`, except those about health; None
            for no such header.
    """
    service = _Service(classifier, name, limits, token)
    model = "/v2/models/{name}"
    routes = [
        service.route("GET", "/", service.page),
        service.route("GET", "/metrics", service.metrics),
        service.route("POST", "/classify", service.classify, queued=True),
        service.route("GET", "/v2", service.server_metadata),
        service.route("GET", "/v2/health/live", service.health, is_open=True),
        service.route("GET", "/v2/health/ready", service.health, is_open=True),
    ]
    for prefix in (model, model + "/versions/{version}"):
        routes += [
            service.route("GET", prefix, service.model_metadata),
            service.route("GET", prefix + "/ready", service.model_ready),
            service.route("POST", prefix + "/infer", service.infer, queued=True),
        ]
    return Starlette(routes=routes, exception_handlers={HTTPException: _http_error})


Endpoint = Callable[[Request], Awaitable[Response]]


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
        self.unlike = Counter(
            "unlike_images",
            "Images unlike the training images, by their greatest difference.",
            ["difference"],
            **options,
        )
        self.batch = Histogram("batch_images", "Images per run of the model.", buckets=_IMAGES, **options)


class _Service:
    def __init__(self, classifier: Classifier, name: str, limits: ServeLimits, token: str | None) -> None:
        self._classifier, self._name, self._limits, self._token = classifier, name, limits, token
        self._spec = classifier.image_spec
        self._metrics = _Metrics()
        self._batcher = Batcher(classifier, limits.batch_size, self._metrics.batch.observe)
        self._decoders = ThreadPoolExecutor(classifier.threads, thread_name_prefix="decode")
        self._under_way = 0
        self._page = files("rnn_runtime.serve").joinpath("page.html").read_text(encoding="utf-8")

    def route(
        self, method: str, path: str, endpoint: Endpoint, *, queued: bool = False, is_open: bool = False
    ) -> Route:
        """A route whose endpoint is guarded.

        Args:
            method: `GET` or `POST`.
            path: As in Starlette, with names in braces.
            endpoint: What answers.
            queued: Whether requests have a place in the queue.
            is_open: Whether they need no token.
        """

        async def guarded(request: Request) -> Response:
            start = time.perf_counter()
            if not is_open and not self._is_allowed(request):
                response = _error("a token is needed: Authorization: Bearer TOKEN", 401, {"WWW-Authenticate": "Bearer"})
            elif queued:
                response = await self._in_queue(endpoint, request)
            else:
                response = await _answer(endpoint, request)
            response.headers["X-Content-Type-Options"] = "nosniff"
            self._metrics.requests.labels(path, response.status_code).inc()
            self._metrics.seconds.labels(path).observe(time.perf_counter() - start)
            return response

        return Route(path, guarded, methods=[method])

    def _is_allowed(self, request: Request) -> bool:
        if self._token is None:
            return True
        scheme, _, given = request.headers.get("authorization", "").partition(" ")
        is_right = hmac.compare_digest(given.encode("latin-1"), self._token.encode())
        return is_right and scheme.lower() == "bearer"

    async def _in_queue(self, endpoint: Endpoint, request: Request) -> Response:
        if self._under_way >= self._limits.queue:
            return _error("too many requests are under way. Try again", 503, _RETRY_LATER)
        self._under_way += 1
        self._metrics.under_way.set(self._under_way)
        try:
            return await _answer(endpoint, request)
        finally:
            self._under_way -= 1
            self._metrics.under_way.set(self._under_way)

    async def page(self, _: Request) -> Response:
        return HTMLResponse(self._page, headers={"Content-Security-Policy": _PAGE_POLICY})

    async def metrics(self, _: Request) -> Response:
        return Response(generate_latest(self._metrics.registry), media_type="text/plain; version=0.0.4")

    async def health(self, _: Request) -> Response:
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

    async def infer(self, request: Request) -> Response:
        self._check_model(request)
        body = await read_body(request, self._limits.body)
        parse = partial(parse_request, body, request.headers.get(BINARY_HEADER), self._spec, self._limits.batch_size)
        asked = await self._in_thread(parse) if len(body) > _LONG_BODY else parse()
        images, unlike = await self._pixels(asked)
        values = await self._batcher.run(images, list(asked.outputs))
        answer, headers = format_answer(self._name, VERSION, asked, values, unlike)
        return Response(answer, headers=headers)

    async def classify(self, request: Request) -> Response:
        top = _parse_top(request.query_params.get("top", "3"))
        wants_input = _parse_flag("input", request.query_params.get("input", "false"))
        body = await read_body(request, self._limits.body)
        images, (unlike,) = await self._pixels(InferRequest(None, (body,), {}))
        (probabilities,) = (await self._batcher.run(images, ["probabilities"]))["probabilities"]
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

    async def _pixels(self, request: InferRequest) -> tuple[NDArray[np.uint8], list[str | None]]:
        """The model's input for a request, and in what each image is unlike the training images."""
        if request.images is not None:
            images = 255 - request.images if self._spec.invert else request.images
            return images, await self._find_unlike(images, [])
        found = await asyncio.gather(*(self._in_thread(partial(self._decode, data)) for data in request.encoded))
        for i, image in enumerate(found):
            if isinstance(image, ImageError):
                raise RequestError(f"image {i}: {image}" if request.count > 1 else str(image), 422)
        images = np.stack([image.pixels for image in found])
        own = self._spec.width / self._spec.height
        return images, await self._find_unlike(images, [image.aspect_ratio or own for image in found])

    async def _find_unlike(self, images: NDArray[np.uint8], aspect_ratios: list[float]) -> list[str | None]:
        find = partial(self._classifier.find_unlike, images, aspect_ratios)
        differences = await self._in_thread(find) if images.nbytes > _LONG_BODY else find()
        for difference in filter(None, differences):
            self._metrics.unlike.labels(difference).inc()
        return differences

    def _decode(self, data: bytes) -> Decoded | ImageError:
        try:
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
        return _error(str(error), error.status)
    except (ModelError, ProviderError) as error:
        return _error(str(error), 500)
    except asyncio.CancelledError:  # the time for what is under way is over
        return _error("the service is ending", 503, _RETRY_LATER)


async def read_body(request: Request, most_bytes: int) -> bytes:
    """Read a body, whether its length is known in advance or not.

    Raises:
        RequestError: it is longer than `most_bytes`, compressed, a form, or doesn't arrive.
    """
    too_large = RequestError(f"the body has more than {most_bytes:,} bytes, the limit", 413)
    length = request.headers.get("content-length", "0")
    if not length.isdecimal() or int(length) > most_bytes:
        raise too_large
    if "content-length" in request.headers and "transfer-encoding" in request.headers:
        # A proxy may take the one for the body's end, and this server the other (RFC 9112, section 6.3).
        raise RequestError("a request has Content-Length or Transfer-Encoding, not both", 400)
    if request.headers.get("content-encoding", "identity") != "identity":
        raise RequestError("compressed bodies aren't supported. Send it as it is", 415)
    if request.headers.get("content-type", "").startswith("multipart/"):
        raise RequestError("forms aren't supported. Send the file itself: curl --data-binary @digit.png URL", 415)
    body = bytearray()
    try:
        async with asyncio.timeout(_BODY_SECONDS):
            async for part in request.stream():
                body += part
                if len(body) > most_bytes:
                    raise too_large
    except TimeoutError:
        raise RequestError(f"the body didn't arrive within {_BODY_SECONDS} seconds", 408) from None
    except ClientDisconnect:
        raise RequestError("the client has gone", 400) from None
    return bytes(body)


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
