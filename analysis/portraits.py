"""`python -m analysis.portraits`: what of a report needs tensors: augmentations to hear and see, and embeddings mapped.

A process of its own, so that the driver and the rest of the report load no torch. The same inputs give the same files,
and asked for again, it does nothing: torch is imported only where there is something to make.
"""

import csv
import hashlib
import io
import json
import math
import os
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, NamedTuple

import numpy as np
import typer

from clar import __version__, files
from clar.cli import command
from clar.clips import ClipStore, fit
from clar.config import AUGMENTATIONS
from clar.errors import UserError
from clar.files import write_atomically, write_json

if TYPE_CHECKING:
    from clar.augment import Augmentation

PORTRAITS = "portraits.json"
"""What lies in the folder, written last."""

CONTENT_VERSION = 1
"""Raised with every change of this module that changes a file: older ones are then made again."""

_READING = {
    "t-SNE": "Each mark is a test clip, placed by t-SNE so that clips with similar representations are neighbours; "
    "how far groups lie apart, and how large they are, means nothing.",
    "PCA": "Each mark is a test clip, placed by the first two principal components of the representations.",
}

_CANDIDATES = 256
_REDRAWS = 1000
_BANDS = 128
_MOST_POINTS = 1000
_FEWEST_FOR_TSNE = 10
_BATCH = 64


class Portrait(NamedTuple):
    """How an augmentation is described.

    Attributes:
        description: one sentence, with the paper's range.
        words: of the drawn numbers, the clip's seconds and its samples: what was drawn, with units.
        clear: of the drawn numbers, the clip's samples (T,) and the augmentation: whether this draw shows the effect,
            where its numbers lie beyond half of their range.
    """

    description: str
    words: Callable[[Sequence[float], float, int], str]
    clear: Callable[[Sequence[float], np.ndarray, Any], bool]


def _fade_words(drawn: Sequence[float], seconds: float, samples: int) -> str:
    from clar.augment import FADE_SHAPES

    fade_in, fade_out, shape = drawn
    per_sample = seconds / samples
    return f"fade-in {fade_in * per_sample:.2f} s, fade-out {fade_out * per_sample:.2f} s, {FADE_SHAPES[int(shape)]}"


def _mixed_words(drawn: Sequence[float], seconds: float, samples: int) -> str:
    from clar.augment import COLOURS

    return f"{COLOURS[int(drawn[1])]} noise, SNR {drawn[0]:.1f} dB"


def _mask_words(drawn: Sequence[float], seconds: float, samples: int) -> str:
    start, length, noise_db = drawn
    per_sample = seconds / samples
    filling = "zeros" if noise_db == -math.inf else f"noise {-noise_db:.0f} dB below the clip"
    return f"{length * per_sample:.2f} s from {start * per_sample:.2f} s on, {filling}"


def _mask_is_clear(drawn: Sequence[float], clip_T: np.ndarray, augmentation: Any) -> bool:
    """A long segment, and one with sound in it: what is taken from a pause is not missed."""
    start, length = int(drawn[0]), int(drawn[1])
    loud = length > 0 and np.mean(clip_T[start : start + length] ** 2) >= np.mean(clip_T**2)
    return bool(loud and length >= augmentation.longest * len(clip_T) / 2)


PORTRAITS_OF: dict[str, Portrait] = {
    "pitch_shift": Portrait(
        "Moves the pitch up or down by up to 15 semitones and keeps the length.",
        lambda drawn, seconds, samples: f"{_signed(drawn[0])} semitones",
        lambda drawn, clip_T, one: abs(drawn[0]) >= one.semitones[1] / 2,
    ),
    "fade": Portrait(
        "Fades the clip in and out, each over up to half of it, in a linear, logarithmic or exponential shape.",
        _fade_words,
        # Three quarters of the range: speech seldom fills the ends of a clip.
        lambda drawn, clip_T, one: min(drawn[:2]) >= 0.75 * one.longest * len(clip_T),
    ),
    "white_noise": Portrait(
        "Adds white noise, as loud as the clip itself or up to 20 dB below it.",
        lambda drawn, seconds, samples: f"SNR {drawn[0]:.1f} dB",
        lambda drawn, clip_T, one: drawn[0] <= sum(one.snr_db) / 2,
    ),
    "mixed_noise": Portrait(
        "Adds white, pink or brown noise, as loud as the clip itself or up to 20 dB below it.",
        _mixed_words,
        lambda drawn, clip_T, one: drawn[0] <= sum(one.snr_db) / 2,
    ),
    "time_mask": Portrait(
        "Replaces one segment of up to an eighth of the clip by faint noise or by zeros.",
        _mask_words,
        _mask_is_clear,
    ),
    "time_shift": Portrait(
        "Rolls the clip by up to half its length either way; what leaves at one end enters at the other.",
        lambda drawn, seconds, samples: (
            f"{abs(drawn[0]) * seconds / samples:.2f} s {'later' if drawn[0] > 0 else 'earlier'}"
        ),
        lambda drawn, clip_T, one: abs(drawn[0]) >= one.furthest * len(clip_T) / 2,
    ),
    "time_stretch": Portrait(
        "Plays the clip at half to one and a half times its speed with the pitch kept, then crops or zero-pads it.",
        lambda drawn, seconds, samples: f"{drawn[0]:.2f} times the speed",
        lambda drawn, clip_T, one: abs(drawn[0] - 1) >= (one.rate[1] - 1) / 2,
    ),
}
"""By short name. An augmentation that is not here is described by its class and shown as it was first drawn."""


