"""What the batches of a run have in common, so that their numbers can be added up."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any

from lossd.metrics.view import COARSE
from lossd_client.errors import Fault, InvalidRequest

__all__ = ["Facts"]


@dataclass
class Facts:
    """What batches have in common.

    Attributes:
        names: The names of the metrics.
        classes: The number of classes, or None.
        activation: What the task reads scores as.
        weighted: Whether rows have weights.
        clustered: Whether rows name the cluster that they belong to.
        dtypes: The coarsest dtype that each input was sent in.
    """

    names: tuple[str, ...]
    classes: int | None
    activation: str
    weighted: bool
    dtypes: dict[str, str]
    clustered: bool = False

    def check(self, other: Facts) -> None:
        """Check that a batch, or another run, fits.

        Raises:
            InvalidRequest: It has other classes, or weights or clusters where there were none.
        """
        if other.classes != self.classes:
            detail = f"the run has {self.classes} classes, found {other.classes}"
            raise InvalidRequest(detail, errors=[Fault(pointer="/inputs/prediction", detail=detail)])
        for name, mine, has, remedy in (
            ("sample_weight", self.weighted, other.weighted, "send weights with every batch, 1 where there is none"),
            ("cluster_id", self.clustered, other.clustered, "send it with every batch or with none"),
        ):
            if has != mine:
                found = "has" if has else "lacks"
                detail = f"this batch {found} {name}, unlike the rows that were counted; {remedy}"
                raise InvalidRequest(detail, errors=[Fault(pointer=f"/inputs/{name}", detail=detail)])
        if (other.names, other.activation) != (self.names, self.activation):
            raise InvalidRequest("this batch has other metrics than the rows that were counted")

    def merge(self, other: Facts) -> None:
        """Keep the coarsest dtype of each input."""
        for name, dtype in other.dtypes.items():
            if self.dtypes.get(name) != dtype:
                self.dtypes[name] = min(self.dtypes.get(name, dtype), dtype, key=_fineness)

    def copy(self) -> Facts:
        """Return facts that change independently of these."""
        return replace(self, dtypes=dict(self.dtypes))

    def to_dict(self) -> dict[str, Any]:
        """Return the facts as JSON values."""
        return {**vars(self), "names": list(self.names)}

    @classmethod
    def of_dict(cls, document: Mapping[str, Any]) -> Facts:
        """Return what :meth:`to_dict` wrote."""
        return cls(**{**document, "names": tuple(document["names"]), "dtypes": dict(document["dtypes"])})


def _fineness(dtype: str) -> int:
    """Return the place of a dtype among float dtypes, the coarsest first."""
    return COARSE.index(dtype) if dtype in COARSE else len(COARSE)
