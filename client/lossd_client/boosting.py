"""Losses as custom objectives of gradient boosting: of XGBoost, LightGBM and CatBoost. None of them is imported.

>>> from lossd_client.boosting import objective
>>> objective("logistic", url="http://localhost:8000").loss
'bce_with_logits'
"""

from __future__ import annotations

import weakref
from collections.abc import Mapping, Sequence
from typing import Any, Protocol

import numpy as np
import numpy.typing as npt

from lossd_client.client import DEFAULT_URL, LossClient
from lossd_client.messages import Evaluation

__all__ = ["NAMES", "Evaluator", "Objective", "objective"]

Array = npt.NDArray[Any]

NAMES: Mapping[str, tuple[str, float]] = {
    "squared_error": ("mse", 0.5),
    "logistic": ("bce_with_logits", 1.0),
    "softmax": ("cross_entropy", 1.0),
    "poisson": ("poisson_nll", 1.0),
    "gamma": ("gamma_nll", 1.0),
    "expectile_error": ("expectile", 0.5),
    "squared_log_error": ("squared_log", 1.0),
}
"""Names of losses in boosting libraries: lossd's name, and the factor that gives the library's numbers."""

BOOSTERS = ("xgboost", "lightgbm")


class Evaluator(Protocol):
    """Anything that evaluates losses: a :class:`lossd_client.LossClient`, or the module ``lossd`` in this process."""

    @property
    def evaluate(self) -> Any:
        """The function that evaluates a loss."""


def objective(
    name: str,
    *,
    url: str | None = None,
    client: Evaluator | None = None,
    api_key: str | None = None,
    form: str | None = None,
    floor: float | None = None,
    **parameters: Any,
) -> Objective:
    """Return a loss as a custom objective.

    Args:
        name: A loss's name, or one of :data:`NAMES`.
        url: The service's address; the default is http://localhost:8000.
        client: In place of ``url``: a client, or the module ``lossd`` to evaluate in this process.
        api_key: The key for the service at ``url``.
        form: The form of the second derivatives: exact, fisher, xgboost or lightgbm. The default is xgboost for a data
            set of XGBoost, lightgbm for one of LightGBM, and exact for arrays, as from scikit-learn estimators, and
            for CatBoost.
        floor: The minimum of the second derivatives; see ``hessian.floor`` of the service.
        **parameters: Parameters of the loss, such as ``gamma=2.0``.

    Returns:
        A callable that returns gradients and second derivatives.

    Raises:
        TypeError: Both ``url`` and ``client`` are given, or a reduction.
    """
    if client is not None and url is not None:
        raise TypeError("give either the url of a service or a client, not both")
    if "reduction" in parameters:
        raise TypeError("an objective is a sum over rows: leave out the reduction")
    loss, factor = NAMES.get(name, (name, 1.0))
    return Objective(loss, parameters, factor, url or DEFAULT_URL, client, api_key, form, floor)


class Objective:
    """A loss as a custom objective: the gradient and the second derivative of each row's loss by its raw score.

    Call it as XGBoost's ``obj(predt, dtrain)``, LightGBM's ``fobj(preds, train_data)``, or as the ``objective`` of
    either's scikit-learn estimators, ``f(y_true, y_pred, sample_weight)``. CatBoost calls :meth:`calc_ders_range`.

    Attributes:
        loss: The loss's name.
        parameters: The loss's parameters.
        factor: The factor of gradient and second derivative.
    """

    def __init__(
        self,
        loss: str,
        parameters: Mapping[str, Any],
        factor: float,
        url: str,
        client: Evaluator | None,
        api_key: str | None,
        form: str | None,
        floor: float | None,
    ) -> None:
        self.loss, self.parameters, self.factor = loss, dict(parameters), factor
        self._url, self._api_key, self._form, self._floor = url, api_key, form, floor
        self._client = client
        self._own_client: LossClient | None = None

    def __call__(self, first: Any, second: Any, sample_weight: Any = None) -> tuple[Array, Array]:
        """Return gradients and second derivatives, in the shape of the scores: (N,), or (N, K) for K classes.

        Args:
            first: The raw scores if ``second`` is a data set; else the labels.
            second: A data set with ``get_label`` and ``get_weight``; else the raw scores.
            sample_weight: The weight of each row; a data set has its own.

        Raises:
            ValueError: The scores are neither (N,) nor (N, K).
            LossdError: The loss cannot be evaluated.
        """
        if not hasattr(second, "get_label"):
            return self._derivatives(second, first, sample_weight, self._form or "exact")
        library = type(second).__module__.partition(".")[0]
        form = self._form or (library if library in BOOSTERS else "exact")
        return self._derivatives(first, second.get_label(), second.get_weight(), form)

    def calc_ders_range(self, approxes: Sequence[Any], targets: Any, weights: Any = None) -> list[tuple[float, float]]:
        """Return the two derivatives of each row for CatBoost. It maximises, so both have the opposite sign.

        Args:
            approxes: The raw scores: one sequence (N,) for the one output.
            targets: The labels, (N,).
            weights: The weight of each row, or None.

        Raises:
            ValueError: There are several outputs.
        """
        if len(approxes) != 1:
            raise ValueError(f"CatBoost asks for {len(approxes)} outputs at once; this adapter has one")
        gradient, hessian = self._derivatives(np.asarray(approxes[0]), targets, weights, self._form or "exact")
        return list(zip((-gradient).tolist(), (-hessian).tolist(), strict=True))

    def _derivatives(self, scores: Any, labels: Any, weights: Any, form: str) -> tuple[Array, Array]:
        prediction, target = np.asarray(scores), np.asarray(labels)
        rows = len(target)
        if prediction.ndim == 0 or len(prediction) != rows or prediction.ndim > 2:
            raise ValueError(
                f"the scores have shape {prediction.shape}, expected ({rows},) or ({rows}, classes) for {rows} labels; "
                "XGBoost hands over classes in this shape from 2.1 on, LightGBM from 4.0 on"
            )
        if prediction.dtype.kind != "f":
            prediction = prediction.astype(np.float32)
        # The libraries hand over labels as floats; those of several scores are classes if they are whole.
        classes = prediction.ndim == 2 and target.ndim == 1 and bool(np.all(target == np.floor(target)))
        inputs = {"prediction": prediction, "target": target.astype(np.int64 if classes else prediction.dtype)}
        if weights is not None and len(weights):
            inputs["sample_weight"] = np.asarray(weights, prediction.dtype)
        options = {"form": form} if self._floor is None else {"form": form, "floor": self._floor}
        answer: Evaluation = self._evaluator.evaluate(
            {"name": self.loss, "reduction": "sum", **self.parameters},
            inputs=inputs,
            outputs=["gradient", "hessian"],
            hessian=options,
        )
        return answer.gradient * self.factor, answer.hessian * self.factor

    @property
    def _evaluator(self) -> Evaluator:
        if self._client is not None:
            return self._client
        if self._own_client is None:
            self._own_client = LossClient(self._url, api_key=self._api_key)
            weakref.finalize(self, self._own_client.close)
        return self._own_client

    def __deepcopy__(self, _: Any) -> Objective:
        """Return this objective: scikit-learn copies estimators with their parameters, and connections are shared."""
        return self

    def __getstate__(self) -> dict[str, Any]:
        """Return the objective without its connections, which the copy opens anew."""
        return {**self.__dict__, "_own_client": None}

    def __repr__(self) -> str:
        parameters = "".join(f", {name}={value!r}" for name, value in self.parameters.items())
        return f"objective({self.loss!r}{parameters})"
