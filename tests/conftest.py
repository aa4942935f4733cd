"""Hypothesis draws the same examples in every run, so that main is green or red for what changed. To look for new ones:
``pytest --hypothesis-profile=explore``, as ``make test-slow`` does.
"""

from __future__ import annotations

from hypothesis import settings

settings.register_profile("same", derandomize=True)
settings.register_profile("explore", derandomize=False)
settings.load_profile("same")
