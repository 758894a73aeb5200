"""Pushes against the local Hub: one commit or none, faults on the way, and what is refused."""

import base64
import io
import json
import os
import pickle
import re
import shutil
import signal
import sys
import tempfile
from pathlib import Path

import numpy as np
import pytest
import torch
from accelerate.state import AcceleratorState
from huggingface_hub import get_token
from PIL import Image
from PIL.PngImagePlugin import PngInfo
from safetensors.torch import load_file, save_file

from eden_hf import cli
from eden_hf.hub import upload
from eden_hf.hub.cards import CardError
from eden_hf.hub.push import check_push, publish_model, push_to_hub
from eden_hf.hub.refusals import OVERRIDES, RefusedError
from eden_hf.hub.sums import write_sums
from eden_hf.hub.upload import PublishingError
from eden_hf.training.arguments import HubArguments

from ..hub_server import READ_TOKEN, File
from ..launching import REPOSITORY
from ..training.test_finetuning import phantoms, settings
from ..training.test_pretraining import settings_file
from .conftest import write_card_yaml

SENDS = "preupload|commit|PUT|batch|/tag/|create|xet-write-token|xorbs|shards"
XET = ("xet-write-token", "xorbs", "shards")


@pytest.fixture
def folder(staged, tmp_path):
    """A repository folder to change."""
    return shutil.copytree(staged, tmp_path / "repository")


def contents(folder) -> dict[str, bytes]:
    return {file.relative_to(folder).as_posix(): file.read_bytes() for file in folder.rglob("*") if file.is_file()}


def held(hub) -> dict[str, bytes]:
    files = hub.repository("user/tiny").files
    return {path: file.content for path, file in files.items() if path != ".gitattributes"}


def test_a_push_is_one_commit_to_a_private_repository_with_card_and_config_last(hub, folder):
    push = publish_model(folder, "user/tiny")
    repository = hub.repository("user/tiny")
    assert list(repository.revisions)[1:] == [push.commit]
    assert repository.private
    assert held(hub) == contents(folder)
    assert list(repository.files)[-2:] == ["README.md", "config.json"]
    assert "files differ" in str(push)
    assert push.commit in str(push)


def test_an_unchanged_push_sends_nothing(hub, folder):
    first = publish_model(folder, "user/tiny")
    hub.requests.clear()
    second = publish_model(folder, "user/tiny")
    assert second.commit == first.commit
    assert second.changes == []
    assert hub.asked(SENDS) == []


def test_only_what_changed_is_sent_and_what_vanished_is_deleted_if_asked(hub, folder):
    publish_model(folder, "user/tiny")
    hub.requests.clear()
    shutil.rmtree(folder / "evaluation" / "correspondence")
    (folder / "NOTICE").write_text("It went well.\n")
    push = publish_model(folder, "user/tiny", allow=["card"], delete=True)
    assert {(file.path, file.change) for file in push.changes} == {
        ("NOTICE", "new"),
        ("evaluation/correspondence/results.json", "deleted"),
        ("evaluation/correspondence/results.md", "deleted"),
    }
    assert held(hub) == contents(folder)
    assert ".gitattributes" in hub.repository("user/tiny").files
    assert len(hub.asked("commit")) == 1
    assert hub.asked("PUT /large|xorbs") == []


def test_what_others_added_on_the_hub_stays(hub, folder):
    publish_model(folder, "user/tiny")
    repository = hub.repository("user/tiny")
    theirs = {name: File(b"theirs", False) for name in ("LICENSE", "onnx/model.onnx", ".eval_results/one.yaml")}
    head = repository.commit({**repository.files, **theirs}, "theirs")
    push = publish_model(folder, "user/tiny")
    assert push.commit == head
    assert "kept                   6  onnx/model.onnx" in str(push)
    (folder / "NOTICE").write_text("Another revision.\n")
    write_sums(folder)
    publish_model(folder, "user/tiny")
    assert theirs.keys() <= held(hub).keys()
    assert "onnx/model.onnx" in str(publish_model(folder, "user/tiny", delete=True, dry_run=True))
    publish_model(folder, "user/tiny", delete=True)
    assert theirs.keys() & held(hub).keys() == {".eval_results/one.yaml"}


def test_a_processor_of_an_earlier_model_does_not_stay_beside_another(hub, folder):
    (folder / "processor_config.json").write_text("{}")
    publish_model(folder, "user/tiny", allow=["card"])
    (folder / "processor_config.json").unlink()
    with pytest.raises(
        PublishingError, match=r"processor_config\.json would count for this one: stage it with --onnx"
    ):
        publish_model(folder, "user/tiny", allow=["card"])
    publish_model(folder, "user/tiny", allow=["card"], delete=True)
    assert "processor_config.json" not in held(hub)


