import math

import numpy as np
import pytest

from vi_flows.evaluation.ngram import NGram


def test_literal_probabilities():
    """Of the sequence 0 1 0 0 over two values, by hand."""
    model = NGram(2, 2, [np.array([0, 1, 0, 0])])
    # Unigram: (3 + 2 · ½) / (4 + 2) = 2/3. Bigram after 0 (seen once each, 2 kinds): (1 + 2 · 2/3) / 4 = 7/12.
    assert np.exp(model.log_probs(np.array([0, 0, 1]))) == pytest.approx([2 / 3, 7 / 12, 5 / 12])
    # After 1 only 0 was seen, once: (1 + 1 · 2/3) / 2.
    assert np.exp(model.log_probs(np.array([1, 0]))) == pytest.approx([1 / 3, 5 / 6])


@pytest.mark.parametrize("order", [1, 2, 3])
def test_sums_to_one_after_every_context(order):
    random = np.random.RandomState(0)
    model = NGram(order, 4, [random.randint(0, 3, 30), random.randint(0, 4, 20)])
    for _ in range(10):
        before = random.randint(0, 4, 5)
        p = [math.exp(model.log_probs(np.append(before, x))[-1]) for x in range(4)]
        assert sum(p) == pytest.approx(1, abs=1e-12)
        assert min(p) > 0


def test_refusals():
    with pytest.raises(ValueError, match="order"):
        NGram(0, 4, [])
    with pytest.raises(ValueError, match="64 bits"):
        NGram(8, 256, [])
    with pytest.raises(ValueError, match="there are no sequences to count"):
        NGram(2, 4, [])
    # Codes of larger values are those of other n-grams, so that the probabilities would not sum to one.
    for wrong in ([0, 4], [-1, 2], [0.5, 1.0]):
        with pytest.raises(ValueError, match="whole numbers from 0 to 3"):
            NGram(2, 4, [np.array([0, 1]), np.array(wrong)])
        with pytest.raises(ValueError, match="whole numbers from 0 to 3"):
            NGram(2, 4, [np.array([0, 1])]).log_probs(np.array(wrong))
    assert NGram(2, 4, [np.array([0, 1]), np.array([])]).log_probs(np.array([])).shape == (0,)
