"""Every point of every curve is the service's answer: in value and slope what lossd.evaluate says of its inputs."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

import lossd
from lossd.losses import REGISTRY
from lossd.request.planning import listed_inputs

SMOOTH = {("mse", "error"), ("cross_entropy", "margin"), ("nt_xent", "cosine"), ("vae", "mean")}

# Draws every loss along each of its axes, in the page, and hands over what was asked and what came of it.
DRAW = """
async () => {
  const from = (name) => import(document.querySelector('script[type=module]').src.replace('app.js', name));
  const [api, { axesOf }, { draw, plan }] = await Promise.all([from('api.js'), from('axes.js'), from('curve.js')]);
  const found = [];
  for (const loss of await api.losses()) {
    for (const axis of axesOf(loss)) {
      const curve = { loss, axis, parameters: {}, given: {} };
      const { values, slope, requests, x } = await draw(curve, { api, points: 9 });
      const planned = plan(curve, 9);
      found.push({
        name: loss.name, axis: axis.name, x, values, slope, requests, rows: planned.rows,
        toward: planned.requests.map(({ scene }) => scene.toward),
      });
    }
  }
  return found;
}
"""


def point(curve: dict[str, Any], i: int) -> tuple[dict[str, Any], dict[str, np.ndarray], dict[str, np.ndarray]]:
    """One point alone: the loss with its own reduction, its inputs, and how those change along x."""
    if not curve["rows"]:
        body = curve["requests"][i]
        return body["loss"], body["inputs"], curve["toward"][i]
    (toward,), (body,) = curve["toward"], curve["requests"]
    loss = {name: value for name, value in body["loss"].items() if name != "reduction"}

    def alone(tensors: dict[str, Any]) -> dict[str, np.ndarray]:
        return {name: np.asarray(value)[i : i + 1] for name, value in tensors.items()}

    return loss, alone(body["inputs"]), alone(toward)


def typed(value: Any, floats: bool) -> np.ndarray:
    """As the service types JSON: whole numbers are welcome where a loss wants floats."""
    array = np.asarray(value)
    return array.astype(np.float32) if floats or array.dtype.kind == "f" else array


def wants_floats(loss: str, name: str) -> bool:
    kinds = {
        kind for entry in listed_inputs(REGISTRY[loss]) if entry.name == name for of in entry.types for kind in of.kinds
    }
    return kinds <= {"float"}


@pytest.fixture(scope="module")
def curves(browser, service):
    page = browser.new_page()
    page.goto(f"{service.url}/#/losses")
    yield page.evaluate(DRAW)
    page.close()


def test_every_point_is_what_the_service_s_own_evaluation_says(curves) -> None:
    drawn = set()
    for curve in curves:
        for i in (0, 3, 4, 8):
            loss, inputs, toward = point(curve, i)
            inputs = {name: typed(value, wants_floats(loss["name"], name)) for name, value in inputs.items()}
            result = lossd.evaluate(loss, inputs=inputs, outputs=["loss", *(f"gradient.{name}" for name in toward)])
            where = f"{curve['name']} along {curve['axis']} at {curve['x'][i]}"
            assert curve["values"][i] == pytest.approx(float(result.loss), rel=1e-4, abs=1e-5), where
            if curve["slope"] is not None:
                slope = sum(float((result.gradients[name] * np.asarray(way)).sum()) for name, way in toward.items())
                assert curve["slope"][i] == pytest.approx(slope, rel=1e-4, abs=1e-5), where
        drawn.add(curve["name"])
    without = {name for name, loss in REGISTRY.items() if loss.unavailable() is None} - drawn
    assert without <= {"perceptual"}, "these losses have no axis in static/axes.js"


def test_a_slope_along_the_input_itself_is_the_curve_s(curves) -> None:
    """Where x is what the gradient is of, the plotted gradient is the plotted loss's slope."""
    fine = [curve for curve in curves if (curve["name"], curve["axis"]) in SMOOTH]
    assert len(fine) == len(SMOOTH)
    for curve in fine:
        x, values, slope = (np.asarray(curve[key]) for key in ("x", "values", "slope"))
        step = np.diff(values) / np.diff(x)
        low, high = np.minimum(slope[1:], slope[:-1]), np.maximum(slope[1:], slope[:-1])
        assert np.all((low - 1e-3 <= step) & (step <= high + 1e-3)), curve["name"]


# Draws what GET /v1/losses/{name}/curve.json has, at its points, and hands over both.
COMPARE = """
async () => {
  const from = (name) => import(document.querySelector('script[type=module]').src.replace('app.js', name));
  const [api, { axesOf }, { draw }] = await Promise.all([from('api.js'), from('axes.js'), from('curve.js')]);
  const found = [];
  for (const loss of await api.losses()) {
    for (const axis of axesOf(loss)) {
      const answer = await fetch(`v1/losses/${loss.name}/curve.json?x=${axis.name}&points=5`);
      if (!answer.ok) continue;
      const theirs = await answer.json();
      const own = { ...axis, low: theirs.x[0], high: theirs.x[4], dense: false };
      const { values, slope } = await draw({ loss, axis: own, parameters: {} }, { api, points: 5 });
      const [{ loss: loss_, gradient }] = theirs.series;
      const { name, picture } = axis;
      found.push({ name: loss.name, axis: name, picture, own: [values, slope], theirs: [loss_, gradient] });
    }
  }
  return found;
}
"""


def test_the_page_s_axes_are_those_of_the_service_s_own_pictures(browser, service) -> None:
    page = browser.new_page()
    page.goto(f"{service.url}/#/losses")
    compared = page.evaluate(COMPARE)
    page.close()
    assert len(compared) > 50
    for curve in compared:
        # Images differ in size, which is what the constant in the quotients is small or large beside.
        tolerance = 0.3 if curve["picture"] == "image" else 1e-4
        where = f"{curve['name']} along {curve['axis']}"
        np.testing.assert_allclose(curve["own"], curve["theirs"], rtol=1e-4, atol=tolerance, err_msg=where)
