import pytest
import torch

from eden_hf.training.arguments import PretrainArguments
from eden_hf.training.run_folder import check_images, record_run


def test_other_images_than_recorded_are_refused(tmp_path):
    lists = {"images": 3, "image_list_hash": "abc", "image_list_hashes": {"train": "abc"}}
    record_run(tmp_path, PretrainArguments(), torch.device("cpu"), **lists)
    check_images(tmp_path, **lists)
    check_images(tmp_path, another_hash="not recorded by older versions")
    message = r"had other images: .*\(images 3 -> 2, image_list_hash abc -> abd\); bring the source back"
    with pytest.raises(ValueError, match=message):
        check_images(tmp_path, images=2, image_list_hash="abd")
    with pytest.raises(ValueError, match="image_list_hashes"):
        check_images(tmp_path, image_list_hashes={"train": "abc", "test": "abc"})
