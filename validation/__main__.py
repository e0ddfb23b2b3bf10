"""``python -m validation`` is ``validate``."""

import sys

from validation.cli import main

sys.exit(main())