def test_a_dry_run_lists_sizes_and_sends_nothing(hub, folder, monkeypatch):
    monkeypatch.delenv("HF_TOKEN")
    push = publish_model(folder, "user/tiny", dry_run=True)
    assert push.commit is None
    assert hub.repositories == {}
    assert hub.asked(SENDS) == []
    size = (folder / "model.safetensors").stat().st_size
    assert f"new       {size:>14,}  model.safetensors" in str(push)
    assert f"{sum(map(len, contents(folder).values())):,} bytes: user/tiny, nothing sent (dry run)" in str(push)


def test_a_public_repository_is_opened_when_it_is_whole(hub, folder):
    publish_model(folder, "user/tiny", public=True, tags=["v1.0"])
    assert not hub.repository("user/tiny").private
    order = [hub.requests.index(hub.asked(pattern)[0]) for pattern in ("create", "commit", "/tag/", "settings")]
    assert order == sorted(order)
    publish_model(folder, "user/tiny")
    assert not hub.repository("user/tiny").private


def test_tags_name_the_revision_and_stay_where_they_are(hub, folder):
    first = publish_model(folder, "user/tiny", tags=["v1.0", "stage-2"])
    tags = hub.repository("user/tiny").tags
    assert tags == {"v1.0": first.commit, "stage-2": first.commit}
    publish_model(folder, "user/tiny", tags=["v1.0"])
    (folder / "NOTICE").write_text("Another revision.\n")
    write_sums(folder)
    hub.requests.clear()
    for dry_run in (True, False):
        with pytest.raises(
            PublishingError, match=r"tag v1\.0 .* another revision.*hf repos tag delete user/tiny v1\.0"
        ):
            publish_model(folder, "user/tiny", tags=["v1.1", "v1.0"], dry_run=dry_run)
    assert hub.asked(SENDS) == []
    assert publish_model(folder, "user/tiny", tags=["v1.1"]).commit == tags["v1.1"] != tags["v1.0"]


@pytest.mark.parametrize("kind", ["500", "cut", "page"])
@pytest.mark.parametrize(
    ("hub", "pattern"),
    [
        *(("plain", pattern) for pattern in ("create", "GET .*tiny$", "/tree/", "preupload", "commit", "/tag/")),
        *(("plain", pattern) for pattern in ("batch", "PUT", "verify")),
        *(("xet", pattern) for pattern in ("commit/", "xet-write-token", "xorbs", "shards")),
    ],
    indirect=["hub"],
)
def test_a_passing_fault_is_overcome(hub, folder, kind, pattern):
    hub.fault(kind, pattern, times=3 if pattern in XET else 1)  # hf_xet tries twice by itself
    push = publish_model(folder, "user/tiny", tags=["v1.0"])
    repository = hub.repository("user/tiny")
    assert hub.faults[0].times == 0
    assert list(repository.revisions)[1:] == [push.commit]
    assert held(hub) == contents(folder)
    assert repository.tags == {"v1.0": push.commit}


def test_a_commit_whose_answer_was_lost_is_not_made_twice(hub, folder):
    hub.fault("lost answer", "commit")
    push = publish_model(folder, "user/tiny")
    assert list(hub.repository("user/tiny").revisions)[1:] == [push.commit]


