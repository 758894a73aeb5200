import datasets
import pytest
from datasets import Dataset

from eden_hf.data.caches import datasets_cache, writable
from eden_hf.data.errors import SourceError
from eden_hf.data.phantoms import phantom_dataset
from eden_hf.data.sources import load_source
from eden_hf.data.tasks import load_source_task, load_task

from .readers import layouts

MESSAGE = r"nothing can be kept in .*file/cache .*HF_DATASETS_CACHE or HF_HOME"


def test_a_cache_is_made(tmp_path):
    assert writable(tmp_path / "a" / "b", "x").is_dir()


def test_a_read_only_cache_is_told_with_the_mend(tmp_path, monkeypatch):
    monkeypatch.setattr("os.access", lambda path, mode: False)
    with pytest.raises(SourceError, match=r"\(Permission denied\): choose another by --there"):
        writable(tmp_path, "--there")


@pytest.mark.parametrize("kind", ["parquet", "masks", "named task"])
def test_whatever_is_kept_by_datasets_names_its_cache(tmp_path, monkeypatch, kind):
    (tmp_path / "file").write_text("no folder")
    phantom_dataset(2, size=32).to_parquet(tmp_path / "train-0.parquet")
    layouts.drive(tmp_path / "drive")
    data = Dataset.from_parquet(str(tmp_path / "train-0.parquet"), cache_dir=str(tmp_path / "first"))
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path / "file" / "cache")
    use = {
        "parquet": lambda: load_source(tmp_path / "train-0.parquet"),
        "masks": lambda: load_source_task(data, "segmentation", mask_columns=["heart"]),
        "named task": lambda: load_task("drive", tmp_path / "drive"),
    }[kind]
    with pytest.raises(SourceError, match=MESSAGE):
        use()
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path / "cache")
    assert datasets_cache() == tmp_path / "cache"
    use()
