"""The first code in the enclave: from the manifest's interpreter to the launcher, as `python -m strongroom.launch`.

The manifest's interpreter has the launcher's own flags, so nothing but the standard library is on its path.
"""

import sys

sys.path += ["/site", "/code"]

from strongroom.launch import main

sys.exit(main(["--config", "/config/strongroom.toml"]))
