"""Streams: every image once, homes that partition the classes, the blurred share, the official
sampler."""

import hashlib

import numpy as np
import pytest

from clstudy.data.streams import STREAMS, Disjoint, Domains, Joint, SiBlurry, Stage

SEEDS = range(5)


def labels_of(images: int, classes: int, by_class: bool = False) -> np.ndarray:
    labels = np.arange(images) % classes
    return np.sort(labels) if by_class else labels


LABELS = labels_of(600, 20)
UNEQUAL = np.repeat(np.arange(12), np.arange(1, 13) ** 2)  # 1, 4, 9, … images per class
GAPS = labels_of(90, 9) * 10 + 3  # classes 3, 13, 23, …

SETTINGS = [("disjoint", {"tasks": 5}), ("disjoint", {"tasks": 7, "order": "given"}),
            ("disjoint", {"tasks": 1}), ("joint", {}),
            ("si_blurry", {}), ("si_blurry", {"random_sizes": False}),
            ("si_blurry", {"tasks": 7, "random_sizes": False, "blurry_share": 33}),
            ("si_blurry", {"tasks": 1}),
            ("si_blurry", {"tasks": 9, "disjoint_share": 30, "blurry_share": 70}),
            ("si_blurry", {"disjoint_share": 0}), ("si_blurry", {"disjoint_share": 100}),
            ("si_blurry", {"blurry_share": 0}), ("si_blurry", {"blurry_share": 100}),
            ("si_blurry", {"disjoint_share": 0, "blurry_share": 100, "random_sizes": False})]


def arrivals(stages: list[Stage]) -> np.ndarray:
    return np.concatenate([stage.index for stage in stages])


def foreign(labels: np.ndarray, stages: list[Stage]) -> np.ndarray:
    """Per stage, how many images arrive whose class has its home elsewhere."""
    return np.array([np.sum(~np.isin(labels[stage.index], stage.classes)) for stage in stages])


def same(a: list[Stage], b: list[Stage]) -> bool:
    return len(a) == len(b) and all(x.classes == y.classes and np.array_equal(x.index, y.index)
                                    for x, y in zip(a, b, strict=True))


@pytest.mark.parametrize("labels", [LABELS, UNEQUAL, GAPS], ids=["equal", "unequal", "gaps"])
@pytest.mark.parametrize(("name", "settings"), SETTINGS)
def test_every_image_arrives_once_and_every_class_has_one_home(name, settings, labels):
    for seed in SEEDS:
        stages = STREAMS[name](**settings).stages(labels, seed)
        assert [stage.number for stage in stages] == list(range(1, len(stages) + 1))
        assert all(stage.index.dtype == np.int64 for stage in stages)
        assert sorted(arrivals(stages)) == list(range(len(labels)))
        assert sorted(c for stage in stages for c in stage.classes) == sorted(set(labels.tolist()))


@pytest.mark.parametrize(("name", "settings"), SETTINGS)
def test_same_seed_equal_other_seed_different(name, settings):
    three, again, four = (STREAMS[name](**settings).stages(LABELS, seed) for seed in (3, 3, 4))
    assert same(three, again) and not same(three, four)


def test_registry_names_every_stream():
    assert set(STREAMS) == {"disjoint", "joint", "si_blurry", "domains"}
    assert all(function.__doc__ for function in STREAMS.values())


# ---- disjoint and joint


def test_disjoint_classes_arrive_only_at_home():
    stages = Disjoint(tasks=5).stages(UNEQUAL, 0)
    assert foreign(UNEQUAL, stages).sum() == 0
    assert [len(stage.classes) for stage in stages] == [3, 3, 2, 2, 2]  # of 12
    assert any(list(stage.index) != sorted(stage.index) for stage in stages)  # shuffled


def test_disjoint_given_order_and_given_groups():
    stages = Disjoint(tasks=20, order="given").stages(LABELS, 0)
    assert [stage.classes for stage in stages] == [(c,) for c in range(20)]
    groups = [[5, 1], [], [0, 2, 3, 4]]
    stages = Disjoint(tasks=groups).stages(labels_of(60, 6), 0)
    assert [list(stage.classes) for stage in stages] == groups
    assert [len(stage.index) for stage in stages] == [20, 0, 40]


