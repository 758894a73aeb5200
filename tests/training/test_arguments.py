import re
from pathlib import Path

import pytest

from eden_hf.training.arguments import ModelArguments, PretrainArguments, Stage, parse_arguments, read_arguments
from eden_hf.training.finetune_arguments import FinetuneArguments, StartArguments
from eden_hf.training.settings import at_home

from ..launching import ENVIRONMENT, python

CONFIGS = [
    path
    for path in sorted((Path(__file__).parents[2] / "configs").glob("*.yaml"))
    if not path.stem.startswith(("study", "finetune_", "few_shot", "compare_"))  # of other commands
]


def parse(*arguments):
    return parse_arguments(list(arguments), prog="eden pretrain")


def test_defaults_are_the_papers_recipe():
    arguments, resume = parse()
    assert arguments == PretrainArguments()
    assert not resume
    stages = [(stage.level, stage.epochs, stage.prune_threshold, stage.learning_rate) for stage in arguments.stages]
    assert stages == [(0, 200, None, 0.03), (2, 200, 0.8, 0.03), (4, 200, 0.8, 0.03)]
    training, model, views = arguments.training, arguments.model, arguments.views
    assert (training.batch_size, training.optimizer, arguments.stages[0].momentum) == (256, "sgd", 0.9)
    assert (model.memory_bank_size, model.contrastive_temperature, model.teacher_momentum) == (65536, 0.2, 0.999)
    assert (views.size, tuple(views.crop_scale), views.rotation_degrees, views.intensity) == (
        224,
        (0.2, 1),
        30,
        "fixed",
    )


def test_the_published_config_is_the_default_recipe_on_its_data():
    published = read_arguments(next(path for path in CONFIGS if path.stem == "adam_v1_resnet50_chestxray14"))
    default = PretrainArguments()
    assert (published.model, published.views, published.stages) == (default.model, default.views, default.stages)
    assert published.training == default.training


@pytest.mark.parametrize("path", CONFIGS, ids=lambda path: path.stem)
def test_every_config_reads_and_its_yaml_reads_back(path, tmp_path):
    arguments = read_arguments(path)
    assert arguments.model.to_config().model_type == "eden"
    (tmp_path / "config.yaml").write_text(arguments.to_yaml())
    assert read_arguments(tmp_path / "config.yaml") == arguments
    assert arguments.differences(read_arguments(tmp_path / "config.yaml")) == {}
    assert re.search(r"accelerate launch .*scripts/pretrain.py --config configs/" + path.name, path.read_text())


def test_options_override_the_file(tmp_path):
    file = tmp_path / "run.yaml"
    file.write_text("training: {batch_size: 32}\nstages: [{level: 2, epochs: 3, learning_rate: 1e-3}]\n")
    arguments, resume = parse(
        f"--config={file}",
        "--training.batch_size=64",
        "--model.backbone",
        "{model_type: vit, hidden_size: 48}",
        "--resume",
    )
    assert arguments.training.batch_size == 64
    assert arguments.stages == [Stage(level=2, epochs=3, learning_rate=0.001)]
    assert arguments.model.backbone == {"model_type": "vit", "hidden_size": 48}
    assert resume


#: A mapping that holds what is merged into the one before it twice, and so on: 2^39 values.
DOUBLED = "".join(f"a{n}: &a{n} {{<<: [*a{n - 1}, *a{n - 1}]}}\n" for n in range(1, 40))


@pytest.mark.parametrize(
    ("yaml", "words"),
    [
        ("data: {sied: 128}", ["sied", "data.side"]),
        ("trainning: {batch_size: 1}", ["trainning", "training"]),
        ("training: {batchsize: 1}", ["batchsize", "training.batch_size"]),
        ("stages: [{level: 2, epoch: 3}]", ["epoch", "stages[].epochs"]),
        ("stages: [{level: 0}, {levle: 2}]", ["`stages.1`: ", "levle", "stages[].level"]),
        ("stages: [{level: 0}, {level: low}]", ["`stages.1`: ", "level", "low"]),
        ("stages: [{level: 0}, null]", ["`stages.1` holds no settings", "None"]),
        ("stages: [{}]", ["`stages.0` holds no settings"]),
        ("stages: []", ["stages", "at least one"]),
        ("nope: {}", ["'nope' is not accepted"]),
        ("nope: {a: {}}", ["'nope.a' is not accepted"]),
        ("data: {sied: {}}", ["'data.sied' is not accepted", "data.side"]),
        ("data: {side: 64}\ndata.sied: {}", ["'data.sied' is not accepted"]),
        ("stages: [{level: 0}, {nope: {}}]", ["`stages.1`: ", "'nope' is not accepted"]),
        ("resume: 3", ["run.yaml", "`resume` takes true or false"]),
        ("stages: [{level: 40}]", ["stages.0.level", "40", "at most 16", "data.side"]),
        ("stages: [{level: 0}, {level: -1}]", ["stages.1.level", "-1"]),
        ("stages: [{prune_threshold: 80}]", ["prune_threshold", "80", "[-1, 1]"]),
        ("training: {mixed_precision: fp8}", ["mixed_precision", "fp8", "bf16"]),
        ("training: {batch_size: many}", ["batch_size", "many"]),
        ("data: {holdout_share: 1.5}", ["data.holdout_share", "1.5"]),
        ("run: {log_every: 0}", ["run.log_every", "0"]),
        ("run: {num_workers: -1}", ["run.num_workers", "-1", "null"]),
        ("run:\nmodel: {projection_dim: 8}", ["run.yaml", "`run` holds no settings"]),
        ("data: []", ["`data` holds no settings"]),
        ("training:\n  batch_size:\n", ["`training.batch_size`", "None"]),
        ("stages: [{level: null}]", ["`stages.0.level`", "None"]),
        ("run: {output_dir: null}", ["`run.output_dir`", "None"]),
        ("data: /etc/passwd", ["`data` holds no settings"]),
        ("", ["run.yaml", "no settings"]),
        ("data: {side: 64}\nrun: {}\ndata: {split: test}", ["run.yaml", "`data` comes twice, again in line 3"]),
        ("stages: [{level: 2}, {objective: points, level: 2}]", ["stages.1.level", "2", "points"]),
        ("stages: [{frozen_epochs: 1, epochs: 2}]", ["stages.0.frozen_epochs", "localize and part_whole"]),
        ("stages: [{level: 0, level: 2}]", ["run.yaml", "`level` comes twice"]),
        ("- data", ["run.yaml", "no settings"]),
        ("config: 3", ["shape"]),
        ("data: &a {source: *a}", ["run.yaml", "without end"]),
        ("a0: &a0 {x: 1}\n" + DOUBLED + "model: *a39", ["run.yaml", "references"]),
    ],
)
def test_a_wrong_setting_is_named_with_its_mend(yaml, words, tmp_path, capsys):
    file = tmp_path / "run.yaml"
    file.write_text(yaml)
    with pytest.raises(SystemExit) as stopped:
        parse(f"--config={file}")
    message = capsys.readouterr().err
    assert stopped.value.code == 2
    assert [word for word in words if word not in message] == [], message


