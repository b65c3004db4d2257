"""Doctor: what this host has, what it lacks, and the command that mends each thing.

It changes nothing: the tools that it finds missing, `packages` installs.
"""

from vmpool.doctor.examination import examine
from vmpool.doctor.finding import Finding, State, document, healthy, render_text

__all__ = ["Finding", "State", "document", "examine", "healthy", "render_text"]
