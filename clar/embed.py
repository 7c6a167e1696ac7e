"""`python -m clar.embed CHECKPOINT FILE...`: embeddings of audio files by a trained encoder."""

import csv
import sys
from pathlib import Path
from typing import Annotated

import numpy as np
import torch
import typer

from clar import progress
from clar.cli import command
from clar.datasets.decode import Unusable, decode
from clar.errors import UserError
from clar.files import place, write_atomically
from clar.trainer import ENCODER, LoadedEncoder, load_encoder


def embed(encoder: LoadedEncoder, files: list[Path], batch: int = 64) -> np.ndarray:
    """Representations (N, H) float32 of audio files, each padded or clipped on the right to the encoder's length.

    Raises:
        UserError: a file cannot be read, or is empty or silent.
    """
    rows = []
    with progress.bar("embedding", len(files)) as bar, torch.inference_mode():
        for start in range(0, len(files), batch):
            clips_BT = np.stack([_clip(encoder, file) for file in files[start : start + batch]])
            rows.append(encoder.module(torch.from_numpy(clips_BT).float() / 32768).numpy())
            bar.advance(len(clips_BT))
    return np.concatenate(rows)


def _clip(encoder: LoadedEncoder, file: Path) -> np.ndarray:
    try:
        return decode(file, encoder.sample_rate, encoder.clip_samples)
    except Unusable as reason:
        raise UserError(f"{file}: {reason}; leave it out") from None


app = typer.Typer(add_completion=False, pretty_exceptions_enable=False)


@app.command()
def main(
    checkpoint: Annotated[
        Path, typer.Argument(help=f"A trial's folder, or its {ENCODER}.", parser=place, show_default=False)
    ],
    files: Annotated[list[Path], typer.Argument(help="Audio files.", show_default=False)],
    out: Annotated[
        Path | None, typer.Option(help="NumPy file (N, H) to write; default: CSV on the screen.", show_default=False)
    ] = None,
) -> None:
    """Embed audio files: one row a file, as CSV, or as a NumPy array with --out."""
    encoder = load_encoder(checkpoint / ENCODER if checkpoint.is_dir() else checkpoint)
    embeddings_NH = embed(encoder, files)
    if out:
        write_atomically(out, lambda file: np.save(file, embeddings_NH))
        print(f"{out}: {embeddings_NH.shape[0]} files x {embeddings_NH.shape[1]} dimensions")
        return
    writer = csv.writer(sys.stdout)
    writer.writerow(["file", *(f"d{index}" for index in range(embeddings_NH.shape[1]))])
    for path, row in zip(files, embeddings_NH, strict=True):
        writer.writerow([path, *(f"{value:.6g}" for value in row)])


if __name__ == "__main__":
    sys.exit(command(app))
