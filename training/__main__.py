"""`python -m training` is `s2f-train`."""

import sys

from training.cli import main

sys.exit(main())
