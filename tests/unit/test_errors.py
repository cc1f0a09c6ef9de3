"""Errors are part of the interface."""

from __future__ import annotations

import re

import pytest

from kawarimi_wire import errors
from kawarimi_wire.errors import ExitCode, KawarimiError, Slug


def test_slugs_are_stable_names():
    assert all(re.fullmatch(r"[a-z]+(-[a-z]+)*", slug) for slug in Slug)


@pytest.mark.parametrize(
    ("kind", "code"),
    [
        (errors.UsageError, ExitCode.USAGE),
        (errors.PreflightRefused, ExitCode.REFUSED),
        (errors.ExecutionFailed, ExitCode.FAILED),
        (errors.OutcomeUnknown, ExitCode.FAILED),
        (errors.Interrupted, ExitCode.INTERRUPTED),
        (errors.NeedsCleanup, ExitCode.NEEDS_CLEANUP),
    ],
)
def test_the_class_decides_the_exit_code(kind, code):
    error: KawarimiError = kind(Slug.INTERNAL, "What happened.", hint="do this", facts={"n": 1})
    assert error.exit_code == code
    assert error.as_dict() == {
        "slug": "internal",
        "scope": "host",
        "what": "What happened.",
        "untouched": "",
        "hint": "do this",
        "facts": {"n": 1},
        "exit_code": int(code),
    }
