"""Quantizers behind one interface, their projections, balanced assignment, and collisions."""

import itertools

import faiss
import numpy as np
import polars as pl
import pytest
from hypothesis import assume, given, settings
from hypothesis import strategies as st
from scipy.optimize import linear_sum_assignment

from sidr_core.errors import InputError, ProfileError
from sidr_core.settings import Quantizer
from sidr_core.sids import cooccurrence, kmeans
from sidr_core.sids.collisions import add_suffix, group_numbers, reassign, resolve
from sidr_core.sids.projection import unit
from sidr_core.sids.quantize import Codebook, codes_per_level, fit
from sidr_core.sids.quantizers import balanced_kmeans

N, D = 240, 12
IDS = [f"i{n:03d}" for n in range(N)]


def blobs(n: int, dimension: int = 8, seed: int = 0) -> np.ndarray:
    rng = np.random.default_rng(seed)
    centres = rng.normal(size=(6, dimension)) * 5
    return (centres[rng.integers(6, size=n)] + rng.normal(size=(n, dimension))).astype(np.float32)


def samples(rows: list[tuple[list[str], str]]) -> pl.DataFrame:
    schema = {"history_item_ids": pl.List(pl.String), "target_item_id": pl.String}
    return pl.DataFrame(rows, schema=schema, orient="row")


def walks(ids: list[str], seed: int = 0) -> pl.DataFrame:
    """Users who take items with near numbers."""
    rng = np.random.default_rng(seed)
    rows = []
    for start in range(0, len(ids) - 6, 2):
        taken = [ids[start + int(step)] for step in rng.integers(0, 6, size=5)]
        rows += [(taken[:n], taken[n]) for n in range(1, 5)]
    return samples(rows)


KINDS = [
    {"kind": "residual_kmeans"},
    {"kind": "balanced_kmeans"},
    {"kind": "rqvae", "epochs": 12, "code_size": 4},
    {"vectors": "whitened", "whitened_size": 5},
    {"vectors": "fused", "fused_size": 6},
    {"kind": "balanced_kmeans", "vectors": "whitened"},
    {"kind": "rqvae", "vectors": "fused", "epochs": 4, "code_size": 4},
]


def fitted(matrix: np.ndarray, /, **config) -> Codebook:
    return fit(matrix, Quantizer.model_validate({"size": 8} | config), histories=walks(IDS), item_ids=IDS)


# -- the interface ------------------------------------------------------------------------------


@pytest.mark.parametrize("config", KINDS, ids=str)
def test_a_fit_repeats_and_its_file_restores_it(config, tmp_path):
    vectors = blobs(N, D)
    book = fitted(vectors, **config)
    book.save(tmp_path / "1")
    fitted(vectors, **config).save(tmp_path / "2")
    assert (tmp_path / "1").read_bytes() == (tmp_path / "2").read_bytes()
    loaded = Codebook.load(tmp_path / "1")
    latent = book.project(vectors, IDS)
    assert latent.dtype == np.float32 and latent.shape[1] == book.centroids.shape[2]
    assert np.array_equal(loaded.project(vectors, IDS), latent)
    assert np.array_equal(loaded.project(vectors), book.project(vectors))
    codes = book.encode(latent)
    assert book.fitted is not None and book.fitted.shape == codes.shape == (N, 3)
    assert np.array_equal(loaded.encode(latent), codes)
    assert np.array_equal(loaded.reconstruct(codes), book.reconstruct(codes))
    assert book.reconstruct(codes).shape == vectors.shape
    if config.get("kind") != "balanced_kmeans":
        assert np.array_equal(book.fitted, codes)


def test_the_seed_matters():
    vectors = blobs(N, D)
    for config in KINDS[:3]:
        assert not np.array_equal(fitted(vectors, **config).centroids, fitted(vectors, seed=1, **config).centroids)


def test_an_older_file_without_projections_is_plain(tmp_path):
    from safetensors.numpy import save_file

    centroids = np.ones((2, 3, 4), dtype=np.float32)
    save_file({"centroids": centroids}, tmp_path / "c")
    book = Codebook.load(tmp_path / "c")
    assert np.array_equal(book.centroids, centroids) and book.projections == ()


