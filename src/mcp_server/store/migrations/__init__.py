"""Schema migrations, run by Alembic: one file each in `versions`, never changed once released."""
