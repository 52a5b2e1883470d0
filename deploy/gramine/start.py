"""The first code of an image: from its interpreter to the launcher, as `python -m strongroom.launch` elsewhere.

The image's interpreter has the launcher's own flags, so nothing but the standard library is on its path. Lies beside
the folders that tools/gramine.py fills.
"""

import sys

here = __file__.rpartition("/")[0]
sys.path += [f"{here}/site", f"{here}/code"]

from strongroom.launch import main  # noqa: E402 - after the path is set

sys.exit(main(["--config", f"{here}/config/strongroom.toml"]))