def test_encoding_is_greedy_over_residuals():
    book = Codebook(np.array([[[0, 0], [10, 0]], [[0, 0], [0, 1]]], dtype=np.float32))
    vectors = np.array([[9, 1], [1, 0]], dtype=np.float32)
    assert book.encode(vectors).tolist() == [[1, 1], [0, 0]]
    assert book.decode(book.encode(vectors)).tolist() == [[10, 1], [0, 0]]
    assert book.encode(vectors[:0]).shape == (0, 2)


def test_blocks_do_not_change_the_codes(monkeypatch):
    vectors = blobs(N, D)
    book = fitted(vectors)
    monkeypatch.setattr(kmeans.blocks, "__defaults__", (7,))
    assert book.fitted is not None and np.array_equal(book.encode(vectors), book.fitted)


@pytest.mark.parametrize("kind", ["residual_kmeans", "balanced_kmeans"])
def test_threads_do_not_change_the_bytes(kind, monkeypatch):
    monkeypatch.setattr(kmeans, "_FIRST_AT_LEAST", 0)  # faiss on a sample, then refined
    threadpoolctl = pytest.importorskip("threadpoolctl")
    vectors = blobs(1200, 48)
    before = faiss.omp_get_max_threads()
    found = set()
    for threads in (1, 2, 3):
        faiss.omp_set_num_threads(threads)
        with threadpoolctl.threadpool_limits(threads):
            book = fit(vectors, Quantizer(kind=kind, size=16, iterations=6))
            found.add(book.centroids.tobytes() + book.encode(vectors).tobytes())
    faiss.omp_set_num_threads(before)
    assert len(found) == 1


def test_refined_centroids_are_better_than_those_of_a_sample(monkeypatch):
    monkeypatch.setattr(kmeans, "_FIRST_AT_LEAST", 0)
    vectors = blobs(3000, 24, seed=1)

    def error() -> float:
        centroids = kmeans.train(vectors, 16, 20, 0)
        return float(((vectors - centroids[kmeans.nearest(vectors, centroids)]) ** 2).sum())

    refined = error()
    monkeypatch.setattr(kmeans, "_REFINEMENTS", 0)
    assert refined < 0.99 * error()


def test_nearest_and_means_by_hand():
    centroids = np.array([[0, 0], [4, 0], [4, 0], [9, 9]], dtype=np.float32)
    vectors = np.array([[1, 0], [3, 0], [2, 0], [-5, 0]], dtype=np.float32)
    owner = kmeans.nearest(vectors, centroids)
    assert owner.tolist() == [0, 1, 0, 0]  # the lowest of equals
    assert np.allclose(kmeans.means(vectors, owner, centroids), [[-2 / 3, 0], [3, 0], [4, 0], [9, 9]])


@pytest.mark.parametrize("kind", ["residual_kmeans", "balanced_kmeans"])
def test_each_level_helps(kind):
    vectors = blobs(300)
    book = fit(vectors, Quantizer(kind=kind, size=8))
    assert book.fitted is not None
    errors = [float(((vectors - book.decode(book.fitted[:, :levels])) ** 2).sum()) for levels in (1, 2, 3)]
    assert errors[0] > errors[1] > errors[2]
    assert errors[2] < 0.2 * ((vectors - vectors.mean(axis=0)) ** 2).sum()


def test_a_large_catalogue_is_learnt_from_a_sample():
    vectors = blobs(2000)
    codes = fit(vectors, Quantizer(size=4)).fitted  # 256 × 4 vectors are learnt from, all are coded
    assert codes is not None and len(codes) == 2000 and len(np.unique(codes[:, 0])) == 4


def test_small_catalogues_use_fewer_codes():
    assert codes_per_level(blobs(40), Quantizer(size=256)) == 20
    assert codes_per_level(blobs(600), Quantizer(size=256)) == 256
    assert codes_per_level(blobs(40), Quantizer(size=256, levels=1)) == 40  # one level must tell all apart
    assert codes_per_level(np.ones((30, 4), dtype=np.float32), Quantizer(size=256)) == 4  # 4 ** 3 ≥ 30