def test_disjoint_as_many_tasks_as_classes():
    assert all(len(stage.classes) == 1 for stage in Disjoint(tasks=20).stages(LABELS, 0))


def test_joint_is_one_shuffled_stage():
    (stage,) = Joint().stages(LABELS, 0)
    assert stage.classes == tuple(range(20)) and list(stage.index) != sorted(stage.index)


# ---- the blurred share


def test_fixed_sizes_move_the_exact_share():
    """20 classes of 30 images, T = 5, N = 40, M = 50: 12 blurry classes, homes of 3, 3, 2, 2, 2 of
    them."""
    stream = SiBlurry(tasks=5, disjoint_share=40, blurry_share=50, random_sizes=False)
    for seed in SEEDS:
        stages = stream.stages(LABELS, seed)
        assert [len(stage.classes) for stage in stages] == [5, 5, 4, 3, 3]
        pool = 2 * 45 + 3 * 30  # half of 90, 90, 60, 60, 60
        stay = [60 + 45, 60 + 45, 60 + 30, 30 + 30, 30 + 30]  # disjoint + the half that stays
        assert [len(stage.index) for stage in stages] == [n + pool // 5 for n in stay]
        assert foreign(LABELS, stages).sum() <= pool


@pytest.mark.parametrize(("tasks", "share"), [(5, 10), (5, 50), (10, 100)])
def test_fixed_sizes_foreign_images_in_expectation(tasks, share):
    """All blurry, equal homes: M % enter the pool and a share 1 − 1/T of it lands outside its
    home."""
    stream = SiBlurry(tasks=tasks, disjoint_share=0, blurry_share=share, random_sizes=False)
    counts = [foreign(LABELS, stream.stages(LABELS, seed)).sum() for seed in range(100)]
    expected = 600 * share / 100 * (1 - 1 / tasks)
    assert abs(np.mean(counts) - expected) < 4 * np.std(counts) / np.sqrt(len(counts))
    assert max(counts) <= 600 * share / 100


@pytest.mark.parametrize("sampler", ["random", "official"])
def test_random_sizes_never_move_more_than_asked(sampler):
    """b = ⌊M % of the blurry images⌋ bounds the moved ones; some come back to their home."""
    shares, stream = [], SiBlurry(tasks=5, disjoint_share=50, blurry_share=10, sampler=sampler)
    for seed in range(60):
        moved = foreign(LABELS, stream.stages(LABELS, seed)).sum()
        assert moved <= 30  # 10 % of 10 blurry classes of 30 images
        shares.append(moved / 30)
    assert .4 < np.mean(shares) < .9


def test_both_samplers_move_equally_much_of_an_unsorted_data_set():
    moved = []
    for sampler in ("random", "official"):
        stream = SiBlurry(blurry_share=40, sampler=sampler)
        moved.append([foreign(LABELS, stream.stages(LABELS, seed)).sum() for seed in range(100)])
    difference = np.mean(moved[0]) - np.mean(moved[1])
    assert abs(difference) < 4 * np.sqrt((np.var(moved[0]) + np.var(moved[1])) / 100)


@pytest.mark.parametrize("sampler", ["random", "official"])
def test_sizes_of_stages_over_seeds(sampler):
    """T = 5, N = 50, M = 10, 100 classes: the smallest stage holds 7 % of the images, the largest
    37 %."""
    labels, stream = labels_of(400, 100), SiBlurry(sampler=sampler)
    sizes = np.array([sorted(len(stage.index) / 400 for stage in stream.stages(labels, seed))
                      for seed in range(300)])
    assert sizes[:, 0].mean() == pytest.approx(.07, abs=.015)
    assert sizes[:, -1].mean() == pytest.approx(.37, abs=.02)


def test_stage_keeps_its_amount_with_random_sizes():
    """Without a shortage stage i gives n_i and gets n_i: as many images as its classes have."""
    stages = SiBlurry(tasks=5, blurry_share=1).stages(LABELS, 0)  # b = 3 images
    amounts = [30 * len(stage.classes) for stage in stages]
    assert sum(abs(len(stage.index) - n) for stage, n in zip(stages, amounts, strict=True)) <= 2 * 3
    assert sum(amounts) == 600


@pytest.mark.parametrize("sampler", ["random", "official"])
@pytest.mark.parametrize("settings", [{"blurry_share": 0}, {"disjoint_share": 100}])
@pytest.mark.parametrize("random_sizes", [True, False])
def test_nothing_blurred_nothing_foreign(sampler, settings, random_sizes):
    stream = SiBlurry(random_sizes=random_sizes, sampler=sampler, **settings)
    for seed in SEEDS:
        stages = stream.stages(LABELS, seed)
        assert foreign(LABELS, stages).sum() == 0 and len(arrivals(stages)) == 600


def test_disjoint_classes_of_a_blurred_stream_arrive_only_at_home():
    for seed in SEEDS:
        stages = SiBlurry(tasks=5, disjoint_share=50, blurry_share=100).stages(LABELS, seed)
        wandering = {c for s in stages for c in set(LABELS[s.index].tolist()) - set(s.classes)}
        assert len(wandering) <= 10


def test_random_sampler_moves_images_of_many_classes_of_a_sorted_data_set():
    """The quirk of the official sampler: in a class-sorted data set the movers come from few
    classes."""
    labels = labels_of(600, 20, by_class=True)

    def classes_that_move(sampler: str) -> int:
        stream = SiBlurry(tasks=2, disjoint_share=0, blurry_share=20, random_sizes=False,
                          sampler=sampler)
        stages = stream.stages(labels, 0)
        return len({c for s in stages for c in set(labels[s.index].tolist()) - set(s.classes)})

    assert classes_that_move("official") == 4  # the first 2 of 10 classes in each of 2 homes
    assert classes_that_move("random") > 14


def test_empty_stages_are_legal():
    """With all classes disjoint and random cut points, some seeds give a stage without class and
    image."""
    stages = SiBlurry(tasks=5, disjoint_share=100).stages(LABELS, 1)
    empty = [stage for stage in stages if not stage.classes]
    assert empty and all(len(stage.index) == 0 and stage.index.dtype == np.int64 for stage in empty)
    assert sorted(arrivals(stages)) == list(range(600))


def test_as_many_tasks_as_classes():
    for random_sizes in (True, False):
        stages = SiBlurry(tasks=20, random_sizes=random_sizes).stages(LABELS, 0)
        assert len(stages) == 20 and len(arrivals(stages)) == 600


def test_a_stage_without_disjoint_class():
    """2 disjoint classes over 5 stages: three stages at least own only blurry ones."""
    stream = SiBlurry(tasks=5, disjoint_share=10, blurry_share=0, random_sizes=False)
    stages = stream.stages(LABELS, 0)
    assert [len(stage.classes) for stage in stages] == [5, 5, 4, 3, 3]


# ---- the official sampler


# Facts: lengths of the stages and sha256 of all indices in order (little-endian int64), made by
# running class OnlineSampler of utils/online_sampler.py, github.com/moonjunyyy/Si-Blurry, commit
# c4024cea223cf68da3fe9a43e01663d4433e9b72, with torch 2.14 on the CPU. images, classes, sorted by
# class, seed, tasks, N, M, random sizes, lengths, sha256
GOLDEN = [
    (600, 20, False, 1, 5, 50, 10, True, [90, 120, 94, 57, 239],
     "2ad72b0540c510c031ec075b2e3278a28eff951cfcd2ff9b4df3551e15c87acf"),
    (600, 20, True, 1, 5, 50, 10, True, [90, 120, 94, 57, 239],
     "3edf1e6bbab4f1e9271ed5ee3ad35559fb8c6b259edd23a9ddb3749d0cf40048"),
    (600, 20, False, 2, 5, 50, 10, False, [120, 120, 120, 120, 120],
     "2396368f3450786000bef93a6e6e72621a14831d492dd8a349d4f09d7c59776b"),
    (600, 20, True, 3, 5, 50, 30, False, [120, 120, 120, 120, 120],
     "766f0c8ccc6012f8e102295cd100c298ec279f87d7d0c8cabbc0417ce9655258"),
    (600, 20, False, 4, 10, 50, 10, True, [60, 60, 60, 4, 60, 90, 2, 180, 0, 84],
     "496ad3b34330785fe798e72db885121b4797b7090a12f4bb8d4c02bebf1f61ea"),
    (600, 20, False, 5, 5, 0, 10, True, [210, 60, 2, 90, 238],
     "1a70489dd58fcfec7ed904b8a26e4fccb799f90457843ebbb5ce1986caeb4315"),
    (600, 20, False, 6, 5, 100, 10, True, [30, 390, 60, 0, 120],
     "42a3612753a33cc174a33935d24b3a5fac52e906f42728426bff1e9e5eb9f961"),
    (600, 20, False, 7, 5, 50, 0, True, [30, 210, 180, 60, 120],
     "b5731170f8afe6478cf86cf4a6019d8f58ebf0daa8b79236e7aefb1a5f618d18"),
    (600, 20, False, 8, 5, 50, 100, True, [164, 135, 41, 170, 90],
     "69a48387b0b4e7e24210a776efc5d0fd78a023e6653985cb32f5f8c5fc7c9f0f"),
    (700, 23, False, 1, 5, 50, 10, True, [154, 91, 65, 151, 148],
     "1f35c65c5ed554c82da4b03b21f47b439a6c4aac03e47a3fcadde08bbe8085bc"),
    (700, 23, True, 9, 5, 50, 25, False, [122, 122, 122, 122, 121],
     "42b73fecd868599caebb5444c5c75ab066bec6a72e31e40b8f38abc43c506171"),
    (600, 100, False, 3, 5, 50, 10, True, [252, 156, 30, 90, 72],
     "6d69ecc72bb254a5d335bf3e16f9b1f9c93324f6d72b22733ae86be42fd7557c"),
    (600, 20, False, 1, 1, 50, 10, True, [600],
     "63ef42a354cbf9f222a16dcc604cebdd925c60a7964dfd0909953dcd2c5b2c25"),
    (600, 20, False, 12, 20, 0, 50, False, [30] * 20,
     "52ea34a19b465e68e22ac27233c9bbf1c38943aaf3c1047df5d2ffb526254c0f"),
    (600, 20, False, 12, 20, 0, 50, True,
     [16, 60, 60, 34, 60, 60, 30, 30, 30, 5, 120, 30, 1, 30, 19, 0, 0, 0, 0, 15],
     "db0f5b0688b519fa6a1838f82998f90a379543c6dde3f69993ebed6241dc7e61"),
    (700, 23, False, 1, 7, 30, 33, True, [62, 212, 61, 31, 30, 183, 60],
     "acbed19f83313aa656f370dc2cebe95210ad8c539c50a57dd674f179673f3d48"),
    (600, 20, True, 5, 3, 40, 0, False, [180, 180, 180],
     "55269a457fbc5984b80c44e906f4d6c7913c279cb2973e3d8e5d46cbd9f189fb"),
]


@pytest.mark.parametrize("golden", GOLDEN, ids=lambda golden: "-".join(map(str, golden[:8])))
def test_official_sampler_index_for_index(golden):
    images, classes, by_class, seed, tasks, n, m, random_sizes, lengths, sha256 = golden
    stream = SiBlurry(tasks=tasks, disjoint_share=n, blurry_share=m, random_sizes=random_sizes,
                      sampler="official")
    stages = stream.stages(labels_of(images, classes, by_class), seed)
    assert [len(stage.index) for stage in stages] == lengths
    assert hashlib.sha256(arrivals(stages).astype("<i8").tobytes()).hexdigest() == sha256


def test_official_sampler_drops_leftover_classes():
    """23 classes, T = 5, N = 50: ⌊11⌋ → 10 disjoint, 13 → 10 blurry, 3 without a home."""
    labels = labels_of(690, 23)
    stages = SiBlurry(sampler="official").stages(labels, 0)
    homes = [c for stage in stages for c in stage.classes]
    assert len(homes) == len(set(homes)) == 20
    assert set(labels[arrivals(stages)].tolist()) == set(homes) and len(arrivals(stages)) == 600


# ---- errors


@pytest.mark.parametrize(("call", "words"), [
    (lambda: Disjoint(tasks=0).stages(LABELS, 0), ["tasks=0", "at least 1", "groups"]),
    (lambda: Disjoint(tasks=21).stages(LABELS, 0), ["tasks=21", "number of classes, 20"]),
    (lambda: Disjoint(tasks=2.5).stages(LABELS, 0), ["tasks=2.5", "whole number"]),
    (lambda: Disjoint(order="sorted").stages(LABELS, 0), ["order='sorted'", "given", "random"]),
    (lambda: Disjoint(tasks=[[0, 1], [1, 2]]).stages([0, 1, 2], 0), ["tasks", "[1]", "more than one"]),
    (lambda: Disjoint(tasks=[[0, 1], [2, 7]]).stages([0, 1, 2], 0), ["tasks", "[7]", "unknown"]),
    (lambda: Disjoint(tasks=[[0, 1]]).stages([0, 1, 2], 0), ["tasks", "[2]", "no group"]),
    (lambda: Disjoint(tasks=[]).stages([0, 1, 2], 0), ["tasks"]),
    (lambda: Disjoint(tasks=[0, 1, 2]).stages([0, 1, 2], 0), ["tasks=[0, 1, 2]", "list of lists"]),
    (lambda: Disjoint().stages([], 0), ["labels", "(0,)"]),
    (lambda: Joint().stages([[0, 1]], 0), ["labels", "(1, 2)"]),
    (lambda: Joint().stages([0., 1.], 0), ["labels", "float64"]),
    (lambda: SiBlurry(tasks=-1).stages(LABELS, 0), ["tasks=-1", "at least 1"]),
    (lambda: SiBlurry(tasks=21).stages(LABELS, 0), ["tasks=21", "number of classes, 20"]),
    (lambda: SiBlurry(disjoint_share=101).stages(LABELS, 0), ["disjoint_share=101", "0 to 100"]),
    (lambda: SiBlurry(blurry_share=-1).stages(LABELS, 0), ["blurry_share=-1", "0 to 100"]),
    (lambda: SiBlurry(sampler="mvp").stages(LABELS, 0), ["sampler='mvp'", "official", "random"]),
])
def test_errors_name_field_value_and_choices(call, words):
    with pytest.raises(ValueError) as error:
        call()
    assert all(word in str(error.value) for word in words), str(error.value)


# ---- domains


def test_domains_come_one_after_the_other_with_all_their_images():
    of = np.arange(600) % 7 % 4  # four domains, of which each holds every class
    stages = Domains(order="given").stages(LABELS, 0, of)
    assert [set(of[stage.index]) for stage in stages] == [{0}, {1}, {2}, {3}]
    assert sorted(arrivals(stages)) == list(range(600))
    assert [stage.classes for stage in stages] == [tuple(range(20)), (), (), ()]
    assert not np.array_equal(stages[0].index, np.sort(stages[0].index))


def test_the_home_of_a_class_is_the_first_domain_that_has_it():
    labels, of = np.array([5, 5, 3, 3, 9, 9, 5]), np.array([0, 1, 1, 2, 2, 2, 2])
    stages = Domains(order="given").stages(labels, 1, of)
    assert [stage.classes for stage in stages] == [(5,), (3,), (9,)]
    assert [sorted(stage.index) for stage in stages] == [[0], [1, 2], [3, 4, 5, 6]]


def test_the_order_of_domains_is_the_seeds():
    of = np.arange(600) % 6
    orders = [tuple(of[stage.index[0]] for stage in Domains().stages(LABELS, seed, of))
              for seed in range(8)]
    assert len(set(orders)) > 4 and all(sorted(order) == list(range(6)) for order in orders)
    assert same(Domains().stages(LABELS, 3, of), Domains().stages(LABELS, 3, of))


@pytest.mark.parametrize("domains", [None, np.zeros(5, int)])
def test_impossible_domains_are_refused(domains):
    with pytest.raises(ValueError, match="domains: got shape"):
        Domains().stages(LABELS, 0, domains)
    with pytest.raises(ValueError, match="order='best' is unknown"):
        Domains(order="best")
