"""Settings of the whole suite. This file also puts tests/ on the import path, for tiny_models.py."""

import os

# Models here are tiny: more threads only make the cores wait for each other. Set before anything imports torch.
os.environ.setdefault("OMP_NUM_THREADS", "1")
# Nothing is downloaded in tests; a hub that cannot be reached is tried again for half a minute.
os.environ.setdefault("HF_HUB_OFFLINE", "1")
