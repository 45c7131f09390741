"""`python -m calibration`: the same as `s2f-calibrate`."""

import sys

from calibration.cli import main

sys.exit(main())
