"""Losses against torch.nn.functional and against their own definitions, on cases that hypothesis picks."""
import pickle

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings, strategies as st

from safetune.losses import (IGNORE_INDEX, LOSSES, WEIGHTINGS, get_loss, loss_options, positive_weights, trainer_loss,
                             weights_from_counts)

TOLERANCE = {torch.float64: dict(rtol=1e-9, atol=1e-9), torch.float32: dict(rtol=1.3e-6, atol=1e-5)}  # float32: PyTorch's own
quick = settings(max_examples=100, deadline=None)
shapes = st.lists(st.integers(1, 4), min_size=1, max_size=3)
seeds = st.integers(0, 2**31)
dtypes = st.sampled_from([torch.float32, torch.float64])
scales = st.sampled_from([0.1, 1.0, 10.0])


def class_case(seed, shape, n_classes, dtype=torch.float64, scale=3.0, ignored=0.3):
    "Random logits and labels; the first position always counts, because PyTorch gives nan when none does."
    generator = torch.Generator().manual_seed(seed)
    logits = (scale * torch.randn(*shape, n_classes, generator=generator, dtype=torch.float64)).to(dtype)
    labels = torch.randint(0, n_classes, tuple(shape), generator=generator)
    labels[torch.rand(tuple(shape), generator=generator) < ignored] = IGNORE_INDEX
    labels.view(-1)[0] = 0
    weights = (torch.rand(n_classes, generator=generator, dtype=torch.float64) + 0.05).to(dtype)
    return logits, labels, weights


def yes_no_case(seed, shape, dtype=torch.float64, scale=3.0):
    generator = torch.Generator().manual_seed(seed)
    logits = (scale * torch.randn(*shape, generator=generator, dtype=torch.float64)).to(dtype)
    labels = torch.randint(0, 2, tuple(shape), generator=generator).to(dtype)
    weights = (5 * torch.rand(shape[-1], generator=generator, dtype=torch.float64) + 0.05).to(dtype)
    return logits, labels, weights


def case_for(name, seed, shape, dtype=torch.float64):
    "Logits and labels that fit the loss called `name`, over 4 classes or labels."
    if name in ("cross_entropy", "focal"):
        return class_case(seed, shape, 4, dtype)[:2]
    return yes_no_case(seed, [*shape, 4], dtype)[:2]


def assert_same(ours, reference, logits):
    "Value and gradient agree."
    results = []
    for function in (ours, reference):
        leaf = logits.clone().requires_grad_()
        value = function(leaf)
        results.append((value.detach(), torch.autograd.grad(value, leaf)[0]))
    for ours_part, reference_part in zip(*results):
        torch.testing.assert_close(ours_part, reference_part, **TOLERANCE[logits.dtype])


@quick
@given(seeds, shapes, st.integers(2, 9), dtypes, scales, st.booleans(), st.floats(0, 1))
def test_cross_entropy_is_torch(seed, shape, n_classes, dtype, scale, weighted, smoothing):
    logits, labels, weights = class_case(seed, shape, n_classes, dtype, scale)
    weights = weights if weighted else None
    ours = get_loss("cross_entropy", class_weights=weights, label_smoothing=smoothing)
    assert_same(lambda z: ours(z, labels),
                lambda z: F.cross_entropy(z.reshape(-1, n_classes), labels.reshape(-1), weight=weights,
                                          label_smoothing=smoothing), logits)


@quick
@given(seeds, shapes, st.integers(2, 9), st.integers(-120, -1))
def test_any_ignore_index(seed, shape, n_classes, ignore_index):
    logits, labels, _ = class_case(seed, shape, n_classes)
    other = labels.masked_fill(labels == IGNORE_INDEX, ignore_index)
    for name in ("cross_entropy", "focal"):
        torch.testing.assert_close(get_loss(name, ignore_index=ignore_index)(logits, other),
                                   get_loss(name)(logits, labels))


