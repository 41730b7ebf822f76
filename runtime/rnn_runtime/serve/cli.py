"""The command `rnn-serve`."""

import socket
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import click
from msgspec import Meta

import rnn_runtime
from rnn_runtime.command import options as shared
from rnn_runtime.command.command import Command, say
from rnn_runtime.errors import InputError

if TYPE_CHECKING:
    from rnn_runtime.engine import Provider

_service, _limits = map(shared.option_group, ("Service", "Limits"))
_OTHER_NAMES = {
    "--bind": "--host and --port",
    "--workers": "--threads; for more processes, start more services",
    "--gpu": "--provider cuda",
    "--device": "--provider, or --device-id",
    "--model-name": "--name",
    "--max-batch-size": "--batch-size",
    "--http-port": "--port",
}
_MOST_TOKEN_BYTES = 4096
# Limits for 1.5 GB (docs/guides/serving.md, "Memory"). With less memory, they are smaller by as much.
_MEMORY, _BODY, _PIXELS = 1_500_000_000, 16, 32
_FEWER = ", or fewer where there is less than 1.5 GB of memory"
_ANY_ADDRESS = ("0.0.0.0", "::")
_Port = Annotated[int, Meta(ge=0, le=65535)]
_Limit = Annotated[int, Meta(ge=1, le=1 << 16)]


@click.command(
    cls=Command,
    check=shared.check_cuda,
    other_names=_OTHER_NAMES,
    requires=("starlette", "uvicorn", "prometheus_client"),
    imports=("onnxruntime", "rnn_runtime.serve.app", "rnn_runtime.serve.server"),
)
@shared.model
@shared.provider
@shared.threads
@shared.invert
@_service("--host", default="127.0.0.1", help="Address to listen on; 0.0.0.0 is all of this machine's.")
@_service("--port", type=_Port, default=8080, help="Port to listen on; 0 is any that is free.")
@_service("--name", default="rnn", help="The model's name in the Open Inference Protocol.")
@_service(
    "--allowed-host",
    "allowed_hosts",
    multiple=True,
    metavar="NAME",
    help="A name by which requests may call the service, besides --host, localhost and IP addresses; '*' for any. With "
    "a token, all may be used. Repeatable.",
)
@_service(
    "--token-file",
    type=click.Path(dir_okay=False, path_type=Path),
    help="A file with a token, which all requests but those about health must have. SIGHUP has it read again.",
)
@_service(
    "--grace",
    type=Annotated[float, Meta(ge=1, le=3600)],
    default=10.0,
    help="Seconds to answer what is under way, after SIGTERM.",
)
@_service("-q", "--quiet", is_flag=True, help="Print errors only.")
@_limits("-b", "--batch-size", type=_Limit, default=256, help="Images per batch and per request.")
@_limits("--queue", type=_Limit, default=256, help="Requests that wait for the model; more get status 503.")
@_limits("--max-body", type=_Limit, metavar="MIB", default_text=f"{_BODY}{_FEWER}", help="Size of a request's body.")
@_limits(
    "--max-pixels",
    type=Annotated[int, Meta(ge=1, le=67)],
    metavar="MILLIONS",
    default_text=f"{_PIXELS}{_FEWER}",
    help="Pixels of image files that are decoded at once, so also of one; each takes up to 20 bytes.",
)
@shared.cuda
@click.version_option(rnn_runtime.__version__, prog_name="rnn-serve")
def main(
    model: Path,
    provider: "Provider",
    threads: int | None,
    invert: bool,
    host: str,
    port: int,
    name: str,
    allowed_hosts: tuple[str, ...],
    token_file: Path | None,
    grace: float,
    quiet: bool,
    batch_size: int,
    queue: int,
    max_body: int | None,
    max_pixels: int | None,
    device_id: int,
    gpu_memory_limit: int | None,
    tf32: bool,
) -> None:
    """Serve an exported model over HTTP.

    It speaks the Open Inference Protocol (version 2, REST), answers POST /classify with the class of an image file,
    has a page to try it at /, and figures for Prometheus at /metrics. SIGTERM and Ctrl-C end it once all requests
    under way are answered.

    \b
    rnn-serve -m model.onnx
    curl --data-binary @digit.png localhost:8080/classify
    """
    from rnn_runtime.classifier import Classifier
    from rnn_runtime.cores import usable_memory
    from rnn_runtime.serve.app import ServeLimits, make_app
    from rnn_runtime.serve.server import listen, serve

    cuda = shared.cuda_options(device_id, gpu_memory_limit, tf32)
    classifier = Classifier(model, provider, threads=threads, cuda=cuda, invert=invert)
    share = min(1.0, usable_memory() / _MEMORY)
    max_body = max_body or max(1, int(share * _BODY))
    max_pixels = max_pixels or max(1, int(share * _PIXELS))
    limits = ServeLimits(batch_size, queue, max_body << 20, max_pixels * 1_000_000)
    token = None if token_file is None else _read_token(token_file)
    hosts = (host, *allowed_hosts) if host not in _ANY_ADDRESS else (socket.gethostname(), *allowed_hosts)
    app = make_app(classifier, name=name, limits=limits, token=token, allowed_hosts=hosts)
    listener = listen(host, port)
    address = f"http://{f'[{host}]' if ':' in host else host}:{listener.getsockname()[1]}"

    def ready() -> None:
        if not quiet:
            if classifier.notice:
                say(classifier.notice)
            if share < 1:
                held = f"The memory is small, so images may have {max_pixels} million pixels, and bodies {max_body} MiB"
                say(f"{held}, unless --max-pixels and --max-body say otherwise")
            say(f"Serving {model} as {name} at {address}, on {classifier.provider}")

    def reload() -> None:
        if token_file is None:
            say("SIGHUP: there is no --token-file to read again")
            return
        try:
            app.state.token = _read_token(token_file)
            say(f"Read the token in {token_file} again")
        except InputError as error:
            say(f"{error}. The token before still holds")

    serve(app, listener, grace=grace, ready=ready, reload=reload)


def _read_token(path: Path) -> str:
    try:
        with path.open("rb") as file:
            token = file.read(_MOST_TOKEN_BYTES + 1).strip()
    except OSError as error:
        raise InputError(f"{path}: can't be read: {error.strerror}") from None
    if not token or len(token) > _MOST_TOKEN_BYTES or not token.isascii() or not token.decode("ascii").isprintable():
        raise InputError(f"{path}: must hold a token of 1 to {_MOST_TOKEN_BYTES} printable ASCII characters")
    return token.decode("ascii")
