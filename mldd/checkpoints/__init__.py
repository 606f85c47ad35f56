"""What a run writes to go on from later: checkpoints, in files that hold data only and are checked byte by byte.

Here stand the format of the files, the history beside them, and how states of solvers are given to another number of
ranks. When a checkpoint is written is decided in `mldd.loop` and `mldd.command`; solvers may not import this room.
"""

import lazy_loader

__getattr__, __dir__, __all__ = lazy_loader.attach_stub(__name__, __file__)
