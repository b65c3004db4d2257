"""Clone: a machine restored from a snapshot, plus all that it holds.

How it comes up (`restore`, or `stand_by` and then `restore_into` or `descend`; or `reboot`), how it
is found again (`adopt`), and how it ends. It knows no pool and no sandbox.
"""

from vmpool.clone.adoption import adopt
from vmpool.clone.clone import Clone
from vmpool.clone.dawn import Dawn
from vmpool.clone.introduction import identify, warm
from vmpool.clone.pace import in_step
from vmpool.clone.restoration import descend, reboot, restore, restore_into
from vmpool.clone.timings import RestoreDeadlines, RestoreTimings
from vmpool.clone.waiting import Waiting, claim_directory, stand_by

__all__ = [
    "Clone",
    "Dawn",
    "RestoreDeadlines",
    "RestoreTimings",
    "Waiting",
    "adopt",
    "claim_directory",
    "descend",
    "identify",
    "in_step",
    "reboot",
    "restore",
    "restore_into",
    "stand_by",
    "warm",
]
