import numpy as np
import pytest

from crm_cli.mesh.likeness import ciede2000, colour_distance, silhouette_iou, to_lab

PAIRS = (
    ((50.0, 2.6772, -79.7751), (50.0, 0.0, -82.7485), 2.0425),
    ((50.0, 3.1571, -77.2803), (50.0, 0.0, -82.7485), 2.8615),
    ((50.0, -1.3802, -84.2814), (50.0, 0.0, -82.7485), 1.0),
    ((50.0, 0.0, 0.0), (50.0, -1.0, 2.0), 2.3669),
    ((50.0, 2.49, -0.001), (50.0, -2.49, 0.0009), 7.1792),
    ((50.0, 2.49, -0.001), (50.0, -2.49, 0.0011), 7.2195),
    ((50.0, -0.001, 2.49), (50.0, 0.0009, -2.49), 4.8045),
    ((50.0, 2.5, 0.0), (50.0, 0.0, -2.5), 4.3065),
    ((50.0, 2.5, 0.0), (73.0, 25.0, -18.0), 27.1492),
    ((50.0, 2.5, 0.0), (61.0, -5.0, 29.0), 22.8977),
    ((50.0, 2.5, 0.0), (56.0, -27.0, -3.0), 31.9030),
    ((50.0, 2.5, 0.0), (58.0, 24.0, 15.0), 19.4535),
    ((60.2574, -34.0099, 36.2677), (60.4626, -34.1751, 39.4387), 1.2644),
    ((2.0776, 0.0795, -1.1350), (0.9033, -0.0636, -0.5514), 0.9082),
)
"""From the authors' table of hard cases: blue, greys, hues on both sides of the jump. (Sharma et al. 2005)"""


@pytest.mark.parametrize(("left", "right", "expected"), PAIRS)
def test_the_authors_own_pairs_have_their_distances(
    left: tuple[float, ...], right: tuple[float, ...], expected: float
) -> None:
    one, other = np.array([left]), np.array([right])
    assert ciede2000(one, other)[0] == pytest.approx(expected, abs=5e-5)
    assert ciede2000(other, one)[0] == pytest.approx(expected, abs=5e-5)


def test_white_black_and_red_lie_where_cie_puts_them() -> None:
    lab = to_lab(np.array([[1.0, 1.0, 1.0], [0.0, 0.0, 0.0], [1.0, 0.0, 0.0]]))
    np.testing.assert_allclose(lab, [[100, 0, 0], [0, 0, 0], [53.24, 80.09, 67.20]], atol=0.05)


def test_the_distance_of_pictures_is_the_mean_of_their_pixels() -> None:
    white, black = np.ones((4, 3)), np.zeros((4, 3))
    half = np.concatenate([np.ones((2, 3)), np.zeros((2, 3))])
    assert colour_distance(white, white) == 0
    assert colour_distance(white, black) == pytest.approx(100, abs=0.1)
    assert colour_distance(white, half) == pytest.approx(50, abs=0.1)
    assert colour_distance(white[:0], black[:0]) == 0


def test_the_share_two_outlines_have_in_common() -> None:
    left, right = np.zeros((8, 8), np.bool_), np.zeros((8, 8), np.bool_)
    left[:, :4] = True
    right[:, 2:6] = True
    assert silhouette_iou(left, right) == pytest.approx(1 / 3)
    assert silhouette_iou(left, left) == 1
    assert silhouette_iou(left & False, right & False) == 0
