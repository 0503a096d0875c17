"""One thread: the tensors are small, and others may be using the machine."""

from __future__ import annotations

import torch

torch.set_num_threads(1)