@pytest.mark.parametrize(
    ("hub", "kind", "pattern", "message"),
    [
        ("plain", "500", "PUT", r"the Hub answers 500 \(.*no revision is left half made; push again later"),
        ("plain", "500", "commit", r"the Hub answers 500 \(something broke\)"),
        ("plain", "cut", "PUT", r"the push broke off \(.+\); no revision is left half made; push again"),
        ("plain", "page", "preupload", r"the push broke off \(what answered is no JSON: .*login page"),
        ("plain", "damage", "PUT", r"the Hub refused the push.*push again \(400: .*sha256"),
        ("xet", "401", "xet-write-token", r"the Hub does not know this token: run `hf auth login --force`.*\(401"),
        ("xet", "403", "xet-write-token", r"this token may not write to user/tiny: .*\(403"),
        ("xet", "404", "xet-write-token", r"there is no user/tiny that this token may see: .*\(404"),
        ("xet", "503", "xet-write-token", r"the Hub answers 503 \(.*push again later"),
        ("xet", "cut", "xet-write-token", r"the push broke off \(.+\); no revision is left half made; push again"),
        ("xet", "401", "xorbs", r"the Hub refused the push; no revision .* \(401"),
        ("xet", "403", "xorbs", r"the Hub refused the push; no revision .* \(403"),
        ("xet", "503", "xorbs", r"the Hub answers 503 \(.*push again later"),
        ("xet", "cut", "xorbs", r"the push broke off \(.+\)"),
        ("xet", "503", "shards", r"the Hub answers 503 \("),
        ("xet", "cut", "shards", r"the push broke off \(.+\)"),
        ("xet", "damage", "xorbs", r"the Hub refused the push.*push again \(400"),
    ],
    indirect=["hub"],
)
def test_a_push_that_fails_leaves_the_last_revision_and_the_next_completes_it(hub, folder, kind, pattern, message):
    first = publish_model(folder, "user/tiny")
    before = held(hub)
    weights = load_file(folder / "model.safetensors")
    save_file({name: tensor + 1 for name, tensor in weights.items()}, folder / "model.safetensors")
    (folder / "NOTICE").write_text("Another revision.\n")
    with pytest.raises(RefusedError, match="the results are of other weights"):
        publish_model(folder, "user/tiny")
    hub.fault(kind, pattern, times=1000)
    with pytest.raises(PublishingError, match=message) as caught:
        publish_model(folder, "user/tiny", tags=["v2.0"], allow=["card"])
    assert "\n" not in str(caught.value)
    repository = hub.repository("user/tiny")
    assert (repository.head, repository.tags, held(hub)) == (first.commit, {}, before)
    hub.faults.clear()
    second = publish_model(folder, "user/tiny", tags=["v2.0"], allow=["card"])
    assert list(repository.revisions)[1:] == [first.commit, second.commit]
    assert held(hub) == contents(folder)
    assert repository.tags == {"v2.0": second.commit}


def test_a_tag_that_failed_is_set_by_the_next_push(hub, folder):
    hub.fault("500", "/tag/", times=1000)
    with pytest.raises(PublishingError, match="the Hub answers 500"):
        publish_model(folder, "user/tiny", tags=["v1.0"])
    hub.faults.clear()
    push = publish_model(folder, "user/tiny", tags=["v1.0"])
    assert list(hub.repository("user/tiny").revisions)[1:] == [push.commit]
    assert hub.repository("user/tiny").tags == {"v1.0": push.commit}


def test_a_repository_that_is_deleted_meanwhile(hub, folder, monkeypatch):
    commit = upload._Pushing._commit

    def late(push, plan, remote):
        hub.repositories.clear()
        return commit(push, plan, remote)

    monkeypatch.setattr(upload._Pushing, "_commit", late)
    with pytest.raises(PublishingError, match=r"there is no user/tiny that this token may see: .* \(404: "):
        publish_model(folder, "user/tiny")


def test_somebody_elses_push_meanwhile_is_not_run_over(hub, folder, monkeypatch):
    publish_model(folder, "user/tiny")
    (folder / "NOTICE").write_text("Ours.\n")
    write_sums(folder)
    commit = upload._Pushing._commit

    def late(push, plan, remote):
        repository = hub.repository("user/tiny")
        repository.commit({**repository.files, "theirs.txt": File(b"Theirs.\n", large=False)}, "theirs")
        return commit(push, plan, remote)

    monkeypatch.setattr(upload._Pushing, "_commit", late)
    with pytest.raises(PublishingError, match="somebody pushed to user/tiny meanwhile"):
        publish_model(folder, "user/tiny")
    assert "theirs.txt" in held(hub)
    assert "NOTICE" not in held(hub)


@pytest.mark.parametrize(
    ("token", "message"),
    [
        (READ_TOKEN, r"this token may not write to user/tiny: take one with write access to user \(.*403"),
        ("hf_wrong", r"the Hub does not know this token: run `hf auth login --force`, or mend HF_TOKEN \(401"),
        (None, r"no Hugging Face token: run `hf auth login`, or set HF_TOKEN"),
    ],
)
def test_tokens_that_may_not_write(hub, folder, monkeypatch, tmp_path, token, message):
    monkeypatch.setattr("huggingface_hub.constants.HF_TOKEN_PATH", str(tmp_path / "none"))
    monkeypatch.delenv("HF_TOKEN") if token is None else monkeypatch.setenv("HF_TOKEN", token)
    with pytest.raises(PublishingError, match=message) as caught:
        publish_model(folder, "user/tiny")
    assert "\n" not in str(caught.value)
    assert hub.repositories == {}


