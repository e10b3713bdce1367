"""Images for both toolboxes by this project's reader: upright, of 16 bits the upper 8, as everywhere else."""

from typing import Any

import mmcv
import numpy as np
from mmcv.transforms import BaseTransform
from mmengine.registry import TRANSFORMS

from densewalk.data.image_files import read_image


@TRANSFORMS.register_module()
class ReadImage(BaseTransform):
    """Instead of the toolboxes' LoadImageFromFile, which decodes by OpenCV: pixels are the same, files that are wrong are named."""

    def transform(self, results: dict[str, Any]) -> dict[str, Any]:
        """Adds `img`, BGR of 8 bits, and its size."""
        results["img"] = mmcv.rgb2bgr(np.asarray(read_image(results["img_path"])))
        results["img_shape"] = results["ori_shape"] = results["img"].shape[:2]
        return results
