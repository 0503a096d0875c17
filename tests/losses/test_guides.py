"""Every loss has a guide; what it names exists, and it explains every symbol of the formula."""

from __future__ import annotations

import re
import tomllib
from importlib import resources

from lossd.losses import REGISTRY, guides
from lossd.losses.guides import guide
from lossd.losses.registry import Loss
from lossd.metrics import METRICS
from rows import in_one_item

GREEK = {
    "alpha": "α", "beta": "β", "gamma": "γ", "delta": "δ", "epsilon": "ε", "varepsilon": "ε", "kappa": "κ",
    "lambda": "λ", "mu": "μ", "nu": "ν", "pi": "π", "rho": "ρ", "sigma": "σ", "tau": "τ", "phi": "ϕ", "varphi": "φ",
    "Phi": "Φ", "Delta": "Δ",
}  # fmt: skip
SYMBOL = re.compile(r"[A-Za-zα-ωϕΦΔḡ]+'?(?:_[A-Za-z0-9]+)?")
FUNCTIONS = {"softmax", "softplus", "mean", "clip"}
INDICES = set("ijknlcd")
CONSTANTS = {"e", "π"}
ANSWER = {
    "terms", "renormalised_weights", "zero_gradient", "nothing_to_average", "mask", "lengths",
}  # fmt: skip
"""What guides name besides losses, metrics, inputs and parameters: fields of requests and answers, and warnings."""


def symbols_of(formula: str) -> set[str]:
    """Return the symbols of a LaTeX formula in plain text, with indices of sums and names of functions."""
    text = formula.replace(r"\bar g", "ḡ")
    text = re.sub(r"\\text\{([^}]*)\}", lambda found: "" if re.search(r"[ (]", found[1]) else "{}" + found[1], text)
    text = re.sub(r"\\operatorname\{(\w+)\}", r" \1 ", text)
    text = re.sub(r"\\([A-Za-z]+)", lambda found: f" {GREEK.get(found[1], '')}", text)
    text = re.sub(r"\\.", " ", text).replace("{}", "")
    text = re.sub(r"(?<=\))_\w+", "", text)
    text = re.sub(r"(?<=\w)_\{\(?(\w+)(?:\+1|\))?\}", r"_\1", text)
    return set(SYMBOL.findall(text))


def names_of(loss: Loss) -> set[str]:
    inputs = {entry.name.removesuffix(".*") for entry in (*loss.inputs, *loss.request_inputs)}
    return inputs | set(loss.model.model_fields)


EVERY = in_one_item("loss", REGISTRY.values())


@EVERY
def test_each_loss_has_a_guide_that_explains_its_formula(loss: Loss) -> None:
    found = guide(loss)
    inputs = {entry.name for entry in loss.inputs}
    there = symbols_of(loss.formula)
    explained = {symbol.partition("_(")[0] for symbol in found.symbols}
    bases = {symbol.partition("_")[0] for symbol in there}
    assert explained <= there | bases, "a symbol that is not in the formula"
    symbols = {symbol for symbol in there if symbol.partition("_")[0] not in inputs | FUNCTIONS}
    missing = {symbol for symbol in symbols - INDICES - CONSTANTS if not {symbol, symbol.partition("_")[0]} & explained}
    assert not missing, "a symbol of the formula that the guide does not explain"


@EVERY
def test_what_a_guide_names_exists(loss: Loss) -> None:
    found = guide(loss)
    texts = [found.idea, found.use, found.avoid, found.mistake, *found.symbols.values()]
    named = {name for text in texts for name in re.findall(r"`([a-z_0-9]+)`", text)}
    metrics = {name for names in METRICS.values() for name in names}
    known = set.union(names_of(loss), *(names_of(REGISTRY[name]) for name in named & set(REGISTRY)))
    assert named <= known | set(REGISTRY) | metrics | ANSWER
    assert not any(text.count("`") % 2 for text in texts)


def test_no_guide_is_of_no_loss() -> None:
    families = {loss.function.__module__.rpartition(".")[2] for loss in REGISTRY.values()}
    files = [path for path in resources.files(guides).iterdir() if path.name.endswith(".toml")]
    texts = {path.name: path.read_text(encoding="utf-8") for path in files}
    assert set(texts) == {f"{family}.toml" for family in families}
    written = [name for text in texts.values() for name in tomllib.loads(text)]
    assert sorted(written) == sorted(REGISTRY)
