"""Which environment variables do the scripts need? Import this before PyTorch and Matplotlib, which read them once."""

import os

os.environ.setdefault("OMP_WAIT_POLICY", "passive")  # threads that wait by spinning crawl on a CPU that is shared
os.environ.setdefault("THP_MEM_ALLOC_ENABLE", "1")  # large tensors in huge pages: a training step takes 10 % less
os.environ["MPLBACKEND"] = "agg"  # a notebook hands down its own backend, which may not be installed here
