import pickle

import datasets
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from PIL import Image

from eden_hf.data.parquet import damage_told
from eden_hf.data.sources import find_source, load_source
from eden_hf.evaluation.statistics import load_values
from eden_hf.retrieval.searching import _batches


@pytest.fixture
def damaged(tmp_path, monkeypatch):
    """A folder of two files of three row groups each; the second group of the second file cannot be read."""
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path / "cache")
    folder = tmp_path / "source"
    folder.mkdir()
    pictures = [Image.fromarray(np.full((8, 8), value, np.uint8)) for value in range(6)]
    rows = datasets.Dataset.from_dict({"image": pictures}, features=datasets.Features({"image": datasets.Image()}))
    for name in ("train-0.parquet", "train-1.parquet"):
        pq.write_table(pa.table(rows.data.table), folder / name, row_group_size=2)
    page = pq.read_metadata(folder / name).row_group(1).column(0).data_page_offset
    content = bytearray((folder / name).read_bytes())
    content[page : page + 50] = bytes(50)
    (folder / name).write_bytes(content)
    return folder


@pytest.mark.parametrize("streaming", [False, True])
def test_damaged_rows_are_told_by_file_and_row_group_also_when_they_are_read_later(damaged, streaming):
    with pytest.raises(ValueError, match=r"source cannot be read \(.*train-1\.parquet, row group 2 of 3: OSError: "):
        list(load_source(damaged, streaming=streaming))


def test_a_stream_still_goes_to_other_processes(damaged):
    stream = find_source(damaged / "train-0.parquet").load("train", streaming=True)
    assert len(list(pickle.loads(pickle.dumps(stream)))) == 6


@pytest.mark.parametrize("read", [lambda file: list(_batches(file)), load_values])
def test_other_files_of_the_package_are_told_too(damaged, read):
    with pytest.raises(ValueError, match=r"train-1\.parquet, row group 2 of 3"):
        read(str(damaged / "train-1.parquet"))


def test_errors_of_the_disk_stay():
    with pytest.raises(PermissionError), damage_told("source"):
        raise PermissionError(13, "no")
