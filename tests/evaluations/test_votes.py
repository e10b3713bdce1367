"""Who voted for a patch: against a plain search, through the evaluation, and what of it is written."""

import base64
import io
import math

import numpy as np
import pytest
import torch
from PIL import Image

from densewalk.evaluations.common.base import Job
from densewalk.evaluations.incontext.evaluate import augment, evaluate, list_splits, seed_of_epoch
from densewalk.evaluations.incontext.retrieval import Memory, mix_nearest
from densewalk.evaluations.incontext.settings import IncontextSettings
from densewalk.evaluations.incontext.votes import CLASSES, PICTURED, QUERIES, VOTERS, Origins, OriginStore, count_votes
from densewalk.visualization.votes import FULL, NO_LABEL, from_text, read_votes
from tests.fixtures.dense import label_map, write_backbone, write_masks


def settings_of(root, **changes):
    plain = {"root": str(root), "dataset": "toy", "layout": "masks", "images": "images", "masks": "masks", "num_classes": 4}
    small = {"input_size": 32, "augmentation_epochs": 0, "memory_every": 2, "query_every": 2, "query_offset": 1, "neighbours": 3}
    return IncontextSettings(**{**plain, **small, **changes})


def test_the_largest_votes_are_those_of_a_plain_search():
    generator = torch.Generator().manual_seed(0)
    memory = torch.nn.functional.normalize(torch.randn(50, 6, generator=generator), dim=1)
    queries = torch.nn.functional.normalize(torch.randn(9, 6, generator=generator), dim=1)
    labels = torch.rand(50, 5, generator=generator)
    labels /= labels.sum(1, keepdim=True)
    truth = torch.rand(9, 5, generator=generator)
    truth[4] = 0
    origins = Origins(np.arange(50) // 10, np.arange(50) % 10, labels.argmax(1).numpy())
    settings = settings_of(".", neighbours=7, temperature=0.1)
    told = []

    def tell(similarity, index, histograms, mixture):
        told.append(count_votes(origins, (similarity / settings.temperature).softmax(dim=1), index, histograms, mixture, truth))

    mixture = mix_nearest(Memory(memory, labels), queries, settings, tell)
    for q in range(9):
        cosines = [sum(a * b for a, b in zip(queries[q].tolist(), m, strict=True)) for m in memory.tolist()]
        nearest = sorted(range(50), key=lambda i: -cosines[i])[:7]
        weights = [math.exp(cosines[i] / 0.1) for i in nearest]
        expected = [(i // 10, i % 10, int(labels[i].argmax()), w / sum(weights)) for i, w in zip(nearest, weights, strict=True)][:VOTERS]
        np.testing.assert_allclose(told[0].voters[q], expected, atol=1e-5)
        given = [[w / sum(weights) * float(labels[i, c]) for c in range(5)] for i, w in zip(nearest, weights, strict=True)]
        votes = [sum(one[c] for one in given) for c in range(5)]
        first = max(range(5), key=lambda c: votes[c])
        kept = list(dict.fromkeys([first, *([] if q == 4 else [int(truth[q].argmax())]), *sorted(range(5), key=lambda c: -votes[c])]))
        mixture_of_q = [(c, votes[c], *(one[c] for one in given[:VOTERS])) for c in kept[:CLASSES]]
        np.testing.assert_allclose(told[0].mixture[q], mixture_of_q, atol=1e-5)
    assert told[0].predicted.tolist() == mixture.argmax(1).tolist()
    np.testing.assert_allclose(told[0].share, mixture.max(1).values.clamp(max=1), atol=1e-6)
    assert told[0].truth.tolist() == [NO_LABEL if q == 4 else int(truth[q].argmax()) for q in range(9)]


def test_origins_are_in_the_order_in_which_patches_were_added():
    store = OriginStore()
    store.add(5, torch.tensor([3, 1]), torch.tensor([[0.2, 0.8], [0.6, 0.4]]))
    store.add(2, torch.tensor([0]), torch.tensor([[0.0, 1.0]]))
    found = store.origins()
    assert (found.view.tolist(), found.patch.tolist(), found.label.tolist()) == ([5, 5, 2], [3, 1, 0], [1, 0, 1])
    assert OriginStore().origins().view.shape == (0,)


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    root = tmp_path_factory.mktemp("data")
    write_masks(root)
    write_backbone(root / "backbone.safetensors")
    return root


def votes_of(data, out, **changes):
    settings = settings_of(data, **changes)
    evaluate(settings, data / "backbone.safetensors", Job(out=out, state=out / "state"))
    return settings, read_votes(out / "votes.json")


def test_the_votes_of_an_evaluation_give_its_predictions_and_lead_to_the_memorys_labels(data, tmp_path):
    settings, found = votes_of(data, tmp_path)
    memory, queries = list_splits(settings)
    assert [m.name for m in found.memory] == sorted(f"images/{e.image.name}" for e in memory)[: len(found.memory)]
    assert [q.name for q in found.queries] == [f"images/{queries[i].image.name}" for i in range(QUERIES)]
    assert (found.rows, found.columns, found.voters) == (2, 2, 3), "no more voters than neighbours"
    for query in found.queries:
        voters = from_text(query.voters, "").reshape(4, 3, 4).astype(int)
        predicted, share, truth = (from_text(getattr(query, name), "").tolist() for name in ("predicted", "share", "truth"))
        assert truth == label_map(int(query.name[-7:-4]))[8::16, 8::16].flatten().tolist()
        np.testing.assert_allclose(voters[..., 3].sum(1), FULL, atol=2)
        for patch in range(4):
            votes = [0.0] * 4
            for image, at, label, weight in voters[patch].tolist():
                labels = label_map(int(found.memory[image].name[-7:-4]))[8::16, 8::16]
                assert label == labels.flatten()[at]
                votes[label] += weight
            assert predicted[patch] == int(np.argmax(votes))
            assert share[patch] == pytest.approx(max(votes), abs=4)
        mixture = from_text(query.mixture, "").reshape(4, found.classes, 5).astype(int)
        assert mixture[:, 0, 0].tolist() == predicted
        assert mixture[:, 0, 1].tolist() == share
        np.testing.assert_allclose(mixture[..., 2:].sum(2), mixture[..., 1], atol=4), "all neighbors are kept, so they give everything"


def test_an_augmented_memory_is_shown_as_it_was_remembered(data, tmp_path):
    settings, found = votes_of(data, tmp_path, augmentation_epochs=2, neighbours=8)
    memory, _ = list_splits(settings)
    names = [m.name for m in found.memory]
    assert len(names) > len(set(names)), "an image is there once for each pass"
    last = max(i for i, m in enumerate(found.memory) if m.image)
    shown = np.asarray(Image.open(io.BytesIO(base64.b64decode(found.memory[last].image))).convert("RGB"), float)
    number = next(i for i, e in enumerate(memory) if e.image.name == names[last].split("/")[1])
    image, mask = Image.open(memory[number].image), torch.zeros(32, 32, dtype=torch.int32)
    from densewalk.core.hashing import derive_seed

    crops = [augment(image, mask, 32, derive_seed(seed_of_epoch(0, 0, epoch), number))[0] for epoch in (0, 1)]
    distances = [np.abs(255 * crop.permute(1, 2, 0).numpy() - shown).mean() for crop in crops]
    assert min(distances) < 12 < max(distances), "of the second pass, up to compression"
    assert int(np.argmin(distances)) == 1


def test_only_memory_images_with_many_votes_are_drawn(data, tmp_path, monkeypatch):
    monkeypatch.setattr("densewalk.evaluations.incontext.votes.PICTURED", 1)
    _, found = votes_of(data, tmp_path, neighbours=12)
    assert sum(m.image is not None for m in found.memory) == 1 < len(found.memory)
    totals = np.zeros(len(found.memory))
    for query in found.queries:
        for image, _, _, weight in from_text(query.voters, "").reshape(-1, 4).tolist():
            totals[image] += weight
    assert found.memory[int(totals.argmax())].image is not None
    assert PICTURED > 1
