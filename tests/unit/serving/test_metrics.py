"""Counts in the form of Prometheus, read by its own parser."""

from prometheus_client.parser import text_string_to_metric_families

from lushan.serving.metrics import Metrics


def test_page_has_what_was_counted() -> None:
    metrics = Metrics(num_waiting=lambda: 3, num_running=lambda: 2, weight_bytes=lambda: 5_000)
    metrics.count_request("/v1/models", status=200, seconds=0.03)
    metrics.count_request("/v1/models", status=404, seconds=9.0)
    metrics.count_tokens("m", num_prompt=5, num_reused=3, num_completion=7)
    families = text_string_to_metric_families(metrics.page().decode())
    found = {
        (each.name, *each.labels.values()): each.value
        for family in families
        for each in family.samples
    }
    assert found["lushan_requests_total", "/v1/models", "404"] == 1
    assert found["lushan_request_seconds_bucket", "0.05", "/v1/models"] == 1
    assert found["lushan_request_seconds_count", "/v1/models"] == 2
    assert found["lushan_tokens_total", "prompt", "m"] == 5
    assert found["lushan_tokens_total", "completion", "m"] == 7
    assert found["lushan_reused_tokens_total", "m"] == 3
    assert (found["lushan_waiting",], found["lushan_running",]) == (3, 2)
    assert found["lushan_weight_bytes",] == 5_000
