import io
import json
import logging
import subprocess
import sys

import pytest
from tqdm import auto, tqdm

from eden_hf import __version__, cli, command_line
from eden_hf.command_line import COMMANDS, _for_users, parser_of

from .launching import ENVIRONMENT, REPOSITORY


def python_program(*arguments):
    command = [sys.executable, *arguments]
    return subprocess.run(
        command, cwd=REPOSITORY, env=ENVIRONMENT, capture_output=True, text=True, check=False, timeout=300
    )


def eden(*arguments):
    return python_program("-m", "eden_hf", *arguments)


def test_help_lists_the_commands():
    finished = eden("--help")
    assert finished.returncode == 0
    for name in (
        "pretrain",
        "prepare",
        "crops",
        "gallery",
        "evaluate",
        "audit",
        "probe",
        "few-shot",
        "finetune",
        "embed",
        "search",
        "landmarks",
        "match",
        "stage",
        "card",
        "push",
    ):
        assert name in finished.stdout
    assert eden().stdout == finished.stdout


def test_an_unknown_command_says_which_there_are():
    finished = eden("pretrian")
    assert finished.returncode == 2
    assert "pretrian" in finished.stderr
    assert "pretrain" in finished.stderr


@pytest.mark.parametrize(
    ("command", "option"),
    [
        ("pretrain", "--training.batch-size"),
        ("prepare", "--shard"),
        ("crops", "--num-proc"),
        ("gallery", "--source"),
        ("evaluate", "--evaluations"),
        ("audit", "--gammas"),
        ("probe", "--label-columns"),
        ("few-shot", "--recipe.training.steps"),
        ("finetune", "--task.data-dir"),
        ("embed", "--dense"),
        ("search", "--region"),
        ("landmarks", "--unlabelled"),
        ("match", "--points"),
        ("leaks", "--split-b"),
        ("check-phi", "--accepted"),
        ("lineage", "target"),
        ("stage", "--half"),
        ("card", "check"),
        ("push", "--dry-run"),
        ("convert", "--pretraining"),
        ("export", "--format"),
        ("space", "--model"),
    ],
)
def test_each_command_explains_its_options(command, option, capsys):
    with pytest.raises(SystemExit, match=r"^0$"):
        COMMANDS[command](["--help"])
    told = capsys.readouterr().out
    assert option in told
    assert told.startswith(f"usage: eden {command} ")


@pytest.mark.parametrize("command", COMMANDS)
def test_every_option_has_its_line_of_help(command):
    untold = [action.dest for action in parser_of(command)._actions if not (action.help or "").strip()]
    assert untold == []


@pytest.mark.parametrize(
    "line",
    [
        "{0} user/name --dry-run",
        "--dry_run {0} user/name",
        "user/name --dry-run --source {0}",
        "--repo-id=user/name --dry-run --source={0}",
    ],
)
def test_what_a_command_acts_on_is_given_by_place_or_by_name(line, tmp_path, monkeypatch):
    asked = []
    monkeypatch.setattr("eden_hf.hub.push.publish_model", lambda *places, **options: asked.append((places, options)))
    (tmp_path / "card.yaml").touch()
    with pytest.raises(TypeError, match="dataclass"):  # of what the patched function gives back
        cli.push(line.format(tmp_path).split())
    ((places, options),) = asked
    assert places == (str(tmp_path), "user/name")
    assert options["dry_run"]
    assert not options["delete"]


def test_a_word_too_many_is_told(capsys):
    with pytest.raises(SystemExit, match=r"^2$"):
        cli.push(["a", "user/name", "b"])
    assert "b" in capsys.readouterr().err


LEAKS = ["leaks", "phantoms:2", "phantoms:3"]


@pytest.mark.parametrize("line", [["--json", *LEAKS], [*LEAKS, "--json"]])
def test_answers_for_programs(line, tmp_path):
    finished = eden(*line, "--quiet", "--output", str(tmp_path / "leaks.csv"))
    assert finished.returncode == 1  # they share two
    answer = json.loads(finished.stdout)
    assert [leak["found_by"] for leak in answer["leaks"]] == ["pixels+looks"] * 2
    assert answer["file"] == str(tmp_path / "leaks.csv")
    assert finished.stderr == ""


