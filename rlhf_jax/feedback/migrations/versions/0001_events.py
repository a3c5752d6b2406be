"""Items, annotators, the events that are only ever added to, and who holds which item."""

import sqlalchemy as sa
from alembic import op

revision = "0001"
down_revision = None


def upgrade() -> None:
  op.create_table(
    "items",
    sa.Column("id", sa.String(200), primary_key=True),
    sa.Column("place", sa.Integer, nullable=False, unique=True),
    sa.Column("is_check", sa.Boolean, nullable=False),
    sa.Column("content", sa.Text, nullable=False),
  )
  op.create_table(
    "annotators",
    sa.Column("name", sa.String(100), primary_key=True),
    sa.Column("role", sa.String(20), nullable=False),
  )
  op.create_table(
    "tokens",
    sa.Column("hash", sa.String(64), primary_key=True),
    sa.Column("annotator", sa.String(100), sa.ForeignKey("annotators.name"), nullable=False),
    sa.Column("expires", sa.Float, nullable=True),
  )
  op.create_table(
    "events",
    sa.Column("id", sa.Integer, primary_key=True, autoincrement=True),
    sa.Column("at", sa.Float, nullable=False),
    sa.Column("kind", sa.String(20), nullable=False),
    sa.Column("annotator", sa.String(100), nullable=True),
    sa.Column("item", sa.String(200), nullable=True),
    sa.Column("key", sa.String(64), nullable=True, unique=True),
    sa.Column("payload", sa.Text, nullable=False),
  )
  op.create_index("events_of_an_item", "events", ["item"])
  op.create_index("events_of_an_annotator", "events", ["annotator"])
  op.create_table(
    "assignments",
    sa.Column("item", sa.String(200), sa.ForeignKey("items.id"), primary_key=True),
    sa.Column("annotator", sa.String(100), sa.ForeignKey("annotators.name"), primary_key=True),
    sa.Column("status", sa.String(20), nullable=False),
    sa.Column("until", sa.Float, nullable=False),
    sa.Column("shown", sa.Text, nullable=False),
    sa.Column("event", sa.Integer, nullable=True),
  )
  op.create_index("assignments_of_an_annotator", "assignments", ["annotator", "status"])
