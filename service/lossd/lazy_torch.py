"""torch, imported at its first use.

The front reads the signatures of losses and metrics but evaluates none. Without torch it starts a second sooner and
takes some 150 MB less, so modules that define losses and metrics import torch from here. ``importlib.util.LazyLoader``
would start the front as fast, but leaves an unloaded ``torch`` in ``sys.modules``: libraries that look there for torch
would load it.
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
        """Imports a module when one of its names is first used."""

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
        """A placeholder of ``torch.Tensor`` in signatures and ``isinstance``."""

    torch, nn, functional = _Module("torch"), _Module("torch.nn"), _Module("torch.nn.functional")
    _stand_ins = {"torch": torch, "nn": nn, "functional": functional, "Tensor": Tensor}

    def _load() -> None:
        """Replace the placeholders by torch's own objects, in this module and in all modules that imported them."""
        from torch.nn import functional

        real = {"torch": sys.modules["torch"], "nn": sys.modules["torch.nn"], "functional": functional}
        real["Tensor"] = real["torch"].Tensor
        for name, module in list(sys.modules.items()):
            if name.startswith("lossd."):
                names = vars(module)
                for imported, stand_in in _stand_ins.items():
                    if names.get(imported) is stand_in:
                        names[imported] = real[imported]
