"""Check on one GPU, with synthetic data only, all that only runs there: numbers, memory, speed, compiling, processes. At most 8 minutes.

    make gpu-check                                    # or: python -m benchmarks.gpu
    python -m benchmarks.gpu --only sorting methods   # some of the checks
    python -m benchmarks.gpu --keep-going             # do not stop at the first failure
    python -m benchmarks.gpu --rehearse               # all of it at small size on a CPU

Prints a table. Exit status: 0 if all bounds are kept, 1 after the first that is not, 2 without a GPU or a package that everything needs.
docs/gpu.md says what each check proves.
"""

import argparse
import importlib
import importlib.util
import os
import platform
import sys
import time
import traceback
from pathlib import Path
from tempfile import TemporaryDirectory

REPOSITORY = Path(__file__).resolve().parents[2]
for place in (REPOSITORY, REPOSITORY / "src"):  # also for the processes that are started here
    sys.path.insert(0, str(place))
    os.environ["PYTHONPATH"] = os.pathsep.join([str(place), *filter(None, [os.environ.get("PYTHONPATH")])])

# as they are imported -> as they are installed
REQUIRED = {
    **{name: name for name in ("torch", "torchvision", "timm", "numpy", "scipy", "pydantic", "jaxtyping", "safetensors", "tqdm")},
    **{name: name for name in ("filelock", "matplotlib", "av", "decord")},
    "cv2": "opencv-python-headless",
    "PIL": "pillow",
    "yaml": "pyyaml",
    "pynvml": "nvidia-ml-py",
}
TOOLBOXES = ("mmengine", "mmcv", "mmseg", "mmdet")
# each is a module of this folder; the packages that it needs besides, and those that it needs on a GPU only
CHECKS: dict[str, tuple[tuple[str, ...], tuple[str, ...]]] = {
    "machine": ((), ()),
    "sorting": ((), ("triton",)),
    "search": ((), ()),
    "operators": (TOOLBOXES, ()),
    "methods": ((), ()),
    "upernet": (TOOLBOXES, ()),
    "compiling": ((), ("triton",)),
    "speed": ((), ()),
    "cascade": ((*TOOLBOXES, "faster_coco_eval"), ()),
    "processes": ((), ()),
}
LIMIT = 480.0  # seconds for everything


def missing(packages: tuple[str, ...]) -> list[str]:
    """Those of the packages that are not installed."""
    return [name for name in packages if importlib.util.find_spec(name) is None]


def main() -> int:
    """Parse, check, print; the exit status."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.gpu", description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("--rehearse", action="store_true", help="on a CPU at small size: shows that the script works")
    parser.add_argument("--only", nargs="+", choices=CHECKS, default=[*CHECKS], metavar="CHECK", help=", ".join(CHECKS))
    parser.add_argument("--keep-going", action="store_true", help="after a failure, too")
    options = parser.parse_args()
    if absent := missing(tuple(REQUIRED)):
        print(f"not installed: {', '.join(absent)}; needed: pip install {' '.join(REQUIRED[name] for name in absent)}", file=sys.stderr)
        return 2
    import torch

    if not options.rehearse and not torch.cuda.is_available():
        print("there is no GPU that torch can use here; --rehearse runs the script on a CPU", file=sys.stderr)
        return 2
    return run_checks(options.only, small=options.rehearse, stop=not options.keep_going)


def run_checks(names: list[str], *, small: bool, stop: bool) -> int:
    """Run the checks in their order; the exit status."""
    import torch
    from benchmarks.gpu.report import Finding, Setting, Table

    begun = time.monotonic()
    device = torch.device("cpu") if small else torch.device("cuda", 0)
    where = "rehearsal on a CPU" if small else f"{torch.cuda.get_device_name(device)}, CUDA {torch.version.cuda}"
    print(f"{where}, torch {torch.__version__}, Python {platform.python_version()}")
    if small:
        torch.set_num_threads(1)
    table = Table(small)
    with TemporaryDirectory(prefix="gpu-check-") as folder:
        for name in (name for name in CHECKS if name in names):
            always, on_gpu = CHECKS[name]
            if absent := missing(always if small else (*always, *on_gpu)):
                table.line(name, f"{', '.join(absent)} not installed", "-", "-", 0.0, "skipped")
                continue
            try:
                check = importlib.import_module(f"benchmarks.gpu.{name}").check
                good = table.fill(name, check(Setting(device, small, Path(folder))), stop=stop)
            except Exception:
                traceback.print_exc()
                good, table.failed = False, max(1, table.failed)
            if not good and stop:
                break
            if device.type == "cuda":
                torch.cuda.empty_cache()
        else:
            table.fill("all", iter([Finding("seconds in all", time.monotonic() - begun, at_most=LIMIT, slow=True)]), stop=stop)
    return 1 if table.failed else 0


if __name__ == "__main__":
    sys.exit(main())
