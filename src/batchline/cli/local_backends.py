"""Inference servers that run on this machine already, when nobody named one."""

from __future__ import annotations

import asyncio
import dataclasses

import typer

from batchline.cli.serve_output import discovery
from batchline.config.settings import Settings
from batchline.executor.discovery import USUAL_PLACES, find_local


def with_local_backends(settings: Settings) -> Settings:
    """`settings` with the backends that were found, which may be none; says on stderr which."""
    found = asyncio.run(find_local())
    typer.echo(discovery(found, USUAL_PLACES), err=True)
    return dataclasses.replace(settings, backends=tuple(one.backend for one in found))