@pytest.mark.parametrize("kind", ["residual_kmeans", "balanced_kmeans", "rqvae"])
def test_fewer_distinct_vectors_than_codes(kind):
    vectors = np.repeat(np.eye(3, dtype=np.float32), 10, axis=0)
    book = fit(vectors, Quantizer(kind=kind, size=16, epochs=2))
    assert np.isfinite(book.centroids).all() and book.fitted is not None
    assert len(fit(vectors[:1], Quantizer(kind=kind, epochs=2)).encode(book.project(vectors)[:1])) == 1
    if kind == "residual_kmeans":
        assert np.allclose(book.reconstruct(book.fitted), vectors, atol=1e-6)


@given(st.lists(st.lists(st.sampled_from([-1.0, -0.0, 0.0, 1e-30, 0.5]), min_size=3, max_size=3), min_size=1))
def test_distinct_rows(rows):
    vectors = np.array(rows, dtype=np.float32)
    assert len(kmeans.distinct(vectors)) == len(np.unique(vectors + 0.0, axis=0))


# -- wrong use ----------------------------------------------------------------------------------


def test_wrong_vectors_are_named():
    vectors = blobs(20)
    vectors[3, 2], vectors[5, 0] = np.nan, np.inf
    with pytest.raises(InputError, match="2 of 20"):
        fit(vectors, Quantizer())
    with pytest.raises(InputError, match="nothing to quantize"):
        fit(vectors[:0], Quantizer())


def test_a_published_index_is_not_fitted():
    with pytest.raises(ProfileError, match="published"):
        fit(blobs(20), Quantizer(kind="published"))


def test_a_diverging_rqvae_is_named():
    with pytest.raises(ProfileError, match="learning_rate"):
        fit(blobs(20), Quantizer(kind="rqvae", learning_rate=1e30, epochs=50))


def test_fusing_needs_pairs():
    with pytest.raises(InputError, match="co-occur"):
        fit(blobs(20), Quantizer(vectors="fused"), histories=samples([(["x"], "y")]), item_ids=IDS[:20])
    with pytest.raises(ValueError, match="histories"):
        fit(blobs(20), Quantizer(vectors="fused"))


# -- balanced clusters --------------------------------------------------------------------------


def optimum(cost: np.ndarray, sizes: np.ndarray) -> float:
    """Least total cost with clusters of these sizes."""
    wide = np.repeat(cost, sizes, axis=1)
    rows, columns = linear_sum_assignment(wide)
    return float(wide[rows, columns].sum())


@settings(max_examples=150, deadline=None)
@given(
    n=st.integers(1, 60),
    k=st.integers(1, 9),
    seed=st.integers(0, 999),
    grid=st.sampled_from([0, 1, 3]),
    warm=st.booleans(),
)
def test_balanced_assignment_is_optimal(n, k, seed, grid, warm):
    rng = np.random.default_rng(seed)
    cost = rng.normal(size=(n, k)) if not grid else rng.integers(0, grid + 1, size=(n, k)).astype(float)  # many ties
    owner, prices = balanced_kmeans.assign(cost, rng.normal(size=k) if warm else None)
    sizes = np.bincount(owner, minlength=k)
    assert sizes.max() - sizes.min() <= 1
    mine = cost[np.arange(n), owner]
    assert mine.sum() == pytest.approx(optimum(cost, sizes), abs=1e-9)
    assert np.allclose(mine + prices[owner], (cost + prices).min(axis=1), atol=1e-9)


def test_balanced_assignment_of_a_real_size_is_optimal():
    vectors = blobs(1500, 16)
    cost = ((vectors[:, None] - vectors[None, :24]) ** 2).sum(axis=2)  # float32, as in training
    owner, _ = balanced_kmeans.assign(cost)
    sizes = np.bincount(owner)
    assert sorted(set(sizes)) == [62, 63]
    mine = float(cost[np.arange(1500), owner].sum(dtype=np.float64))
    assert mine == pytest.approx(optimum(cost.astype(np.float64), sizes), rel=1e-6)


