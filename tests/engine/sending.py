"""A front as a worker sees it: what is written to its socket, and the replies that come back."""

from __future__ import annotations

import socket
from dataclasses import dataclass, field

import numpy as np
import orjson

from lossd.arrangement import arrange
from lossd.engine.protocol import LENGTH, Reply, take_replies
from lossd.engine.slab import Slab, SlabPool
from lossd.request.planning import make_plan


@dataclass
class Sender:
    """The front's end of a connection.

    Attributes:
        connection: To the worker.
        slabs: By the number of the batch that is in them.
    """

    connection: socket.socket
    slabs: dict[int, Slab] = field(default_factory=dict)
    pool: SlabPool = field(default_factory=lambda: SlabPool(1 << 30))
    _buffer: bytearray = field(default_factory=bytearray)

    def __post_init__(self) -> None:
        self.connection.settimeout(20)

    def send(self, batch: int, rows: int = 4, seed: int = 0) -> float:
        """Send a batch of one mean squared error in a slab of its own; what its loss will be."""
        shapes = dict.fromkeys(("prediction", "target"), ("float32", (rows, 3)))
        recipe = make_plan({"loss": {"name": "mse"}}).job(shapes).recipe
        arrangement = arrange(recipe, rows, 1)
        slab = self.slabs[batch] = self.pool.take(arrangement.nbytes)
        prediction, target = np.random.default_rng(seed).standard_normal((2, rows, 3)).astype(np.float32)
        for tensor, offset in zip((prediction, target), arrangement.offsets, strict=False):
            slab.view[offset : offset + tensor.nbytes] = tensor.tobytes()
        manifest = {"batch": batch, "slab": slab.id, "size": slab.size, "recipe": recipe.text, "rows": [rows]}
        text = orjson.dumps({**manifest, "numbers": [], "offsets": arrangement.offsets})
        socket.send_fds(self.connection, [LENGTH.pack(len(text)) + text], [slab.fd])
        self.gradient = (arrangement.offsets[2], 2 * (prediction - target) / prediction.size)
        return float(np.mean((prediction - target).astype(np.float64) ** 2))

    def gradient_in(self, batch: int) -> np.ndarray:
        """What the worker wrote beside the inputs."""
        offset, expected = self.gradient
        return np.frombuffer(self.slabs[batch].view, np.float32, expected.size, offset).reshape(expected.shape)

    def replies(self, count: int) -> list[Reply]:
        """The next replies."""
        found: list[Reply] = []
        while len(found) < count:
            self._buffer += self.connection.recv(1 << 16)
            found += take_replies(self._buffer)
        return found
