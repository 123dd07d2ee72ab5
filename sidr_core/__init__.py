"""The mechanism and the method of SIDR, free of any orchestrator.

A step of the pipeline is a :class:`~sidr_core.stage.Stage`; what it wrote is published by the
:class:`~sidr_core.store.Store`; :mod:`sidr_core.graph` lists all stages in order. Importing this
package is cheap: torch, transformers and friends are imported inside the functions that need them.
"""

__version__ = "0.1.0"
