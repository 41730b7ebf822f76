"""The classifier: a model file, its onnxruntime session, images in and predictions out."""

import math
import zlib
from collections.abc import Generator, Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from functools import partial
from itertools import starmap
from pathlib import Path
from typing import Any, Literal, NamedTuple, overload

import numpy as np
from numpy.typing import NDArray

from rnn_runtime.cores import allowed_threads, default_threads, usable_memory
from rnn_runtime.engine import CUDA_DEFAULTS, CudaOptions, Provider, make_runner, open_session, other_provider
from rnn_runtime.errors import Argument, ImageError, InputError, ModelError, ProviderError, SettingsError
from rnn_runtime.images.ahead import ReadAhead
from rnn_runtime.images.decode import Decoded, TakenImage, read_images
from rnn_runtime.images.image_like import ImageLike, is_single_image, take_images
from rnn_runtime.images.outliers import OutlierDetector
from rnn_runtime.model.file import ModelMetadata, read_model, stored_sha256
from rnn_runtime.model.values import BatchSize, Count, Threads, check_argument

BATCH_SIZE = 256
_MEMORY_SHARE = 32  # a batch takes at most this part of the memory; four are under way, with copies and float32
_NOT_FINITE = "the model's output is not finite"
_UINT8 = np.dtype(np.uint8)


@dataclass(frozen=True, slots=True)
class Prediction:
    """The result for one image.

    Attributes:
        path: The path that was given; for an open file or a PIL image the name of its file; empty if it has none.
        label: The most probable class; None if the image can't be read or decoded.
        probability: The probability of `label`, 0 to 1; None without a label.
        top: The `top_k` most probable classes with their probabilities, in descending order; empty without a label.
        error: Why the image has no label, in one line; None if it has one.
        colors_ignored: Whether the model takes gray images, and the file is one in color.
        unlike: In what the image is unlike the training images most, such as `light where those are dark`, so that its
            label may mean nothing; None for an image like those.
    """

    path: str
    label: str | None
    probability: float | None
    top: tuple[tuple[str, float], ...] = ()
    error: str | None = None
    colors_ignored: bool = False
    unlike: str | None = None

    def __reduce__(self) -> tuple[Any, ...]:
        # Quicker than the way of dataclasses: processes pass many of them.
        values = (self.path, self.label, self.probability, self.top, self.error, self.colors_ignored, self.unlike)
        return Prediction, values

    def to_dict(self) -> dict[str, Any]:
        """Plain values for JSON or a data frame, the attributes as keys.

        `top` is a list of dictionaries with `label` and `probability`.
        """
        top = [{"label": label, "probability": probability} for label, probability in self.top]
        return {
            "path": self.path,
            "label": self.label,
            "probability": self.probability,
            "top": top,
            "error": self.error,
            "unlike": self.unlike,
        }


class Classified(NamedTuple):
    """The predictions for some images.

    Attributes:
        predictions: In the order of the images.
        readable: How many of the images could be read.
        only_input: A checksum of the model's input, if it is the same for all of these; else None.
    """

    predictions: list[Prediction]
    readable: int
    only_input: int | None


class _Batch(NamedTuple):
    """Some images: as they were given, decoded or what is wrong with them, and stacked for the model.

    Attributes:
        images: Those that were decoded, uint8 `(images, height, width, channels)`.
    """

    given: Sequence[str | TakenImage]
    decoded: Sequence[Decoded | ImageError]
    images: NDArray[np.uint8]


