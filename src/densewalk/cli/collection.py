"""When Python looks for unreachable objects, for a quick start: while modules are imported, all objects stay.

torch and what is around it make half a million objects. To look at them again and again while they are made takes a quarter of a start's
CPU time, and once more at the end of the process as much. Free of torch.
"""

import atexit
import gc

SELDOM = (200_000, 50, 50)
"""Objects more than before, until young ones are looked at; how often these, until older ones are. Python's own: 700, 10, 10."""
_USUAL = gc.get_threshold()


def collect_seldom() -> None:
    """From here on look for unreachable objects seldom, and at the end of the process not at all. Call it before imports."""
    gc.set_threshold(*SELDOM)
    atexit.register(gc.freeze)  # what is left then is the system's to free


def collect_as_usual() -> None:
    """After `collect_seldom`: look as often as Python does by itself, and no more at what there is now. Call it when imports are done.

    A job that made circles of objects with large tensors in them would else keep many of them.
    """
    if gc.get_threshold() == SELDOM:
        gc.freeze()
        gc.set_threshold(*_USUAL)
