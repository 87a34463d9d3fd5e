"""`python -m datafree`, where the script is not on the path."""

import sys

from datafree.cli import main

sys.exit(main())
