"""Counters added up over fronts."""

from __future__ import annotations

from prometheus_client.core import (
    CounterMetricFamily,
    GaugeMetricFamily,
    HistogramMetricFamily,
    InfoMetricFamily,
    UntypedMetricFamily,
)

from lossd.fronts.counts import cumulative, family, merge, metric


def page_of(requests: dict[str, int], seconds: list[tuple[str, float]], waiting: int, ready: float) -> list:
    counter = CounterMetricFamily("requests", "Asked.", labels=("loss",))
    for loss, count in requests.items():
        counter.add_metric((loss,), count)
    histogram = HistogramMetricFamily("seconds", "Took.", buckets=seconds, sum_value=seconds[-1][1] / 2)
    return [
        family(one)
        for one in (
            counter,
            histogram,
            UntypedMetricFamily("nv", "As Triton.", value=waiting),
            GaugeMetricFamily("waiting", "In progress.", value=waiting),
            GaugeMetricFamily("lossd_ready", "Ready.", value=ready),
            InfoMetricFamily("lossd_build", "What.", value={"version": "1"}),
        )
    ]


ONE = page_of({"mse": 2, "dice": 1}, [("0.1", 1), ("+Inf", 3)], 4, 1.0)
OTHER = page_of({"mse": 5, "focal": 7}, [("0.1", 2), ("+Inf", 12)], 1, 0.0)


def samples(counted: list) -> dict:
    return {
        (name, *labels.values()): value for one in counted for name, labels, value in one["samples"]
    }  # no name has labels of two kinds


def test_what_is_counted_adds_up_and_what_is_a_state_does_not():
    assert samples(merge([ONE, OTHER])) == {
        ("requests_total", "mse"): 7,
        ("requests_total", "dice"): 1,
        ("requests_total", "focal"): 7,
        ("seconds_bucket", "0.1"): 3,
        ("seconds_bucket", "+Inf"): 15,
        ("seconds_count",): 15,
        ("seconds_sum",): 7.5,
        ("nv",): 5,
        ("waiting",): 5,
        ("lossd_ready",): 0,
        ("lossd_build_info", "1"): 1,
    }


def test_of_a_front_that_is_gone_what_it_counted_stays_and_what_it_held_does_not():
    left = samples(merge([cumulative(ONE), OTHER]))
    assert left["requests_total", "mse"] == 7
    assert left["seconds_bucket", "+Inf"] == 15
    assert left["waiting",] == 1


def test_a_family_survives_the_trip():
    for one in merge([ONE]):
        assert family(metric(one)) == one
