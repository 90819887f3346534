"""`python -m hisam_jax VERB` is `hisam VERB`."""

import sys

from hisam_jax.cli import main

if __name__ == "__main__":
    sys.exit(main())