@quick
@given(seeds, shapes, dtypes, scales, st.booleans(), st.floats(0, 1))
def test_binary_cross_entropy_is_torch(seed, shape, dtype, scale, weighted, smoothing):
    logits, labels, weights = yes_no_case(seed, shape, dtype, scale)
    weights = weights if weighted else None
    smooth = labels * (1 - smoothing) + smoothing / 2
    ours = get_loss("binary_cross_entropy", class_weights=weights, label_smoothing=smoothing)
    assert_same(lambda z: ours(z, labels),
                lambda z: F.binary_cross_entropy_with_logits(z, smooth, pos_weight=weights), logits)


@quick
@given(seeds, shapes, dtypes, scales)
def test_squared_error_is_torch(seed, shape, dtype, scale):
    logits, labels, _ = yes_no_case(seed, shape, dtype, scale)
    assert_same(lambda z: get_loss("squared_error")(z, labels), lambda z: F.mse_loss(z, labels), logits)
    column = logits[..., None]
    assert_same(lambda z: get_loss("squared_error")(z, labels), lambda z: F.mse_loss(z[..., 0], labels), column)


@quick
@given(seeds, shapes, st.integers(2, 9), st.floats(0, 5), st.booleans())
def test_focal_is_its_formula(seed, shape, n_classes, gamma, weighted):
    logits, labels, weights = class_case(seed, shape, n_classes)
    counted = labels != IGNORE_INDEX

    def formula(z):
        p = torch.softmax(z, -1)[counted].gather(-1, labels[counted][:, None])[:, 0]
        alpha = weights[labels[counted]] if weighted else torch.ones_like(p)
        return (-alpha * (1 - p) ** gamma * p.log()).sum() / alpha.sum()

    ours = get_loss("focal", gamma=gamma, class_weights=weights if weighted else None)
    assert_same(lambda z: ours(z, labels), formula, logits)


@quick
@given(seeds, shapes, st.floats(0, 5))
def test_binary_focal_is_its_formula(seed, shape, gamma):
    logits, labels, weights = yes_no_case(seed, shape)

    def formula(z):
        p = torch.sigmoid(z)
        return -(weights * labels * (1 - p) ** gamma * p.log()
                 + (1 - labels) * p ** gamma * (1 - p).log()).mean()

    ours = get_loss("binary_focal", gamma=gamma, class_weights=weights)
    assert_same(lambda z: ours(z, labels), formula, logits)


OPTIONS = [("cross_entropy", {}), ("cross_entropy", dict(label_smoothing=0.2, class_weights=[1.0, 2.0, 0.0, 4.0])),
           ("focal", dict(gamma=0.0)), ("focal", dict(gamma=0.4)), ("focal", dict(gamma=3.0)),
           ("binary_cross_entropy", dict(class_weights=[1.0, 2.0, 3.0, 4.0], label_smoothing=0.1)),
           ("binary_focal", dict(gamma=0.4)), ("binary_focal", dict(gamma=3.0)), ("squared_error", {})]


@pytest.mark.parametrize("name, options", OPTIONS)
def test_gradient_is_the_derivative(name, options):
    logits, labels = case_for(name, 0, [3, 2])
    loss = get_loss(name, **options)
    assert torch.autograd.gradcheck(lambda z: loss(z, labels), logits.requires_grad_())


@pytest.mark.parametrize("name, options", OPTIONS)
@settings(max_examples=25, deadline=None)
@given(values=st.lists(st.sampled_from([-1e4, -90.0, -1e-4, 0.0, 1e-4, 17.0, 90.0, 1e4]), min_size=4, max_size=4),
       seed=seeds, dtype=st.sampled_from([torch.float16, torch.bfloat16, torch.float32, torch.float64]))
def test_extreme_logits_stay_finite(name, options, values, seed, dtype):
    _, labels = case_for(name, seed, [1])
    logits = torch.tensor([values]).to(dtype).requires_grad_()
    value = get_loss(name, **options)(logits, labels)
    value.backward()
    assert torch.isfinite(value) and torch.isfinite(logits.grad).all()
    assert value.dtype == (dtype if dtype == torch.float64 else torch.float32)


