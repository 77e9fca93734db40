"""What a server counts, in the form of Prometheus."""

from collections.abc import Callable

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, generate_latest

SECONDS = (0.005, 0.02, 0.05, 0.1, 0.2, 0.5, 1, 2, 5, 10, 30, 60, 300)


class Metrics:
    """The counters of one server."""

    def __init__(
        self,
        *,
        num_waiting: Callable[[], int],
        num_running: Callable[[], int],
        weight_bytes: Callable[[], int],
    ) -> None:
        """Begin at zero; how many requests wait and run, and what weights take, is asked when somebody looks."""
        self._registry = CollectorRegistry()
        self._requests = Counter(
            "lushan_requests",
            "Requests that were answered.",
            ("route", "status"),
            registry=self._registry,
        )
        self._seconds = Histogram(
            "lushan_request_seconds",
            "Time from a request to the end of its answer.",
            ("route",),
            buckets=SECONDS,
            registry=self._registry,
        )
        self._tokens = Counter(
            "lushan_tokens",
            "Tokens of what was asked (prompt) and written (completion).",
            ("model", "kind"),
            registry=self._registry,
        )
        self._reused = Counter(
            "lushan_reused_tokens",
            "Prompt tokens among these that were known from earlier requests, and not read again.",
            ("model",),
            registry=self._registry,
        )
        waiting = Gauge("lushan_waiting", "Requests that wait.", registry=self._registry)
        waiting.set_function(num_waiting)
        running = Gauge("lushan_running", "Requests that are answered.", registry=self._registry)
        running.set_function(num_running)
        weights = Gauge(
            "lushan_weight_bytes",
            "Memory that the weights of all models take; what they share is counted once.",
            registry=self._registry,
        )
        weights.set_function(weight_bytes)

    def count_request(self, route: str, *, status: int, seconds: float) -> None:
        """Count one answer; `route` is the path with names for its parts, so that there are few."""
        self._requests.labels(route, str(status)).inc()
        self._seconds.labels(route).observe(seconds)

    def count_tokens(
        self, model: str, *, num_prompt: int, num_completion: int, num_reused: int = 0
    ) -> None:
        """Count what a model was asked and wrote; of the prompt, `num_reused` tokens were not read again."""
        self._reused.labels(model).inc(num_reused)
        self._tokens.labels(model, "prompt").inc(num_prompt)
        self._tokens.labels(model, "completion").inc(num_completion)

    def page(self) -> bytes:
        """Give everything as Prometheus reads it."""
        return generate_latest(self._registry)