def examples(store: ClipStore, augmentations: Sequence[str], folder: Path, seed: int = 0) -> list[dict[str, Any]]:
    """One training clip before and after each augmentation, as two WAV files and a picture: `example-<name>-...`.

    All show the same clip: the first of 256 spread over the training split whose power is not below their median. The
    augmentation has its default strength, and draws as in training, but for its coin: it is asked again, each time with
    the next generator of its name, until the numbers lie beyond half of their range (fades: three quarters) and a mask
    has sound to hide. An average draw would often show little. The files are 16-bit PCM; where the result would pass
    full scale, both are turned down by the same factor.

    Args:
        store: of the clips.
        augmentations: short names.
        folder: for the files.
        seed: of the draws.

    Returns:
        For each: `name`, `description`, `parameters` (what was drawn, in words), `text` (both), and the names of its
        files: `before`, `after`, `picture` and `vector`.

    Raises:
        UserError: an unknown name, or the clips are silent.
    """
    import torch

    from analysis import figures
    from clar import augment, features, seeds

    chosen = augment.compose(augmentations, store.sample_rate, probability=1).augmentations
    clip_T = _clear_clip(store)
    clip_1T = torch.from_numpy(clip_T)[None]
    front_end = features.Spectrogram(store.sample_rate, front_end="paper", window_ms=None, hop_ms=None, bins=_BANDS)
    hertz_F = (front_end.centre_bins * store.sample_rate / front_end.fft_length).numpy()
    found = []
    for name, augmentation in zip(augmentations, chosen, strict=True):
        portrait = PORTRAITS_OF.get(name) or _unknown(augmentation)
        for attempt in range(_REDRAWS):
            generator = seeds.generator(seed, "example", name, attempt)
            parameters = augmentation.draw(1, len(clip_T), generator, clip_1T.device)
            drawn = [float(parameter) for parameter in parameters]
            if portrait.clear(drawn, clip_T, augmentation):
                break
        after_1T = augmentation.apply(clip_1T, generator, *parameters)
        pair_2T = torch.cat([clip_1T, after_1T])
        stem, words = f"example-{name}", portrait.words(drawn, store.seconds, len(clip_T))
        picture, vector = figures.before_after(
            (clip_T, after_1T[0].numpy()), store.sample_rate, tuple(front_end(pair_2T)[:, 2].numpy()),
            f"{name}: {words}" if words else name, folder / stem, hertz_F,
        )  # fmt: skip
        level = max(1.0, float(pair_2T.abs().max()))
        files = {side: f"{stem}-{side}.wav" for side in ("before", "after")}
        for file, sound_T in zip(files.values(), (pair_2T / level).numpy(), strict=True):
            _write_wav(folder / file, sound_T, store.sample_rate)
        found.append(
            {
                "name": name, "description": portrait.description, "parameters": words,
                "text": f"{portrait.description} Here: {words}." if words else portrait.description,
                **files, "picture": picture.name, "vector": vector.name,
            }
        )  # fmt: skip
    return found


