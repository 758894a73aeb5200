# /// script
# requires-python = ">=3.11"
# dependencies = ["eden_hf[dicom]"]
# ///
"""Pretrain on one rented GPU of Hugging Face Jobs, with the run kept in a bucket: docs/rented-gpu.md.

hf jobs uv run --flavor h200 --timeout 12h --attempts 5 --secrets HF_TOKEN \
    scripts/hf_jobs_pretrain.py --bucket user/adam --config adam_resnet50_single_gpu.yaml --data.source user/xrays

A job that is preempted begins again (`--attempts`), takes the run out of the bucket and goes on from its last
checkpoint. Options that are not of this script are those of `eden pretrain`.
"""

import argparse
import logging
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

from huggingface_hub import HfApi

from eden_hf.cli import pretrain

logger = logging.getLogger("eden_hf.hf_jobs_pretrain")


def main(words: list[str] | None = None) -> None:
    """Restore the run, train, and bring it back to the bucket every few minutes and at the end."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--bucket", required=True, help="user/name of a bucket; made, private, if it is not there")
    parser.add_argument("--minutes", type=float, default=10, help="between two copies of the run")
    parser.add_argument("--output", default="run", help="folder of the run on the job's disk")
    parser.add_argument("--config", help="settings: a file here, or by its path in the bucket under configs/")
    chosen, options = parser.parse_known_args(words)

    api, place, folder = HfApi(), f"hf://buckets/{chosen.bucket}", Path(chosen.output)
    api.create_bucket(chosen.bucket, private=True, exist_ok=True)
    api.sync_bucket(f"{place}/run", str(folder), quiet=True)
    resumed = ["--resume"] if any(folder.glob("checkpoints/*")) else []
    config = [f"--config={_settings(api, place, chosen.config)}"] if chosen.config else []
    with kept(lambda: keep(api, folder, f"{place}/run"), 60 * chosen.minutes):
        pretrain([*config, *options, f"--run.output_dir={folder}", *resumed])


def keep(api: HfApi, folder: Path, place: str) -> None:
    """Copy a run to a bucket, and only when all of it is there delete what the run has deleted.

    So at each moment the bucket holds one whole checkpoint at least. Hidden files are those half written.
    """
    for delete in (False, True):
        api.sync_bucket(str(folder), place, delete=delete, exclude=[".*", "*/.*"], quiet=True)


@contextmanager
def kept(copy: Callable[[], None], seconds: float) -> Iterator[None]:
    """Copy every so many seconds while the block runs, and once after it; a copy that fails is told and done again."""
    over = threading.Event()

    def work() -> None:
        while not over.wait(seconds):
            try:
                copy()
            except Exception as error:  # a lost connection, or a file that training has replaced meanwhile
                logger.warning("the run was not copied: %s; again in %.0f minutes", error, seconds / 60)

    worker = threading.Thread(target=work, daemon=True)
    worker.start()
    try:
        yield
    finally:
        over.set()
        worker.join()
        copy()


def _settings(api: HfApi, place: str, config: str) -> Path:
    """The file of settings, fetched from the bucket if it is not here: a job starts with this script alone."""
    if Path(config).is_file():
        return Path(config)
    fetched = Path("configs")
    api.sync_bucket(f"{place}/configs", str(fetched), include=[config], quiet=True)
    if not (fetched / config).is_file():
        raise SystemExit(f"no settings {config}: put them into the bucket (hf buckets sync configs/ {place}/configs)")
    return fetched / config


if __name__ == "__main__":
    main()