@pytest.mark.parametrize(
    ("option", "words"),
    [
        ("--training.batch_sise=3", "training.batch_size"),
        ("--data={sied: {}}", "'data.sied' is not accepted"),
        ("--stages=[{level: 0}, null]", "`stages.1` holds no settings"),
        ("--stages=[{level: 0}, {nope: {}}]", "`stages.1`: Option 'nope' is not accepted"),
    ],
)
def test_a_wrong_option_is_named(option, words, capsys):
    with pytest.raises(SystemExit):
        parse(option)
    assert words in capsys.readouterr().err


def test_a_value_that_would_hang_the_parser_is_taken_as_text():
    value = "{a0: &a0 {x: 1}, " + DOUBLED.replace("\n", ", ") + "}"
    assert parse("--model.backbone", value)[0].model.backbone == value


def test_differences_leave_out_what_changes_nothing_learned():
    one, other = PretrainArguments(), PretrainArguments()
    other.run.output_dir, other.run.num_workers = "elsewhere", 0
    assert other.differences(one) == {}
    other.training.batch_size = 8
    assert other.differences(one) == {"training.batch_size": "256 -> 8"}


def test_configs_of_any_editor_read_whatever_the_locale(tmp_path):
    encodings = ("utf-8", "utf-8-sig", "utf-16", "latin-1")
    for encoding in encodings:
        (tmp_path / encoding).write_text("# Größe\ndata: {source: Röntgen}\n", encoding=encoding)
    program = (
        "import sys; from eden_hf.training.arguments import read_arguments\n"
        "print(*(ascii(read_arguments(file).data.source) for file in sys.argv[1:]))\n"
    )
    plain = {**ENVIRONMENT, "LC_ALL": "POSIX", "PYTHONCOERCECLOCALE": "0", "PYTHONUTF8": "0"}
    read = python("-c", program, *(str(tmp_path / encoding) for encoding in encodings), env=plain).stdout.split()
    assert read == [ascii("Röntgen")] * 4


def test_paths_in_settings_may_begin_at_home(tmp_path, monkeypatch):
    monkeypatch.setenv("HOME", str(tmp_path))
    file = tmp_path / "run.yaml"
    file.write_text("run: {output_dir: ~/runs}\ndata: {list_file: ~/list.txt, source: phantoms}\n")
    arguments, _ = parse("--config=~/run.yaml", "--data.cache_dir=~/cache")
    assert arguments.run.output_dir == f"{tmp_path}/runs"
    assert (arguments.data.list_file, arguments.data.cache_dir) == (f"{tmp_path}/list.txt", f"{tmp_path}/cache")
    model = FinetuneArguments(model=StartArguments(name="random:~/model")).model
    assert model.name == f"random:{tmp_path}/model"
    assert at_home(["a~/b", Path("~/c"), 3, None]) == ["a~/b", tmp_path / "c", 3, None]


@pytest.mark.parametrize(
    ("setting", "message"),
    [
        ({"teacher_momentum": 1.1}, r"^`model`: `teacher_momentum` must be between 0"),
        ({"localizability_outputs": 0}, r"^`model`: `localizability_outputs` must be at least 1, got 0"),
        ({"backbone": {"model_type": "resnet", "layer_type": "zz"}}, r"^`model`: layer_type=zz is not one of"),
    ],
)
def test_a_setting_of_the_model_out_of_its_range_is_told_as_such(setting, message):
    """Not as one of a library's, which the command line takes for a fault of the program."""
    with pytest.raises(ValueError, match=message) as told:
        ModelArguments(**setting).to_config()
    assert type(told.value) is ValueError
