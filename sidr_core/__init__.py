"""The mechanism and the method of SIDR, free of any orchestrator.

A step of the pipeline is a :class:`~sidr_core.pipeline.stage.Stage`; what it wrote is published by the
:class:`~sidr_core.pipeline.store.Store`; :mod:`sidr_core.pipeline.graph` lists all stages in order. Importing this
package is cheap: torch, transformers and friends are imported inside the functions that need them.
"""

import os

__version__ = "0.1.0"

# Threads of one computation wait for each other asleep, not spinning: beside a busy process, spinning ones stand still
# (two threads of a small model on two busy cores: 30 times slower). OpenMP reads this when torch is loaded.
os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")
