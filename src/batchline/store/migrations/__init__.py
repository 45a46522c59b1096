"""Alembic's folder: `env.py` and one module a migration in `versions/`.

A package, so that a wheel carries it and `store.schema` finds it wherever it is installed.
"""
