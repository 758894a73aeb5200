"""Data sets: what must be declared, and what the card then says. That they load is in test_round_trip.py."""

import pytest
from huggingface_hub import DatasetCard

from eden_hf.data.anatomy_crops import build_anatomy_crops
from eden_hf.data.phi import check_phi, checking
from eden_hf.data.phi.burned_in import Text
from eden_hf.hub.cards import CardError
from eden_hf.hub.datasets import publish_dataset
from eden_hf.hub.push import push_to_hub
from eden_hf.hub.refusals import RefusedError

from .conftest import write_dataset_yaml


@pytest.fixture
def crops(tmp_path):
    build_anatomy_crops("phantoms:2", tmp_path / "crops", levels=(0, 1), max_level=None)
    return tmp_path / "crops"


def test_one_commit_with_a_card_of_what_is_in_it_and_what_was_declared(hub, crops, tmp_path):
    citation = "@misc{phantoms,\n  title = {Phantoms}\n}"
    card = write_dataset_yaml(tmp_path, url="https://example.org/phantoms", citation=citation)
    push = publish_dataset(crops, "user/crops", card, tags=["v1.0"])
    repository = hub.repository("user/crops", "dataset")
    assert list(repository.revisions)[1:] == [push.commit]
    assert repository.private
    assert {path for path in repository.files if path.endswith(".parquet")} == {
        "level-0/train-00000-of-00001.parquet", "level-1/train-00000-of-00001.parquet",
    }  # fmt: skip
    published = DatasetCard(repository.files["README.md"].content.decode())
    data = published.data.to_dict()
    assert data["license"] == "cc0-1.0"
    assert [config["config_name"] for config in data["configs"]] == ["level-0", "level-1"]
    assert [info["splits"][0]["num_examples"] for info in data["dataset_info"]] == [2, 4]
    assert {"image", "box", "parent"} <= {feature["name"] for feature in data["dataset_info"][0]["features"]}
    for said in ('load_dataset("user/crops", "level-1")', "Drawn by the package; images of nobody.", citation,
                 "Source: https://example.org/phantoms", "Licence: cc0-1.0."):  # fmt: skip
        assert published.text.count(said) == 1, said
    assert "unknown" not in published.text


def test_publishing_again_sends_nothing_and_a_new_declaration_the_card_alone(hub, crops, tmp_path):
    first = publish_dataset(crops, "user/crops", write_dataset_yaml(tmp_path))
    assert publish_dataset(crops, "user/crops", write_dataset_yaml(tmp_path)).commit == first.commit
    other = write_dataset_yaml(
        tmp_path, license="other", license_name="Ours", license_link="https://example.org/terms", provenance="Drawn."
    )
    push = publish_dataset(crops, "user/crops", other)
    assert [file.path for file in push.changes] == ["README.md"]
    card = hub.repository("user/crops", "dataset").files["README.md"].content.decode()
    assert "Licence: [Ours](https://example.org/terms)." in card
    assert card.count("## Provenance") == card.count("## Terms") == 1
    assert "images of nobody" not in card


def test_the_folder_stays_as_it_is(hub, crops, tmp_path):
    before = {file: file.read_bytes() for file in crops.rglob("*") if file.is_file()}
    publish_dataset(crops, "user/crops", write_dataset_yaml(tmp_path), dry_run=True)
    publish_dataset(crops, "user/crops", write_dataset_yaml(tmp_path))
    assert {file: file.read_bytes() for file in crops.rglob("*") if file.is_file()} == before
    (crops / "patients.jsonl").write_text("{}")
    with pytest.raises(RefusedError, match=r"patients\.jsonl is none of the files that the repository of a dataset"):
        publish_dataset(crops, "user/crops", write_dataset_yaml(tmp_path, license="cc-by-4.0"))
    assert {file: file.read_bytes() for file in before} == before


