"""Trust: which snapshots and images this host believes, and that they are what it believed.

A manifest has the digest of every file it describes, and a signature says whose manifest it is.
This host believes its own key and those that its operator has named. What was checked once is known
by its inode, and read again when that has changed.
"""

from vmpool.trust.custody import Custody
from vmpool.trust.keyring import Keyring, TrustedKey
from vmpool.trust.keys import HostKey, Proof, PublicKey, Purpose

__all__ = ["Custody", "HostKey", "Keyring", "Proof", "PublicKey", "Purpose", "TrustedKey"]
