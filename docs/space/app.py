"""
The server and its page as a Space: `python app.py`.

`HF_REC_MODELS` names the models, apart by spaces: `[NAME=]DIR_OR_ID` each. `HF_REC_SERVE_TOKEN` is the token that
visitors need, where there is one. `PORT` is 7860 unless it says otherwise.
"""

import os

from hf_rec.cli.main import main


if __name__ == "__main__":
    models = [word for name in os.environ["HF_REC_MODELS"].split() for word in ("--model", name)]
    raise SystemExit(main(["serve", *models, "--page", "--host", "0.0.0.0", "--port", os.environ.get("PORT", "7860")]))
