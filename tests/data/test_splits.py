from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from eden_hf.data.splits import SPLIT_WORDS, by_common_names, in_order, split_folders, split_in, split_of

WORDS = [(split, word) for split, words in SPLIT_WORDS.items() for word in words]


@given(st.sampled_from(WORDS), st.sampled_from([str.lower, str.upper, str.title]), st.sampled_from(["", "set", "SET"]))
def test_a_word_names_its_split_in_any_case(word, case, end):
    assert split_of(case(word[1]) + end) == split_in(case(word[1])) == word[0]


@pytest.mark.parametrize(
    ("name", "split"),
    [
        ("train_data", "train"),
        ("xrays-test", "test"),
        ("ValidationImages", "validation"),
        ("2017 TEST set 1", "test"),
        ("train_val", None),
        ("testimony", None),
        ("constraint", None),
        ("", None),
    ],
)
def test_a_word_in_a_name_counts_where_it_is_the_only_one(name, split):
    assert split_in(name) == split
    assert split_of(name) is None


def parted(*images):
    return {split: list(own) for split, own in split_folders(images, Path("root")).items()}


@pytest.mark.parametrize(
    ("images", "splits"),
    [
        (["Train/a", "Val/b", "Test/c"], ["train", "validation", "test"]),
        (["TRAIN/a", "TEST/b"], ["train", "test"]),
        (["Training/n/a", "Testing/n/b"], ["train", "test"]),
        (["xrays/train/n/a", "xrays/test/n/b"], ["train", "test"]),
        (["normal/train/a", "normal/test/b", "sick/train/c"], ["train", "test", "train"]),
        (["train_data/a", "test_data/b"], ["train", "test"]),
        (["ImagesTrain/a", "ImagesTest/test_1/b"], ["train", "test"]),
        (["train/test_7/a", "test/b"], ["train", "test"]),
        (["test/a", "control/b"], ["test", "control"]),
        # No split folders: classes, and a study whose folders happen to be called so.
        (["covid/a", "normal/b"], ["train", "train"]),
        (["test_positive/a", "test_negative/b"], ["train", "train"]),
        (["patient1/test/a", "patient2/b"], ["train", "train"]),
        (["train_val/a", "b"], ["train", "train"]),
        (["test", "train"], ["train", "train"]),
    ],
)
def test_folders_part_images(images, splits):
    expected = {split: [image for image, own in zip(images, splits, strict=True) if own == split] for split in splits}
    assert parted(*images) == expected


def test_images_beside_split_folders_are_counted(caplog):
    assert parted("train/a", "stray", "more/b") == {"train": ["train/a"], "more": ["more/b"]}
    assert "left out 1 images outside the split folders ['more', 'train']" in caplog.text
    assert "{'more': 1}" in caplog.text


@given(st.lists(st.sampled_from(["train", "val", "Valid", "validation", "dev", "extra", "test"]), unique=True))
def test_common_names_lose_no_split(names):
    common = by_common_names(names)
    assert sorted(common.values()) == sorted(names)
    alone = sum(split_of(name) == "validation" for name in names) == 1
    assert ("validation" in common) == (alone or "validation" in names)
    assert [name for name in in_order(common) if name in ("train", "test")] == sorted(
        {"train", "test"} & set(names), reverse=True
    )


def test_which_folders_became_which_split_is_told_once(caplog):
    caplog.set_level("INFO")
    for _ in range(2):
        assert list(parted("tr/a.png", "tr/b.png", "te/c.png")) == ["train"]
    assert caplog.messages == ["root: images by split and folder: train 3 of tr (2), te (1)"]
    parted("Train/x/a.png", "Test/b.png")
    assert caplog.messages[1:] == ["root: images by split and folder: train 1 of Train (1); test 1 of Test (1)"]
