"""`python -m export` is `s2f-export`."""

import sys

from export.cli import main

sys.exit(main())
