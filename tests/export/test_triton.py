"""Model repositories of the Triton Inference Server, read as the server reads them."""

import contextlib
import os
import socket
import subprocess
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime
import pytest
from google.protobuf import text_format
from hypothesis import given
from hypothesis import strategies as st
from tritonclient.grpc import model_config_pb2

from rnn_export import export_triton
from rnn_export.triton import triton_config
from rnn_runtime import Classifier
from rnn_runtime.errors import InputError
from rnn_runtime.model.spec import ImageSpec, ModelSpec
from tests.support.checkpoints import random_checkpoint
from tests.support.commands import Run

SPEC = ModelSpec(ImageSpec(8, 12, 1), ("a", "b c", "dé"), hidden_size=4)
SERVER = os.environ.get("TRITONSERVER")  # the path of a tritonserver that has the onnxruntime backend


@pytest.fixture
def checkpoint(tmp_path: Path) -> Path:
    return save(tmp_path / "model.pt", SPEC)


def save(path: Path, spec: ModelSpec) -> Path:
    random_checkpoint(spec).save(path)
    return path


def parse(text: str) -> Any:
    return text_format.Parse(text, model_config_pb2.ModelConfig())


def files(folder: Path) -> list[str]:
    return sorted(str(path.relative_to(folder)) for path in folder.rglob("*") if path.is_file())


def test_a_version_has_the_model_its_labels_and_its_configuration(tmp_path: Path, checkpoint: Path) -> None:
    report = export_triton(checkpoint, tmp_path / "models" / "rnn")

    assert files(tmp_path / "models") == ["rnn/1/model.onnx", "rnn/config.pbtxt", "rnn/labels.txt"]
    assert report.output == tmp_path / "models/rnn/1/model.onnx"
    assert Classifier(report.output, "cpu").class_names == SPEC.class_names
    assert (tmp_path / "models/rnn/labels.txt").read_text() == "a\nb c\ndé\n"
    assert (tmp_path / "models/rnn/1").stat().st_mode & 0o777 == 0o777 & ~_umask()


def _umask() -> int:
    os.umask(mask := os.umask(0))
    return mask


def test_the_configuration_says_what_the_model_is(tmp_path: Path, checkpoint: Path) -> None:
    session = onnxruntime.InferenceSession(export_triton(checkpoint, tmp_path / "rnn").output)

    config = parse((tmp_path / "rnn/config.pbtxt").read_text())

    (images,) = config.input
    (expected,) = session.get_inputs()
    assert (images.name, list(images.dims)) == (expected.name, expected.shape[1:])
    assert (images.data_type, expected.type) == (model_config_pb2.TYPE_UINT8, "tensor(uint8)")
    assert [(output.name, list(output.dims)) for output in config.output] == [
        (output.name, output.shape[1:]) for output in session.get_outputs()
    ]
    assert {output.data_type for output in config.output} == {model_config_pb2.TYPE_FP32}
    assert {output.label_filename for output in config.output} == {"labels.txt"}
    assert (config.backend, config.max_batch_size) == ("onnxruntime", 256)
    assert config.HasField("dynamic_batching")
    assert config.dynamic_batching.max_queue_delay_microseconds == 0


def test_a_cpu_gets_an_instance_per_core_with_a_thread_each_and_a_gpu_one_instance(
    tmp_path: Path, checkpoint: Path
) -> None:
    export_triton(checkpoint, tmp_path / "cpu")
    report = export_triton(checkpoint, tmp_path / "gpu", target="cuda")
    cpu, gpu = (parse((tmp_path / name / "config.pbtxt").read_text()) for name in ("cpu", "gpu"))

    (group,) = cpu.instance_group
    assert (group.kind, group.count) == (model_config_pb2.ModelInstanceGroup.KIND_CPU, len(os.sched_getaffinity(0)))
    assert cpu.parameters["intra_op_thread_count"].string_value == "1"
    (group,) = gpu.instance_group
    assert (group.kind, group.count) == (model_config_pb2.ModelInstanceGroup.KIND_GPU, 1)
    assert (report.target, dict(gpu.parameters)) == ("cuda", {})


@given(
    st.builds(ImageSpec, st.integers(1, 2000), st.integers(1, 2000), st.sampled_from([1, 3])),
    st.lists(st.text(min_size=1), min_size=2, max_size=5, unique=True),
    st.booleans(),
)
def test_any_model_gets_a_configuration_that_triton_can_read(image: ImageSpec, names: list[str], cuda: bool) -> None:
    mean, std = (0.0,) * image.channels, (1.0,) * image.channels
    spec = replace(SPEC, image_spec=image, class_names=tuple(names), mean=mean, std=std)

    config = parse(triton_config(spec, cuda=cuda))

    assert list(config.input[0].dims) == list(image.shape)
    assert list(config.output[0].dims) == [len(names)]
    assert [list(warmup.inputs["images"].dims) for warmup in config.model_warmup] == [list(image.shape)] * 2
    assert [warmup.batch_size for warmup in config.model_warmup] == [1, config.max_batch_size]


