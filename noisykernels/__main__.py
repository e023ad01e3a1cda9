"""`python -m noisykernels`: see `cli`."""

import sys

from noisykernels.cli.main import main

if __name__ == "__main__":
    sys.exit(main())