@settings(max_examples=25, deadline=None)
@given(n=st.integers(2, 120), size=st.integers(2, 9), levels=st.integers(1, 3), copies=st.integers(1, 5))
def test_clusters_are_equal_on_every_level(n, size, levels, copies):
    vectors = np.repeat(blobs(-(-n // copies), seed=n), copies, axis=0)[:n]
    book = fit(vectors, Quantizer(kind="balanced_kmeans", size=size, levels=levels, iterations=5))
    assert book.fitted is not None
    for level in range(levels):
        sizes = np.bincount(book.fitted[:, level], minlength=book.size)
        assert sizes.max() - sizes.min() <= 1


def test_balanced_centroids_are_the_means_of_their_clusters():
    vectors = blobs(101)
    centroids, owner = balanced_kmeans.cluster(vectors, vectors[:7].copy(), 20)
    for cluster in range(7):
        assert np.allclose(centroids[cluster], vectors[owner == cluster].mean(axis=0), atol=1e-5)


def test_balanced_iterations_go_on_while_they_help():
    vectors = blobs(400, seed=3)

    def error(iterations: int) -> float:
        centroids, owner = balanced_kmeans.cluster(vectors, vectors[:9].copy(), iterations)
        return float(((vectors - centroids[owner]) ** 2).sum())

    errors = [error(iterations) for iterations in (1, 2, 50)]
    assert errors[0] > errors[1] > errors[2] and errors[2] == error(60)


# -- projections --------------------------------------------------------------------------------


def test_whitening_by_hand():
    # deviations 4 and 1 along the axes; the noise term is a tenth of the mean variance 8.5
    vectors = np.array([[4, 1], [4, -1], [-4, 1], [-4, -1]], dtype=np.float32) + 7
    whitened = cooccurrence.fit_whitened(vectors, 0)
    assert np.allclose(whitened.scale, np.sqrt([16 + 0.85, 1 + 0.85]))
    latent = whitened.project(vectors)
    assert np.allclose(np.abs(latent), np.array([[4, 1]]) / whitened.scale, atol=1e-5)
    assert np.allclose(whitened.lift(latent), vectors, atol=1e-5)
    first = cooccurrence.fit_whitened(vectors, 1)
    assert np.allclose(first.lift(first.project(vectors)), np.stack([vectors[:, 0], np.full(4, 7)], axis=1), atol=1e-5)


def test_directions_without_variance_are_left_out():
    flat = np.repeat(blobs(30, 3), 2, axis=1)
    assert cooccurrence.fit_whitened(flat, 64).components.shape == (6, 3)
    assert np.isfinite(cooccurrence.fit_whitened(np.ones((5, 3), dtype=np.float32), 0).project(flat[:, :3])).all()


def test_information_by_hand():
    # pairs: a-b twice, a-c once, c-c left out, x unknown; 6 directed pairs, degrees a 3, b 2, c 1
    rows = [(["a"], "b"), (["x", "b"], "a"), (["a"], "c"), (["c"], "c")]
    found = cooccurrence._information(samples(rows), ["a", "b", "c"]).toarray()
    expected = np.zeros((3, 3))
    expected[0, 1] = expected[1, 0] = np.log(2 * 6 / (3 * 2))
    expected[0, 2] = expected[2, 0] = np.log(1 * 6 / (3 * 1))
    assert np.allclose(found, expected)


def test_pairs_reach_back_only_so_far():
    history = [*"abcdef", "g"]
    found = cooccurrence._information(samples([(history, "t")]), [*history, "t"]).toarray()
    assert (found[-1] > 0).tolist() == [False, False, *[True] * 5, False]  # the last five items, c to g


def test_items_of_like_company_lie_together():
    rows = [([x], y) for x, y in itertools.product("ab", "pq")] + [([x], y) for x, y in itertools.product("cd", "rs")]
    known, found = cooccurrence.cooccurrence_vectors(samples(rows), [*"abcdpqrs", "lonely"], 4, 0)
    assert known.tolist() == list(range(8))
    cosine = found @ found.T
    assert cosine[0, 1] == pytest.approx(1, abs=1e-5) and cosine[2, 3] == pytest.approx(1, abs=1e-5)
    assert cosine[0, 2] == pytest.approx(0, abs=1e-5)


def test_factors_are_those_of_a_full_svd():
    rng = np.random.default_rng(0)
    ids = IDS[:40]
    rows = samples([([ids[a]], ids[b]) for a, b in rng.integers(0, 40, size=(400, 2)).tolist()])
    information = cooccurrence._information(rows, ids).toarray()
    left, strength, _ = np.linalg.svd(information)
    for size in (3, 39, 1000):  # few by Lanczos, many by a dense SVD
        known, found = cooccurrence.cooccurrence_vectors(rows, ids, size, 0)
        expected = unit(left[:, :size] * np.sqrt(strength[:size]))
        assert len(known) == 40 and np.allclose(found @ found.T, expected @ expected.T, atol=1e-4)


def test_company_that_no_factor_catches_is_none():
    # the lone pair is the rarest company and so the strongest; its two directions say nothing of the group
    rows = samples([([x], y) for x, y in itertools.permutations("abcdef", 2)] + [(["p"], "q")] * 2)
    information = cooccurrence._information(rows, [*"abcdefpq"]).toarray()
    strongest = np.linalg.svd(information)[1]
    known, found = cooccurrence.cooccurrence_vectors(rows, [*"abcdefpq"], 2, 0)
    assert (information.sum(axis=1) > 0).all() and strongest[1] == pytest.approx(strongest[0])
    assert known.tolist() == [6, 7] and found.shape == (2, 2)


def test_fused_distances_are_weighted_sums():
    vectors = blobs(N, D)
    book = fitted(vectors, vectors="fused", fused_size=6, fused_weight=0.3)
    fused = book.projections[0]
    items = list(fused.items)[:5]  # type: ignore[attr-defined]
    rows = [IDS.index(item) for item in items]
    latent = book.project(vectors[rows], items)
    text, company = unit(vectors[rows]), fused.behaviour[:5]  # type: ignore[attr-defined]
    apart = 0.7 * ((text[0] - text[1]) ** 2).sum() + 0.3 * ((company[0] - company[1]) ** 2).sum()
    assert ((latent[0] - latent[1]) ** 2).sum() == pytest.approx(apart, abs=1e-5)
    assert np.allclose(np.linalg.norm(latent, axis=1), 1, atol=1e-5)
    assert np.allclose(fused.lift(latent), text, atol=1e-5)


def test_a_new_item_is_placed_by_its_text_alone():
    vectors = blobs(N, D)
    book = fitted(vectors, vectors="fused", fused_size=6)
    new = blobs(4, D, seed=5)
    latent = book.project(new, ["new1", "new2", "new3", "new4"])
    assert np.array_equal(latent, book.project(new))
    expected = unit(new) @ book.projections[0].expected  # type: ignore[attr-defined]
    assert np.allclose(latent[:, D:], np.sqrt(0.5) * expected, atol=1e-6)
    known = book.projections[0].items[0]  # type: ignore[attr-defined]
    one = vectors[[IDS.index(known)]]
    assert not np.allclose(book.project(one, [known]), book.project(one, ["new"]), atol=1e-3)


def test_the_expected_company_is_that_of_the_text():
    # two kinds of text, each with its own company: a new item of a kind is expected in its company
    kinds = np.repeat(np.eye(2, dtype=np.float32), 20, axis=0)
    ids = IDS[:40]
    rows = [([ids[n]], ids[m]) for n, m in itertools.permutations(range(20), 2)]
    rows += [([ids[n]], ids[m]) for n, m in itertools.permutations(range(20, 40), 2)]
    fused = cooccurrence.fit_fused(kinds, ids, samples(rows), 2, 0.5, 0)
    new, old = fused.project(np.eye(2, dtype=np.float32)), fused.project(kinds[[0, 20]], [ids[0], ids[20]])
    cosine = unit(new[:, 2:]) @ unit(old[:, 2:]).T
    assert np.allclose(cosine, np.eye(2), atol=1e-4)


# -- RQ-VAE -------------------------------------------------------------------------------------


def test_layers_of_the_rqvae():
    from sidr_core.sids.quantizers import rqvae

    assert rqvae.widths(2560, 32) == [2560, 2048, 1024, 512, 256, 128, 64, 32]
    assert rqvae.widths(384, 32) == [384, 256, 128, 64, 32]
    assert rqvae.widths(8, 32) == [8, 32]
    assert [e for e in range(1, 501) if rqvae._is_due(e, 500)] == [*range(260, 501, 12)]
    assert [e for e in range(1, 4) if rqvae._is_due(e, 3)] == [2, 3]


def test_loss_of_the_rqvae_by_hand():
    import torch

    from sidr_core.sids.quantizers import rqvae

    model = rqvae._Model(1, 2, Quantizer(levels=2, code_size=1), torch.Generator())
    with torch.no_grad():
        for side in (model.encoder, model.decoder):
            side[0].weight.fill_(1.0)  # type: ignore[operator, union-attr]
        model.codes.copy_(torch.tensor([[[1.0], [5.0]], [[0.0], [1.0]]]))
    # x = 3.5 takes code 5 (residual -1.5), then 0 (residual -1.5): x̂ = 5
    loss = model.loss(torch.tensor([[3.5]]))
    assert float(loss) == pytest.approx(1.5**2 + 1.25 * (1.5**2 + 1.5**2) / 2)
    loss.backward()
    # codes: (e - r) per level, halved by the mean: 2 × 1.5 / 2
    assert model.codes.grad is not None
    assert model.codes.grad.flatten().tolist() == pytest.approx([0, 1.5, 1.5, 0])


def test_the_rqvae_learns():
    vectors = unit(blobs(200, 16))
    spread = ((vectors - vectors.mean(axis=0)) ** 2).sum()

    def error(epochs: int) -> float:
        book = fit(vectors, Quantizer(kind="rqvae", size=16, epochs=epochs, code_size=8, learning_rate=3e-3))
        assert book.fitted is not None
        return float(((vectors - book.reconstruct(book.fitted)) ** 2).sum() / spread)

    assert error(150) < 0.4 < error(2)


# -- collisions ---------------------------------------------------------------------------------

LINE = Codebook(np.array([[[0.0], [100.0]], [[0.0], [1.0]]], dtype=np.float32))


def resolved(book: Codebook, vectors: np.ndarray, fixed: list[int] | None = None) -> np.ndarray:
    mask = np.isin(np.arange(len(vectors)), fixed or [])
    return reassign(book, vectors, book.encode(vectors), mask)


def test_two_colliding_items_part_at_least_total_distance():
    # both are nearest to code 0; moving the second (0.4) costs less than moving the first
    vectors = np.array([[0.1], [0.4]], dtype=np.float32)
    assert LINE.encode(vectors).tolist() == [[0, 0], [0, 0]]
    assert resolved(LINE, vectors).tolist() == [[0, 0], [0, 1]]


def test_fixed_items_keep_their_codes():
    vectors = np.array([[0.1], [0.4]], dtype=np.float32)
    assert resolved(LINE, vectors, fixed=[1]).tolist() == [[0, 1], [0, 0]]


def test_surplus_moves_to_the_next_prefix():
    # three items in a prefix of two codes; the farthest from it (0.9) goes to the other prefix
    vectors = np.array([[0.1], [0.9], [0.2]], dtype=np.float32)
    codes = resolved(LINE, vectors).tolist()
    assert codes[0][0] == codes[2][0] == 0 and codes[1][0] == 1
    assert len({tuple(c) for c in codes}) == 3


def test_a_completely_full_code_space_fits():
    book = Codebook(np.random.default_rng(0).normal(size=(3, 2, 4)).astype(np.float32))
    codes = resolved(book, np.zeros((8, 4), dtype=np.float32))
    assert len({tuple(c) for c in codes.tolist()}) == 8
    with pytest.raises(ProfileError, match=r"2 \*\* 3"):
        resolved(book, np.zeros((9, 4), dtype=np.float32))


@settings(max_examples=100, deadline=None)
@given(n=st.integers(1, 40), size=st.integers(2, 5), levels=st.integers(1, 4), seed=st.integers(0, 99), data=st.data())
def test_no_two_items_share_a_sid(n, size, levels, seed, data):
    n = min(n, size**levels)
    rng = np.random.default_rng(seed)
    vectors = rng.integers(-2, 3, size=(n, 2)).astype(np.float32)  # many duplicates
    book = Codebook(rng.normal(size=(levels, size, 2)).astype(np.float32))
    codes = book.encode(vectors)
    first: dict[tuple, int] = {}
    for i, row in enumerate(codes.tolist()):
        first.setdefault(tuple(row), i)
    fixed = data.draw(st.lists(st.sampled_from(sorted(first.values())), unique=True))
    result = resolved(book, vectors, fixed)
    assert len({tuple(c) for c in result.tolist()}) == n
    assert result.min() >= 0 and result.max() < size
    assert np.array_equal(result[fixed], codes[fixed])
    if len(first) == n:
        assert np.array_equal(result, codes)


@settings(max_examples=100, deadline=None)
@given(n=st.integers(2, 4), n_fixed=st.integers(0, 2), seed=st.integers(0, 999))
def test_a_group_is_resolved_at_the_least_total_distance(n, n_fixed, seed):
    rng = np.random.default_rng(seed)
    size, n_fixed = 5, min(n_fixed, n - 1)
    book = Codebook(np.concatenate([np.full((1, size, 2), 9.0), rng.normal(size=(1, size, 2))]).astype(np.float32))
    vectors = (9 + rng.normal(size=(n, 2))).astype(np.float32)
    codes = book.encode(vectors)
    codes[:n_fixed, 1] = np.arange(n_fixed)
    assume(len(np.unique(codes[:, 1])) < n)
    result = reassign(book, vectors, codes, np.arange(n) < n_fixed)

    def total(choice: np.ndarray) -> float:
        return float(((vectors[n_fixed:] - 9 - book.centroids[1][choice]) ** 2).sum())

    best = min(total(np.array(c)) for c in itertools.permutations(range(n_fixed, size), n - n_fixed))
    assert np.array_equal(result[:n_fixed], codes[:n_fixed])
    assert total(result[n_fixed:, 1]) == pytest.approx(best, rel=1e-5)


def test_parts_of_any_size_give_the_same_codes(monkeypatch):
    from sidr_core.sids import collisions

    vectors = blobs(300)
    book = fit(vectors, Quantizer(size=8))
    whole = resolved(book, vectors)
    monkeypatch.setattr(collisions, "_BLOCK", 3)
    assert np.array_equal(resolved(book, vectors), whole)


@given(st.lists(st.lists(st.integers(0, 3), min_size=2, max_size=2), min_size=1), st.sampled_from([1, 20]))
def test_group_numbers_are_those_of_the_rows(rows, repeat):
    codes = np.tile(np.array(rows) * 1000, repeat)  # 40 levels of 3,001 codes overflow 64 bits many times
    assert np.array_equal(group_numbers(codes), np.unique(codes, axis=0, return_inverse=True)[1].ravel())


def test_suffixes_by_hand():
    codes = np.array([[1, 1], [0, 2], [1, 1], [1, 1]])
    book = Codebook(np.zeros((2, 3, 1), dtype=np.float32))
    found = resolve(book, np.zeros((4, 1)), codes, np.zeros(4, dtype=bool), "suffix")
    assert found.tolist() == [[1, 1, 0], [0, 2, 0], [1, 1, 1], [1, 1, 2]]
    # the item that had number 0 has left: the next one in takes it
    old = np.array([[1, 1, 9], [1, 1, 1], [1, 1, 9], [0, 2, 9]])
    found = add_suffix(old, np.array([False, True, False, False]), 2)
    assert found.tolist() == [[1, 1, 0], [1, 1, 1], [1, 1, 2], [0, 2, 0]]
    with pytest.raises(ValueError, match="suffix"):
        add_suffix(codes, np.array([True, False, False, False]), 2)
    assert resolve(book, np.zeros((4, 1)), old, np.zeros(4, dtype=bool), "share").tolist() == old[:, :2].tolist()


@settings(max_examples=100, deadline=None)
@given(codes=st.lists(st.tuples(st.integers(0, 2), st.integers(0, 1)), min_size=1, max_size=40), data=st.data())
def test_suffixes_tell_items_apart_and_last(codes, data):
    array = np.array(codes)
    none = np.zeros(len(array), dtype=bool)
    first = add_suffix(array, none, 2)
    assert len({tuple(row) for row in first.tolist()}) == len(array)
    assert np.array_equal(first[:, :2], array)
    # some stay, the others are new: the stayers keep theirs and no two collide
    fixed = np.array(data.draw(st.lists(st.booleans(), min_size=len(array), max_size=len(array))))
    given_ = first.copy()
    given_[~fixed, 2] = -1
    second = add_suffix(given_, fixed, 2)
    assert np.array_equal(second[fixed], first[fixed])
    assert len({tuple(row) for row in second.tolist()}) == len(array)
    assert np.array_equal(first, second)  # those that take the free numbers in row order are the same as before
