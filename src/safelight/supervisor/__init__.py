"""`safelight up`: everything on one machine, as children of one process."""

from safelight.supervisor.address import PortTaken, require_loopback
from safelight.supervisor.lock import StackEnding, StackRunning
from safelight.supervisor.stack import StartFailed, Supervisor

__all__ = ["PortTaken", "StackEnding", "StackRunning", "StartFailed", "Supervisor", "require_loopback"]