def test_a_token_of_ci_that_cannot_be_had(hub, folder, monkeypatch):
    monkeypatch.setenv("HF_OIDC_RESOURCE", "user/tiny")
    for dry_run in (False, True):
        with pytest.raises(PublishingError, match=r"no token by OIDC: HF_OIDC_RESOURCE is set .*HF_OIDC_ID_TOKEN"):
            publish_model(folder, "user/tiny", dry_run=dry_run)
    monkeypatch.setenv("HF_OIDC_ID_TOKEN", "of-another-repository")
    with pytest.raises(PublishingError, match=r"no token by OIDC: .*404.*check HF_OIDC_RESOURCE"):
        publish_model(folder, "user/tiny")
    assert hub.asked(SENDS) == []


def test_a_file_that_vanishes_meanwhile_is_no_fault_of_the_hub(hub, folder, monkeypatch):
    commit = upload._Pushing._commit

    def late(push, plan, remote):
        (folder / "README.md").unlink()
        return commit(push, plan, remote)

    monkeypatch.setattr(upload._Pushing, "_commit", late)
    with pytest.raises((FileNotFoundError, ValueError), match=r"README\.md"):
        publish_model(folder, "user/tiny")


def test_an_existing_repository_that_the_token_may_only_read(hub, folder, monkeypatch):
    publish_model(folder, "user/tiny")
    (folder / "NOTICE").write_text("Another revision.\n")
    write_sums(folder)
    monkeypatch.setenv("HF_TOKEN", READ_TOKEN)
    with pytest.raises(PublishingError, match="this token may not write to user/tiny"):
        publish_model(folder, "user/tiny")
    assert "NOTICE" not in held(hub)


def test_a_repository_that_stays_hidden(hub, folder, monkeypatch):
    monkeypatch.setattr(upload._Pushing, "_remote", lambda push: None)
    with pytest.raises(PublishingError, match="user/tiny is there, but this token may not see it"):
        publish_model(folder, "user/tiny")


@pytest.mark.parametrize("name", ["tiny", "user/tiny/more", "user/ti ny", "user/", "https://huggingface.co/user/tiny"])
def test_names_that_are_none(hub, folder, name):
    with pytest.raises(PublishingError, match="is no name of a repository"):
        publish_model(folder, name, allow=["card"])
    assert hub.requests == []


@pytest.mark.parametrize("tag", ["", "v 1", "-v1", "main", "v1/2", "v1."])
def test_tags_that_are_none(hub, folder, tag):
    with pytest.raises(PublishingError, match="is no name of a tag"):
        publish_model(folder, "user/tiny", tags=[tag])
    assert hub.requests == []


def png(file):
    Image.linear_gradient("L").save(file, format="PNG")


def dicom(file):
    file.write_bytes(b"\0" * 128 + b"DICM" + b"\0" * 50)


def torch_file(file):
    torch.save({"weight": torch.zeros(2)}, file)


def old_torch_file(file):
    torch.save({"weight": torch.zeros(2)}, file, _use_new_zipfile_serialization=False)


def not_finite(file):
    save_file({"good": torch.zeros(3), "bad": torch.tensor([0.0, float("nan"), float("inf")])}, file)


def in_base64(file):
    picture = io.BytesIO()
    Image.effect_noise((32, 32), 50).save(picture, format="PNG")
    config = json.loads(file.read_text())
    file.write_text(json.dumps(config | {"example": base64.b64encode(picture.getvalue()).decode()}))


def written(text):
    """A writer of a text that holds a picture."""
    return lambda file: file.write_text(text)


JP2 = b"\0\0\0\x0cjP  \r\n\x87\n"  # how JPEG 2000 begins
NOISE = np.random.default_rng(0).integers(0, 256, (32, 32))


def foreign_figure(file):
    file.parent.mkdir(parents=True)
    shutil.copy(file.parents[2] / "training" / "loss.png", file)


def patients_figure(file):
    foreign_figure(file)
    results = json.loads((file.parents[1] / "correspondence" / "results.json").read_text())
    file.with_name("results.json").write_text(json.dumps(results | {"source": "scr"}))


