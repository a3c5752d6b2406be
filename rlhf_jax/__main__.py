"""`python -m rlhf_jax VERB` is `rlhf-jax VERB`."""

import sys

from rlhf_jax.cli import main

sys.exit(main())
