"""`python -m hisam_jax.comparison.frame DATASET OUT`: what is scored on a dataset, and the baselines' scores."""

import sys

from hisam_jax.comparison.predictions import save_frame

if __name__ == "__main__":
    save_frame(*sys.argv[1:])
