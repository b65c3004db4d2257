"""Agent: the host's end of the agent protocol, and the archive that images embed."""

from vmpool.agent.airtime import Airtime
from vmpool.agent.archive import archive, archive_bytes
from vmpool.agent.client import Agent, connect
from vmpool.agent.execution import Execution
from vmpool.agent.link import Peer, new_key

__all__ = [
    "Agent",
    "Airtime",
    "Execution",
    "Peer",
    "archive",
    "archive_bytes",
    "connect",
    "new_key",
]
