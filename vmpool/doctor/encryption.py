"""Encryption: whether the certificate that the settings name can be shown, and to whom."""

from __future__ import annotations

from typing import TYPE_CHECKING

from vmpool import certificate
from vmpool.doctor.finding import Finding, State
from vmpool.errors import HostError

if TYPE_CHECKING:
    from vmpool.config import ApiSettings

_NAME = "certificate"
_PURPOSE = "clients that speak TLS, and names of ports that browsers take"


def examine(settings: ApiSettings) -> tuple[Finding, ...]:
    """Read the certificate as the server does; say nothing where there is to be none. Blocks."""
    if settings.certificate is None or settings.certificate_key is None:
        return ()
    try:
        read = certificate.load(settings.certificate, settings.certificate_key)
    except HostError as err:
        return (_finding(State.MISSING, err.message, err.remedy),)
    wrong = read.out_of_time()
    if lacking := read.lacks(settings.domain):
        wrong = wrong or f"does not name {' '.join(lacking)}"
    if wrong:
        return (_finding(State.DEGRADED, f"it {wrong}", "renew it, for the wildcard too"),)
    names = " ".join(sorted(read.names))
    return (_finding(State.OK, f"for {names} until {read.ends:%Y-%m-%d %H:%M} UTC"),)


def _finding(state: State, detail: str, remedy: str = "") -> Finding:
    return Finding(name=_NAME, purpose=_PURPOSE, state=state, detail=detail, remedy=remedy)
