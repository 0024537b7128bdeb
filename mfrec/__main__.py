"""`python -m mfrec …` is `mfrec …`."""

import sys

from mfrec.cli import main

sys.exit(main())