class Classifier:
    """An exported model, ready to classify images.

    ```python
    classifier = Classifier("model.onnx", provider="cpu")
    for prediction in classifier.predict(["a.png", "b.jpg"]):
        print(prediction.path, prediction.label, prediction.probability)
    ```

    One classifier serves any number of threads. On the CPU it also works in forked processes. A pickled classifier
    opens its model again, on the same provider, in the process that unpickles it.

    Args:
        model: The path of a file that `rnn-export` wrote.
        provider: `cpu`; `cuda`, which raises if CUDA can't run; or `auto`, which is CUDA if it runs, else the CPU.
        threads: CPU threads for decoding and for the model; None for one per core, or one per 256 MiB of memory if
            these are fewer.
        cuda: How to run on CUDA, such as `CudaOptions(device_id=1)`. With `auto`, used only if CUDA runs.
        invert: Exchange light and dark in the images that `predict` takes, for a model that was trained on images the
            other way round.

    Attributes:
        path (str): The model file.
        sha256 (str): SHA-256 of the model file, as it is stored in it.
        metadata (ModelMetadata): What the file says about the model: sizes, metrics, parity, golden samples.
        image_spec (ImageSpec): The images that the model takes, and how others become such images.
        class_names (tuple[str, ...]): The classes, in the order of the model's outputs.
        threads (int): The number of CPU threads.
        provider (str): The execution provider that runs the model, `cuda` or `cpu`.
        cuda (CudaOptions): How it runs on CUDA; on the CPU, the defaults.
        notice (str | None): Why it runs on the CPU and what to do about it, if `auto` was to choose and CUDA was to be
            expected.

    Raises:
        ModelError: The file is missing, damaged or not written by `rnn-export`.
        ProviderError: CUDA was asked for and can't run here.
        MissingPackageError: onnxruntime isn't installed, or its installation is broken.
        SettingsError: An argument has a wrong type or is out of range, or `cuda` was given with `provider="cpu"`.
    """

    def __init__(
        self,
        model: str | Path,
        provider: Provider = "auto",
        *,
        threads: int | None = None,
        cuda: CudaOptions = CUDA_DEFAULTS,
        invert: bool = False,
    ) -> None:
        check_argument("model", model, Path)
        check_argument("threads", threads, Threads | None)
        check_argument("cuda", cuda, CudaOptions)
        self.path = str(model)
        self.threads = allowed_threads(int(threads or default_threads()))
        try:
            content = read_model(self.path)
            self.sha256 = stored_sha256(content)
            opened = open_session(content, provider, cuda=cuda)
            self.provider: Literal["cuda", "cpu"] = opened.provider
            self.notice = opened.notice
            self.cuda = cuda if opened.provider == "cuda" else CUDA_DEFAULTS
            self.metadata = ModelMetadata.from_props(opened.session.get_modelmeta().custom_metadata_map)
            spec = self.metadata.spec
            self.class_names, self.image_spec, self._shape = spec.class_names, spec.image_spec, spec.image_spec.shape
            if invert and spec.image_spec.fit == "glyph":
                raise SettingsError(
                    Argument("invert"),
                    f" does nothing with {self.path}: its fit, glyph, finds out what is light. Leave it out",
                )
            if invert:
                self.image_spec = replace(spec.image_spec, invert=True)
            self._check_interface(opened.session)
            self._largest_batch = max(1, usable_memory() // (_MEMORY_SHARE * math.prod(self._shape)))
            self._detector = OutlierDetector(spec.profile) if spec.profile else None
            self._runner = make_runner(opened, content, spec, threads=self.threads, device_id=self.cuda.device_id)
        except (ModelError, ProviderError) as error:
            raise type(error)(f"{self.path}: ", *error.args) from None

    def __reduce__(self) -> tuple[Any, ...]:
        # In another process, the model is opened again, on the provider that runs here or not at all.
        invert = self.image_spec.invert
        return partial(Classifier, self.path, self.provider, threads=self.threads, cuda=self.cuda, invert=invert), ()

    @overload
    def predict(self, images: NDArray[np.uint8], *, top_k: int = 1, batch_size: int = BATCH_SIZE) -> Any: ...
    @overload
    def predict(  # type: ignore[overload-overlap]  # a text is iterable, too
        self, images: ImageLike, *, top_k: int = 1, batch_size: int = BATCH_SIZE
    ) -> Prediction: ...
    @overload
    def predict(
        self, images: Iterable[ImageLike], *, top_k: int = 1, batch_size: int = BATCH_SIZE
    ) -> list[Prediction]: ...
    def predict(
        self, images: ImageLike | Iterable[ImageLike], *, top_k: int = 1, batch_size: int = BATCH_SIZE
    ) -> Prediction | list[Prediction]:
        """Classify one image or several.

        An image may be:

        - a path, as `str` or `pathlib.Path`
        - the `bytes` of a PNG, JPEG, BMP, TIFF, WebP, GIF, PGM or PPM file
        - a file open in binary mode; it is read to its end and stays open
        - a PIL image of any size and mode; its EXIF orientation is applied, and it stays as it is
        - a uint8 array of any size: `(height, width)` for gray, or `(height, width, channels)` with 1 (gray), 2 (gray,
          alpha), 3 (RGB) or 4 (RGBA) channels

        All become the model's input in the same way as in training; don't resize them yourself. Pixels give the same
        result as their file, bit for bit. The exceptions are JPEG files that your code has decoded: see the guide to
        Python.

        Args:
            images: One image, an iterable of images of any kinds, or an array `(count, height, width, channels)`.
            top_k: How many of the most probable classes each prediction holds; at most all.
            batch_size: Images per run of the model.

        Returns:
            One `Prediction` for one image, else a list in the order of `images`. An image that can't be read or decoded
            has its `error` set; the others aren't affected.

        Raises:
            InputError: `images` holds something that isn't an image; the text names its position.
            SettingsError: `top_k` or `batch_size` is out of range.
            ProviderError: The model couldn't run, for instance because memory ran out.
        """
        if is_single_image(images):
            _check_sizes(top_k, batch_size)
            (prediction,) = self._classify_here(take_images(images, self.image_spec), top_k).predictions
            return prediction
        return list(self.iter_predictions(images, top_k=top_k, batch_size=batch_size))  # type: ignore[arg-type]

    def iter_predictions(
        self, images: Iterable[ImageLike], *, top_k: int = 1, batch_size: int = BATCH_SIZE
    ) -> Generator[Prediction, None, None]:
        """Classify any number of images in bounded memory.

        Files are decoded in a pool of threads while the model runs. `images` is read up to four batches ahead. Images
        given as bytes or open files wait there undecoded, so choose a smaller `batch_size` if they are large.

        Args:
            images: An iterable of images, of the kinds that `predict` takes.
            top_k: How many of the most probable classes each prediction holds; at most all.
            batch_size: Images per run of the model.

        Yields:
            One prediction per image, in the order of `images`.

        Raises:
            InputError: As for `predict`, or `images` is a single image.
            SettingsError: As for `predict`.
            ProviderError: As for `predict`.
        """
        _check_sizes(top_k, batch_size)
        if is_single_image(images):  # a text is a sequence of letters, and each would be taken for a path
            raise InputError(Argument("images"), " is a single image. Pass it to `predict`, or put it into a list")
        return self._iterate(take_images(images, self.image_spec), top_k, batch_size)

    @contextmanager
    def classify_batches(
        self, images: Iterable[str | TakenImage], top_k: int, batch_size: int, *, processes: int = 1
    ) -> Iterator[Iterator[Classified]]:
        """Classify as `iter_predictions` does, by several processes if there are many small files.

        Args:
            images: Any number of files, or of images in memory.
            top_k: How many of the most probable classes each prediction holds; at most all.
            batch_size: Images per run of the model; fewer of large images, where the memory is small.
            processes: The most processes to fork. On the CPU they classify, on CUDA they decode.

        Yields:
            An iterator of batches of predictions, in the order of `images`. Leaving the block stops the workers.

        Raises:
            ProcessLostError: One of the processes has ended, for instance because it was killed.
            ProviderError: As for `predict`.
        """
        files = ReadAhead(
            images, batch_size=min(batch_size, self._largest_batch), threads=self.threads, processes=processes
        )
        if files.workers.kind == "processes" and self.provider == "cpu":
            with files.map(partial(self._classify_in_process, top_k=top_k)) as classified:
                yield (batch for _, batches in classified for batch in batches)
            return
        with files.map(partial(read_images, spec=self.image_spec)) as batches:
            found = self._runner.stream("probabilities", starmap(self._stack, batches))
            yield starmap(partial(self._predictions, top_k=top_k), found)

    def predict_proba(self, images: NDArray[np.uint8]) -> NDArray[np.float32]:
        """Compute the probability of each class for images that are the model's input already, whatever its `fit`.

        `predict` takes images of any size. Images resized in another way than in training can get other labels.

        Args:
            images: uint8, shape `(batch, height, width, channels)`, 0 to 255, channels in RGB order.

        Returns:
            float32, shape `(batch, classes)`, in the order of `class_names`; each row sums to 1.

        Raises:
            InputError: The shape or dtype doesn't fit the model.
            ModelError: An output isn't finite.
            ProviderError: The model couldn't run, for instance because memory ran out.
        """
        return self._compute("probabilities", images)

    def predict_logits(self, images: NDArray[np.uint8]) -> NDArray[np.float32]:
        """Compute the logits of each class; arguments, shapes and errors as for `predict_proba`."""
        return self._compute("logits", images)

    def find_unlike(self, images: NDArray[np.uint8], aspect_ratios: Sequence[float] = ()) -> list[str | None]:
        """Say of each image in what it is unlike the training images, as `Prediction.unlike` does.

        Args:
            images: As for `predict_proba`.
            aspect_ratios: Width / height of each before it was resized; empty where it isn't known.

        Returns:
            The greatest difference of each image; None for an image like those, and for all if the model doesn't know
            what they looked like, since there were fewer than 20.
        """
        return self._detector.find(images, aspect_ratios) if self._detector else [None] * len(images)

    def _iterate(
        self, images: Iterator[str | TakenImage], top_k: int, batch_size: int
    ) -> Generator[Prediction, None, None]:
        with self.classify_batches(images, top_k, batch_size) as batches:
            for batch in batches:
                yield from batch.predictions

    def _classify_here(self, images: Iterable[str | TakenImage], top_k: int, *, alone: bool = False) -> Classified:
        """Decode and classify images in the calling thread; `alone` in one of several processes."""
        given = list(images)
        batch = self._stack(given, read_images(given, self.image_spec))
        return self._predictions(batch, self._runner.run("probabilities", batch.images, alone=alone), top_k=top_k)

    def _classify_in_process(self, images: Iterable[str | TakenImage], top_k: int) -> list[Classified]:
        return [self._classify_here(images, top_k, alone=True)]

    def _stack(self, given: Sequence[str | TakenImage], decoded: Sequence[Decoded | ImageError]) -> _Batch:
        pixels = [image.pixels for image in decoded if isinstance(image, Decoded)]
        return _Batch(given, decoded, np.stack(pixels) if pixels else np.empty((0, *self._shape), np.uint8))

    def _predictions(self, batch: _Batch, found: NDArray[np.float32], *, top_k: int) -> Classified:
        classes = np.argsort(-found, axis=1, kind="stable")[:, :top_k]
        highest = np.take_along_axis(found, classes, axis=1)
        is_finite: list[bool] = np.isfinite(found).all(axis=1).tolist()  # type: ignore[assignment]
        own = self.image_spec.width / self.image_spec.height
        ratios = [image.aspect_ratio or own for image in batch.decoded if isinstance(image, Decoded)]
        unlike_each = self.find_unlike(batch.images, ratios)
        rows = zip(classes.tolist(), highest.tolist(), is_finite, unlike_each, strict=True)
        predictions = []
        for given, image in zip(batch.given, batch.decoded, strict=True):
            name = given if isinstance(given, str) else given.name
            if isinstance(image, ImageError):
                predictions.append(Prediction(name, None, None, error=str(image)))
                continue
            numbers, probabilities, finite, unlike = next(rows)
            if finite:
                top = tuple(zip((self.class_names[i] for i in numbers), probabilities, strict=True))
                predictions.append(Prediction(name, *top[0], top, None, image.colors_ignored, unlike))
            else:
                predictions.append(Prediction(name, None, None, error=_NOT_FINITE))
        return Classified(predictions, len(batch.images), _only_input(batch.images))

    def _compute(self, output: str, images: NDArray[np.uint8]) -> NDArray[np.float32]:
        images = np.ascontiguousarray(images)
        if images.dtype != _UINT8 or images.shape[1:] != self._shape:
            raise InputError(
                Argument("images"),
                f" must be uint8 of shape (batch, {', '.join(map(str, self._shape))}), "
                f"not {images.dtype} of shape {images.shape}. `predict` takes images of any size",
            )
        values = self._runner.run(output, images)
        if not np.isfinite(values).all():
            rows = int((~np.isfinite(values).all(axis=1)).sum())
            raise ModelError(
                f"{self.path}: its {output} are not finite for {rows} of {len(values)} images. Don't use this model on "
                f"{self.provider}: ",
                *other_provider(self.provider),
            )
        return values

    def _check_interface(self, session: Any) -> None:
        classes = len(self.class_names)
        found = [(value.name, value.type, value.shape[1:]) for value in (*session.get_inputs(), *session.get_outputs())]
        expected = [
            ("images", "tensor(uint8)", list(self._shape)),
            ("logits", "tensor(float)", [classes]),
            ("probabilities", "tensor(float)", [classes]),
        ]
        if found != expected:
            raise ModelError(f"its inputs and outputs are {found}, and its metadata says {expected}")


def _only_input(images: NDArray[np.uint8]) -> int | None:
    if not len(images) or not np.array_equal(images[0], images[-1]) or (images[1:-1] != images[0]).any():
        return None
    return zlib.crc32(images[0])


def _check_sizes(top_k: int, batch_size: int) -> None:
    check_argument("top_k", top_k, Count)
    check_argument("batch_size", batch_size, BatchSize)