@pytest.mark.parametrize("name, options", OPTIONS)
@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_half_precision_is_computed_in_float32(name, options, dtype):
    logits, labels = case_for(name, 3, [50], torch.float32)
    half = logits.to(dtype)
    loss = get_loss(name, **options)
    assert torch.equal(loss(half, labels), loss(half.float(), labels))


@pytest.mark.parametrize("name, options", OPTIONS)
def test_nothing_counts(name, options):
    logits, labels = case_for(name, 0, [3])
    logits.requires_grad_()
    for num_items in (None, 0, torch.tensor(0), 7):
        logits.grad = None
        value = get_loss(name, **options, ignore_index=-100)(logits, torch.full_like(labels, -100), num_items)
        value.backward()
        assert value.item() == 0 and not logits.grad.any()


def test_empty_batch():
    for name in LOSSES:
        logits, labels = case_for(name, 0, [1])
        assert get_loss(name)(logits[:0], labels[:0]).item() == 0


def test_zero_weight_on_every_class_seen():
    value = get_loss("cross_entropy", class_weights=[0.0, 1.0])(torch.zeros(2, 2), torch.tensor([0, 0]))
    assert value.item() == 0


@pytest.mark.parametrize("name, options", OPTIONS)
@settings(max_examples=25, deadline=None)
@given(seed=seeds, cuts=st.lists(st.integers(1, 9), max_size=4, unique=True))
def test_accumulation_is_exact(name, options, seed, cuts):
    logits, labels = case_for(name, seed, [10, 3])
    if name != "squared_error":
        labels[torch.rand(labels.shape, generator=torch.Generator().manual_seed(seed)) < 0.4] = IGNORE_INDEX
    loss, n_items = get_loss(name, **options), (labels != IGNORE_INDEX).sum()
    whole, pieces = logits.clone().requires_grad_(), logits.clone().requires_grad_()
    loss(whole, labels, n_items).backward()
    edges = [0, *sorted(cuts), 10]
    for start, end in zip(edges, edges[1:]):
        loss(pieces[start:end], labels[start:end], n_items).backward()
    torch.testing.assert_close(pieces.grad, whole.grad, rtol=1e-12, atol=1e-15)


def test_num_items_of_every_kind():
    logits, labels, _ = class_case(0, [4], 3, ignored=0)
    loss = get_loss()
    for num_items in (4, torch.tensor(4), torch.tensor(4.0), torch.full((2, 1), 4)):  # the last as in DataParallel
        value = loss(logits, labels, num_items)
        assert value.shape == ()
        torch.testing.assert_close(value, loss(logits, labels))


def test_trainer_loss_takes_mappings_and_tuples():
    logits, labels, _ = class_case(0, [4], 3)
    wrapped = trainer_loss(get_loss("focal"))
    expected = get_loss("focal")(logits, labels, 2)
    assert wrapped({"logits": logits}, labels, num_items_in_batch=2) == expected
    assert wrapped((logits,), labels, num_items_in_batch=2) == expected


def test_losses_can_be_pickled():
    logits, labels, _ = class_case(0, [4], 3)
    loss = trainer_loss(get_loss("cross_entropy", class_weights=[1.0, 2.0, 3.0], label_smoothing=0.1))
    assert pickle.loads(pickle.dumps(loss))((logits,), labels) == loss((logits,), labels)


def test_a_loss_of_ones_own(monkeypatch):
    monkeypatch.setitem(LOSSES, "huber", lambda logits, labels, num_items_in_batch=None, delta=1.0:
                        F.huber_loss(logits, labels, delta=delta))
    assert loss_options("huber") == ["delta"]
    assert get_loss("huber", delta=2.0)(torch.tensor([3.0]), torch.tensor([0.0])).item() == 4.0


