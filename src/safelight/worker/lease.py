"""What a process knows of its own lease: who it is, and until when it may believe that its jobs are its own."""

import time
from dataclasses import dataclass, field

from safelight.db import new_id


@dataclass(slots=True)
class Lease:
    """Kept by the heartbeat. Who was taken for dead comes back under another id."""

    worker_id: str = field(default_factory=new_id)
    ends: float = 0.0  # monotonic seconds

    @property
    def is_live(self) -> bool:
        return time.monotonic() < self.ends
