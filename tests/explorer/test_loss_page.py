"""The page of a loss: its guide, the code of a request, and curves that can be told apart."""

from __future__ import annotations

import json
import os
import re
import shutil
import subprocess
from pathlib import Path
from urllib.parse import unquote

import numpy as np
import pytest

import lossd
from lossd.losses import REGISTRY
from lossd.losses.guides import guide
from lossd.pictures.axes import describe_axes
from serving import Running

from .conftest import drawn, serious_faults, unfold

LANGUAGES = ("curl", "Python", "JavaScript", "Java", "Go", "C++")
COMMANDS = {
    "curl": ("sh", "it.sh", "sh it.sh"),
    "JavaScript": ("node", "it.mjs", "node it.mjs"),
    "Java": ("java", "Main.java", "java Main.java"),
    "Go": ("go", "main.go", "go run main.go"),
    "C++": ("g++", "main.cpp", "g++ main.cpp -lcurl -o it && ./it"),
}


def opened(visit, path: str, **options):
    page = visit(f"/losses/{path}", again=True, **options)
    drawn(page)
    page.wait_for_selector("#command")
    return page


def code(page, language: str) -> str:
    page.locator(".choice label", has_text=re.compile(f"^{re.escape(language)}$")).click()
    page.wait_for_function(
        "name => document.querySelector('#command').closest('pre').ariaLabel === `The request in ${name}`", arg=language
    )
    return page.locator("#command").inner_text()


def request_of(command: str) -> dict:
    """The request that curl sends."""
    return json.loads(re.findall(r"-d '(.*)'", command)[0])


def sent(page) -> dict:
    """The request that the code sends."""
    return request_of(code(page, "curl"))


def test_the_guide_says_when_to_use_it_and_what_symbols_are(visit) -> None:
    page = opened(visit, "focal")
    text = page.locator("#view").inner_text()
    written = guide(REGISTRY["focal"])
    for sentence in (written.idea, written.use, written.avoid, written.mistake, *written.symbols.values()):
        assert sentence.replace("`", "") in text
    for heading in ("When to use it", "When not to", "The common mistake"):
        assert page.get_by_role("heading", name=heading).count() == 1
    assert page.locator(".symbols dt .katex").count() == len(written.symbols)
    page.wait_for_function("() => !document.querySelector('.katex-error')")


@pytest.fixture(scope="module")
def programs(open_window, service: Running) -> dict[str, str]:
    """The code of a request of the page in each language."""
    open_window.goto(f"{service.url}/#/losses/focal?gamma=3.5")
    open_window.locator("#field-gamma").wait_for()
    drawn(open_window)
    return {language: code(open_window, language) for language in LANGUAGES}


@pytest.mark.parametrize("language", COMMANDS)
def test_the_code_runs_and_has_the_parameters_of_the_page(
    programs: dict[str, str], tmp_path: Path, language: str
) -> None:
    request = request_of(programs["curl"])
    assert request["loss"] == {"name": "focal", "gamma": 3.5}
    tool, file, command = COMMANDS[language]
    if shutil.which(tool) is None:
        pytest.skip(f"needs {tool}")
    if language == "C++" and subprocess.run(["g++", "-E", "-include", "curl/curl.h", "-x", "c++", os.devnull],
                                            capture_output=True, check=False).returncode:  # fmt: skip
        pytest.skip("needs the headers of libcurl")
    (tmp_path / file).write_text(programs[language])
    # The proxies of the machine are not for loopback; Go keeps its cache where the home is.
    env = os.environ | {"HOME": str(tmp_path), "GOFLAGS": "-mod=mod", "GO111MODULE": "off"}
    ran = subprocess.run(["sh", "-c", command], cwd=tmp_path, env=env, capture_output=True, text=True, timeout=300)
    assert ran.returncode == 0, ran.stderr
    expected = lossd.evaluate(request["loss"], inputs=request["inputs"]).loss
    found = float(ran.stdout.split()[0]) if language == "JavaScript" else json.loads(ran.stdout)["loss"]
    assert found == pytest.approx(expected, rel=1e-5)


# Shows each loss's code as its page does, and chooses two languages as its reader would; returns the code in both.
CODE_OF_EVERY = """
async () => {
  const from = (file) => import(document.querySelector('script[type=module]').src.replace('app.pack.js', file));
  const [api, { requestCode }] = await Promise.all([from('api.js'), from('views/loss/code.js')]);
  const found = {};
  for (const loss of await api.losses()) {
    if (!loss.available || !loss.axes.length) continue;
    const { element, show } = requestCode({ api, href: () => '' });
    document.body.append(element);
    await show({ loss, axis: loss.axes[0], parameters: {} });
    found[loss.name] = ["curl", "Python"].map((language) => {
      [...element.querySelectorAll(".choice label")].find((label) => label.textContent === language).click();
      return element.querySelector("#command").textContent;
    });
    element.remove();
  }
  return found;
}
"""


def test_the_python_code_of_every_loss_runs(visit) -> None:
    code = visit("/nowhere", again=True).evaluate(CODE_OF_EVERY)
    assert code.keys() == {
        name for name, loss in REGISTRY.items() if loss.unavailable() is None and describe_axes(loss)
    }
    for name, (curl, python) in code.items():
        request = request_of(curl)
        scope: dict = {}
        exec(compile(python.replace("print(", "str("), name, "exec"), scope)
        expected = lossd.evaluate(request["loss"], inputs=request["inputs"]).loss
        np.testing.assert_allclose(scope["result"].loss, expected, rtol=1e-4, atol=1e-6, err_msg=name)