def test_progress_is_shown_unless_quiet(tmp_path):
    assert "phantoms" in eden(*LEAKS, "--output", str(tmp_path / "leaks.csv")).stderr


def test_scripts_are_quiet_too(monkeypatch):
    """They import tqdm before a command is asked to be."""
    loggers = [logging.getLogger(), logging.getLogger("eden_hf")]
    levels = [logger.level for logger in loggers]
    monkeypatch.setattr(tqdm, "__init__", tqdm.__init__)
    for variable in ("TQDM_DISABLE", "HF_HUB_DISABLE_PROGRESS_BARS", "HF_DATASETS_DISABLE_PROGRESS_BARS"):
        monkeypatch.setenv(variable, "0")
    assert not auto.tqdm(total=1).disable
    command_line._be_quiet()
    assert auto.tqdm(total=1).disable
    for logger, level in zip(loggers, levels, strict=True):
        logger.setLevel(level)


def test_shells_complete_commands_and_options():
    script = eden("completion", "bash").stdout
    assert "--dry-run" in script
    assert "one-shot" in script
    complete = f"{script}\nCOMP_WORDS=(eden pu); COMP_CWORD=1; _shtab_eden; echo ${{COMPREPLY[@]}}"
    finished = subprocess.run(["bash", "-c", complete], capture_output=True, text=True, check=True, timeout=60)
    assert finished.stdout.split() == ["push"]


MISTAKES = [
    "gallery --model {0}/model --source {0}/images",
    "gallery --model {0}/model --source phantoms:4 --images 9",
    "evaluate --model {0}/images --source phantoms:4",
    "evaluate --model {0}/images --source {0}/none --output {0}/out",
    "evaluate --model {0}/images --source phantoms:4 --evaluations tsne",
    "probe --model {0}/model --source phantoms:4",
    "few-shot --config configs/few_shot_scr.yaml --encoders {0}/model --task.data_dir {0}/none --output {0}/out",
    "audit --run {0}/model --source phantoms:4 --images 4",
    "one-shot --model {0}/model --source {0}/none --protocol uod",
    "crops --source {0}/none --output {0}/out",
    "pretrain --data.source {0}/none --run.output_dir {0}/run",
    "pretrain --resume --run.output_dir {0}/run",
    "finetune --task.source {0}/none --run.output_dir {0}/run",
    "finetune --task.source phantoms:8 --run.output_dir {0}/run",
    "finetune --task.source phantoms:8 --task.mask_columns [heart] --model.name {0}/model --run.output_dir {0}/run",
    "embed --model {0}/model --images {0}/images --output {0}/out.parquet",
    "search --model {0}/model --query {0}/a.png --embeddings {0}/none.parquet --output {0}/out.png",
    "landmarks --model {0}/model --references {0}/none --images {0}/images --output {0}/out",
    "match --model {0}/model {0}/a.png {0}/b.png",
    "lineage {0}/none",
    "leaks {0}/none phantoms:2 --output {0}/leaks.csv",
    "check-phi {0}/none --output {0}/phi.csv",
    "masks --model {0}/model --references {0}/none --images {0}/images --output {0}/out",
    "stage --source {0}/none --card {0}/none.yaml --output {0}/out",
    "card write {0}/none",
    "push --source {0}/none --repo_id user/name --dry_run",
    "convert --source {0}/none.pth --output {0}/out",
    "export --model {0}/model --output {0}/out.onnx",
    "space --model {0}/model --output {0}/out",
]


@pytest.mark.parametrize("line", MISTAKES)
def test_mistakes_end_every_command_with_one_message(line, tmp_path, capsys, monkeypatch):
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    (tmp_path / "images").mkdir()
    command, *arguments = line.format(tmp_path).split()
    with pytest.raises(SystemExit, match=r"^2$"):
        COMMANDS[command](arguments)
    *_, last = (row for row in capsys.readouterr().err.splitlines() if row.startswith("eden "))
    assert last.startswith(f"eden {command}: ")
    assert len(last) > len(f"eden {command}: ") + 10


def test_a_fault_of_the_program_keeps_its_traceback(monkeypatch):
    def fails(model, images, points, output):
        return {}[model]

    monkeypatch.setattr("eden_hf.matching.pairs.match_images", fails)
    with pytest.raises(KeyError):
        cli.match(["--model", "a", "a.png", "b.png"])