@pytest.mark.parametrize(
    ("name", "write", "override", "reason"),
    [
        ("weights.bin", torch_file, "pickle", r"weights\.bin is a pickle"),
        ("training/weights.txt", torch_file, "pickle", r"training/weights\.txt is a pickle"),
        ("weights.txt", old_torch_file, "pickle", r"weights\.txt is a pickle"),
        ("state.json", lambda file: file.write_bytes(pickle.dumps([1])), "pickle", r"state\.json is a pickle"),
        ("state.pkl", lambda file: file.write_text("nothing"), "pickle", r"state\.pkl is a pickle"),
        ("more.safetensors", not_finite, "weights", r"more\.safetensors: 2 of 3 values of bad are not finite"),
        ("more.safetensors", lambda file: file.write_text("no"), "weights", "cannot be read as safetensors"),
        (
            "more.safetensors",
            lambda file: save_file({"a": torch.zeros(2)}, file, {"from": "/home/jane/xrays/a.pth"}),
            "paths",
            r"the metadata of more\.safetensors holds a path of a machine, '/home/jane/xrays/a\.pth'",
        ),
        (
            "more.safetensors",
            lambda file: save_file({"a": torch.zeros(2)}, file, {"a": base64.b64encode(NOISE.tobytes()).decode()}),
            "images",
            r"the metadata of more\.safetensors holds what looks like an image",
        ),
        (
            "onnx/model.onnx",
            lambda file: (
                file.parent.mkdir(),
                file.write_bytes(b'\x08\x0a File "C:\\Users\\jane\\a.py", line 3, in b'),
            ),
            "paths",
            r"onnx/model\.onnx holds a path of a machine, .*jane.*: export it again",
        ),
        ("example.png", png, "images", r"example\.png is an image \(PNG\) and none of the package's figures"),
        ("NOTICE", written("![](DATA:image/png;base64,aaaa)"), "images", "NOTICE holds what looks like an image"),
        ("NOTICE", lambda file: file.write_bytes(JP2), "images", r"NOTICE is an image \(damaged\)"),
        ("notes.txt", png, "images", r"notes\.txt is an image \(PNG\)"),
        ("training/loss.png", png, "images", "was not drawn by the package"),
        ("evaluation/other/figure.png", foreign_figure, "images", r"has no results\.json beside it"),
        ("evaluation/other/figure.png", patients_figure, "images", "shows images that were measured on"),
        ("config.json", in_base64, "images", r"config\.json holds what looks like an image in base64"),
        ("LICENSE", written(base64.b64encode(NOISE.tobytes()).decode()), "images", "LICENSE holds what looks like an"),
        ("NOTICE", written(base64.encodebytes(NOISE.tobytes()).decode()), "images", "NOTICE holds what looks like an"),
        (
            "conversion.json",
            written(json.dumps([base64.encodebytes(NOISE.tobytes()).decode()])),
            "images",
            r"conversion\.json holds what looks like an image",
        ),
        (
            "conversion.json",
            written(base64.urlsafe_b64encode(NOISE.tobytes()).decode()),
            "images",
            r"conversion\.json holds what looks like an image",
        ),
        ("conversion.json", written(json.dumps(NOISE.tolist())), "images", r"conversion\.json holds .* in numbers"),
        (
            "config.json",
            written('{"source": "/home/jane/xrays"}'),
            "paths",
            r"config\.json holds a path of a machine, '/h",
        ),
        (
            "training/config.yaml",
            written("source: ~/pacs/Doe"),
            "paths",
            r"config\.yaml holds a path of a machine, '~/p",
        ),
        ("conversion.json", written(r'{"of": "C:\\\\Users\\\\x"}'), "paths", "holds a path of a machine"),
        (
            "evaluation/few_shot-frozen.md",
            written('Settings: `{"source": "/home/jane/scr"}`'),
            "paths",
            r"few_shot-frozen\.md holds a path of a machine, '/home/jane/scr'",
        ),
        ("LICENSE", lambda file: file.write_bytes(b"\xff\xfe\x00\x01"), "files", "LICENSE is no text in UTF-8"),
        ("NOTICE", written("\0\1\2"), "files", "NOTICE is no text in UTF-8"),
        ("modeling_eden_patients.py", written("x = 1"), "files", r"modeling_eden_patients\.py is none of the files"),
        ("modeling_eden.py", written("x = 1"), "files", r"modeling_eden\.py is not the code of this version"),
        ("archive.dat", lambda file: file.write_text("x"), "files", r"archive\.dat is none of the files that"),
        ("patients.json", lambda file: file.write_text("[]"), "files", r"patients\.json is none of the files that"),
        ("training/a.jsonl", lambda file: file.write_text("1"), "files", r"training/a\.jsonl is none of the files"),
    ],
)
def test_files_that_are_refused(hub, folder, name, write, override, reason):
    write(folder / name)
    allowed = [other for other in OVERRIDES if other != override]
    with pytest.raises(RefusedError, match=rf"{reason}.*\(--allow {override} publishes it all the same\)") as caught:
        publish_model(folder, "user/tiny", allow=allowed)
    assert len(caught.value.refusals) == 1
    assert hub.requests == []
    publish_model(folder, "user/tiny", allow=["card", override])
    assert name in held(hub)


