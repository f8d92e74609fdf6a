"""`python -m restort`."""

import sys

from restort.cli.main import main

if __name__ == "__main__":
    sys.exit(main())
