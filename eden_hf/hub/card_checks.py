"""What is wrong with a card: where it differs from what its folder gives, links to nothing, ids that are not there."""

import difflib
import re
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING

from huggingface_hub import HfApi, ModelCard

from eden_hf.hub.card_facts import Facts
from eden_hf.model_names import weights_revision

if TYPE_CHECKING:
    from eden_hf.hub.cards import EdenModelCardData

_LICENSES = """
    apache-2.0 mit openrail bigscience-openrail-m creativeml-openrail-m bigscience-bloom-rail-1.0 bigcode-openrail-m
    afl-3.0 artistic-2.0 bsl-1.0 bsd bsd-2-clause bsd-3-clause bsd-3-clause-clear c-uda cc cc0-1.0 cc-by-2.0 cc-by-2.5
    cc-by-3.0 cc-by-4.0 cc-by-sa-3.0 cc-by-sa-4.0 cc-by-nc-2.0 cc-by-nc-3.0 cc-by-nc-4.0 cc-by-nd-4.0 cc-by-nc-nd-3.0
    cc-by-nc-nd-4.0 cc-by-nc-sa-2.0 cc-by-nc-sa-3.0 cc-by-nc-sa-4.0 cdla-sharing-1.0 cdla-permissive-1.0
    cdla-permissive-2.0 wtfpl ecl-2.0 epl-1.0 epl-2.0 etalab-2.0 eupl-1.1 eupl-1.2 agpl-3.0 gfdl gpl gpl-2.0 gpl-3.0
    lgpl lgpl-2.1 lgpl-3.0 isc h-research intel-research lppl-1.3c ms-pl apple-ascl apple-amlr mpl-2.0 odc-by odbl
    openmdw-1.0 openrail++ osl-3.0 postgresql ofl-1.1 ncsa unlicense zlib pddl lgpl-lr deepfloyd-if-license
    fair-noncommercial-research-license llama2 llama3 llama3.1 llama3.2 llama3.3 llama4 grok2-community gemma other
    """
#: What the Hub takes as `license` (https://huggingface.co/docs/hub/repositories-licenses), without `unknown`.
LICENSES = frozenset(_LICENSES.split())
_LINK = re.compile(r"\]\(([^)\s]+)\)")


def text_problems(text: str, expected: str) -> Iterator[str]:
    """The lines by which a card differs from what its folder gives, and the mend."""
    names = ("README.md", "what the folder gives")
    if found := list(difflib.unified_diff(text.splitlines(), expected.splitlines(), *names, n=0, lineterm="")):
        yield "\n".join(
            ["README.md is not what the folder gives: run eden card write, and put words of your own in `notes` of "
             "card.yaml", *found]
        )  # fmt: skip


def link_problems(text: str, folder: Path) -> Iterator[str]:
    """Files that the card refers to and the folder does not hold."""
    for match in _LINK.finditer(text):
        if not re.match(r"[a-z]+:|#", match[1]) and not (folder / match[1].partition("#")[0]).is_file():
            yield f"README.md: {match[1]} is missing from the folder"


def weights_problems(facts: Facts) -> Iterator[str]:
    """Results that speak of this model and are of other weights than the folder's."""
    revisions = {weights_revision(str(facts.folder))}
    if None in revisions:  # cards and results alone
        return
    if facts.staged.get("published") in revisions:
        revisions.add(facts.staged.get("staged"))
    told = [(f"{found.folder}/results.json", found.weights) for found in facts.measurements if facts.speaks_of(found)]
    told += [(found.page, (score.revision,)) for found in facts.few_shot for score in found.scores
             if score.encoder == facts.own]  # fmt: skip
    for file, of in dict.fromkeys(told):
        if revisions.isdisjoint(of):
            yield (
                f"{file}: the results are of other weights ({', '.join(map(str, of))}) than the folder's "
                f"({', '.join(sorted(map(str, revisions)))}): evaluate the very folder that is published"
            )


def license_problems(declared: "EdenModelCardData", facts: Facts) -> Iterator[str]:
    """A licence that gives more than that of the model which the weights grew from, as far as names tell."""
    own, start = declared.license, facts.environment.get("start_license") or ""
    if _is_non_commercial(start) and own != "other" and not _is_non_commercial(own):
        yield (
            f"card.yaml: `license` is {own}, but the run started from a model under {start}, which allows no "
            "commercial use of what grew from it: declare that licence, or `other` with its name and link"
        )


def _is_non_commercial(license: str) -> bool:  # noqa: A002 (the Hub's name)
    return re.search(r"\bnc\b|non-?commercial", license.lower()) is not None


def online_problems(text: str, declared: "EdenModelCardData") -> Iterator[str]:
    """What the Hub itself says of the metadata, and ids in them that it has not; asks its API."""
    try:
        ModelCard(text).validate()
    except ValueError as error:
        yield f"README.md: the Hub refuses the metadata: {error}"
    ids = [("model", "base_model", declared.base_model), ("model", "hub.new_version", declared.hub.get("new_version"))]
    ids += [("dataset", "training_data.hub_id", data.hub_id) for data in declared.training_data]
    for kind, key, name in ids:
        if name and not HfApi().repo_exists(name, repo_type=kind):
            yield f"card.yaml: `{key}`: the Hub has no {kind} {name} that this token may see"
