"""The short versions; ``make chaos`` runs the long ones."""

from __future__ import annotations

from chaos.disconnects import leave
from chaos.service import served

MIB = 1 << 20


def test_clients_that_leave_in_the_middle_take_nothing_with_them() -> None:
    with served() as service:
        left = leave(service, 80)
        assert left.files_after <= left.files_before
        assert left.resident_bytes_after < left.resident_bytes_before + 48 * MIB
        assert service.stop() == 0
