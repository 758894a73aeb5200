"""What is published, by `eden push` and at the end of a run: a model with its card checked, a data set, or a Space."""

import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Unpack

from eden_hf.data.stopping import undone_on_sigterm
from eden_hf.hub.cards import CardError, EdenModelCardData, check_card
from eden_hf.hub.datasets import publish_dataset
from eden_hf.hub.refusals import Override, Refusal, RepoType
from eden_hf.hub.repository import stage_model
from eden_hf.hub.space import SpaceError
from eden_hf.hub.upload import Push, PushOptions, check_access, publish
from eden_hf.training.arguments import HubArguments


def push_to_hub(
    source: str,
    repo_id: str,
    card: str | None = None,
    results: Sequence[str] = (),
    output: str | None = None,
    pretraining: bool = False,
    repo_type: RepoType = "model",
    public: bool = False,
    tags: Sequence[str] = (),
    dry_run: bool = False,
    delete: bool = False,
    allow: Sequence[Override] = (),
    accepted: str | None = None,
) -> Push:
    """Publish a model, a data set or a Space on the Hub, in one commit.

    Args:
        source: A run, its `best` or `last`, a model folder; without `card` a repository folder that was staged
            before; of a data set a folder of `eden crops`; of a Space one of `eden space`.
        repo_id: `user/name`. A repository that is not there yet is made, private.
        card: YAML with what only the publisher can say (`EdenModelCardData`, `EdenDatasetCardData`).
        results: Folders of result files of this model.
        output: Where to keep the repository folder; by default nowhere.
        pretraining: Send along what is needed to go on pretraining: student, teacher, projector, memory bank.
        repo_type: `model`, `dataset` or `space`.
        public: Open the repository to everybody, once it is whole.
        tags: Names for the revision, such as `v1.0` or a stage's.
        dry_run: Send nothing; tell what would go.
        delete: Delete what is in the repository and not in the folder; hidden files, the Hub's own, stay.
        allow: What to publish although it should not be: `card`, `pickle`, `weights`, `images`, `files`,
            `paths`.
        accepted: CSV of `eden check-phi`: what may tell of patients, was looked at and may go.

    Raises:
        CardError, StagingError, RefusedError: what is to be published is not as it must be.
        PublishingError: the Hub does not take it; no revision is left half made.
    """
    options: PushOptions = {
        "public": public, "tags": tags, "dry_run": dry_run, "delete": delete, "allow": allow, "accepted": accepted,
    }  # fmt: skip
    if repo_type == "space":
        if card is not None:
            raise CardError("a Space takes no `card`: eden space has written its README.md")
        return publish_space(source, repo_id, **options)
    if repo_type == "dataset":
        if card is None:
            raise CardError("a data set needs `card`: a YAML file with license, provenance and images_may_be_shared")
        return publish_dataset(source, repo_id, card, **options)
    if card is None:
        if not (Path(source) / "card.yaml").is_file():
            raise CardError(
                f"{source} is not staged: give `card`, YAML with model_id, license, intended_use, training_data"
            )
        return publish_model(source, repo_id, **options)
    with undone_on_sigterm(), tempfile.TemporaryDirectory() as scratch:
        folder = output or Path(scratch) / "repository"
        stage_model(source, folder, card, results, pretraining, images="images" in allow)
        return publish_model(folder, repo_id, **options)


def publish_model(folder: str | Path, repo_id: str, **options: Unpack[PushOptions]) -> Push:
    """Publish the folder of a model (see `stage_model`) on the Hub; arguments and errors of `publish`.

    Raises:
        RefusedError: the card lacks something or does not fit the files, or there are no weights, besides.
    """
    folder = Path(folder)
    problems = [Refusal(problem, "card") for problem in check_card(folder, model_id=repo_id)]
    if not any(folder.glob("*.safetensors")):  # the Hub would keep others, of which this card may not speak
        problems.append(Refusal(f"{folder} has no weights (model.safetensors): stage the model again", "weights"))
    return publish(folder, repo_id, "model", problems, **options)


def publish_space(folder: str | Path, repo_id: str, **options: Unpack[PushOptions]) -> Push:
    """Publish the folder of a Space (see `make_space`) on the Hub; arguments and errors of `publish`.

    Raises:
        SpaceError: it is none.
    """
    if not (Path(folder) / "space.json").is_file():
        raise SpaceError(f"{folder} is no Space: make one with eden space")
    return publish(Path(folder), repo_id, "space", (), **options)


def check_push(run: HubArguments) -> None:
    """Find out before a run what would stop its push after it; nothing if none was asked for.

    Raises:
        CardError: the card is not as it must be.
        PublishingError: no token, or the card's `model_id` is no name.
    """
    if run.push_to_hub:
        check_access(EdenModelCardData.load(str(run.card)).model_id)


def push_run(folder: Path, run: HubArguments, results: Sequence[str] = ()) -> None:
    """Publish the model of a finished run if asked; the run is whole whatever the Hub does.

    Raises:
        PublishingError, RefusedError: the model is not taken; `eden push` tries again.
    """
    if run.push_to_hub:
        print(push_to_hub(str(folder), EdenModelCardData.load(str(run.card)).model_id, run.card, results))