def test_a_slider_changes_the_code_and_try_it_opens_the_same_request(visit) -> None:
    page = opened(visit, "huber")
    page.locator("#field-delta").fill("2.5")
    page.wait_for_function("() => document.querySelector('#command').textContent.includes('\"delta\":2.5')")
    request = sent(page)
    address = unquote(page.get_by_role("link", name="Open in Try it").get_attribute("href"))
    assert "p.delta=2.5" in address
    page.get_by_role("link", name="Open in Try it").click()
    page.wait_for_selector("[data-answers]")
    shown = float(page.locator(".huge").inner_text().replace("−", "-"))
    assert shown == pytest.approx(lossd.evaluate(request["loss"], inputs=request["inputs"]).loss, rel=1e-3)


@pytest.mark.parametrize(("name", "jump"), [("mae", 0), ("hinge", 1), ("triplet", 2), ("gradnorm", 0.486)])
def test_a_gradient_that_jumps_is_drawn_as_a_step(visit, name: str, jump: float) -> None:
    """Both sides of the jump are points of the plot, at the same place, and nothing lies between two other points."""
    page = opened(visit, name)
    unfold(page)
    rows = page.locator(".numbers tbody tr").evaluate_all(
        "rows => rows.map((row) => [...row.children].map((c) => c.textContent))"
    )
    assert all("e-" not in row[0] for row in rows)  # a side of the jump reads as the jump
    points = page.evaluate(
        """async ([name]) => {
          const from = (file) => import(document.querySelector('script[type=module]').src.replace('app.pack.js', file));
          const files = ['api.js', 'curve.js', 'views/loss/plot.js'];
          const [api, { draw }, { atSteps }] = await Promise.all(files.map(from));
          const loss = (await api.losses()).find((entry) => entry.name === name);
          const curve = await draw({ loss, axis: loss.axes[0], parameters: {} }, { api });
          return atSteps([curve]);
        }""",
        [name],
    )
    x, slope = (np.array(each, float) for each in (points["x"], points["slopes"][0]))
    widest = np.argmax(np.abs(np.diff(slope)))
    assert x[widest + 1] - x[widest] <= 1e-8 * (x[-1] - x[0]) + 1e-12
    assert x[widest] == pytest.approx(jump, abs=0.02)


def test_each_curve_has_its_own_dashes(visit) -> None:
    page = opened(visit, "focal")
    strokes = page.locator(".legend .stroke path").evaluate_all(
        "all => all.map((path) => path.getAttribute('stroke-dasharray'))"
    )
    assert len(strokes) == 5
    assert len(set(strokes)) == 5


def contrast(page, selector: str, prop: str, against: str) -> float:
    """The contrast of two colours of the page."""
    return page.evaluate(
        """([selector, prop, against]) => {
          const canvas = new OffscreenCanvas(1, 1).getContext('2d', { willReadFrequently: true });
          const light = (color) => {
            canvas.fillStyle = color;
            canvas.fillRect(0, 0, 1, 1);
            const [r, g, b] = [...canvas.getImageData(0, 0, 1, 1).data].map((v) => v / 255)
              .map((v) => (v <= 0.03928 ? v / 12.92 : ((v + 0.055) / 1.055) ** 2.4));
            return 0.2126 * r + 0.7152 * g + 0.0722 * b;
          };
          const of = getComputedStyle(document.querySelector(selector))[prop];
          const card = getComputedStyle(document.documentElement).getPropertyValue(`--${against}`);
          const [a, b] = [light(of), light(card)].sort((x, y) => y - x);
          return (a + 0.05) / (b + 0.05);
        }""",
        [selector, prop, against],
    )


@pytest.mark.parametrize("theme", ["light", "dark"])
def test_number_fields_have_a_border_and_the_chosen_option_stands_out(visit, theme: str) -> None:
    page = opened(visit, "focal", theme=theme)
    assert contrast(page, ".digits", "borderTopColor", "card") >= 3
    chosen = ".choice label:has(:checked)"
    assert contrast(page, chosen, "backgroundColor", "sunk") >= (1.1 if theme == "light" else 1.6)
    assert page.locator(chosen).first.evaluate("e => getComputedStyle(e).boxShadow") != "none"


def test_the_compare_box_leaves_out_what_is_drawn_and_says_when_it_is_full(visit) -> None:
    page = opened(visit, "mse?with=mae&with=huber")
    box = page.get_by_label("Compare with")
    offered = set(box.locator("option").all_inner_texts())
    assert not offered & {"mse", "mae", "huber"}
    assert "log_cosh" in offered
    page = opened(visit, "mse?" + "&".join(f"with={name}" for name in ("mae", "huber", "smooth_l1", "log_cosh", "fair",
                                                                    "expectile", "quantile")))  # fmt: skip
    assert page.get_by_label("Compare with").is_disabled()
    assert "8 curves at most" in page.get_by_label("Compare with").inner_text()


def test_sliders_move_beside_the_plot_on_a_phone(visit) -> None:
    page = opened(visit, "focal", size=(390, 844))
    page.locator("#field-gamma").evaluate("e => e.scrollIntoView({ block: 'end' })")
    inside = page.locator(".plots").evaluate(
        "e => e.getBoundingClientRect().top >= 0 && e.getBoundingClientRect().bottom < 700"
    )
    assert inside
    assert page.evaluate("() => document.documentElement.scrollWidth") == 390


@pytest.mark.parametrize("name", ["gradnorm", "perceptual"])
def test_the_page_has_no_serious_fault(visit, name: str) -> None:
    page = visit(f"/losses/{name}", again=True)
    page.wait_for_selector(".guide")
    assert serious_faults(page) == []