def embedding_map(trial: Path, store: ClipStore, folder: Path, title: str = "") -> dict[str, Any]:
    """The test clips as a trial's encoder sees them, on a plane: `embedding_map.csv` (x, y, label) and a picture.

    At most 1,000 clips, the same share of each class, spread over the split. Representations are standardised and then
    laid out by t-SNE, which keeps neighbours together; distances between groups and their sizes mean nothing. Fewer
    than ten clips, or representations that vary in one dimension only, are laid out by principal components.

    Args:
        trial: its folder, or its encoder's file.
        store: of the clips.
        folder: for the files.
        title: above the picture, before how it was made; "": `Test clips as the encoder sees them`.

    Returns:
        `title` of the picture, `text` (how to read it), `method`, `clips` (how many), and the names of the files:
        `csv`, `picture` and `vector`.

    Raises:
        UserError: no encoder, one for other clips, or one that gives numbers that are not finite.
    """
    import torch

    from analysis import figures
    from clar import trainer

    encoder = trainer.load_encoder(_encoder_file(trial))
    expected, given = (encoder.sample_rate, encoder.clip_samples), (store.sample_rate, store.clips.shape[1])
    if expected != given:
        raise UserError(
            f"{trial}: its encoder takes clips of {expected[1]:,} samples at {expected[0]:,} Hz, those of {store.path} "
            f"have {given[1]:,} at {given[0]:,} Hz; name the store that the trial was trained on"
        )
    index_n = _spread(store.split("test", encoder.config.fold), store.labels, _MOST_POINTS)
    rows = []
    with torch.inference_mode():
        for start in range(0, len(index_n), _BATCH):
            clips_BT = torch.from_numpy(store.clips[index_n[start : start + _BATCH]].astype(np.float32) / 32768)
            rows.append(encoder.module(clips_BT).numpy())
    representations_nH = np.concatenate(rows)
    if not np.isfinite(representations_nH).all():
        raise UserError(f"{trial}: its encoder gives numbers that are not finite; train it again")
    points_n2, method = layout(representations_nH)
    labels_n = store.labels[index_n]
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow(["x", "y", "label"])
    for (x, y), label in zip(points_n2, labels_n, strict=True):
        writer.writerow([f"{x:.6g}", f"{y:.6g}", store.classes[label]])
    write_atomically(folder / "embedding_map.csv", text.getvalue())
    title = f"{title or 'Test clips as the encoder sees them'} ({len(index_n):,} clips, {method})"
    picture, vector = figures.embedding_map(points_n2, labels_n, store.classes, title, folder / "embedding_map")
    return {
        "title": title, "text": _READING[method], "method": method, "clips": len(index_n), "csv": "embedding_map.csv",
        "picture": picture.name, "vector": vector.name,
    }  # fmt: skip


def layout(representations_nH: np.ndarray) -> tuple[np.ndarray, str]:
    """Representations (n, H) on a plane, (n, 2) float64, and by what: `t-SNE` or `PCA`. See `embedding_map`."""
    centred_nH = representations_nH.astype(np.float64) - representations_nH.mean(axis=0, dtype=np.float64)
    spread_H = centred_nH.std(axis=0)
    # A unit that is the same for all clips, up to rounding, says nothing.
    varies_H = spread_H > 1e-7 * np.abs(representations_nH).max(axis=0, initial=1e-30)
    scaled_nH = centred_nH[:, varies_H] / spread_H[varies_H]
    n = len(scaled_nH)
    if n < _FEWEST_FOR_TSNE or scaled_nH.shape[1] < 2:
        # Scikit-learn's divides by the total variance, which one clip, or clips that are all alike, do not have.
        left_nK, strength_K, _ = np.linalg.svd(scaled_nH, full_matrices=False)
        points_nK = (left_nK * strength_K)[:, :2]
        return np.pad(points_nK, ((0, 0), (0, 2 - points_nK.shape[1]))), "PCA"
    from sklearn.manifold import TSNE

    tsne = TSNE(perplexity=min(30.0, (n - 1) / 3), init="pca", learning_rate="auto", random_state=0)
    return tsne.fit_transform(scaled_nH).astype(np.float64), "t-SNE"


