"""Cases of a test that only `make soak` runs."""

from __future__ import annotations

import pytest

SOAK_TIMEOUT_S = 900


def in_soak(*values: object) -> object:
    """One case of a parametrized test."""
    return pytest.param(*values, marks=[pytest.mark.soak, pytest.mark.timeout(SOAK_TIMEOUT_S)])
