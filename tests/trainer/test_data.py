from __future__ import annotations

import itertools

import pytest
import torch

from dpwatch.trainer import data
from dpwatch.trainer.config import CHARACTERS

from .support import tiny


def batches(config, rank=0, ranks=1):
    return list(data.loader(config, rank=rank, ranks=ranks))


def test_batches_depend_only_on_seed_and_step():
    first, again = batches(tiny("single")), batches(tiny("ddp"))
    assert all(torch.equal(a, b) for a, b in zip(first, again, strict=True))
    other = batches(tiny("single", seed=1))
    assert not torch.equal(first[0], other[0])
    assert not torch.equal(first[0], first[1])


def test_a_shorter_run_has_the_same_batches():
    long, short = batches(tiny("dp")), batches(tiny("dp", steps=3))
    assert len(short) == 3
    assert all(torch.equal(a, b) for a, b in zip(long, short, strict=False))


@pytest.mark.parametrize("ranks", [1, 2, 3])
def test_the_ranks_slices_form_the_global_batch(ranks):
    config = tiny("ddp", gpus=ranks, batch_per_gpu=6 // ranks)
    parts = [batches(config, rank, ranks) for rank in range(ranks)]
    for step, whole in enumerate(batches(tiny("single", gpus=1, batch_per_gpu=6))):
        assert torch.equal(torch.cat([part[step] for part in parts]), whole)


def test_without_a_step_count_batches_are_endless():
    endless = iter(data.loader(tiny("dp", steps=None), rank=0, ranks=1))
    assert len(list(itertools.islice(endless, 30))) == 30


def test_the_text_is_bounded_and_within_the_vocabulary():
    text = data.corpus()
    assert len(text) == data.CORPUS_BYTES
    assert int(text.max()) < CHARACTERS
    batch = batches(tiny("dp"))[0]
    assert batch.shape == (4, 17)
    assert batch.dtype == torch.int64


@pytest.mark.parametrize("characters", [2, 3])
def test_a_token_may_be_several_characters(characters):
    config = tiny("dp", token_chars=characters)
    (batch, *_) = batches(config)
    singles = batches(tiny("dp", seq_len=17 * characters - 1))[0]
    assert batch.shape == (4, 17)
    assert 0 <= int(batch.min()) <= int(batch.max()) < config.vocabulary == 97**characters
    expected = [
        sum(symbol * 97 ** (characters - 1 - place) for place, symbol in enumerate(token))
        for token in singles.view(-1, characters).tolist()
    ]
    assert batch.flatten().tolist() == expected


def test_reading_batches_does_not_touch_the_global_generator():
    torch.manual_seed(3)
    expected = torch.rand(3)
    torch.manual_seed(3)
    dataset = data.Batches(tiny("dp"), rank=0, ranks=1)
    dataset[0]
    assert torch.equal(torch.rand(3), expected)


def test_a_sample_longer_than_the_text_is_refused():
    with pytest.raises(data.CorpusError, match="reduce --seq-len"):
        data.Batches(tiny("dp", seq_len=2_000_000), rank=0, ranks=1)


def test_a_python_without_sources_is_reported(monkeypatch, tmp_path):
    data.corpus.cache_clear()
    monkeypatch.setattr(data.sysconfig, "get_path", lambda name: str(tmp_path))
    with pytest.raises(data.CorpusError, match="use a Python that ships"):
        data.corpus()
    data.corpus.cache_clear()