def test_names_in_the_metadata_of_weights_are_refused_until_accepted(hub, folder, tmp_path):
    weights = load_file(folder / "model.safetensors")
    save_file(weights, folder / "model.safetensors", {"format": "pt", "made": "for Anna Nowak"})
    with pytest.raises(RefusedError, match=r"model\.safetensors: name name of a person"):
        publish_model(folder, "user/tiny", allow=["card"])
    kept = tmp_path / "kept.csv"
    kept.write_text("file,kind,where,found\nmodel.safetensors,name,name of a person,Anna Nowak\n")
    assert publish_model(folder, "user/tiny", allow=["card"], accepted=str(kept)).commit


def test_a_damaged_figure_is_named(hub, folder):
    (folder / "training" / "loss.png").write_bytes(JP2)
    with pytest.raises(RefusedError, match=r"loss\.png is an image \(damaged\) and cannot be read"):
        publish_model(folder, "user/tiny")


def test_names_in_records_are_refused_until_accepted(hub, folder, tmp_path):
    data = json.loads((folder / "training" / "data.json").read_text())
    (folder / "training" / "data.json").write_text(json.dumps(data | {"source": "Nowak_Anna", "at": "2019-02-03"}))
    with pytest.raises(RefusedError, match=r"1 name\n.*training/data\.json: name name of a person"):
        publish_model(folder, "user/tiny", allow=["card"])
    kept = tmp_path / "kept.csv"
    kept.write_text("file,kind,where,found\ntraining/data.json,name,name of a person,Nowak Anna\n")
    assert publish_model(folder, "user/tiny", allow=["card"], accepted=str(kept)).commit


def test_a_card_does_not_go_to_other_weights(hub, folder):
    """Without weights of its own, it would stand beside those that the Hub keeps."""
    publish_model(folder, "user/tiny")
    (folder / "model.safetensors").unlink()
    with pytest.raises(RefusedError, match=r"has no weights \(model\.safetensors\).*--allow weights"):
        publish_model(folder, "user/tiny", allow=["card"])


@pytest.mark.parametrize(
    ("name", "write", "kind"),
    [("notes.txt", dicom, "attribute"), ("scan.nii.gz", lambda file: file.write_text("x"), "unreadable")],
)
def test_medical_images_are_looked_at_even_if_images_may_go(hub, folder, name, write, kind):
    write(folder / name)
    write_sums(folder)
    with pytest.raises(RefusedError, match=rf"{name} is a DICOM file.*\(--allow images publishes"):
        publish_model(folder, "user/tiny")
    with pytest.raises(RefusedError, match=rf"it may tell who the patients are: (.|\n)*{name}: {kind}"):
        publish_model(folder, "user/tiny", allow=["images"])
    assert hub.repositories == {}


@pytest.mark.parametrize("name", ["training/config.yaml", "README.md", "configuration_eden.py"])
def test_tokens_never_go(hub, folder, name):
    with (folder / name).open("a") as file:
        file.write("# hf_" + "aB3" * 12)
    with pytest.raises(
        RefusedError, match=rf"{name} holds a token of the Hub: take it out, and revoke it at the Hub$"
    ):
        publish_model(folder, "user/tiny", allow=OVERRIDES)
    assert hub.requests == []


def test_parquet_never_goes_into_a_model(hub, folder):
    (folder / "evaluation" / "images.parquet").write_bytes(b"PAR1")
    with pytest.raises(RefusedError, match=r"images\.parquet is Parquet, .* push it as a data set$"):
        publish_model(folder, "user/tiny", allow=OVERRIDES)
    assert hub.requests == []


def test_the_figure_of_few_shot_scores_goes(hub, folder):
    shutil.copy(folder / "training" / "loss.png", folder / "evaluation" / "few_shot-frozen.png")
    write_sums(folder)
    publish_model(folder, "user/tiny")
    assert "evaluation/few_shot-frozen.png" in held(hub)


@pytest.mark.parametrize("name", ["LICENSE", "model.onnx", "model.onnx.data", "onnx/model.onnx.data"])
def test_files_of_known_kinds_go(hub, folder, name):
    (folder / name).parent.mkdir(exist_ok=True)
    (folder / name).write_text("content")
    write_sums(folder)
    publish_model(folder, "user/tiny")
    assert name in held(hub)


