"""Keeps the cyclic garbage collector from reading the whole memory again and again.

Nearly every object is freed as soon as nothing refers to it. With its defaults, the collector reads
all objects whenever a quarter of them is new. A process that replaces its state every few seconds
then spends 40 % of its time in the collector.
"""

import gc
from typing import Final

NEW_OBJECTS: Final = 50_000
"""Number of new objects after which those objects are read. Reading them takes about 50 ms."""
YOUNG_COLLECTIONS: Final = 5
"""Number of such collections after which the objects that survived them are read."""
MIDDLE_COLLECTIONS: Final = 500
"""Number of those after which all objects are read."""


def collect_rarely() -> None:
    """Leave the objects of the loaded modules out of every collection, and collect rarely."""
    gc.freeze()
    gc.set_threshold(NEW_OBJECTS, YOUNG_COLLECTIONS, MIDDLE_COLLECTIONS)
