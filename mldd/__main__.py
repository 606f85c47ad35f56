"""``python -m mldd`` is the command ``mldd``, where the environment's folder of commands is not on the path."""

import sys

from mldd.command import main

sys.exit(main())
