import pytest
import torch

from train.discriminators import Discriminators, Shape
from train.vocoder_losses import SpectralLoss


def tone(hertz, level=0.3, samples=4000):
    return level * torch.sin(2 * torch.pi * hertz * torch.arange(samples) / 16_000)[None]


def test_the_same_sound_is_no_loss_and_another_phase_hardly_one():
    spectral = SpectralLoss()
    assert [float(loss) for loss in spectral(tone(440), tone(440))] == [0, 0]
    late = tone(440, samples=4010)[:, 10:]
    near, far = spectral(late, tone(440)), spectral(tone(640), tone(440))
    assert near[0] < 0.5 * far[0]
    assert near[1] < far[1]
    assert spectral.mel_distance(tone(640), tone(440)) == pytest.approx(float(far[1]))


def test_silence_has_gradients_and_a_floor():
    spectral = SpectralLoss()
    made = torch.zeros(1, 4000, requires_grad=True)
    sum(spectral(made, tone(440))).backward()
    assert made.grad.isfinite().all()
    inaudible = 1e-5 * torch.randn(1, 4000, generator=torch.Generator().manual_seed(0))
    assert spectral.mel_distance(inaudible, torch.zeros(1, 4000)) == 0


@pytest.mark.parametrize("samples", [2560, 2567])
def test_discriminators_judge_any_length_and_learn_to(samples):
    torch.manual_seed(0)
    judges = Discriminators(Shape((2, 3), (4, 8), (0, 1), (4, 8)))
    optimizer = torch.optim.Adam(judges.parameters(), lr=5e-3)
    real, made = tone(440, samples=samples).expand(4, -1), 0.3 * torch.randn(4, samples)
    before = judges(made, real)
    assert judges(real, real).features.item() == 0
    for _ in range(80):
        optimizer.zero_grad()
        judges(made, real).discriminators.backward()
        optimizer.step()
    after = judges(made, real)
    assert after.discriminators < 0.2 * before.discriminators
    assert after.generator > 0.5
