"""The web service as a process, and clients that aren't ours: tritonclient, httpx, and raw connections."""

import base64
import contextlib
import io
import re
import signal
import socket
import threading
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import httpx
import numpy as np
import pytest
import tritonclient.http as triton
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray
from PIL import Image
from starlette.testclient import TestClient
from tritonclient.utils import InferenceServerException

from rnn_runtime import Classifier
from rnn_runtime.errors import MissingPackageError, ProviderError
from rnn_runtime.images.decode import convert_image
from rnn_runtime.serve.app import make_app
from rnn_runtime.serve.server import listen
from tests.support.commands import Run, RunProcess
from tests.support.encoded_images import png_of_claimed_size
from tests.support.services import Service, serving

INFER = "/v2/models/rnn/infer"


@pytest.fixture(scope="module")
def service(digits_model: Path) -> Iterator[Service]:
    with serving(digits_model, "--batch-size", 64) as service:
        yield service


@pytest.fixture(scope="module")
def client() -> Iterator[httpx.Client]:
    with httpx.Client() as client:
        yield client


@pytest.fixture(scope="module")
def classifier(digits_model: Path) -> Classifier:
    return Classifier(digits_model, "cpu")


@pytest.fixture(scope="module")
def image(digits_images: Path) -> bytes:
    return min(digits_images.glob("7/*.png")).read_bytes()


def random_images(count: int, seed: int = 0) -> NDArray[np.uint8]:
    return np.random.default_rng(seed).integers(0, 256, (count, 8, 8, 1), np.uint8)


def pixel_input(images: NDArray[np.uint8], *, binary: bool) -> Any:
    value = triton.InferInput("images", images.shape, "UINT8")
    value.set_data_from_numpy(images, binary_data=binary)
    return value


@pytest.mark.parametrize("binary", [True, False])
def test_tritons_client_gets_the_classifiers_own_numbers(
    service: Service, classifier: Classifier, binary: bool
) -> None:
    images = random_images(7)
    outputs = [triton.InferRequestedOutput(name, binary_data=binary) for name in ("logits", "probabilities")]

    result = triton.InferenceServerClient(service.address).infer(
        "rnn", [pixel_input(images, binary=binary)], outputs=outputs, request_id="seven"
    )

    np.testing.assert_array_equal(result.as_numpy("logits"), classifier.predict_logits(images))
    np.testing.assert_array_equal(result.as_numpy("probabilities"), classifier.predict_proba(images))
    assert result.get_response()["id"] == "seven"


def test_encoded_images_get_what_their_files_get(service: Service, classifier: Classifier, digits_images: Path) -> None:
    paths = sorted(digits_images.rglob("*.png"))[:5]
    value = triton.InferInput("encoded", [5], "BYTES")
    value.set_data_from_numpy(np.array([path.read_bytes() for path in paths], object))

    result = triton.InferenceServerClient(service.address).infer("rnn", [value])

    labels = [classifier.class_names[i] for i in result.as_numpy("probabilities").argmax(1)]
    assert labels == [prediction.label for prediction in classifier.predict(paths)]


def test_tritons_client_finds_a_server_and_a_model_that_are_ready(service: Service) -> None:
    client = triton.InferenceServerClient(service.address)

    assert client.is_server_live()
    assert client.is_server_ready()
    assert client.is_model_ready("rnn")
    assert client.get_server_metadata()["extensions"] == ["binary_tensor_data"]
    metadata = client.get_model_metadata("rnn", "1")
    assert metadata["inputs"][0] == {"name": "images", "datatype": "UINT8", "shape": [-1, 8, 8, 1]}
    assert [output["shape"] for output in metadata["outputs"]] == [[-1, 10], [-1, 10]]


@pytest.mark.parametrize(
    ("model", "version", "problem"),
    [("other", "", "there is no model 'other'. This service has 'rnn'"), ("rnn", "2", "there is no version '2'")],
)
def test_a_model_that_is_not_there_is_named(service: Service, model: str, version: str, problem: str) -> None:
    with pytest.raises(InferenceServerException, match=problem):
        triton.InferenceServerClient(service.address).infer(
            model, [pixel_input(random_images(1), binary=True)], model_version=version
        )


