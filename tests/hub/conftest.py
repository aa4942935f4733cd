from __future__ import annotations

from tests.hub.fixtures import hub, hub_environment

__all__ = ["hub", "hub_environment"]
