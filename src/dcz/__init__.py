"""dcz: small, safe, verifiable model files, and a registry for them."""

from __future__ import annotations
