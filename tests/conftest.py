"""Hypothesis draws the same examples in every run, so that main is green or red for what changed. To look for new ones:
``pytest --hypothesis-profile=explore``, as ``make test-slow`` does.
"""

from __future__ import annotations

from hypothesis import HealthCheck, settings
from hypothesis.internal.conjecture import providers

# No test is timed: a busy machine makes none of them fail.
_TIMELESS = settings(deadline=None, suppress_health_check=[HealthCheck.too_slow])
settings.register_profile("same", _TIMELESS, derandomize=True)
settings.register_profile("explore", _TIMELESS, derandomize=False)
settings.load_profile("same")


def _nothing_is_local(_path: str) -> bool:
    return False


def pytest_sessionstart() -> None:
    """Keep Hypothesis from drawing the constants of whatever modules happen to be loaded: they differ between machines."""
    if settings.get_current_profile_name() == "same":
        setattr(providers, "is_local_module_file", _nothing_is_local)  # noqa: B010 - it is not exported
