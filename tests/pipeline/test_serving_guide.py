"""The web service of the guide to serving, run as it is on the page."""

import contextlib
import json
import shlex
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import httpx
import pytest
from fastapi.testclient import TestClient

from rnn_runtime import Classifier
from tests.support.pages import Block, blocks, without_numbers
from tests.support.services import serving


@pytest.fixture(scope="module")
def page() -> list[Block]:
    return [block for block in blocks("guides/serving.md") if block.heading == "Your own service"]


@pytest.fixture(scope="module")
def client(tmp_path_factory: pytest.TempPathFactory, digits_model: Path, page: list[Block]) -> Iterator[TestClient]:
    """A client of the page's service, for the digits model."""
    folder = tmp_path_factory.mktemp("service")
    (folder / "model.onnx").symlink_to(digits_model)
    (code,) = [block.code for block in page if block.language == "python"]
    names: dict[str, object] = {"__name__": "service"}
    with contextlib.chdir(folder):
        exec(code, names)
    with TestClient(names["app"]) as client:  # type: ignore[arg-type]
        yield client


def post_as_curl(command: str, folder: Path) -> Any:
    """The JSON that the page's line with curl gets: `curl --data BODY URL`, or `curl --data-binary @FILE URL`."""
    curl, option, data, address = shlex.split(command)
    assert (curl, option) in [("curl", "--data"), ("curl", "--data-binary")]
    content = (folder / data[1:]).read_bytes() if data.startswith("@") else data.encode()
    return httpx.post(f"http://{address}", content=content).json()


def test_what_curl_gets_from_rnn_serve_is_what_the_page_shows(
    digits_model: Path, digits_images: Path, tmp_path: Path
) -> None:
    (tmp_path / "seven.png").write_bytes(min(digits_images.glob("7/*.png")).read_bytes())
    (tmp_path / "notes.txt").write_text("no image")
    found = [block for block in blocks("guides/serving.md") if block.heading == "rnn-serve"]
    asked = [block.code for block in found if block.code.startswith("curl ")]
    shown = [json.loads(block.code) for block in found if block.language == "json"]

    with serving(digits_model) as service:
        for command, expected in zip(asked, shown, strict=True):
            answer = post_as_curl(command.replace("localhost:8080", service.address), tmp_path)
            assert without_numbers(str(answer)) == without_numbers(str(expected))


def test_an_image_gets_what_its_file_gets(
    client: TestClient, digits_model: Path, digits_images: Path, page: list[Block]
) -> None:
    path = min(digits_images.glob("7/*.png"))

    response = client.post("/classify", files={"image": ("seven.png", path.read_bytes())})

    assert response.status_code == 200
    expected = Classifier(digits_model, provider="cpu").predict(path, top_k=3).to_dict()
    assert response.json() == expected | {"path": "seven.png"}
    shown = json.loads(next(block.code for block in page if block.language == "json"))
    assert without_numbers(str(response.json())) == without_numbers(str(shown))


def test_an_upload_that_is_no_image_gets_a_reason(client: TestClient, page: list[Block]) -> None:
    response = client.post("/classify", files={"image": ("notes.txt", b"no image")})

    assert response.status_code == 422
    assert response.json() == json.loads([block.code for block in page if block.language == "json"][1])


@pytest.mark.parametrize("request_parts", [{}, {"data": {"image": "text"}}, {"files": {"other": b""}}])
def test_a_request_without_a_file_is_refused(client: TestClient, request_parts: dict[str, Any]) -> None:
    assert client.post("/classify", **request_parts).status_code == 422


def test_an_empty_upload_gets_a_reason(client: TestClient) -> None:
    response = client.post("/classify", files={"image": ("empty.png", b"")})

    assert (response.status_code, response.json()) == (422, {"detail": "the file is empty"})


def test_requests_at_the_same_time_get_what_they_get_alone(client: TestClient, digits_images: Path) -> None:
    uploads = [path.read_bytes() for path in sorted(digits_images.glob("*/*.png"))[::20]] + [b"no image"]

    def ask(data: bytes) -> object:
        return client.post("/classify", files={"image": ("image", data)}).json()

    expected = [ask(data) for data in uploads]
    with ThreadPoolExecutor(8) as pool:
        assert list(pool.map(ask, uploads * 5)) == expected * 5
