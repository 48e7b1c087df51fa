import numpy as np
import pytest

from train.calibration import calibration_error, plot_reliability, reliability


def test_bins_hold_what_is_about_equally_sure():
    bins = reliability(np.array([0.0, 0.05, 0.95, 1.0, 0.5]), np.array([False, True, True, True, False]))
    assert [each.n for each in bins] == [2, 0, 0, 0, 0, 1, 0, 0, 0, 2]
    assert (bins[0].confidence, bins[0].accuracy) == (0.025, 0.5)
    assert (bins[9].confidence, bins[9].accuracy) == (0.975, 1.0)
    assert calibration_error(bins) == pytest.approx((2 * 0.475 + 0.5 + 2 * 0.025) / 5)


def test_one_who_is_as_sure_as_right_has_no_error(tmp_path):
    sure = np.repeat([0.25, 0.75], 4)
    right = np.array([1, 0, 0, 0, 1, 1, 1, 0], dtype=bool)
    bins = reliability(sure, right)
    assert calibration_error(bins) == 0
    plot_reliability(bins, "eight answers", tmp_path / "sure.png")
    assert (tmp_path / "sure.png").read_bytes().startswith(b"\x89PNG")
