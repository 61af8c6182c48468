"""Against plain Python: repeats, k-core, order, splits, negatives."""

import hashlib
from collections import Counter

import numpy as np
from hypothesis import given, settings
from hypothesis import strategies as st

from distrec.data import split

LOG = st.lists(st.tuples(st.integers(0, 5), st.integers(0, 6), st.integers(0, 4)), min_size=1, max_size=60)


def columns(log):
    user, item, time = (np.array(column) for column in zip(*log, strict=True))
    return user.astype(np.int32), item.astype(np.int32), time.astype(np.int64)


def starts(user):
    return np.r_[0, np.bincount(user).cumsum()]


@settings(max_examples=60, deadline=None)
@given(LOG)
def test_order_is_python_s_stable_sort(log):
    user, _, time = columns(log)
    places = split.order(user, time, None)
    assert places.tolist() == sorted(range(len(log)), key=lambda i: (user[i], time[i]))
    assert split.order(user, None, None).tolist() == sorted(range(len(log)), key=lambda i: user[i])


@settings(max_examples=60, deadline=None)
@given(LOG)
def test_shuffled_ties_move_equal_times_only(log):
    user, _, time = columns(log)
    places = split.order(user, time, np.random.default_rng(0))
    assert sorted(places.tolist()) == list(range(len(log)))
    keys = list(zip(user[places], time[places], strict=True))
    assert keys == sorted(keys)


def test_shuffled_ties_are_shuffled_and_seeded():
    user, time = np.zeros(50, np.int32), np.zeros(50, np.int64)
    first, again, other = (split.order(user, time, np.random.default_rng(seed)).tolist() for seed in (0, 0, 1))
    assert first == again != other
    assert first != list(range(50))


@settings(max_examples=60, deadline=None)
@given(LOG, st.integers(0, 4))
def test_k_core_is_the_fixed_point(log, k):
    user, item, _ = columns(log)
    left = [(u, i) for u, i, _ in log]
    while True:
        users, items = Counter(u for u, _ in left), Counter(i for _, i in left)
        kept = [(u, i) for u, i in left if users[u] >= k and items[i] >= k]
        if len(kept) == len(left):
            break
        left = kept
    keep = split.k_core(user, item, k)
    assert list(zip(user[keep].tolist(), item[keep].tolist(), strict=True)) == left


@settings(max_examples=60, deadline=None)
@given(LOG, st.sampled_from(["keep", "same_time", "first"]))
def test_repeats_keep_the_first_of_equals(log, rule):
    log = sorted(log, key=lambda row: (row[0], row[2]))
    user, item, time = columns(log)
    seen, expected = set(), []
    for u, i, t in log:
        key = {"keep": None, "same_time": (u, i, t), "first": (u, i)}[rule]
        expected.append(key is not None and key in seen)
        seen.add(key)
    assert split.repeats(user, item, time, rule).tolist() == expected


def test_leave_one_out_spares_short_users():
    start = np.array([0, 5, 7, 10, 10, 11])
    train_end, valid_end = split.leave_one_out(start)
    assert train_end.tolist() == [3, 7, 8, 10, 11]
    assert valid_end.tolist() == [4, 7, 9, 10, 11]


@settings(max_examples=60, deadline=None)
@given(LOG)
def test_global_time_trains_on_the_past_alone(log):
    log = sorted(log, key=lambda row: (row[0], row[2]))
    user, _, time = columns(log)
    start = starts(user)
    train_end, valid_end = split.global_time(start, time, 0.2, 0.2)
    owner = np.repeat(np.arange(len(start) - 1), np.diff(start))
    place = np.arange(len(time))
    train, test = place < train_end[owner], place >= valid_end[owner]
    valid = ~train & ~test
    cuts = sorted(time.tolist())
    assert (start[:-1] <= train_end).all()
    assert (train_end <= valid_end).all()
    assert (valid_end <= start[1:]).all()
    for early, late in [(train, valid), (train, test), (valid, test)]:
        if early.any() and late.any():
            assert time[early].max() < time[late].min() or cuts[0] == cuts[-1]


