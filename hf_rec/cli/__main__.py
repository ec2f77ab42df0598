"""`python -m hf_rec.cli`, for `accelerate launch -m`."""

import sys

from hf_rec.cli.main import main


if __name__ == "__main__":
    sys.exit(main())