@pytest.mark.parametrize(
    ("line", "told"),
    [("raise ValueError('mend it')", True), ("int('x')", False), ("list(zip([1], [], strict=True))", False)],
)
def test_what_c_code_raises_in_the_package_is_a_fault_of_it(line, told):
    with pytest.raises(ValueError) as caught:  # noqa: PT011 (any)
        exec(line, {"__name__": "eden_hf.anywhere"})
    assert _for_users(caught.value) == ("mend it" if told else None)


def test_names_that_a_terminal_cannot_show_are_shown_as_python_does(tmp_path, monkeypatch):
    (tmp_path / "lineage.json").write_text('{"made_by": "\\udcff", "facts": {}, "files": {}, "parents": []}')
    written = io.BytesIO()
    monkeypatch.setattr(sys, "stdout", io.TextIOWrapper(written, "ascii", write_through=True))
    monkeypatch.setattr(sys, "argv", ["eden", "lineage", str(tmp_path)])
    cli.main()
    assert b"\\udcff" in written.getvalue()


def test_a_misspelt_setting_exits_with_a_suggestion():
    finished = eden("pretrain", "--training.batchsize", "3")
    assert finished.returncode == 2
    assert "Did you mean 'training.batch_size'?" in finished.stderr
    assert "Traceback" not in finished.stderr


@pytest.mark.parametrize(
    ("options", "told"),
    [
        ("model: outputs/run/last", "options.yaml: `model` takes a list: `model: [first, second]`"),
        ("model: [outputs/run/last]\nfew_shot: {}", "'few_shot' is not accepted"),
    ],
)
def test_a_file_of_options_is_read_strictly(options, told, tmp_path, capsys):
    (tmp_path / "options.yaml").write_text(options + "\n")
    with pytest.raises(SystemExit, match="2"):
        cli.evaluate(["--config", str(tmp_path / "options.yaml")])
    assert told in capsys.readouterr().err


def test_a_switch_in_a_file_of_options_is_true_or_false(tmp_path, capsys):
    (tmp_path / "options.yaml").write_text("overlays: maybe\n")
    with pytest.raises(SystemExit, match="2"):
        cli.landmarks(["--config", str(tmp_path / "options.yaml")])
    assert "options.yaml: `overlays` takes true or false" in capsys.readouterr().err


LIGHT = """
import sys
sys.argv = ["eden", *sys.argv[1:]]
from eden_hf.cli import main
try:
    main()
except SystemExit:
    print(sorted({"torch", "transformers", "datasets"} & set(sys.modules)), file=sys.stderr)
import eden_hf, transformers
assert transformers.AutoModel._model_mapping[eden_hf.EdenConfig] is eden_hf.EdenModel  # registered once needed
"""


@pytest.mark.parametrize("arguments", [["--help"], ["pretrain", "--help"]])
def test_help_comes_before_torch_is_imported(arguments):
    finished = python_program("-c", LIGHT, *arguments)
    assert finished.returncode == 0, finished.stderr
    assert finished.stderr.splitlines()[-1] == "[]"


def test_both_modules_are_the_command():
    for module in ("eden_hf", "eden_hf.cli"):
        assert python_program("-m", module, "--version").stdout == f"eden_hf {__version__}\n"


BARE = """
import sys
for name in ("matplotlib", "sklearn", "scipy", "evaluate", "pydicom", "onnxruntime", "SimpleITK", "highdicom", "peft",
             "rapidocr", "faker", "dicomanonymizer"):
    sys.modules[name] = None  # as where it is not installed
from eden_hf.cli import COMMANDS, main
for name in COMMANDS:
    sys.argv = ["eden", name, "--help"]
    try:
        main()
    except SystemExit:  # its message is printed already
        pass
"""


@pytest.mark.slow
def test_without_extras_commands_work_or_name_what_to_install():
    finished = python_program("-c", BARE)
    assert finished.returncode == 0, finished.stderr
    told = finished.stderr.splitlines()
    needy = ("gallery", "evaluate", "one-shot", "audit", "probe", "few-shot", "finetune", "bench")
    assert [line.partition(":")[0] for line in told] == [f"eden {name}" for name in needy]
    extras = ("pip install 'eden_hf[evaluation]'", "pip install eden_hf[plots]")
    assert [line for line in told if not line.endswith(extras)] == []
