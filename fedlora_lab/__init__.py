"""Federated LoRA fine-tuning with differential privacy.

A method is a row of data, privacy is a plan, a run is an iterator of rounds.
Nothing heavy is imported until a name is used, so ``import fedlora_lab`` is quick and does not load
torch. What is public is listed in ``__init__.pyi``.
"""

import lazy_loader

from fedlora_lab._utils import environment

__getattr__, __dir__, __all__ = lazy_loader.attach_stub(__name__, __file__)
__all__.remove("__version__")  # declared in the stub, and no name to import
__version__ = environment.__version__