@pytest.mark.parametrize("key", ["license", "training_data", "intended_use"])
def test_a_card_without_licence_data_or_use_is_refused(hub, folder, key):
    file = write_card_yaml(folder.parent, **{key: None})
    shutil.copy(file, folder / "card.yaml")
    with pytest.raises(RefusedError, match=rf"card\.yaml: .*{key}.*\(--allow card publishes"):
        publish_model(folder, "user/tiny")
    with pytest.raises(CardError, match=rf"declared\.yaml: .*{key}"):
        check_push(HubArguments(push_to_hub=True, card=str(file)))
    assert hub.requests == []


def test_a_card_of_another_repository_is_refused(hub, folder):
    with pytest.raises(RefusedError, match=r"user/other.*--allow card"):
        publish_model(folder, "user/other")


def test_an_override_that_is_none(hub, folder):
    with pytest.raises(ValueError, match=r"`allow` must be of card, pickle.*got everything"):
        publish_model(folder, "user/tiny", allow=["everything"])


def test_hidden_files_stay_behind(hub, folder):
    (folder / ".cache").mkdir()
    (folder / ".cache" / "secret.txt").write_text("hidden")
    publish_model(folder, "user/tiny")
    assert not any(path.startswith(".cache") for path in held(hub))


def test_nothing_to_publish(hub, tmp_path):
    with pytest.raises(FileNotFoundError, match=r"nothing to publish in .*absent"):
        publish_model(tmp_path / "absent", "user/tiny", allow=["card"])


def test_a_run_is_staged_and_published_in_one_call(hub, run, report, tmp_path):
    card = str(write_card_yaml(tmp_path))
    machine = {str(tmp_path), str(run.parent), str(Path.home()), str(REPOSITORY), sys.prefix, get_token()} - {"/"}
    assert re.search("|".join(map(re.escape, machine)), (run / "config.yaml").read_text())
    check_push(HubArguments(push_to_hub=True, card=card))
    assert hub.requests == []
    push_to_hub(str(run / "last"), "user/tiny", card, results=[str(report)], output=str(tmp_path / "kept"))
    assert held(hub) == contents(tmp_path / "kept")
    for name, content in contents(tmp_path / "kept").items():
        assert not re.search("|".join(map(re.escape, machine)).encode(), content), name
    hub.requests.clear()
    assert push_to_hub(str(run / "last"), "user/tiny", card, results=[str(report)]).changes == []
    assert push_to_hub(str(tmp_path / "kept"), "user/tiny").changes == []
    with pytest.raises(CardError, match="run is not staged: give `card`, YAML with model_id, license"):
        push_to_hub(str(run), "user/tiny")
    assert hub.asked(SENDS) == []


def test_sigterm_while_a_run_is_pushed_leaves_nothing_here_and_the_old_revision_there(
    hub, run, report, tmp_path, monkeypatch
):
    push = str(run / "last"), "user/tiny", str(write_card_yaml(tmp_path)), [str(report)]
    scratch = tmp_path / "scratch"
    scratch.mkdir()
    with monkeypatch.context() as stopped:
        stopped.setattr(tempfile, "tempdir", str(scratch))
        stopped.setattr(upload._Pushing, "_commit", lambda *given: os.kill(os.getpid(), signal.SIGTERM))
        with pytest.raises(SystemExit) as left:
            push_to_hub(*push)
    assert left.value.code == 128 + signal.SIGTERM
    assert list(scratch.iterdir()) == []
    before = len(hub.repository("user/tiny").revisions)
    push_to_hub(*push)
    assert len(hub.repository("user/tiny").revisions) == before + 1


@pytest.mark.parametrize("fault", ["offline", "unreachable"])
def test_a_dry_run_needs_no_network(fault, hub, folder, monkeypatch, caplog):
    if fault == "offline":
        monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    else:
        monkeypatch.setattr("huggingface_hub.constants.ENDPOINT", "http://127.0.0.1:9")
    push = publish_model(folder, "user/tiny", dry_run=True)
    assert {file.change for file in push.files} == {"new"}
    assert "not compared with the Hub, so that every file counts as new: " in caplog.text


def test_offline_is_told(hub, folder, monkeypatch):
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    with pytest.raises(ConnectionError, match="HF_HUB_OFFLINE"):
        publish_model(folder, "user/tiny")


