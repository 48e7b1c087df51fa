"""What a vocoder in training sounds and looks like: made sound beside the recordings, with their distance."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import soundfile
import torch

from most_core.speech import SAMPLE_RATE
from most_core.vocoder import UnitHifiGan
from train.data.shards import ShardedSpeech
from train.data.unit_speech import wave_of
from train.vocoder_losses import HOP, SpectralLoss

SHOWN = 3  # utterances to be heard and seen at each check


@torch.no_grad()
def check(
    model: UnitHifiGan, speech: ShardedSpeech, units: Sequence[np.ndarray], shift: int, folder: Path
) -> dict[str, float]:
    """Distances from the recordings, and in `folder` the first utterances as sound and as pictures."""
    device = model.embedding.weight.device
    spectral = SpectralLoss().to(device)
    distances, full = [], []
    for row, each in enumerate(units):
        made = model(torch.from_numpy(each.astype(np.int64))[None].to(device))
        real = torch.from_numpy(wave_of(speech, row))[None, shift : shift + made.shape[1]].to(device)
        made = made[:, : real.shape[1]]
        distances.append(spectral.mel_distance(made, real))
        full.append(float((made.abs() > 0.999).float().mean()))
        if row < SHOWN:
            folder.mkdir(parents=True, exist_ok=True)
            soundfile.write(folder / f"{row}-original.wav", real[0].cpu().numpy(), SAMPLE_RATE)
            soundfile.write(folder / f"{row}-vocoder.wav", made[0].cpu().numpy(), SAMPLE_RATE)
            mels = {
                name: spectral.log_mel(wave)[0].cpu().numpy() for name, wave in (("original", real), ("vocoder", made))
            }
            draw_spectrograms(folder / f"{row}.png", mels, speech.texts[row] or "")
    return {"mel_distance": float(np.mean(distances)), "clipping": float(np.mean(full))}


def draw_spectrograms(path: Path, mels: dict[str, np.ndarray], title: str) -> None:
    """Draw log-mel spectrograms [80, frames] one below the other, in the same colours."""
    from matplotlib.figure import Figure  # slow to import

    figure = Figure(figsize=(9, 2.6 * len(mels)), dpi=110, layout="constrained")  # no pyplot: no display
    panels = figure.subplots(len(mels), 1, squeeze=False, sharex=True)[:, 0]
    low, high = min(mel.min() for mel in mels.values()), max(mel.max() for mel in mels.values())
    for panel, (name, mel) in zip(panels, mels.items()):
        seconds = mel.shape[1] * HOP / SAMPLE_RATE
        panel.imshow(
            mel, origin="lower", aspect="auto", cmap="magma", vmin=low, vmax=high, extent=(0, seconds, 0, len(mel))
        )
        panel.set_ylabel(f"{name}\nmel band")
    panels[0].set_title(title, loc="left", fontsize="medium")
    panels[-1].set_xlabel("seconds")
    figure.savefig(path)
