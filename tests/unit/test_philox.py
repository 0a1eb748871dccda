"""The noise contract: known answers, what noise depends on, and that it is normal."""

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from gram.kernels import philox
from gram.kernels.philox import NoiseKey, Site, noise, philox4x32

# Random123's kat_vectors, philox4x32 with 10 rounds: counter, key, result.
KNOWN = [
    ((0, 0, 0, 0), (0, 0), (0x6627E8D5, 0xE169C58D, 0xBC57AC4C, 0x9B00DBD8)),
    ((0xFFFFFFFF,) * 4, (0xFFFFFFFF,) * 2, (0x408F276D, 0x41C83B0E, 0xA20BC7C6, 0x6D5451FD)),
    (
        (0x243F6A88, 0x85A308D3, 0x13198A2E, 0x03707344),
        (0xA4093822, 0x299F31D0),
        (0xD16CFE09, 0x94FDCCEB, 0x5001E420, 0x24126EA1),
    ),
]


@pytest.mark.parametrize(("counter", "key", "expected"), KNOWN)
def test_known_answers(counter, key, expected):
    words = philox4x32(*(torch.tensor(word) for word in (*counter, *key)))
    assert tuple(int(word) for word in words) == expected


word32 = st.integers(0, 2**32 - 1)


@given(st.tuples(word32, word32, word32, word32), st.tuples(word32, word32))
def test_equals_plain_integers(counter, key):
    """The int64 arithmetic wraps; Python's integers do not."""
    (c0, c1, c2, c3), (k0, k1) = counter, key
    for _ in range(10):
        p0, p1 = c0 * 0xD2511F53, c2 * 0xCD9E8D57
        c0, c1, c2, c3 = (p1 >> 32) ^ c1 ^ k0, p1 & 0xFFFFFFFF, (p0 >> 32) ^ c3 ^ k1, p0 & 0xFFFFFFFF
        k0, k1 = (k0 + 0x9E3779B9) & 0xFFFFFFFF, (k1 + 0xBB67AE85) & 0xFFFFFFFF
    words = philox4x32(*(torch.tensor(word) for word in (*counter, *key)))
    assert tuple(int(word) for word in words) == (c0, c1, c2, c3)


def draw(shape=(3, 8), *, seed=5, site=Site.PRIOR, transition=(0,), trajectory=(0,), puzzle=(0,)):
    transition_B = torch.tensor(transition)
    key = NoiseKey(seed, torch.tensor(puzzle), torch.tensor(trajectory), torch.zeros_like(transition_B))
    return noise(shape, key, site, transition_B)


def test_counter_layout():
    """Token 1, columns 4 to 7 of D=8: element block 1 * 2 + 1, site and transition in word 1."""
    seed, transition, trajectory, puzzle = (7 << 32) | 9, 3, 11, 0xDEADBEEF
    words = philox4x32(
        torch.tensor(3),
        torch.tensor(transition | (int(Site.POSTERIOR) << 24)),
        torch.tensor(trajectory),
        torch.tensor(puzzle),
        torch.tensor(9),
        torch.tensor(7),
    )
    bits = torch.stack([(word >> 9).to(torch.int32) for word in words])
    drawn = draw(
        (2, 8), seed=seed, site=Site.POSTERIOR, transition=[transition], trajectory=[trajectory], puzzle=[puzzle]
    )
    assert torch.equal(drawn[0, 1, 4:], philox.normals_from_bits(bits[None])[0])


def test_row_is_the_same_in_any_batch():
    alone = draw(transition=[4], trajectory=[2], puzzle=[77])
    together = draw(transition=[0, 4, 9], trajectory=[5, 2, 2], puzzle=[1, 77, 77])
    assert torch.equal(together[1], alone[0])


@pytest.mark.parametrize(
    "other",
    [
        {"seed": 6},
        {"seed": 5 + 2**32},
        {"site": Site.PATH},
        {"transition": (1,)},
        {"trajectory": (1,)},
        {"puzzle": (1,)},
    ],
)
def test_every_word_matters(other):
    assert not torch.equal(draw(), draw(**other))


def test_normals_are_normal():
    sample = draw((64, 128), transition=range(16), trajectory=range(16), puzzle=range(16)).numpy().ravel()
    count = sample.size
    assert abs(sample.mean()) < 5 / count**0.5
    assert abs(sample.std() - 1) < 5 / (2 * count) ** 0.5
    assert abs((sample**4).mean() - 3) < 5 * (96 / count) ** 0.5
    assert abs(np.corrcoef(sample[:-1], sample[1:])[0, 1]) < 5 / count**0.5


def test_extremes_are_finite():
    bits = torch.tensor([[0, 0, 2**23 - 1, 2**23 - 1]], dtype=torch.int32)
    normals = philox.normals_from_bits(bits)
    assert torch.isfinite(normals).all()
    assert normals.abs().max() < 5.78


def test_compiled_integers_are_equal(monkeypatch):
    arguments = [torch.arange(5) * 7, torch.arange(5), torch.arange(5) + 2**31]
    eager = philox.random_bits(64, 2**63 + 3, *arguments)
    monkeypatch.setattr(philox, "COMPILE_FROM_ELEMENTS", 0)
    assert torch.equal(philox.random_bits(64, 2**63 + 3, *arguments), eager)