def _clear_clip(store: ClipStore) -> np.ndarray:
    """(T,) float32: see `examples`."""
    train = store.split("train")
    index = train[np.arange(min(len(train), _CANDIDATES)) * len(train) // min(len(train), _CANDIDATES)]
    clips_NT = store.clips[index].astype(np.float32) / 32768
    power_N = np.square(clips_NT).mean(axis=1)
    if not power_N.any():
        raise UserError(f"{store.path}: the training clips are silent; there is nothing to hear")
    return clips_NT[int(np.argmax(power_N >= max(float(np.median(power_N)), float(power_N[power_N > 0].min()))))]


def _spread(index: np.ndarray, labels: np.ndarray, most: int) -> np.ndarray:
    """At most so many of the indices, the same share of each class, ascending."""
    count = min(len(index), most)
    by_class = index[np.argsort(labels[index], kind="stable")]
    return np.sort(by_class[np.arange(count) * len(index) // max(count, 1)])


def _unknown(augmentation: "Augmentation") -> Portrait:
    """Of an augmentation that this file does not know."""
    description = (type(augmentation).__doc__ or "").strip().split("\n")[0]
    return Portrait(description, lambda drawn, seconds, samples: "", lambda drawn, clip_T, one: True)


def _signed(number: float) -> str:
    return f"{number:+.1f}".replace("-", "−")


def _write_wav(path: Path, sound_T: np.ndarray, sample_rate: int) -> None:
    """(T,) float, full scale 1, as 16-bit PCM; a clip of a store comes back sample for sample."""
    import soundfile

    samples_T = fit(sound_T, len(sound_T))
    write_atomically(path, lambda file: soundfile.write(file, samples_T, sample_rate, "PCM_16", format="WAV"))


def _encoder_file(trial: Path) -> Path:
    # Its name in `clar.trainer`, which would import torch.
    return trial / "encoder.safetensors" if trial.is_dir() else trial


def _open(store: Path) -> ClipStore:
    try:
        return ClipStore.open(store)
    except (OSError, ValueError, KeyError) as error:
        raise UserError(f"the clip store {store} cannot be read ({type(error).__name__}: {error})") from None


def _inputs(store: ClipStore, augmentations: Sequence[str], trial: Path | None, title: str) -> dict[str, Any]:
    """All that the files depend on."""
    encoder = None
    if trial:
        try:
            encoder = hashlib.sha256(files.read_bytes(_encoder_file(trial))).hexdigest()
        except OSError as error:
            raise UserError(
                f"no encoder at {_encoder_file(trial)} ({error.strerror or 'there is none'}); name a finished trial"
            ) from None
    return {
        "content_version": CONTENT_VERSION,
        "code_version": __version__,
        "store": store.fingerprint,
        "augmentations": list(augmentations),
        "encoder": encoder,
        "title": title,
    }


def _is_made(folder: Path, inputs: dict[str, Any]) -> bool:
    """Whether the folder holds what these inputs give."""
    try:
        known = json.loads(files.read_bytes(folder / PORTRAITS))
        return known["inputs"] == inputs and all((folder / name).is_file() for name in known["files"])
    except (OSError, ValueError, KeyError, TypeError):
        return False


def make(
    store: ClipStore, folder: Path, augmentations: Sequence[str], trial: Path | None = None, title: str = ""
) -> bool:
    """Write all portraits and then `portraits.json`, unless they are there; whether there was something to do.

    `portraits.json` holds the `inputs`, the names of all `files`, the `examples`, and the `embedding_map`, null without
    a trial.

    Raises:
        UserError: as `examples` and `embedding_map`, or the folder cannot be written.
    """
    augmentations = list(dict.fromkeys(augmentations))
    inputs = _inputs(store, augmentations, trial, title)
    if _is_made(folder, inputs):
        return False
    try:
        files.make_folder(folder)
        # It vouches for the files: it goes before the first of them changes.
        files.remove(folder / PORTRAITS)
    except OSError as error:
        raise UserError(f"cannot write into {folder} ({error.strerror or error}); name another folder") from None
    shown = examples(store, augmentations, folder)
    mapped = embedding_map(trial, store, folder, title) if trial else None
    names = [one[key] for one in shown for key in ("before", "after", "picture", "vector")]
    names += [mapped[key] for key in ("csv", "picture", "vector")] if mapped else []
    write_json(folder / PORTRAITS, {"inputs": inputs, "files": names, "examples": shown, "embedding_map": mapped})
    return True


app = typer.Typer(add_completion=False, pretty_exceptions_enable=False)


@app.command()
def main(
    store: Annotated[Path, typer.Option(help="Folder of the clip store.", show_default=False)],
    out: Annotated[Path, typer.Option(help="Folder for the files.", parser=files.place, show_default=False)],
    trial: Annotated[
        Path | None,
        typer.Option(
            help="A trial's folder, or its encoder: map the test clips.", parser=files.place, show_default=False
        ),
    ] = None,
    augmentation: Annotated[
        list[str] | None,
        typer.Option(
            metavar="NAME", help="Show this one on a clip; repeatable; `all` for the paper's seven.", show_default=False
        ),
    ] = None,
    title: Annotated[str, typer.Option(help="Above the map.", show_default=False)] = "",
) -> None:
    """Examples of augmentations, and a map of a trial's embeddings; nothing where they are there already."""
    # Before torch and scikit-learn load. Beside other work their threads wait for each other: on two busy cores, t-SNE
    # of 300 clips took 67 s with two threads and 4 s with one.
    os.environ.setdefault("OMP_NUM_THREADS", "1")
    names = [one for name in augmentation or [] for one in (AUGMENTATIONS if name == "all" else [name])]
    made = make(_open(store), out, names, trial, title)
    print(f"{out / PORTRAITS}: {'written' if made else 'nothing to do'}")


if __name__ == "__main__":
    sys.exit(command(app))