def test_a_file_in_the_body_gets_its_class(service: Service, classifier: Classifier, image: bytes) -> None:
    answer = httpx.post(f"{service.url}/classify?top=2", content=image)

    expected = classifier.predict(image, top_k=2).to_dict()["top"]
    assert answer.json() == {**expected[0], "top": expected, "unlike": None}


def test_an_answer_shows_the_image_as_the_model_sees_it(service: Service, classifier: Classifier) -> None:
    drawing = Image.new("LA", (60, 40), (0, 0))
    drawing.paste((0, 255), (25, 5, 35, 35))
    file = io.BytesIO()
    drawing.save(file, "PNG")

    answer = httpx.post(f"{service.url}/classify?input=true", content=file.getvalue()).json()

    kind, data = answer["input"].split(",")
    seen = np.asarray(Image.open(io.BytesIO(base64.b64decode(data))))
    assert kind == "data:image/png;base64"
    assert np.array_equal(seen, convert_image(drawing, classifier.image_spec).pixels[..., 0])


def test_files_and_pixels_are_inverted(service: Service, digits_model: Path, image: bytes) -> None:
    pixels = np.asarray(Image.open(io.BytesIO(image)))
    file = io.BytesIO()
    Image.fromarray(255 - pixels).save(file, "PNG")

    def ask(url: str, data: bytes, pixels: NDArray[np.uint8]) -> list[Any]:
        tensor = {"name": "images", "datatype": "UINT8", "shape": [1, 8, 8, 1], "data": pixels.tolist()}
        encoded = {"name": "encoded", "datatype": "BYTES", "shape": [1], "data": [base64.b64encode(data).decode()]}
        answers = [httpx.post(url + INFER, json={"inputs": [value]}).json() for value in (tensor, encoded)]
        return [*answers, httpx.post(f"{url}/classify?input=true", content=data).json()]

    expected = ask(service.url, image, pixels)
    with serving(digits_model, "--invert") as inverting:
        assert ask(inverting.url, file.getvalue(), 255 - pixels) == expected
    assert expected[0] == expected[1]


@pytest.mark.parametrize(
    ("method", "path", "content", "status", "problem"),
    [
        ("POST", "/classify?input=1", b"", 400, "input must be true or false, not '1'"),
        ("POST", "/classify", b"no image", 422, "not an image in a supported format, or damaged"),
        ("POST", "/classify", b"", 422, "the file is empty"),
        ("POST", "/classify?top=0", b"", 400, "top must be a whole number from 1 up, not '0'"),
        ("POST", "/classify?top=%F0%9F%98%80", b"", 400, "top must be a whole number"),
        ("GET", "/classify", b"", 405, "GET /classify: method not allowed"),
        ("GET", "/nowhere", b"", 404, "GET /nowhere: not found"),
        ("POST", INFER, b"{", 400, "the request isn't JSON"),
        ("POST", INFER, b'{"inputs": []}', 400, "inputs must be one of 'images' and 'encoded'"),
    ],
)
def test_what_can_not_be_answered_gets_a_sentence(
    service: Service, method: str, path: str, content: bytes, status: int, problem: str
) -> None:
    response = httpx.request(method, service.url + path, content=content)

    assert response.status_code == status
    assert problem in response.json()["error"]


def test_an_image_that_can_not_be_decoded_is_named(service: Service, image: bytes) -> None:
    value = triton.InferInput("encoded", [3], "BYTES")
    value.set_data_from_numpy(np.array([image, b"no image", image], object))

    with pytest.raises(InferenceServerException, match="image 1: not an image in a supported format"):
        triton.InferenceServerClient(service.address).infer("rnn", [value])


def test_forms_and_compressed_bodies_are_refused_with_the_way_to_go(service: Service, image: bytes) -> None:
    form = httpx.post(f"{service.url}/classify", files={"image": image})
    compressed = httpx.post(f"{service.url}/classify", content=b"x", headers={"Content-Encoding": "gzip"})

    assert (form.status_code, compressed.status_code) == (415, 415)
    assert "Send the file itself: curl --data-binary @digit.png" in form.json()["error"]
    assert "compressed bodies aren't supported" in compressed.json()["error"]


