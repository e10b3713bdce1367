"""Import the toolboxes without transformers and without pycocotools.

They look for transformers, and nothing here uses it: two seconds of every job, where it is installed. pycocotools they import by name;
faster-coco-eval, which computes the scores of masks, has the same functions with equal results.
"""

import sys
from collections.abc import Iterator
from contextlib import contextmanager

COCO_MODULES = ("pycocotools", "pycocotools.coco", "pycocotools.cocoeval", "pycocotools.mask")


@contextmanager
def toolbox_imports() -> Iterator[None]:
    """Let `import transformers` fail inside, unless it has been imported before, and let `import pycocotools` give faster-coco-eval.

    mmengine then registers no Adafactor, and mmdet none of its text encoders; both ask first whether it is there. Afterwards, both names
    are what they were: a program that imports this package gets its own pycocotools.
    """
    import faster_coco_eval

    names = COCO_MODULES if "transformers" in sys.modules else ("transformers", *COCO_MODULES)
    before = {name: sys.modules[name] for name in names if name in sys.modules}
    if "transformers" in names:
        sys.modules["transformers"] = None  # type: ignore[assignment]  # what Python takes for a module that cannot be imported
    faster_coco_eval.init_as_pycocotools()
    try:
        yield
    finally:
        for name in names:
            del sys.modules[name]
        sys.modules.update(before)
