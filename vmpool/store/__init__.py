"""Store: what was promised, in SQLite."""

from vmpool.store.answers import AnswerRow, Answers
from vmpool.store.audit import AuditFilter, AuditRow
from vmpool.store.builds import BuildRow, LineRow
from vmpool.store.rows import CheckpointRow, IfTaken, ImageRow, Purpose, SandboxRow, TemplateRow
from vmpool.store.store import Store
from vmpool.store.tenants import LOCAL, TenantRow
from vmpool.store.tokens import TokenRow, is_token

__all__ = [
    "LOCAL",
    "AnswerRow",
    "Answers",
    "AuditFilter",
    "AuditRow",
    "BuildRow",
    "CheckpointRow",
    "IfTaken",
    "ImageRow",
    "LineRow",
    "Purpose",
    "SandboxRow",
    "Store",
    "TemplateRow",
    "TenantRow",
    "TokenRow",
    "is_token",
]
