"""`tastemaker convert`: an official release to safetensors and a configuration."""

from __future__ import annotations

from pathlib import Path

import click


@click.command("convert")
@click.argument("kind", type=click.Choice(["rali"]))
@click.argument("folder", type=click.Path(exists=True, file_okay=False, path_type=Path))
@click.argument("out", required=False, type=click.Path(file_okay=False, path_type=Path))
def command(kind: str, folder: Path, out: Path | None) -> None:
    """Convert the release in FOLDER into OUT, without ever executing a pickle.

    rali: the official release (ckpt.pt, pca.pkl, basis.npz, best/). Without OUT it goes where
    --scorer rali looks for it.
    """
    from ..scorers.rali_convert import convert_rali

    click.echo(f"written: {convert_rali(folder, out)}")
