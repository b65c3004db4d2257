"""Agent: the host's end of the agent protocol, and the archive that images embed."""

from vmpool.agent.archive import archive, archive_bytes
from vmpool.agent.client import Agent, Execution, connect
from vmpool.agent.link import Peer, new_key

__all__ = ["Agent", "Execution", "Peer", "archive", "archive_bytes", "connect", "new_key"]
