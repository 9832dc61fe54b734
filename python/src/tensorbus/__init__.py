"""Moves sharded PyTorch tensors between jobs that were launched apart.

The three lines of a model are ``Weights``; below them is the client of the original system, name for name.
"""

from __future__ import annotations

import logging

from ._agents import Agents, start_agents
from ._batch import BatchHandler
from ._bootstrap import BootstrapInfo, Bootstrapped, bootstrap_client
from ._layouts import Mesh
from ._models import split_fused
from ._parts import Part, PresetParts, preset_parts
from ._places import BusPaths, default_paths
from ._semaphore import Semaphore
from ._share import Shared, share
from ._tensors import empty
from ._version import __version__
from .client import TensorBusClient
from .errors import AgentError, ArgumentError, DeadlineError, OperationError, QueueFullError, TensorBusError
from .messages import CleanupBatch, InitPair, QueryStatus, RegisterTensors, Transfer, generate_semaphore_name
from .weights import Weights

logger = logging.getLogger("tensorbus")

__all__ = [
    "AgentError",
    "Agents",
    "ArgumentError",
    "BatchHandler",
    "BootstrapInfo",
    "Bootstrapped",
    "BusPaths",
    "CleanupBatch",
    "DeadlineError",
    "InitPair",
    "Mesh",
    "OperationError",
    "Part",
    "PresetParts",
    "QueryStatus",
    "QueueFullError",
    "RegisterTensors",
    "Semaphore",
    "Shared",
    "TensorBusClient",
    "TensorBusError",
    "Transfer",
    "Weights",
    "__version__",
    "bootstrap_client",
    "default_paths",
    "empty",
    "generate_semaphore_name",
    "logger",
    "preset_parts",
    "share",
    "split_fused",
    "start_agents",
]