@pytest.mark.parametrize(
    ("declared", "message"),
    [
        (
            {"license": "unknown"},
            "`license` must be one of the Hub's licences, or `other` with its name and link, got 'unknown'",
        ),
        ({"license": "other"}, "`license_name` must be given, since the license is `other`"),
        ({"license": None}, "license"),
        ({"provenance": " "}, "`provenance` must be said: where the images are from"),
        ({"images_may_be_shared": False}, "`images_may_be_shared` must be true: a data set shares its images"),
        ({"images_may_be_shared": "perhaps"}, "images_may_be_shared"),
        ({"licence": "cc0-1.0"}, "'licence' is not accepted; its keys are license, provenance, images_may_be_shared"),
    ],
)
def test_declarations_that_do_not_do(hub, crops, tmp_path, declared, message):
    card = write_dataset_yaml(tmp_path, **declared)
    with pytest.raises(CardError, match=rf"declared_dataset\.yaml.*{message}"):
        publish_dataset(crops, "user/crops", card)
    assert hub.requests == []


def test_nothing_goes_without_a_declaration(hub, crops, tmp_path):
    with pytest.raises(CardError, match="a data set needs `card`"):
        push_to_hub(str(crops), "user/crops", repo_type="dataset")
    with pytest.raises(CardError, match=r"absent\.yaml is missing: write one; its keys are license"):
        push_to_hub(str(crops), "user/crops", str(tmp_path / "absent.yaml"), repo_type="dataset")
    assert hub.requests == []


def test_a_folder_that_eden_crops_did_not_make(hub, crops, tmp_path):
    card = write_dataset_yaml(tmp_path)
    (crops / "README.md").write_text("# Some images\n")
    with pytest.raises(CardError, match="is no card of anatomy crops: make the folder with eden crops"):
        publish_dataset(crops, "user/crops", card)
    with pytest.raises(CardError, match=r"absent/README\.md is no card of anatomy crops"):
        publish_dataset(tmp_path / "absent", "user/crops", card)


def test_missing_parquet_and_loose_images_are_refused(hub, crops, tmp_path):
    (crops / "level-0" / "train-00000-of-00001.parquet").unlink()
    (crops / "level-1" / "image.dat").write_bytes(b"\0" * 128 + b"DICM")
    with pytest.raises(RefusedError) as caught:
        publish_dataset(crops, "user/crops", write_dataset_yaml(tmp_path))
    assert [refusal.override for refusal in caught.value.refusals] == ["files", "images"]
    assert "level-0/train-*.parquet, which the card names, is not there" in str(caught.value)
    assert "image.dat is a DICOM file" in str(caught.value)


def test_images_that_may_tell_of_patients_are_refused_until_each_is_accepted(hub, crops, tmp_path, monkeypatch):
    monkeypatch.setattr(checking, "find_text", lambda picture: [Text((1, 2, 30, 9), "DOE^JANE", 0.9)])
    (crops / "level-1" / "skipped.jsonl").write_text('{"source_id": "Smith_John/1.png", "reason": "torn"}\n')
    card = write_dataset_yaml(tmp_path)
    with pytest.raises(RefusedError, match="it may tell who the patients are: 36 text, 1 name") as caught:
        publish_dataset(crops, "user/crops", card)
    assert "image: box 1,2,30,9" in str(caught.value)
    assert "--accepted" in str(caught.value)
    assert "DOE" not in str(caught.value)
    assert hub.repositories == {}
    kept = tmp_path / "phi.csv"
    check_phi([str(crops)], str(kept))
    with kept.open("a") as file:
        file.write("level-1/skipped.jsonl,name,name of a person,Smith John\n")
    rows = kept.read_text().splitlines(keepends=True)
    kept.write_text("".join(rows[:1] + rows[2:]))
    with pytest.raises(RefusedError, match="1 text"):
        publish_dataset(crops, "user/crops", card, accepted=str(kept))
    kept.write_text("".join(rows))
    assert push_to_hub(str(crops), "user/crops", str(card), repo_type="dataset", accepted=str(kept)).commit