def test_versions_are_counted_up_and_the_configuration_stays(tmp_path: Path, checkpoint: Path) -> None:
    export_triton(checkpoint, tmp_path / "rnn")
    config = tmp_path / "rnn/config.pbtxt"
    config.write_text(config.read_text().replace("max_batch_size: 256", "max_batch_size: 64"))
    (tmp_path / "rnn/1").rename(tmp_path / "rnn/9")

    report = export_triton(checkpoint, tmp_path / "rnn")

    assert report.output == tmp_path / "rnn/10/model.onnx"
    assert "max_batch_size: 64" in config.read_text()


def test_exports_at_the_same_time_get_a_version_each(tmp_path: Path, checkpoint: Path) -> None:
    with ThreadPoolExecutor(4) as pool:
        reports = list(pool.map(lambda _: export_triton(checkpoint, tmp_path / "rnn"), range(4)))

    assert sorted(int(report.output.parent.name) for report in reports) == [1, 2, 3, 4]
    assert files(tmp_path / "rnn") == [*(f"{i}/model.onnx" for i in range(1, 5)), "config.pbtxt", "labels.txt"]


def test_a_model_with_another_interface_gets_no_version(tmp_path: Path, checkpoint: Path) -> None:
    export_triton(checkpoint, tmp_path / "rnn")
    before = files(tmp_path)

    for change, what in (
        ({"class_names": ("a", "b")}, "other classes: a, b c, dé, not a, b"),
        ({"image_spec": ImageSpec(8, 8, 1)}, "other images: "),
    ):
        with pytest.raises(InputError, match=what):
            export_triton(save(checkpoint, replace(SPEC, **change)), tmp_path / "rnn")

    assert files(tmp_path) == before


def test_the_command_writes_a_version(run: Run, tmp_path: Path, checkpoint: Path) -> None:
    result = run("rnn-export", checkpoint.name, "--triton", "models/rnn")

    assert (result.returncode, result.stderr) == (0, "Wrote models/rnn/1/model.onnx\n")
    assert "Within tolerance" in result.stdout
    assert (tmp_path / "models/rnn/1/model.onnx").is_file()


@pytest.mark.parametrize(
    ("arguments", "problem"),
    [
        (("model.pt",), "Name the model to write: rnn-export model.pt model.onnx"),
        (("model.pt", "model.onnx", "--triton", "rnn"), "--triton writes a folder, so model.onnx has no use"),
        (("model.pt", "--triton", "taken"), "taken: not the folder of a model: it holds rnn. Choose"),
        (("model.pt", "--triton", "model.pt"), "'model.pt' is a file"),
        (("none.pt", "--triton", "models/rnn"), "none.pt: "),
        (("model.pt", "--triton", "models/rnn", "--atol", "0", "--rtol", "0"), "models/rnn/1/model.onnx: not written"),
    ],
)
def test_mistakes_are_one_line_and_leave_nothing(
    run: Run, tmp_path: Path, checkpoint: Path, arguments: tuple[str, ...], problem: str
) -> None:
    (tmp_path / "taken" / "rnn").mkdir(parents=True)

    result = run("rnn-export", *arguments)

    assert result.returncode in (1, 2)
    assert len(result.stderr.splitlines()) == 1
    assert problem in result.stderr
    assert files(tmp_path) == [checkpoint.name]
    assert not (tmp_path / "models" / "rnn").exists()


@contextlib.contextmanager
def _server(models: Path) -> Iterator[str]:
    """A tritonserver, ready; its address for HTTP."""
    with socket.create_server(("127.0.0.1", 0)) as free:
        port = free.getsockname()[1]
    options = ["--model-repository", models, "--http-address", "127.0.0.1", "--http-port", port]
    process = subprocess.Popen(list(map(str, [SERVER, *options, "--allow-grpc", "0", "--allow-metrics", "0"])))
    try:
        import tritonclient.http

        client = tritonclient.http.InferenceServerClient(f"127.0.0.1:{port}")
        end = time.monotonic() + 60
        while time.monotonic() < end:
            with contextlib.suppress(OSError):
                if client.is_server_ready():
                    break
            time.sleep(0.2)
        yield f"127.0.0.1:{port}"
    finally:
        process.terminate()
        process.wait(60)


@pytest.mark.slow
@pytest.mark.skipif(not SERVER, reason="TRITONSERVER names no tritonserver")
def test_a_server_gives_the_classifiers_own_numbers(tmp_path: Path, checkpoint: Path) -> None:
    import tritonclient.http as triton

    model = export_triton(checkpoint, tmp_path / "models" / "rnn").output
    images = np.random.default_rng(0).integers(0, 256, (5, *SPEC.image_spec.shape), np.uint8)

    with _server(tmp_path / "models") as address:
        value = triton.InferInput("images", images.shape, "UINT8")
        value.set_data_from_numpy(images)
        result = triton.InferenceServerClient(address).infer("rnn", [value])

    np.testing.assert_array_equal(result.as_numpy("logits"), Classifier(model, "cpu").predict_logits(images))
