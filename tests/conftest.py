"""Settings of the whole suite. This file also puts tests/ on the import path, for tiny_models.py."""

import os

# Models here are tiny: more threads only make the cores wait for each other. Set before anything imports torch.
os.environ.setdefault("OMP_NUM_THREADS", "1")
