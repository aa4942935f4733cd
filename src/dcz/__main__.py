"""``python -m dcz``, which is ``dcz``."""

from __future__ import annotations

from dcz.cli import main

if __name__ == "__main__":
    main(prog_name="dcz")
