"""Tells a client that waits for its answer from one that left, after it has closed its sending side.

The two look the same until something is written to them. So ``100 Continue``, which HTTP/1.1 allows before every
answer, is written to them. A client that left resets the connection, and the next write fails. The probes come after
50, 100 and 200 ms, then at each check of the time-outs. The first probe used to come after a second; until then the
requests of clients that had left were evaluated. TLS connections and HTTP/1.0 have no such probe.
"""

from __future__ import annotations

import asyncio

from lossd.api.http.uvicorn_internals import RequestResponseCycle

__all__ = ["PROBES_S", "probe"]

# A client that left resets the connection on the first probe, and the second probe fails. A fast answer precedes both.
PROBES_S = (0.05, 0.1, 0.2)

_CONTINUE = b"HTTP/1.1 100 Continue\r\n\r\n"


def probe(transport: asyncio.Transport, answering: RequestResponseCycle | None) -> None:
    """Write ``100 Continue`` to a client that has closed its sending side, and waits for its answer or left.

    If the client left, it resets the connection. Otherwise it ignores the line.

    Args:
        transport: The connection's transport.
        answering: The request that is being answered; None if there is none.
    """
    if answering is None or transport.is_closing() or answering.response_started:
        return
    if answering.scope["http_version"] != "1.0":
        transport.write(_CONTINUE)