def test_what_happens_at_the_instant_of_a_cut_is_after_it():
    """Cuts at 6 and at 7; interactions of exactly these times are the first of the later window."""
    start, time = np.array([0, 10, 13]), np.r_[np.arange(10), 5, 7, 7]
    train_end, valid_end = split.global_time(start, time, 0.2, 0.2)
    cuts = np.quantile(time, [0.6, 0.8], method="lower")
    assert cuts.tolist() == [6, 7]
    assert train_end.tolist() == [6, 11]
    assert valid_end.tolist() == [7, 11]


@settings(max_examples=60, deadline=None)
@given(LOG, st.integers(0, 2**31))
def test_negatives_are_distinct_and_never_owned(log, seed):
    user, item, _ = columns(sorted(log))
    start = starts(user)
    n_items = int(np.diff(start).max()) + 12
    drawn = split.draw_negatives(start, item, n_items, 10, np.random.default_rng(seed))
    for u, row in enumerate(drawn):
        assert len(set(row.tolist())) == 10
        assert not set(row.tolist()) & set(item[start[u] : start[u + 1]].tolist())


def test_negatives_are_uniform_over_what_a_user_lacks():
    start, item = np.array([0, 2]), np.array([3, 7], np.int32)
    counts = np.zeros(10)
    for seed in range(2000):
        counts[split.draw_negatives(start, item, 10, 3, np.random.default_rng(seed))[0]] += 1
    assert counts[[3, 7]].sum() == 0
    expected = 2000 * 3 / 8
    rest = np.delete(counts, [3, 7])
    assert (((rest - expected) ** 2) / expected).sum() < 24.3  # chi-square, 7 degrees, p = .001


def test_without_a_history_negatives_are_drawn_all_the_same():
    drawn = split.draw_negatives(np.array([0, 0, 1]), np.array([4], np.int32), 8, 5, np.random.default_rng(0))
    assert 4 not in drawn[1]


def test_case_16_only_users_who_lack_too_few_items_go_without_negatives():
    items = [[0] * 1000 + [1] * 500, list(range(7)), list(range(8)), list(range(12)), [3]]
    start = np.r_[0, np.cumsum([len(each) for each in items])]
    drawn = split.draw_negatives(start, np.concatenate(items).astype(np.int32), 12, 5, np.random.default_rng(0))
    for row, had in zip(drawn, items, strict=True):
        lacking = set(range(12)) - set(had)
        assert set(row.tolist()) <= lacking if len(lacking) >= 5 else (row == -1).all()
    assert [row[0] >= 0 for row in drawn] == [True, True, False, False, True]
    assert set(drawn[1].tolist()) == {7, 8, 9, 10, 11}


def test_a_user_without_negatives_changes_nobody_else_s_draw():
    start, item = np.array([0, 2, 4, 6]), np.array([0, 1, 2, 3, 4, 5], np.int32)
    full = np.r_[start, 6 + 40]
    with_one = split.draw_negatives(full, np.r_[item, np.arange(40)].astype(np.int32), 40, 9, np.random.default_rng(1))
    assert (with_one[3] == -1).all()
    assert (with_one[:3] >= 0).all()


def test_the_draw_of_negatives_is_the_one_that_published_figures_used():
    """The digest was taken before users could go without."""
    rng = np.random.default_rng(5)
    user, item = np.sort(rng.integers(0, 300, 6000)), rng.integers(0, 400, 6000).astype(np.int32)
    start = np.r_[0, np.bincount(user, minlength=300).cumsum()]
    drawn = split.draw_negatives(start, item, 400, 99, np.random.default_rng([0, 3]))
    assert hashlib.sha256(drawn.tobytes()).hexdigest().startswith("0b7fe8673d06e68c")
