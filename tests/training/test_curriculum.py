from collections import Counter

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from eden_hf.data.prepared import RowGroups
from eden_hf.training.arguments import Stage
from eden_hf.training.curriculum import (
    FullBatches,
    Progress,
    StageBatches,
    enough_values,
    epoch_order,
    key_order,
    learning_rate,
    teacher_temperature,
    validation_interval,
    weight_decay,
)


def batches(images=50, batch_size=8, **options):
    return StageBatches(torch.arange(images), batch_size, **{"epochs": 3, "seed": 1, "first_epoch": 0, **options})


def test_the_learning_rate_is_half_a_cosine():
    stage = Stage(learning_rate=0.03)
    rates = [learning_rate(stage, step, 100) for step in range(101)]
    assert rates[0] == 0.03
    assert rates[50] == pytest.approx(0.015)
    assert rates[100] == pytest.approx(0)
    assert rates == sorted(rates, reverse=True)


def test_a_warm_up_rises_to_the_peak_and_the_rate_comes_to_its_end():
    """Two epochs of five steps from 0; the cosine's ends and its middle after them."""
    stage = Stage(learning_rate=0.4, final_learning_rate=0.1, warmup_epochs=2, epochs=10)
    rates = [learning_rate(stage, step, 50) for step in (0, 3, 9, 10, 30, 50)]
    assert rates == pytest.approx([0, 0.4 / 3, 0.4, 0.4, 0.25, 0.1])
    assert [learning_rate(stage, step, 10) for step in (0, 1, 2)] == pytest.approx([0, 0.4, 0.4])


def test_weight_decay_and_temperature_move_where_they_are_told_to():
    still, moving = Stage(weight_decay=0.04), Stage(weight_decay=0.04, final_weight_decay=0.4)
    assert [weight_decay(still, step, 8) for step in (0, 4, 8)] == [0.04] * 3
    assert [weight_decay(moving, step, 8) for step in (0, 4, 8)] == pytest.approx([0.04, 0.22, 0.4])
    warm = Stage(objective="localize", first_teacher_temperature=0.04, teacher_temperature_epochs=3)
    assert [teacher_temperature(warm, epoch, 0.07) for epoch in range(5)] == pytest.approx(
        [0.04, 0.055, 0.07, 0.07, 0.07]
    )
    assert teacher_temperature(Stage(), 0, 0.07) == 0.07


def test_one_value_a_channel_is_named_by_its_settings():
    with (
        pytest.raises(ValueError, match=r"BatchNorm needs more .* raise `batch` .* or `size`"),
        enough_values("batch", "size"),
    ):
        torch.nn.BatchNorm2d(2)(torch.ones(1, 2, 1, 1))


def test_progress_comes_back_from_its_fields():
    assert Progress(**Progress(stage=1, step=3).to_dict()) == Progress(stage=1, step=3)


def test_orders_depend_on_seed_and_epoch_only():
    indices = torch.arange(100)
    assert torch.equal(epoch_order(indices, 1, 2), epoch_order(indices, 1, 2))
    orders = [tuple(epoch_order(indices, seed, epoch).tolist()) for seed in range(3) for epoch in range(3)]
    assert len(set(orders)) == 9
    assert all(sorted(order) == indices.tolist() for order in orders)


