"""`python -m dpwatch`: the command, where its script is not on the PATH."""

from __future__ import annotations

import sys

from dpwatch.cli import main

sys.exit(main())
