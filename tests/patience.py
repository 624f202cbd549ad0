"""How long a test waits for what must happen; nothing is proved by its length."""

from __future__ import annotations

import os

PATIENCE = float(os.environ.get("EMBED_BRIDGE_PATIENCE", "1"))  # more on a machine that is emulated
WAIT_S = 60.0 * PATIENCE
