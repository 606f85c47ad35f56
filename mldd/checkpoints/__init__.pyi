from .checkpoint import Checkpoint as Checkpoint
from .checkpoint import check_replacing as check_replacing
from .checkpoint import is_checkpoint as is_checkpoint
from .checkpoint import load as load
from .checkpoint import previous as previous
from .checkpoint import save as save