@settings(max_examples=50)
@given(
    sizes=st.lists(st.integers(0, 9), min_size=1, max_size=12).filter(any), window=st.integers(0, 200),
    kept=st.floats(0.3, 1), seed=st.integers(0, 3), world=st.integers(1, 3), share=st.integers(1, 3),
)  # fmt: skip
def test_row_groups_of_any_sizes_give_each_image_once_to_one_process(sizes, window, kept, seed, world, share):
    """In each epoch, whatever is held out; a resumed epoch is its rest; and few row groups are under way at a time."""
    starts = torch.tensor([0, *sizes]).cumsum(0)
    groups = RowGroups(starts[:-1], window)
    everything = torch.arange(sum(sizes))
    indices = everything[: max(1, round(kept * sum(sizes)))]
    order = epoch_order(indices, seed, 0, groups)
    assert sorted(order.tolist()) == indices.tolist()
    group = torch.searchsorted(groups.starts, order, right=True) - 1
    ends = [place for place in range(len(order)) if group[place] not in group[place + 1 :]]
    for place in ends:
        begun = set(group[: place + 1].tolist()) - {int(group[end]) for end in ends if end < place}
        assert sum(int((group == number).sum()) for number in begun) <= window + 2 * max(sizes)
    if len(indices) < (batch := world * share):
        return
    options = {"row_groups": groups, "seed": seed, "world_size": world}
    ranks = [list(StageBatches(indices, batch, epochs=2, first_epoch=0, rank=r, **options)) for r in range(world)]
    per_epoch = len(indices) // batch
    for epoch in range(2):
        seen = [index for rank in ranks for own in rank[epoch * per_epoch :][:per_epoch] for index in own]
        assert len(seen) == len(set(seen)) == per_epoch * batch
    resumed = StageBatches(indices, batch, epochs=2, first_epoch=0, start=(1, per_epoch // 2), **options)
    assert list(resumed) == ranks[0][per_epoch + per_epoch // 2 :]


def test_a_window_of_one_image_reads_row_groups_in_a_drawn_order_and_a_wide_one_mixes_them():
    groups, indices = RowGroups(torch.arange(0, 100, 10), 0), torch.arange(100)
    orders = [epoch_order(indices, 0, epoch, groups) for epoch in range(2)]
    for order in orders:
        assert torch.equal(order.view(10, 10) - order.view(10, 10)[:, :1], indices[:10].expand(10, 10))
    assert not torch.equal(*orders)
    mixed = epoch_order(indices, 0, 0, groups._replace(window=10_000))
    assert all(len(set(part.tolist())) >= 5 for part in (mixed // 10).view(10, 10))


@given(
    images=st.integers(8, 60), pieces=st.integers(1, 3), world=st.integers(1, 3), per_piece=st.integers(1, 4)
)  # fmt: skip
def test_processes_and_pieces_share_a_batch_in_order(images, pieces, world, per_piece):
    size = pieces * world * per_piece
    if images < size:
        return
    whole = list(batches(images, size))
    ranks = [list(batches(images, size, pieces=pieces, rank=rank, world_size=world)) for rank in range(world)]
    assert {len(rank) for rank in ranks} == {len(whole) * pieces}
    assert len(batches(images, size, pieces=pieces, world_size=world)) == len(ranks[0])
    for number, batch in enumerate(whole):
        parts = [ranks[rank][number * pieces + piece] for piece in range(pieces) for rank in range(world)]
        assert sum(parts, []) == batch  # noqa: RUF017
    for epoch in range(3):
        seen = sum(whole[epoch * (images // size) : (epoch + 1) * (images // size)], [])  # noqa: RUF017
        assert len(seen) == len(set(seen)) == images // size * size


@pytest.mark.parametrize(("pieces", "world", "per_piece"), [(1, 2, 4), (3, 2, 2), (2, 3, 1), (1, 3, 5)])
def test_processes_share_the_keys_of_a_piece_in_a_drawn_order(pieces, world, per_piece):
    size, per_epoch = pieces * world * per_piece, 60 // (pieces * world * per_piece)
    options = {"pieces": pieces, "world_size": world, "first_epoch": 5, "start": (1, 0)}
    plain = [list(batches(60, size, rank=rank, **options)) for rank in range(world)]
    both = [list(batches(60, size, rank=rank, shuffled_keys=True, **options)) for rank in range(world)]
    for number in range(len(plain[0])):
        queries, keys = zip(*([rank[number][:per_piece], rank[number][per_piece:]] for rank in both), strict=True)
        assert list(queries) == [rank[number] for rank in plain]
        batch, piece = divmod(number, pieces)
        position = {"epoch": 6 + batch // per_epoch, "batch": batch % per_epoch, "piece": piece}
        order = key_order(world * per_piece, seed=1, **position)
        assert torch.equal(torch.tensor(sum(keys, [])), torch.tensor(sum(queries, []))[order])  # noqa: RUF017


def test_key_orders_are_permutations_that_differ_from_place_to_place():
    places = [
        (seed, epoch, batch, piece) for seed in (-1, 1) for epoch in (0, 1) for batch in (0, 1) for piece in (0, 1)
    ]
    orders = [key_order(64, seed=s, epoch=e, batch=b, piece=p) for s, e, b, p in places]
    assert all(torch.equal(order.sort().values, torch.arange(64)) for order in orders)
    assert len({tuple(order.tolist()) for order in orders}) == len(places)


@pytest.mark.parametrize("start", [(0, 0), (0, 3), (1, 0), (2, 5)])
def test_a_resumed_stage_is_the_rest_of_the_stage(start):
    epoch, batch = start
    assert list(batches(start=start)) == list(batches())[epoch * 6 + batch :]


def test_the_next_stage_draws_other_orders():
    assert list(batches(first_epoch=3)) != list(batches())


def test_what_does_not_fit_is_said():
    with pytest.raises(ValueError, match=r"training.batch_size 8 .* 3 .* multiple of 3"):
        batches(world_size=3)
    with pytest.raises(ValueError, match=r"5 training images.*training.batch_size \(8\)"):
        batches(images=5)


@pytest.mark.parametrize(("images", "batch"), [(17, 16), (3, 8), (16, 8), (1, 4), (20, 16)])
def test_full_batches_see_all_images_equally_often(images, batch):
    epoch = 0
    order = FullBatches(images, batch, seed=0, epoch=lambda: epoch)
    drawn = []
    for epoch in range(40):  # noqa: B007 (the order asks for it)
        drawn.append(list(order))
        assert len(drawn[-1]) == len(order) == -(-images // batch) * batch
        assert set(drawn[-1][:images]) == set(range(images))
    counts = Counter(index for indices in drawn for index in indices)
    assert max(counts.values()) - min(counts.values()) <= 1
    epoch = 7
    assert list(order) == drawn[7]
    if images > 1:
        assert drawn[7] != drawn[8]


def test_another_error_than_batchnorms_stays_as_it_is():
    with pytest.raises(ValueError, match=r"^other$"), enough_values("batch", "size"):
        raise ValueError("other")


@pytest.mark.parametrize(("train", "validated", "epochs"), [(900, 100, 3), (67_000, 1000, 1), (10, 0, 1), (3, 3, 25)])
def test_validating_takes_a_fiftieth_of_the_time_at_most(train, validated, epochs):
    assert validation_interval(train, validated) == epochs
    assert validated / 2 <= epochs * train / 50
