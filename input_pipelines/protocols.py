"""Names the protocols of evaluation: against which items a target is ranked."""

from __future__ import annotations

PROTOCOLS = ("neg99", "neg99pop", "published99", "full")