def test_a_finished_pretraining_run_is_published_if_asked(hub, tmp_path):
    card = write_card_yaml(tmp_path)
    cli.pretrain(["--config", str(settings_file(tmp_path, run={"push_to_hub": True, "card": str(card)}))])
    AcceleratorState._reset_state(reset_partial_state=True)
    assert {"README.md", "model.safetensors", "training/metrics.json"} <= held(hub).keys()
    assert json.loads(held(hub)["training/data.json"])["images"] == 20
    assert (tmp_path / "run" / "last").exists()


def refused(command, *arguments, capsys):
    """What a command says that ends with status 2."""
    with pytest.raises(SystemExit, match=r"^2$"):
        command(list(arguments))
    return capsys.readouterr().err


def test_a_run_with_a_bad_card_does_not_start(hub, tmp_path, capsys):
    card = write_card_yaml(tmp_path, license=None)
    config = settings_file(tmp_path, run={"push_to_hub": True, "card": str(card)})
    said = refused(cli.pretrain, "--config", str(config), capsys=capsys)
    assert re.search(r"eden pretrain: .*declared\.yaml: .*license", said)
    recipe = settings(tmp_path / "tuned", phantoms(), run={"push_to_hub": True, "card": str(card)})
    (tmp_path / "recipe.yaml").write_text(recipe.to_yaml())
    said = refused(cli.finetune, "--config", str(tmp_path / "recipe.yaml"), capsys=capsys)
    assert re.search(r"eden finetune: .*declared\.yaml: .*license", said)
    with pytest.raises(ValueError, match=r"`run\.card` must be given with run\.push_to_hub"):
        settings(tmp_path, phantoms(), run={"push_to_hub": True})
    assert {file.name for file in tmp_path.iterdir()} <= {"declared.yaml", "run.yaml", "recipe.yaml"}


def test_the_commands_stage_check_and_push(hub, run, report, tmp_path, capsys):
    card, folder = str(write_card_yaml(tmp_path)), tmp_path / "repository"
    named = ["--source", str(run / "last"), "--card", card, "--results", str(report)]
    cli.stage([*named, "--output", str(folder), "--half"])
    cli.card(["check", str(folder)])
    assert "README.md is good" in capsys.readouterr().out
    cli.push(["--source", str(folder), "--repo_id", "user/tiny", "--tags", "v1.0"])
    assert "model.safetensors" in capsys.readouterr().out
    assert held(hub) == contents(folder)
    (folder / "README.md").write_text("# Nothing")
    with pytest.raises(SystemExit) as done:
        cli.card(["check", str(folder)])
    assert done.value.code == 1
    said = refused(cli.push, "--source", str(folder), "--repo_id", "user/tiny", capsys=capsys)
    assert re.search(r"eden push: .*is not published:\n", said)
    other = ["--source", str(tmp_path), "--card", card, "--output", str(tmp_path / "other")]
    assert re.search(r"eden stage: .*neither a model folder", refused(cli.stage, *other, capsys=capsys))
    cli.card(["write", str(folder)])
    assert publish_model(folder, "user/tiny").changes == []


def test_a_finished_fine_tuning_run_is_published_with_its_results(hub, tmp_path, monkeypatch):
    monkeypatch.setattr("eden_hf.evaluation.statistics.RESAMPLES", 50)
    card = write_card_yaml(tmp_path)
    recipe = settings(tmp_path / "tuned", phantoms(), steps=3, run={"push_to_hub": True, "card": str(card)})
    (tmp_path / "recipe.yaml").write_text(recipe.to_yaml())
    cli.finetune(["--config", str(tmp_path / "recipe.yaml")])
    assert {"README.md", "model.safetensors", "training/loss.png", "evaluation/tuned/results.json"} <= held(hub).keys()
    assert not [path for path in held(hub) if path.endswith("masks.png")]
    assert len(json.loads(held(hub)["training/data.json"])["list_hash"]) == 64


def test_images_that_may_go_and_our_figures_are_looked_at_as_well(hub, folder):
    figure = folder / "training" / "loss.png"
    with Image.open(figure) as drawn:
        told = PngInfo()
        for name, text in {**drawn.info, "Author": "Jane Doe"}.items():
            if isinstance(text, str):
                told.add_text(name, text)
        drawn.save(figure, pnginfo=told)
    Image.new("L", (32, 32)).save(folder / "Smith_John.png")
    write_sums(folder)
    with pytest.raises(RefusedError) as caught:
        publish_model(folder, "user/tiny", allow=["images", "files"])
    assert "Smith_John.png: name name of a person\n  training/loss.png: tag Author\n" in str(caught.value)
    assert [refusal.override for refusal in caught.value.refusals] == [None]
    assert hub.repositories == {}
