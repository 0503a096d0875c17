"""The explorer's curves: each point is the value that lossd.evaluate gives for the request that the page shows."""

from __future__ import annotations

import numpy as np
import pytest

import lossd
from lossd.losses import REGISTRY

SMOOTH = {("mse", "error"), ("cross_entropy", "margin"), ("nt_xent", "cosine"), ("vae", "mean")}

# Draws every loss along each of its axes, in the page, and returns the curves and the first request of each.
DRAW = """
async () => {
  const from = (name) => import(document.querySelector('script[type=module]').src.replace('app.pack.js', name));
  const [api, { byRows, draw, requestsOf }] = await Promise.all([from('api.js'), from('curve.js')]);
  const found = [];
  for (const loss of await api.losses()) {
    for (const axis of loss.available ? loss.axes : []) {
      const curve = { loss, axis, parameters: {} };
      const drawn = await draw(curve, { api, points: 9 });
      const { first, count } = await requestsOf(curve, { api, points: 9 });
      found.push({ name: loss.name, axis: axis.name, rows: byRows(loss), first, count, ...drawn });
    }
  }
  return found;
}
"""


@pytest.fixture(scope="module")
def curves(open_window, service):
    open_window.goto(f"{service.url}/#/nowhere")
    return open_window.evaluate(DRAW)


def test_a_point_is_the_value_of_its_request(curves) -> None:
    for curve in curves:
        request = curve["first"]
        result = lossd.evaluate(request["loss"], inputs=request["inputs"], outputs=request["outputs"])
        drawn = curve["values"] if curve["rows"] else curve["values"][:1]
        expected = np.reshape(result.loss, (len(drawn), -1)).sum(1)
        where = f"{curve['name']} along {curve['axis']}"
        assert (len(curve["x"]), curve["count"]) == (9, 1 if curve["rows"] else 9), where
        np.testing.assert_allclose(drawn, expected, rtol=1e-4, atol=1e-5, err_msg=where)
    without = {name for name, loss in REGISTRY.items() if loss.unavailable() is None} - {c["name"] for c in curves}
    assert without <= {"perceptual"}, "these losses have no axis in lossd/pictures"


def test_a_slope_along_the_input_itself_is_the_curve_s(curves) -> None:
    """Where x is the input that the gradient is of, the gradient is the slope of the loss."""
    fine = [curve for curve in curves if (curve["name"], curve["axis"]) in SMOOTH]
    assert len(fine) == len(SMOOTH)
    for curve in fine:
        x, values, slope = (np.asarray(curve[key]) for key in ("x", "values", "slope"))
        step = np.diff(values) / np.diff(x)
        low, high = np.minimum(slope[1:], slope[:-1]), np.maximum(slope[1:], slope[:-1])
        assert np.all((low - 1e-3 <= step) & (step <= high + 1e-3)), curve["name"]