@pytest.mark.parametrize("make, words", [
    (lambda: get_loss("hinge"), ["hinge", *LOSSES]),
    (lambda: get_loss("focal", gama=1), ["gama", "gamma", "class_weights", "ignore_index"]),
    (lambda: get_loss("focal", gamma=-1), ["gamma"]),
    (lambda: get_loss("focal", gamma=float("nan")), ["gamma"]),
    (lambda: get_loss(label_smoothing=1.1), ["label_smoothing"]),
    (lambda: get_loss(class_weights="balanced"), ["weights_from_counts"]),
    (lambda: get_loss(class_weights=[1.0, float("nan")]), ["class_weights"]),
    (lambda: get_loss(class_weights=[[1.0, 2.0]]), ["class_weights"]),
    (lambda: get_loss(class_weights=[1.0])(torch.zeros(2, 3), torch.zeros(2).long()), ["class_weights", "(3,)"]),
    (lambda: get_loss()(torch.zeros(2, 3), torch.tensor([0, 3])), ["3", "0..2", "-100"]),
    (lambda: get_loss()(torch.zeros(2, 3), torch.tensor([0.0, 1.0])), ["integers"]),
    (lambda: get_loss()(torch.zeros(2, 1), torch.tensor([0, 0])), ["squared_error"]),
    (lambda: get_loss()(torch.zeros(2, 3), torch.zeros(2, 3).long()), ["shape"]),
    (lambda: get_loss("binary_cross_entropy")(torch.zeros(2, 3), torch.zeros(2)), ["shape"]),
    (lambda: get_loss("binary_cross_entropy")(torch.zeros(2), torch.tensor([0, 2])), ["between 0 and 1"]),
    (lambda: get_loss("binary_focal", class_weights=[1.0, 2.0])(torch.zeros(2, 3), torch.zeros(2, 3)), ["class_weights"]),
    (lambda: get_loss("squared_error")(torch.zeros(4, 2), torch.zeros(4)), ["shape"]),
    (lambda: weights_from_counts([1, 2], "sqrt"), ["sqrt", *WEIGHTINGS]),
    (lambda: weights_from_counts([1, -2]), ["counts"]),
    (lambda: weights_from_counts([0, 0]), ["counts"]),
    (lambda: weights_from_counts([1, 2], "effective_number", beta=1.0), ["beta"]),
])
def test_mistakes_get_one_clear_line(make, words):
    with pytest.raises(ValueError) as caught:
        make()
    message = str(caught.value)
    assert "\n" not in message and all(word in message for word in words)


@quick
@given(st.lists(st.integers(0, 10**6), min_size=1, max_size=20).filter(sum), st.sampled_from(WEIGHTINGS),
       st.floats(0, 0.99999))
def test_weights_average_to_one_and_favour_the_rare(counts, method, beta):
    weights = weights_from_counts(counts, method, beta)
    counts = torch.tensor(counts)
    assert torch.isfinite(weights).all() and (weights > 0).all()
    mean = (weights.double() * counts).sum() / counts.sum()    # the weights themselves are float32
    torch.testing.assert_close(mean, torch.ones((), dtype=torch.float64), **TOLERANCE[torch.float32])
    assert (weights[counts.argsort()].diff() <= 1e-6 * weights.max()).all()


def test_balanced_is_scikit_learns():
    compute_class_weight = pytest.importorskip("sklearn.utils.class_weight").compute_class_weight
    labels = torch.tensor([0] * 7 + [1] * 2 + [2])
    expected = compute_class_weight("balanced", classes=np.arange(3), y=labels.numpy())
    torch.testing.assert_close(weights_from_counts([7, 2, 1]), torch.tensor(expected).float())


def test_positive_weights_even_out_both_sides():
    labels = torch.tensor([[1.0, 0, IGNORE_INDEX], [0, 0, 1], [0, 0, 0]])
    assert positive_weights(labels).tolist() == [2.0, 3.0, 1.0]
