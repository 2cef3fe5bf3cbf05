"""`python -m ringfence` is the command `ringfence`."""

from __future__ import annotations

from ringfence.cli.main import main

if __name__ == "__main__":
    main()
