"""What a service counts, in the format of Prometheus."""

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, generate_latest

_SECONDS = (0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0)
_IMAGES = (1, 2, 4, 8, 16, 32, 64, 128, 256, 512, 1024)


class Metrics:
    """Counters of one service. They are its own: other code's metrics in the process don't show up."""

    def __init__(self) -> None:
        self._registry = CollectorRegistry()
        options = {"namespace": "rnn", "registry": self._registry}
        self.requests = Counter("requests", "Requests by route and HTTP status.", ["route", "status"], **options)  # type: ignore[arg-type]
        self.seconds = Histogram(
            "request_seconds",
            "From a request's first byte to its answer.",
            ["route"],
            buckets=_SECONDS,
            **options,  # type: ignore[arg-type]
        )
        self.under_way = Gauge("requests_under_way", "Requests that wait for their answer.", **options)  # type: ignore[arg-type]
        self.batch = Histogram("batch_images", "Images per run of the model.", buckets=_IMAGES, **options)  # type: ignore[arg-type]

    def text(self) -> bytes:
        """All values as Prometheus reads them."""
        return generate_latest(self._registry)