@pytest.mark.slow
def test_a_body_beyond_the_limit_is_refused_in_whatever_pieces_it_comes(digits_model: Path) -> None:
    with serving(digits_model, "--max-body", 1) as service:
        known = httpx.post(f"{service.url}/classify", content=bytes(1 << 20 | 1))
        pieces = httpx.post(f"{service.url}/classify", content=(bytes(1 << 16) for _ in range(17)))
        fits = httpx.post(f"{service.url}/classify", content=bytes(1 << 20))

    for response in (known, pieces):
        assert response.status_code == 413
        assert response.json()["error"] == "the body has more than 1,048,576 bytes, the limit"
    assert fits.status_code == 422


def test_a_small_file_that_claims_to_be_large_is_refused(service: Service) -> None:
    response = httpx.post(f"{service.url}/classify", content=png_of_claimed_size(9000, 9000))

    assert response.status_code == 422
    assert "pixels, the limit" in response.json()["error"]


@pytest.mark.slow
def test_a_full_queue_sends_clients_away_for_a_while(digits_model: Path, image: bytes) -> None:
    large = encoded(Image.new("L", (5600, 5600)), "PNG")
    with serving(digits_model, "--queue", 1) as service, ThreadPoolExecutor(1) as other:
        slow = other.submit(lambda: [httpx.post(f"{service.url}/classify", content=large) for _ in range(3)])
        response = wait_for(lambda: httpx.post(f"{service.url}/classify", content=image), 503)
        assert response.headers["retry-after"] == "1"
        assert httpx.get(f"{service.url}/v2/health/ready").status_code == 200
        assert 200 in {answer.status_code for answer in slow.result()}
        assert wait_for(lambda: httpx.post(f"{service.url}/classify", content=image), 200).json()["label"]


def encoded(image: Image.Image, format: str, **options: Any) -> bytes:
    file = io.BytesIO()
    image.save(file, format, **options)
    return file.getvalue()


@pytest.mark.slow
def test_bodies_that_do_not_arrive_keep_nobody_out(digits_model: Path, image: bytes) -> None:
    with serving(digits_model, "--queue", 1, "--max-body", 1) as service, contextlib.ExitStack() as stack:
        stalled = [stack.enter_context(connect(service)) for _ in range(40)]
        for connection in stalled[:20]:  # together they send more than the 16 MiB that bodies may take
            connection.sendall(head(1 << 20) + bytes((1 << 20) - 1))
        for connection in stalled[20:]:
            connection.sendall(head(5) + b"1234")
        given_up = stalled[0].recv(1000)

        answer = httpx.post(f"{service.url}/classify", content=image)
        stalled[-1].sendall(b"5")
        last = stalled[-1].recv(1000)

    assert answer.status_code == 200
    assert given_up.startswith(b"HTTP/1.1 503 ")
    assert last.startswith(b"HTTP/1.1 422 ")


def connect(service: Service) -> socket.socket:
    host, port = service.address.split(":")
    return socket.create_connection((host, int(port)), timeout=60)


def head(length: int, more: bytes = b"") -> bytes:
    return b"POST /classify HTTP/1.1\r\nHost: localhost\r\n%sContent-Length: %d\r\n\r\n" % (more, length)


def test_a_client_that_sends_no_more_gets_its_answer(service: Service, image: bytes) -> None:
    with connect(service) as connection:
        connection.sendall(head(len(image)) + image)
        connection.shutdown(socket.SHUT_WR)

        assert b'"label":"7"' in b"".join(iter(lambda: connection.recv(1000), b""))


@pytest.mark.parametrize("more", [b"", b"Connection: close\r\n", b"Expect: 100-continue\r\n"])
def test_a_client_that_sends_a_body_beyond_the_limit_gets_its_answer(service: Service, more: bytes) -> None:
    with connect(service) as connection:
        connection.sendall(head(64 << 20, more) + bytes(64 << 20))

        assert connection.recv(1000).startswith(b"HTTP/1.1 413 ")


