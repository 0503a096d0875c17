"""torch, when something is first computed with it.

The front reads the signatures of losses and metrics and evaluates none. Without torch it starts a second sooner and is
smaller by some 150 MB, so the modules that define losses and metrics take it from here.
"""

from __future__ import annotations

import importlib
import sys
from typing import TYPE_CHECKING, Any

__all__ = ["Tensor", "functional", "nn", "torch"]

if TYPE_CHECKING:
    import torch
    from torch import Tensor, nn
    from torch.nn import functional
else:

    class _Module:
        """Stands for a module until one of its names is used."""

        def __init__(self, name: str) -> None:
            self._name = name

        def __getattr__(self, name: str) -> Any:
            _load()
            return getattr(importlib.import_module(self._name), name)

    class _Tensors(type):
        def __instancecheck__(cls, instance: object) -> bool:
            _load()
            return isinstance(instance, torch.Tensor)

    class Tensor(metaclass=_Tensors):
        """Stands for ``torch.Tensor`` in signatures, and tells its instances."""

    torch, nn, functional = _Module("torch"), _Module("torch.nn"), _Module("torch.nn.functional")
    _stand_ins = {"torch": torch, "nn": nn, "functional": functional, "Tensor": Tensor}

    def _load() -> None:
        """Put the real ones where the stand-ins are, in this module and in all that took them from here."""
        from torch.nn import functional

        real = {"torch": sys.modules["torch"], "nn": sys.modules["torch.nn"], "functional": functional}
        real["Tensor"] = real["torch"].Tensor
        for name, module in list(sys.modules.items()):
            if name.startswith("lossd."):
                names = vars(module)
                for taken, stand_in in _stand_ins.items():
                    if names.get(taken) is stand_in:
                        names[taken] = real[taken]
