"""How far one sound is from another: spectra at three resolutions, and a mel spectrogram."""

from __future__ import annotations

import torch
import torchaudio
from torch import nn

RESOLUTIONS = ((1024, 256), (512, 128), (256, 64))  # window, hop
WINDOW, HOP, MELS = 1024, 256, 80
# Below these nothing is heard: about -66 dB of full scale. A logarithm without a floor is all about silence.
MAGNITUDE_FLOOR, MEL_FLOOR = 3e-4, 1e-3


class SpectralLoss(nn.Module):
    """Differences of waves [B, N] float32 at 16 kHz."""

    def __init__(self, sample_rate: int = 16_000) -> None:
        super().__init__()
        for size, _ in RESOLUTIONS:
            self.register_buffer(f"window_{size}", torch.hann_window(size), persistent=False)
        filters = torchaudio.functional.melscale_fbanks(WINDOW // 2 + 1, 0.0, sample_rate / 2, MELS, sample_rate)
        self.register_buffer("filters", filters, persistent=False)

    def forward(self, made: torch.Tensor, real: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """(multi-resolution STFT loss, mel distance); the first weighs peaks and logarithms the same."""
        stft = torch.zeros((), device=made.device)
        for size, hop in RESOLUTIONS:
            ours, theirs = self._magnitude(made, size, hop), self._magnitude(real, size, hop)
            if size == WINDOW:
                mel = (self._log_mel(ours) - self._log_mel(theirs)).abs().mean()
            convergence = torch.linalg.norm(theirs - ours) / torch.linalg.norm(theirs).clamp(min=1e-3)
            logarithms = (ours.clamp(min=MAGNITUDE_FLOOR).log() - theirs.clamp(min=MAGNITUDE_FLOOR).log()).abs().mean()
            stft = stft + (convergence + logarithms) / len(RESOLUTIONS)
        return stft, mel

    def log_mel(self, waves: torch.Tensor, hop: int = HOP) -> torch.Tensor:
        """Natural logarithm of the mel spectrogram [B, 80, frames]; the middles of frames are `hop` samples apart."""
        return self._log_mel(self._magnitude(waves, WINDOW, hop))

    def mel_distance(self, made: torch.Tensor, real: torch.Tensor) -> float:
        """Mean absolute difference of the logarithms."""
        return float((self.log_mel(made) - self.log_mel(real)).abs().mean())

    def _log_mel(self, magnitude: torch.Tensor) -> torch.Tensor:
        return (magnitude.mT @ self.filters).mT.clamp(min=MEL_FLOOR).log()

    def _magnitude(self, waves: torch.Tensor, size: int, hop: int) -> torch.Tensor:
        window = getattr(self, f"window_{size}")
        spectrum = torch.stft(waves, size, hop, window=window, normalized=True, return_complex=True)
        # Not abs(), whose gradient at zero is not a number
        return torch.sqrt(spectrum.real.square() + spectrum.imag.square() + 1e-10)
