"""Parcel: a checkpoint as one compressed file, to be kept elsewhere or taken to another host.

A tar archive of plain files in one Zstandard frame:

    signature.json           whose word the envelope is
    parcel.json              what it holds: manifests with sizes and digests, and the row's values
    base/<file>              the files of the base snapshot; left out when it goes by digest alone
    checkpoint/<file>        the files of the checkpoint

in this order, and nothing else. Files are stored with their zeros, which cost nothing compressed
and become holes again. The envelope has the digest of every file, so its signature is of all.
Whoever reads one trusts nothing of it: not its sizes, names or order, and not one word before the
signature was checked.
"""

from vmpool.parcel.envelope import Envelope, State
from vmpool.parcel.pack import pack
from vmpool.parcel.unpack import Unpacking

__all__ = ["Envelope", "State", "Unpacking", "pack"]
