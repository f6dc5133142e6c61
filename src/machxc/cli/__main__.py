"""``python -m machxc.cli``: the program ``machxc``."""

import sys

from machxc.cli import main

sys.exit(main())
