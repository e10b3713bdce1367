"""What a training job leaves behind beside the backbone."""

import torch

from densewalk import jobs
from tests.toy import Noise, Toy


class Drawing(Toy):
    """Writes down how it was asked to draw."""

    def pictures(self, data, folder):
        folder.mkdir(parents=True)
        (folder / f"{len(data)}-{self.training}-{torch.is_grad_enabled()}.png").touch()


def test_pictures_replace_those_of_an_earlier_training(tmp_path):
    folder = tmp_path / "training"
    folder.mkdir()
    (folder / "old.png").touch()
    jobs.draw(Drawing(1).train(), Noise(), folder)
    assert [path.name for path in folder.iterdir()] == ["12-False-False.png"]


def test_most_methods_have_no_pictures(tmp_path):
    jobs.draw(Toy(1), Noise(), tmp_path / "training")
    assert not (tmp_path / "training").exists()
