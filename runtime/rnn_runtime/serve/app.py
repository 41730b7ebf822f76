"""The service as an ASGI application: its routes, and what each answers."""

import asyncio
import hmac
import time
from collections.abc import Awaitable, Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import partial
from importlib.resources import files
from typing import Any

import numpy as np
from numpy.typing import NDArray
from starlette.applications import Starlette
from starlette.exceptions import HTTPException
from starlette.requests import Request
from starlette.responses import HTMLResponse, JSONResponse, Response
from starlette.routing import Route

import rnn_runtime
from rnn_runtime.classifier import Classifier
from rnn_runtime.errors import ImageError, ModelError, ProviderError
from rnn_runtime.images.decode import decode_image
from rnn_runtime.serve.batcher import Batcher
from rnn_runtime.serve.body import read_body
from rnn_runtime.serve.metrics import Metrics
from rnn_runtime.serve.protocol import (
    BINARY_HEADER,
    EXTENSIONS,
    InferRequest,
    RequestError,
    describe_model,
    format_answer,
    parse_request,
)

VERSION = "1"  # of the model: a service has one
_LONG_BODY = 1 << 16  # bytes of a request that takes too long to read in the event loop
_RETRY_AFTER = "1"  # seconds
_LONGEST_PLACE = 200  # characters of a path that an error repeats
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
        token: What requests must have in their header `Authorization: Bearer TOKEN`, but for those about health; None
            for no such header.
    """
    service = _Service(classifier, name, limits, token)
    model = "/v2/models/{name}"
    routes = [
        ("GET", "/", service.page, False),
        ("GET", "/metrics", service.metrics_text, False),
        ("POST", "/classify", service.classify, True),
        ("GET", "/v2", service.server_metadata, False),
        ("GET", "/v2/health/live", service.health, False),
        ("GET", "/v2/health/ready", service.health, False),
        *(
            (method, prefix + path, endpoint, queued)
            for prefix in (model, model + "/versions/{version}")
            for method, path, endpoint, queued in (
                ("GET", "", service.model_metadata, False),
                ("GET", "/ready", service.model_ready, False),
                ("POST", "/infer", service.infer, True),
            )
        ),
    ]
    return Starlette(
        routes=[
            Route(path, service.guard(path, endpoint, queued=queued), methods=[method])
            for method, path, endpoint, queued in routes
        ],
        exception_handlers={HTTPException: _http_error},
    )


Endpoint = Callable[[Request], Awaitable[Response]]


class _Service:
    def __init__(self, classifier: Classifier, name: str, limits: ServeLimits, token: str | None) -> None:
        self._classifier, self._name, self._limits, self._token = classifier, name, limits, token
        self._spec = classifier.metadata.spec.image_spec
        self._metrics = Metrics()
        self._batcher = Batcher(classifier, limits.batch_size, self._metrics.batch.observe)
        self._decoders = ThreadPoolExecutor(classifier.threads, thread_name_prefix="decode")
        self._under_way = 0

    def guard(self, route: str, endpoint: Endpoint, *, queued: bool) -> Endpoint:
        """An endpoint with what all have in common: the token, the queue, errors as answers, and metrics."""

        async def guarded(request: Request) -> Response:
            start = time.perf_counter()
            try:
                response = await self._respond(route, endpoint, request, queued=queued)
            except asyncio.CancelledError:  # the time for what is under way is over
                response = _error("the service is ending", 503, {"Retry-After": _RETRY_AFTER})
            response.headers["X-Content-Type-Options"] = "nosniff"
            self._metrics.requests.labels(route, response.status_code).inc()
            self._metrics.seconds.labels(route).observe(time.perf_counter() - start)
            return response

        return guarded

    async def _respond(self, route: str, endpoint: Endpoint, request: Request, *, queued: bool) -> Response:
        if not route.startswith("/v2/health/") and not self._is_allowed(request):
            return _error("a token is needed: Authorization: Bearer TOKEN", 401, {"WWW-Authenticate": "Bearer"})
        if queued and self._under_way >= self._limits.queue:
            return _error("too many requests are under way. Try again", 503, {"Retry-After": _RETRY_AFTER})
        self._under_way += queued
        self._metrics.under_way.set(self._under_way)
        try:
            return await endpoint(request)
        except RequestError as error:
            return _error(str(error), error.status)
        except (ModelError, ProviderError) as error:
            return _error(str(error), 500)
        finally:
            self._under_way -= queued
            self._metrics.under_way.set(self._under_way)

    def _is_allowed(self, request: Request) -> bool:
        if self._token is None:
            return True
        scheme, _, given = request.headers.get("authorization", "").partition(" ")
        is_right = hmac.compare_digest(given.encode("latin-1"), self._token.encode())
        return is_right and scheme.lower() == "bearer"

    async def page(self, _: Request) -> Response:
        text = files("rnn_runtime.serve").joinpath("page.html").read_text(encoding="utf-8")
        return HTMLResponse(text, headers={"Content-Security-Policy": _PAGE_POLICY})

    async def metrics_text(self, _: Request) -> Response:
        return Response(self._metrics.text(), media_type="text/plain; version=0.0.4")

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
        images = await self._pixels(asked)
        values = await self._batcher.run(images, list(asked.outputs))
        answer, headers = format_answer(self._name, VERSION, asked, values)
        return Response(answer, headers=headers)

    async def classify(self, request: Request) -> Response:
        top = self._parse_top(request.query_params.get("top", "3"))
        body = await read_body(request, self._limits.body)
        images = await self._pixels(InferRequest(None, (body,), {}))
        (probabilities,) = (await self._batcher.run(images, ["probabilities"]))["probabilities"]
        names = self._classifier.class_names
        ranked = [
            {"label": names[i], "probability": float(probabilities[i])}
            for i in np.argsort(-probabilities, kind="stable")[:top]
        ]
        return JSONResponse({**ranked[0], "top": ranked})

    def _parse_top(self, text: str) -> int:
        if not (text.isascii() and text.isdecimal() and len(text) < 10 and int(text) >= 1):
            raise RequestError(f"top must be a whole number from 1 up, not {text[:40]!r}")
        return int(text)

    def _check_model(self, request: Request) -> None:
        name, version = request.path_params["name"], request.path_params.get("version", VERSION)
        if name != self._name:
            raise RequestError(f"there is no model {name!r}. This service has {self._name!r}", 404)
        if version != VERSION:
            raise RequestError(f"there is no version {version!r}. The model has version {VERSION!r}", 404)

    async def _pixels(self, request: InferRequest) -> NDArray[np.uint8]:
        if request.images is not None:
            return request.images
        found = await asyncio.gather(*(self._in_thread(partial(self._decode, data)) for data in request.encoded))
        for i, pixels in enumerate(found):
            if isinstance(pixels, ImageError):
                raise RequestError(f"image {i}: {pixels}" if request.count > 1 else str(pixels), 422)
        return np.stack(found)

    def _decode(self, data: bytes) -> NDArray[np.uint8] | ImageError:
        try:
            return decode_image(data, self._spec)
        except ImageError as error:
            return error

    async def _in_thread(self, function: Callable[[], Any]) -> Any:
        return await asyncio.get_running_loop().run_in_executor(self._decoders, function)


def _error(text: str, status: int, headers: dict[str, str] | None = None) -> Response:
    return JSONResponse({"error": text}, status, headers)


async def _http_error(request: Request, error: Exception) -> Response:
    """What Starlette refuses itself: unknown paths and methods."""
    assert isinstance(error, HTTPException)
    place = f"{request.method} {request.url.path}"
    if len(place) > _LONGEST_PLACE:
        place = f"{place[:_LONGEST_PLACE]}..."
    return _error(f"{place}: {error.detail.lower()}", error.status_code, dict(error.headers or {}))