@pytest.mark.slow
def test_large_images_are_decoded_one_after_the_other(digits_model: Path) -> None:
    noisy = encoded(Image.effect_noise((1000, 800), 50).resize((7000, 4500)).convert("RGB"), "WEBP", quality=1)
    lossless = encoded(Image.new("RGB", (5600, 5600), "red"), "WEBP", lossless=True, method=0)
    with serving(digits_model, "--threads", 4) as service, ThreadPoolExecutor(6) as clients:
        answers = clients.map(
            lambda data: httpx.post(f"{service.url}/classify", content=data, timeout=120), [lossless, noisy] * 3
        )
        assert {answer.status_code for answer in answers} == {200}
        peak = re.search(r"VmHWM:\s+(\d+) kB", Path(f"/proc/{service.pid}/status").read_text())
        refused = httpx.post(f"{service.url}/classify", content=png_of_claimed_size(6000, 6000))

    assert peak
    assert int(peak[1]) < 1100 << 10  # KiB; four of them at once take 1.9 GiB
    assert refused.json()["error"] == "the image has more than 32,000,000 pixels, the limit of this service"


@pytest.mark.parametrize(
    ("host", "status"),
    [("localhost", 200), ("127.0.0.1:8080", 200), ("[::1]:8080", 200), ("evil.example", 421), ("evil:x", 421)],
)
def test_a_page_elsewhere_can_not_read_answers_under_its_own_name(service: Service, host: str, status: int) -> None:
    answer = httpx.get(f"{service.url}/v2/models/rnn", headers={"Host": host})

    assert answer.status_code == status
    assert ("--allowed-host" in answer.text) == (status == 421)
    assert httpx.get(f"{service.url}/v2/health/ready", headers={"Host": host}).status_code == 200


@pytest.mark.slow
def test_names_can_be_allowed(digits_model: Path) -> None:
    with serving(digits_model, "--allowed-host", "Digits.example") as service:
        for host, status in (("digits.example", 200), ("other.example", 421)):
            assert httpx.get(f"{service.url}/v2/models/rnn", headers={"Host": host}).status_code == status


def test_an_answer_does_not_repeat_the_host_of_its_request(service: Service) -> None:
    answer = httpx.get(f"{service.url}/v2/", headers={"Host": "127.0.0.1:1"})

    assert (answer.status_code, "location" in answer.headers) == (404, False)


class BrokenClassifier(Classifier):
    """It fails once `is_broken`."""

    is_broken = False

    def predict_proba(self, images: NDArray[np.uint8]) -> NDArray[np.float32]:
        if self.is_broken:
            raise ProviderError("out of memory")
        return super().predict_proba(images)


