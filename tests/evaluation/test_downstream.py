import dataclasses

import numpy as np
import pytest
from datasets import DatasetDict

from eden_hf.data.tasks import load_source_task
from eden_hf.evaluation import downstream, statistics
from eden_hf.training.finetune_arguments import FinetuneArguments, TaskArguments


@pytest.mark.parametrize(("column", "patients"), [(None, 8), ("who", 2)])
def test_images_of_a_patient_are_drawn_together(column, patients, monkeypatch):
    """Eight test images, four of each patient: with the column named the intervals are over two."""
    monkeypatch.setattr(statistics, "RESAMPLES", 50)
    task = load_source_task("phantoms:8", "segmentation", mask_columns=["heart"])
    rows = next(iter(task.splits.values())).add_column("who", list(np.repeat(["a", "b"], 4)))
    task = dataclasses.replace(task, splits=DatasetDict(train=rows, test=rows))
    arguments = FinetuneArguments(task=TaskArguments(patient_column=column))
    monkeypatch.setattr(downstream, "load_run", lambda folder: (arguments, task, "dice"))
    results = downstream.evaluate_mean_mask("a run")
    assert results.values["dice"].n == patients
    assert results.settings["images"] == 8
