# SPDX-License-Identifier: BSD-3-Clause
"""Pictures of inputs with answers."""

import numpy as np
import pytest

pytest.importorskip("matplotlib", reason="pictures need circ-overlay[cli]")

from circ_overlay import picture


@pytest.mark.parametrize("shape", [(12, 8, 9), (12, 8, 9, 1), (12, 8, 9, 3), (0, 8, 9)])
def test_grey_and_colour(tmp_path, shape):
    images = np.zeros(shape, np.uint8)
    answers = np.arange(len(images)) % 3
    picture.draw(images, answers, answers[::-1], tmp_path / "new" / "answers.png", title="x")
    assert (tmp_path / "new" / "answers.png").read_bytes().startswith(b"\x89PNG")


@pytest.mark.parametrize("shape", [(12, 64), (12, 3, 8, 9)])
def test_what_is_no_picture(shape):
    with pytest.raises(ValueError, match="a picture takes"):
        picture.answers_figure(np.zeros(shape), np.zeros(12, int), np.zeros(12, int))
