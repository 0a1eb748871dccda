"""`python -m gram`: the same as the command `gram`."""

import sys

from gram.cli.main import main

if __name__ == "__main__":
    sys.exit(main())
