"""The classifier: one model file, one onnxruntime session, images in and predictions out."""

import os
from collections.abc import Generator, Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from rnn_runtime.engine.cuda import CUDA_DEFAULTS, CudaOptions
from rnn_runtime.engine.device_buffers import DeviceBuffers
from rnn_runtime.engine.session import Provider, open_session, other_provider
from rnn_runtime.engine.threads import CpuThreads
from rnn_runtime.errors import InputError, ModelError, ProviderError
from rnn_runtime.images.batches import FileBatch, decode_files
from rnn_runtime.images.pool import usable_cores
from rnn_runtime.model.file import read_model
from rnn_runtime.model.metadata import ModelMetadata

BATCH_SIZE = 256
_LARGEST_BATCH = 1 << 24
_MOST_THREADS = 4096
_UINT8 = np.dtype(np.uint8)


@dataclass(frozen=True, slots=True)
class Prediction:
    """What the classifier says of one image file.

    `top` holds the k likeliest classes and their probabilities, likeliest first. For a file that can't
    be read or decoded it is empty, `label` and `probability` are None, and `error` says why.
    """

    path: str
    label: str | None
    probability: float | None
    top: tuple[tuple[str, float], ...] = ()
    error: str | None = None


class Classifier:
    """An exported model, ready to classify.

    ```python
    classifier = Classifier("model.onnx", provider="cpu")
    for prediction in classifier.predict(["a.png", "b.jpg"]):
        print(prediction.path, prediction.label, prediction.probability)
    ```

    Args:
        model: Path of a file that `rnn-export` wrote.
        provider: `cpu`; `cuda`, which runs on CUDA or raises; `auto`, which is CUDA where it runs, else CPU.
        threads: CPU threads, for decoding and for the model; None for one per core.
        cuda: How to run on CUDA: `CudaOptions(device_id=1)`; with `auto` they count where CUDA starts.

    Raises:
        ModelError: the file is missing, damaged or not one of `rnn-export`.
        ProviderError: CUDA was asked for and can't run here, or not as `cuda` says.
        MissingPackageError: no onnxruntime is installed, or a broken one.
        SettingsError: `cuda` was given with `cpu`.

    One classifier serves any number of threads, and works in forked processes, on the CPU. Sent to another process
    (pickled), it opens the model there again, on the same provider.

    Attributes:
        path: The model file.
        metadata: What the file says of itself: sizes, metrics, parity, golden samples.
        notice: Why `auto` runs on the CPU, else None.
    """

    def __init__(
        self,
        model: str | Path,
        provider: Provider = "auto",
        *,
        threads: int | None = None,
        cuda: CudaOptions = CUDA_DEFAULTS,
    ) -> None:
        if threads is not None and not 1 <= threads <= _MOST_THREADS:
            raise InputError(f"`threads` must be from 1 to {_MOST_THREADS}, not {threads}")
        self.path, self._cuda = str(model), cuda
        self.threads = threads or usable_cores()
        try:
            content = read_model(self.path)
            opened = open_session(content, provider, cuda=cuda)
            self._session, self._provider, self.notice = opened.session, opened.provider, opened.notice
            self.metadata = ModelMetadata.from_props(self._session.get_modelmeta().custom_metadata_map)
            self._shape = self.metadata.spec.image_spec.shape
            self._check_interface()
            self._runner = self._make_runner(content)
        except (ModelError, ProviderError) as error:
            raise type(error)(f"{self.path}: {error}") from None

    def _make_runner(self, content: bytes) -> DeviceBuffers | CpuThreads:
        if self._provider == "cuda":
            classes, cuda = len(self.class_names), self._cuda
            return DeviceBuffers(self._session, classes, "cuda", device_id=cuda.device_id, cuda_graph=cuda.graph)
        threaded = None
        if self.metadata.spec.cell == "lstm" and self.threads > 1:
            # Of small batches, onnxruntime's LSTM makes more of threads than chunks do (docs/design.md).
            threaded = open_session(content, "cpu", intra_op_threads=self.threads).session
        return CpuThreads(self._session, self.threads, threaded)

    def __reduce__(self) -> tuple[Any, ...]:
        """For another process, open the model again, on the provider that runs here or not at all."""
        cuda = self._cuda if self._provider == "cuda" else CUDA_DEFAULTS
        return _open, (self.path, self._provider, self.threads, cuda)

    @property
    def provider(self) -> Literal["cuda", "cpu"]:
        """The execution provider that runs the model."""
        return self._provider

    @property
    def class_names(self) -> tuple[str, ...]:
        """The classes, in the order of the model's outputs."""
        return self.metadata.spec.class_names

    def predict_logits(self, images: NDArray[np.uint8]) -> NDArray[np.float32]:
        """The logits of a batch; shapes and errors as for `predict_proba`."""
        return self._run_finite("logits", images)

    def predict_proba(self, images: NDArray[np.uint8]) -> NDArray[np.float32]:
        """The probability of each class for a batch of images in memory.

        Args:
            images: uint8, shape `(batch, height, width, channels)`, 0 to 255, RGB order.

        Returns:
            float32, shape `(batch, classes)`; each row sums to 1.

        Raises:
            InputError: shape or dtype don't fit the model.
            ModelError: the output is not finite, which is no result of any kind.
            ProviderError: the run failed, for lack of memory for instance.
        """
        return self._run_finite("probabilities", images)

    def predict(self, paths: Iterable[str | Path], *, top_k: int = 1, batch_size: int = BATCH_SIZE) -> list[Prediction]:
        """Classify image files; as `iter_predictions`, as a list."""
        return list(self.iter_predictions(paths, top_k=top_k, batch_size=batch_size))

    def iter_predictions(
        self, paths: Iterable[str | Path], *, top_k: int = 1, batch_size: int = BATCH_SIZE
    ) -> Generator[Prediction, None, None]:
        """Classify image files, as many as there are, in constant memory.

        Files are decoded in a pool of threads while the model runs.

        Args:
            paths: Image files. Read only as far ahead as a few batches.
            top_k: How many of the likeliest classes each prediction holds; at most all.
            batch_size: Images that go through the model at once.

        Yields:
            One prediction per path, in the order of `paths`.

        Raises:
            InputError: `top_k` or `batch_size` is out of range, or `paths` is a single path.
        """
        if isinstance(paths, str | bytes | Path):  # a text is a sequence of letters, and each would be taken for a path
            raise InputError(f"paths must be a list of paths, not one: use [{str(paths)!r}]")
        if top_k < 1 or not 1 <= batch_size <= _LARGEST_BATCH:
            raise InputError(
                f"top_k and batch_size must be at least 1, and batch_size at most {_LARGEST_BATCH}, not {top_k} and "
                f"{batch_size}"
            )
        return self._stream(map(os.fsdecode, paths), min(top_k, len(self.class_names)), batch_size)

    def _stream(self, paths: Iterator[str], top_k: int, batch_size: int) -> Generator[Prediction, None, None]:
        for batch in decode_files(paths, self.metadata.spec.image_spec, batch_size=batch_size, threads=self.threads):
            yield from self._predict_batch(batch, top_k)

    def _predict_batch(self, batch: FileBatch, top_k: int) -> list[Prediction]:
        errors, good = dict(batch.errors), batch.readable
        probabilities = self._run("probabilities", batch.images)
        likeliest = np.argsort(-probabilities, axis=1, kind="stable")[:, :top_k]
        values = np.take_along_axis(probabilities, likeliest, axis=1)
        for i in np.flatnonzero(~np.isfinite(probabilities).all(axis=1)):
            errors[good[i]] = "the model's output is not finite"
        top = dict(zip(good, zip(likeliest.tolist(), values.tolist(), strict=True), strict=True))
        return [
            Prediction(path, None, None, error=errors[row]) if row in errors else self._prediction(path, *top[row])
            for row, path in enumerate(batch.paths)
        ]

    def _prediction(self, path: str, classes: list[int], probabilities: list[float]) -> Prediction:
        top = tuple(zip((self.class_names[i] for i in classes), probabilities, strict=True))
        return Prediction(path, *top[0], top)

    def _run_finite(self, output: str, images: NDArray[np.uint8]) -> NDArray[np.float32]:
        values = self._run(output, images)
        if not np.isfinite(values).all():
            rows = int((~np.isfinite(values).all(axis=1)).sum())
            raise ModelError(
                f"{self.path}: its {output} are not finite for {rows} of {len(values)} images. Don't use this model on "
                f"{self._provider}: {other_provider(self._provider)}"
            )
        return values

    def _run(self, output: str, images: NDArray[np.uint8]) -> NDArray[np.float32]:
        images = np.ascontiguousarray(images)
        if images.dtype != _UINT8 or images.shape[1:] != self._shape:
            raise InputError(
                f"images must be uint8 of shape (batch, {', '.join(map(str, self._shape))}), "
                f"not {images.dtype} of shape {images.shape}"
            )
        if not len(images):  # onnxruntime's kernels are not made for no rows at all
            return np.empty((0, len(self.class_names)), np.float32)
        return self._runner.run(output, images)

    def _check_interface(self) -> None:
        shape, classes = self.metadata.spec.image_spec.shape, len(self.class_names)
        found = [
            (value.name, value.type, value.shape[1:])
            for value in (*self._session.get_inputs(), *self._session.get_outputs())
        ]
        expected = [
            ("images", "tensor(uint8)", list(shape)),
            ("logits", "tensor(float)", [classes]),
            ("probabilities", "tensor(float)", [classes]),
        ]
        if found != expected:
            raise ModelError(f"its inputs and outputs are {found}, and its metadata says {expected}")


def _open(path: str, provider: Provider, threads: int, cuda: CudaOptions) -> Classifier:
    return Classifier(path, provider, threads=threads, cuda=cuda)