def test_a_service_whose_model_does_not_run_is_not_ready(digits_model: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("rnn_runtime.serve.app._READY_AGAIN", 0.0)
    classifier = BrokenClassifier(digits_model, "cpu")
    with TestClient(make_app(classifier)) as client:
        before = client.get("/v2/health/ready")
        classifier.is_broken = True
        broken, live = (client.get(f"/v2/health/{what}") for what in ("ready", "live"))
        classifier.is_broken = False
        after = client.get("/v2/health/ready")

    assert [answer.status_code for answer in (before, broken, live, after)] == [200, 503, 200, 200]
    assert broken.json() == {"error": "out of memory"}


@pytest.mark.parametrize("name", ["model", "decode"])
def test_a_service_that_gets_no_threads_does_not_start(
    run: Run, digits_model: Path, monkeypatch: pytest.MonkeyPatch, name: str
) -> None:
    start = threading.Thread.start

    def limited(thread: threading.Thread) -> None:
        if thread.name.startswith(name):
            raise RuntimeError("can't start new thread")
        start(thread)

    monkeypatch.setattr(threading.Thread, "start", limited)

    result = run("rnn-serve", "--model", digits_model, "--threads", 3, "--port", 0)

    assert (result.returncode, len(result.stderr.splitlines())) == (2, 1), result.stderr
    assert "can't start new thread: the limit on processes and threads (ulimit -u" in result.stderr


@pytest.mark.slow
def test_sighup_has_the_token_read_again(digits_model: Path, tmp_path: Path) -> None:
    token = tmp_path / "token"
    token.write_text("first")
    with serving(digits_model, "--token-file", token) as service:

        def status(text: str) -> int:
            return httpx.get(f"{service.url}/v2", headers={"Authorization": f"Bearer {text}"}).status_code

        assert service.stderr
        token.write_text("second")
        service.send_signal(signal.SIGHUP)
        read = service.stderr.readline()
        changed = status("first"), status("second")
        token.unlink()
        service.send_signal(signal.SIGHUP)
        kept = service.stderr.readline()
        still = status("second")

    assert read == f"Read the token in {token} again\n"
    assert changed == (401, 200)
    assert kept == f"{token}: can't be read: No such file or directory. The token before still holds\n"
    assert still == 200


def wait_for(ask: Any, status: int) -> Any:
    end = time.monotonic() + 60
    while (response := ask()).status_code != status and time.monotonic() < end:
        time.sleep(0.01)
    assert response.status_code == status
    return response


@pytest.mark.slow
def test_a_token_is_asked_for_by_all_but_health(digits_model: Path, tmp_path: Path, image: bytes) -> None:
    (tmp_path / "token").write_text("sesame\n")
    with serving(digits_model, "--token-file", tmp_path / "token") as service:
        right, wrong = ({"Authorization": f"Bearer {token}"} for token in ("sesame", "sesam"))

        for path in ("/", "/metrics", "/v2", "/v2/models/rnn", "/nowhere"):
            for headers in ({}, wrong):
                expected = 404 if path == "/nowhere" else 401
                assert httpx.get(service.url + path, headers=headers).status_code == expected
        refused = httpx.post(f"{service.url}/classify", content=image)
        assert (refused.status_code, refused.headers["www-authenticate"]) == (401, "Bearer")
        assert httpx.post(f"{service.url}/classify", content=image, headers=right).status_code == 200
        for path in ("/v2/health/live", "/v2/health/ready"):
            assert httpx.get(service.url + path).status_code == 200


@pytest.mark.slow
def test_figures_for_prometheus_count_requests_and_batches(digits_model: Path, image: bytes) -> None:
    with serving(digits_model) as service:
        for content in (image, image, b"no image"):
            httpx.post(f"{service.url}/classify", content=content)
        text = httpx.get(f"{service.url}/metrics").text

    assert 'rnn_requests_total{route="/classify",status="200"} 2.0' in text
    assert 'rnn_requests_total{route="/classify",status="422"} 1.0' in text
    assert "rnn_batch_images_sum 2.0" in text
    assert 'rnn_request_seconds_count{route="/classify"} 3.0' in text
    assert "rnn_requests_under_way 0.0" in text


def test_the_page_loads_nothing_from_elsewhere(service: Service) -> None:
    page = httpx.get(service.url)

    assert page.headers["content-type"].startswith("text/html")
    assert "default-src 'none'" in page.headers["content-security-policy"]
    assert "http" not in page.text


@pytest.mark.slow
def test_many_connections_at_once_get_their_own_answers(service: Service, classifier: Classifier) -> None:
    def ask(seed: int) -> NDArray[np.float32]:
        client = triton.InferenceServerClient(service.address)
        images = random_images(1 + seed % 3, seed)
        return client.infer("rnn", [pixel_input(images, binary=True)]).as_numpy("logits")  # type: ignore[no-any-return]

    with ThreadPoolExecutor(64) as pool:
        results = list(pool.map(ask, range(512)))

    for seed, result in enumerate(results):
        expected = classifier.predict_logits(random_images(1 + seed % 3, seed))
        np.testing.assert_allclose(result, expected, rtol=0, atol=1e-5)


@pytest.mark.slow
@settings(max_examples=500)
@given(
    st.sampled_from(["/classify", INFER, "/v2/models/rnn", "/", "/metrics", "/v2/health/live"]),
    st.sampled_from(["GET", "POST", "PUT", "HEAD", "DELETE"]),
    st.binary(max_size=300),
    st.dictionaries(
        st.sampled_from(["Inference-Header-Content-Length", "Content-Type", "Authorization", "Content-Encoding"]),
        st.text(st.characters(min_codepoint=33, max_codepoint=255), min_size=1, max_size=20),
    ),
)
def test_no_request_makes_the_service_fail(
    service: Service, client: httpx.Client, path: str, method: str, body: bytes, headers: dict[str, str]
) -> None:
    raw = {name: value.encode("latin-1") for name, value in headers.items()}

    response = client.request(method, service.url + path, content=body, headers=raw)  # type: ignore[arg-type]

    assert response.status_code < 500, response.text
    assert client.get(f"{service.url}/v2/health/live").status_code == 200


@pytest.mark.slow
@settings(max_examples=200)
@given(st.binary(min_size=1, max_size=400))
def test_bytes_that_are_no_http_leave_the_service_as_it_is(service: Service, client: httpx.Client, data: bytes) -> None:
    host, port = service.address.split(":")
    with socket.create_connection((host, int(port))) as connection:
        connection.sendall(data + b"\r\n\r\n")
        connection.settimeout(5)
        connection.shutdown(socket.SHUT_WR)
        received = connection.recv(100)

    assert not received.startswith(b"HTTP/1.1 5")
    assert client.get(f"{service.url}/v2/health/live").status_code == 200


def wait_until_arriving(service: Service, count: int = 1) -> None:
    """Return once the service waits for the bodies of so many requests."""
    while f"rnn_bodies_arriving {count}.0" not in httpx.get(f"{service.url}/metrics").text:
        time.sleep(0.01)


def wait_until_refused(host: str, port: int) -> None:
    """Return once nothing listens there."""
    while True:
        with socket.socket() as connection:
            if connection.connect_ex((host, port)):
                return
        time.sleep(0.01)


@pytest.mark.slow
@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_a_signal_ends_the_service_once_all_is_answered(digits_model: Path, image: bytes, number: int) -> None:
    with serving(digits_model) as service:
        host, port = service.address.split(":")
        with socket.create_connection((host, int(port))) as slow:
            head = f"POST /classify HTTP/1.1\r\nHost: localhost\r\nContent-Length: {len(image)}\r\n\r\n"
            slow.sendall(head.encode() + image[:10])
            wait_until_arriving(service)
            service.send_signal(number)
            wait_until_refused(host, int(port))
            slow.sendall(image[10:])
            answer = slow.recv(1000)
            assert answer.startswith(b"HTTP/1.1 200")
            assert b"connection: close" in answer.lower()
        assert service.wait(60) == 0
        assert service.communicate()[1] == ""


@pytest.mark.slow
def test_a_shutdown_under_load_loses_no_answer(digits_model: Path, image: bytes) -> None:
    with serving(digits_model) as service:

        def ask(_: int) -> list[int]:
            found = []
            with httpx.Client(timeout=30) as client:
                while True:
                    try:
                        found.append(client.post(f"{service.url}/classify", content=image).status_code)
                    except (httpx.ConnectError, httpx.ReadError, httpx.RemoteProtocolError):
                        return found  # refused, or a kept connection that was closed before the request was read

        with ThreadPoolExecutor(16) as pool:
            answers = [pool.submit(ask, i) for i in range(16)]
            time.sleep(2)
            service.terminate()
            assert service.wait(30) == 0
            statuses = [status for answer in answers for status in answer.result()]

    assert len(statuses) > 16
    assert set(statuses) == {200}


@pytest.mark.slow
def test_a_request_that_never_ends_does_not_hold_up_the_end(digits_model: Path) -> None:
    with serving(digits_model, "--grace", 1) as service:
        host, port = service.address.split(":")
        with socket.create_connection((host, int(port))) as stalled:
            stalled.sendall(b"POST /classify HTTP/1.1\r\nHost: localhost\r\nContent-Length: 5\r\n\r\n")
            wait_until_arriving(service)
            service.terminate()
            assert service.wait(30) == 0


@pytest.mark.slow
def test_requests_that_are_cut_off_at_the_end_get_a_sentence_and_no_traceback(digits_model: Path) -> None:
    with serving(digits_model, "--grace", 1) as service:
        host, port = service.address.split(":")
        with contextlib.ExitStack() as stack:
            stalled = [stack.enter_context(socket.create_connection((host, int(port)))) for _ in range(5)]
            for connection in stalled:
                connection.sendall(b"POST /classify HTTP/1.1\r\nHost: localhost\r\nContent-Length: 5\r\n\r\n")
            wait_until_arriving(service, len(stalled))
            service.terminate()
            _, errors = service.communicate(timeout=30)
            answers = [connection.recv(10_000) for connection in stalled]

    assert service.returncode == 0
    assert "Traceback" not in errors
    assert len(errors.splitlines()) <= 1
    for answer in answers:
        assert answer.startswith(b"HTTP/1.1 503 ")
        assert answer.endswith(b'{"error":"the service is ending"}')


@pytest.mark.slow
def test_connections_without_headers_are_closed_and_more_than_files_allow_wait(digits_model: Path) -> None:
    with serving(digits_model, most_files=200) as service:
        host, port = service.address.split(":")
        with contextlib.ExitStack() as stack:
            for _ in range(300):
                connection = stack.enter_context(socket.create_connection((host, int(port))))
                connection.sendall(b"POST /classify HTTP/1.1\r\nHost: localhost\r\n")
            # After 15 to 30 seconds the first are closed, and the next are accepted.
            assert httpx.get(f"{service.url}/v2/health/live", timeout=120).status_code == 200
        service.terminate()
        _, errors = service.communicate(timeout=30)

    assert errors == "No more open files are allowed (ulimit -n): further connections wait\n"


def test_a_body_with_two_ends_is_refused(service: Service) -> None:
    host, port = service.address.split(":")
    with socket.create_connection((host, int(port))) as connection:
        headers = b"Host: localhost\r\nContent-Length: 3\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\n"
        connection.sendall(b"POST /classify HTTP/1.1\r\n" + headers)
        assert b" 400 " in connection.recv(1000).partition(b"\r\n")[0]


@pytest.mark.parametrize(
    ("arguments", "problem"),
    [
        (("--model", "nowhere.onnx"), "nowhere.onnx: "),
        (("--port", "70000"), "--port must be a whole number from 0 to 65535"),
        (("--host", "256.1.1.1"), "can't listen on 256.1.1.1, port 8080"),
        (("--token-file", "nowhere"), "nowhere: can't be read"),
        (("--token-file", "empty"), "empty: must hold a token"),
        (("--provider", "cpu", "--tf32"), "--tf32 does nothing on the CPU"),
        (("--workers", "4"), "No such option: --workers. Use --threads"),
    ],
)
def test_mistakes_are_one_line(
    run: Run, tmp_path: Path, digits_model: Path, arguments: tuple[str, ...], problem: str
) -> None:
    (tmp_path / "model.onnx").symlink_to(digits_model)
    (tmp_path / "empty").touch()

    result = run("rnn-serve", *arguments)

    assert (result.returncode, result.stdout, len(result.stderr.splitlines())) == (2, "", 1)
    assert problem in result.stderr


def test_answers_are_sent_without_waiting_for_acknowledgements() -> None:
    with listen("127.0.0.1", 0) as listener, socket.create_connection(listener.getsockname()[:2]):
        connection, _ = listener.accept()
        with connection:
            assert connection.proto == socket.IPPROTO_TCP  # what asyncio looks at before it sets TCP_NODELAY


def test_a_port_that_is_taken_is_named(run: Run, digits_model: Path) -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        result = run("rnn-serve", "--model", digits_model, "--port", port)

    assert result.returncode == 2
    assert f"can't listen on 127.0.0.1, port {port}: " in result.stderr
    assert "Choose another --port" in result.stderr


def test_without_the_packages_a_line_says_what_to_install(run_process: RunProcess, tmp_path: Path) -> None:
    (tmp_path / "sitecustomize.py").write_text(
        "import importlib.util\n"
        "find = importlib.util.find_spec\n"
        "importlib.util.find_spec = lambda name, *a: None if name in ('starlette', 'uvicorn') else find(name, *a)\n"
    )

    result = run_process("rnn-serve", env={"PYTHONPATH": str(tmp_path)})

    assert result.returncode == MissingPackageError.exit_code
    assert result.stderr == (
        "Error: starlette and uvicorn are not installed. Install them with: pip install starlette uvicorn\n"
    )
