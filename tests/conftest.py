"""Settings every test shares. Seeds and sizes stay in the tests themselves."""

import os

# Figures are drawn without a window, and the workers of pytest-xdist do not fight over the cores.
os.environ.setdefault("MPLBACKEND", "agg")
os.environ.setdefault("OMP_NUM_THREADS", "1")
