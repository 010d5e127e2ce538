"""An index for the runs of one actor, newest first: an actor with few runs among many would have all of them read."""

from __future__ import annotations

from alembic import op

revision = "0002"
down_revision = "0001"
branch_labels = None
depends_on = None


def upgrade() -> None:
    """Make the index."""
    op.create_index(op.f("ix_runs_actor_name_seq"), "runs", ["actor_name", "seq"])


def downgrade() -> None:
    """Take it away."""
    op.drop_index(op.f("ix_runs_actor_name_seq"), table_name="runs")
