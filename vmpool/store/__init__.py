"""Store: what was promised, in SQLite."""

from vmpool.store.answers import AnswerRow, Answers
from vmpool.store.audit import AuditFilter, AuditRow
from vmpool.store.rows import CheckpointRow, ImageRow, Purpose, SandboxRow, TemplateRow
from vmpool.store.store import Store
from vmpool.store.tokens import LOCAL, Role, TokenRow, owner_of, token_id_of

__all__ = [
    "LOCAL",
    "AnswerRow",
    "Answers",
    "AuditFilter",
    "AuditRow",
    "CheckpointRow",
    "ImageRow",
    "Purpose",
    "Role",
    "SandboxRow",
    "Store",
    "TemplateRow",
    "TokenRow",
    "owner_of",
    "token_id_of",
]
