"""Choosing encoders: similarity, probes, pairs and the report, on encoders that know what they are told to know."""

from __future__ import annotations

import json

import numpy as np
import pytest
import torch

from nemo_merge.errors import AudioError, ConfigError, CorpusError
from nemo_merge.fusion import Upstream, UpstreamOptions, choice_report, compare_upstreams, sources
from nemo_merge.fusion.choice_data import draw
from nemo_merge.fusion.probing import deal_folds, held_out, kernel
from nemo_merge.fusion.similarity import LayerSimilarity

RATE = 1000


def cka(*layers: torch.Tensor, parts: int = 1, unbiased: bool = True) -> torch.Tensor:
    similarity = LayerSimilarity([layer.shape[1] for layer in layers])
    for part in zip(*(layer.tensor_split(parts) for layer in layers), strict=True):
        similarity.add(part)
    return similarity.matrix(unbiased)


def dense_cka(x: torch.Tensor, y: torch.Tensor, unbiased: bool) -> float:
    """By kernel matrices, as the papers write it."""

    def hsic(k: torch.Tensor, m: torch.Tensor) -> torch.Tensor:
        n = len(k)
        if not unbiased:
            centre = torch.eye(n).double() - 1 / n
            return torch.trace(k @ centre @ m @ centre)
        k, m, one = k - k.diag().diag(), m - m.diag().diag(), torch.ones(n).double()
        rest = (one @ k @ one) * (one @ m @ one) / ((n - 1) * (n - 2)) - 2 / (n - 2) * (one @ k @ m @ one)
        return (torch.trace(k @ m) + rest) / (n * (n - 3))

    k, m = x.double() @ x.double().T, y.double() @ y.double().T
    return float(hsic(k, m) / (hsic(k, k) * hsic(m, m)).sqrt())


@pytest.fixture
def layers() -> tuple[torch.Tensor, torch.Tensor]:
    torch.manual_seed(0)
    x = torch.randn(90, 12) + 3.0
    return x, torch.cat([x[:, :3] * 2, torch.randn(90, 4)], dim=1)


@pytest.mark.parametrize("unbiased", [True, False])
def test_sums_over_frames_give_the_formula_of_kernel_matrices(layers, unbiased):
    for parts in (1, 7):
        matrix = cka(*layers, parts=parts, unbiased=unbiased)
        assert float(matrix[0, 1]) == pytest.approx(dense_cka(*layers, unbiased), rel=1e-9)
        assert torch.equal(matrix, matrix.T)
        assert torch.allclose(matrix.diagonal(), torch.ones(2).double())


def test_rotations_scale_and_shift_change_nothing_but_other_linear_maps_do(layers):
    x, y = layers
    rotation = torch.linalg.qr(torch.randn(12, 12))[0]
    matrix = cka(x, x @ rotation * 5 - 2, y)
    assert float(matrix[0, 1]) == pytest.approx(1.0, abs=1e-6)
    assert float(matrix[0, 2]) == pytest.approx(float(matrix[1, 2]), abs=1e-6)
    assert float(cka(x, x @ torch.diag(torch.logspace(-2, 2, 12)))[0, 1]) < 0.9


def test_noise_is_unlike_noise_without_bias_and_a_constant_is_like_nothing():
    torch.manual_seed(0)
    one, two = torch.randn(200, 64), torch.randn(200, 64)
    constant = torch.tensor([1 / 3, 7e3, 0.0]).expand(200, 3)
    matrix = cka(one, two, constant, parts=3)
    assert abs(float(matrix[0, 1])) < 0.03
    assert float(cka(one, two, unbiased=False)[0, 1]) == pytest.approx(64 / 264, abs=0.03)  # what the docs say of it
    assert float(matrix[2].abs().max()) == 0.0


def test_few_frames_are_refused():
    with pytest.raises(ValueError, match="3 frames; 4 or more"):
        cka(torch.randn(3, 2))


def test_folds_keep_groups_together_and_spread_labels():
    labels, groups = [index % 2 for index in range(40)], [index // 2 % 10 * 2 + index % 2 for index in range(40)]
    folds = deal_folds(labels, groups, 0)
    assert len({(group, int(fold)) for group, fold in zip(groups, folds, strict=True)}) == 20
    assert [np.bincount(folds[np.array(labels) == label]).tolist() for label in (0, 1)] == [[4] * 5] * 2


def test_leaving_one_out_picks_the_penalty_that_a_small_planted_direction_needs():
    torch.manual_seed(1)
    classes = np.arange(80) % 2
    features = torch.randn(80, 200)
    right = held_out(kernel(features), classes, deal_folds(classes.tolist(), range(80), 0))
    assert 0.3 < right.mean() < 0.7  # nothing there
    features[:, 7:27] += torch.from_numpy(classes)[:, None] * 2.0
    right = held_out(kernel(features), classes, deal_folds(classes.tolist(), range(80), 0))
    assert right.mean() > 0.95


class Planted(Upstream):
    """Layers of noise; ``knows`` says which tone, of those that are in the audio, a layer hears."""

    sample_rate = RATE

    def __init__(self, name: str, knows: dict[int, int], shift: float = 0.02, dim: int = 6, seed: int = 0) -> None:
        super().__init__(UpstreamOptions(), name, 3)
        self.frame_shift, self.dim, self.knows, self.hop = shift, dim, knows, int(shift * RATE)
        self.mix = torch.nn.Parameter(torch.randn(3, self.hop, dim, generator=torch.Generator().manual_seed(seed)))
        self.broken = False
        self.prepare()

    def hidden_layers(self, audio, lengths):
        count = audio.shape[1] // self.hop
        frames = audio[:, : count * self.hop].unflatten(1, (count, self.hop))
        layers = [torch.sin(300 * frames @ mix) for mix in self.mix]  # noise, the same for the same audio
        times = torch.arange(self.hop * count).unflatten(0, (count, self.hop)) / RATE
        for layer, tone in self.knows.items():
            loud = (frames * torch.cos(2 * torch.pi * tone * times)).mean(2, keepdim=True)
            layers[layer] = torch.cat([layers[layer][..., 1:], 40 * loud], dim=2)
        if self.broken:
            layers[1] = layers[1] / 0.0
        return layers, lengths // self.hop

    def load_weights(self, weights):
        pytest.fail("a comparison hears with the encoders as they are")

    encoder = lora_targets = property(lambda self: self)


@pytest.fixture(scope="module")
def cuts(tmp_path_factory):
    """Noise with a tone of 100 Hz or not and one of 200 Hz or not, which make four languages; eight speakers."""
    lhotse = pytest.importorskip("lhotse")
    soundfile = pytest.importorskip("soundfile")
    folder, rng, made = tmp_path_factory.mktemp("audio"), np.random.default_rng(0), []
    for index in range(64):
        low, high = index % 2, index // 2 % 2
        times = np.arange(500 + 20 * (index % 5)) / RATE
        audio = 0.05 * rng.standard_normal(len(times))
        audio += 0.1 * low * np.cos(2 * np.pi * 100 * times) + 0.1 * high * np.cos(2 * np.pi * 200 * times)
        soundfile.write(folder / f"{index}.wav", audio, RATE)
        cut = lhotse.Recording.from_file(folder / f"{index}.wav").to_cut()
        said = lhotse.SupervisionSegment(
            cut.id, cut.recording_id, 0, cut.duration, language=f"{low}{high}", speaker=f"{index % 4}-{index // 4 % 4}"
        )
        said.custom = {"domain": "tone" if low else "none"}
        cut.supervisions = [said]
        made.append(cut)
    return lhotse.CutSet.from_cuts(made)


def encoders() -> list[Planted]:
    return [Planted("low", {1: 100}), Planted("high", {2: 200}, shift=0.04, seed=1), Planted("deaf", {}, seed=2)]


def test_pairs_that_complete_each_other_come_first(cuts, tmp_path):
    report = compare_upstreams(encoders(), cuts, tmp_path / "choice")
    low, high, deaf = report.upstreams
    assert report.chance == 0.25
    assert report.apart == "speakers"
    assert 0.3 < low.accuracy.value < 0.75  # one of two bits
    assert 0.3 < high.accuracy.value < 0.75
    assert deaf.accuracy.low < 0.3  # a guess is right in a quarter of the cases
    assert max(range(3), key=lambda index: low.by_layer[index].value) == 1
    assert max(range(3), key=lambda index: high.by_layer[index].value) == 2
    best = report.ranking[0]
    assert (best.first, best.second) == ("low", "high")
    assert best.accuracy.value > 0.9
    assert best.gain.low > 0.1
    assert best.gain.value == pytest.approx(best.accuracy.value - max(low.accuracy.value, high.accuracy.value))
    others = [pair for pair in report.pairs if "deaf" in (pair.first, pair.second)]
    assert max(pair.accuracy.high for pair in others) < best.accuracy.low
    assert np.allclose(np.diag(report.cka), 1.0)
    # What is written is what is returned.
    written = json.loads((tmp_path / "choice" / "choice.json").read_text())
    assert written["cka"] == report.cka
    assert written["pairs"][0]["gain"] == list(report.pairs[0].gain)
    text = (tmp_path / "choice" / "choice.md").read_text()
    assert text.index("low + high") < text.index("deaf |", text.index("| pair"))
    assert (tmp_path / "choice" / "choice.png").read_bytes().startswith(b"\x89PNG")


def test_the_same_encoder_twice_is_redundant_and_adds_nothing(cuts):
    report = compare_upstreams([Planted("a/x", {1: 100}), Planted("b/x", {1: 100})], cuts, layers=[1])
    assert [item.name for item in report.upstreams] == ["x (1)", "x (2)"]
    assert report.pairs[0].redundancy == pytest.approx(1.0)
    assert report.pairs[0].gain.value == pytest.approx(0.0)


def test_batches_and_padding_change_nothing(cuts, monkeypatch):
    together = compare_upstreams(encoders(), cuts, frames=10**6)
    monkeypatch.setattr("nemo_merge.fusion.choice_data.BATCH_SECONDS", 1.5)
    apart = compare_upstreams(encoders(), cuts, frames=10**6)
    assert np.allclose(together.cka, apart.cka, atol=1e-5)
    assert [item.accuracy for item in together.upstreams] == [item.accuracy for item in apart.upstreams]
    fewer = compare_upstreams(encoders(), cuts, frames=200)
    assert 100 < fewer.frames < 300 < together.frames


def test_labels_come_from_fields_custom_fields_and_functions(cuts, tmp_path):
    cuts.to_file(tmp_path / "cuts.jsonl")
    named = compare_upstreams(encoders()[:1], tmp_path / "cuts.jsonl", label="domain", layers=2)
    assert named.classes == ["none", "tone"]
    assert named.upstreams[0].layers == [0, 2]
    assert named.pairs == []
    counted = compare_upstreams(encoders()[:1], cuts, label=lambda cut: cut.supervisions[0].custom["domain"], layers=1)
    assert counted.classes == named.classes
    speakers = compare_upstreams(encoders()[:1], cuts, label="speaker", layers=1)
    assert (speakers.apart, len(speakers.classes)) == ("utterances", 16)


def test_seconds_are_drawn_from_each_class_in_turn(cuts):
    drawn, labels = draw(list(cuts), "language", 8.0, 0)
    assert 8.0 <= sum(cut.duration for cut in drawn) < 9.0
    counts = [labels.count(label) for label in set(labels)]
    assert max(counts) - min(counts) <= 1
    assert [cut.id for cut in draw(list(cuts), "language", 8.0, 0)[0]] == [cut.id for cut in drawn]
    assert [cut.id for cut in draw(list(cuts), "language", 8.0, 1)[0]] != [cut.id for cut in drawn]


def test_modes_are_put_back_and_nothing_is_trained(cuts):
    trained = Planted("trained", {})
    trained.options = UpstreamOptions(train="full")
    trained.requires_grad_(True).train()
    compare_upstreams([trained], cuts, layers=1)
    assert trained.training
    assert trained.mix.grad is None


def test_files_appear_when_all_are_made(cuts, tmp_path, monkeypatch):
    (tmp_path / "choice.json").write_text("old")
    monkeypatch.setattr(choice_report.UpstreamComparison, "draw", lambda self: 1 / 0)
    with pytest.raises(ZeroDivisionError):
        compare_upstreams(encoders()[:1], cuts, tmp_path, layers=1)
    assert [path.name for path in tmp_path.iterdir()] == ["choice.json"]
    assert (tmp_path / "choice.json").read_text() == "old"


def broken() -> list[Planted]:
    upstream = Planted("cracked", {})
    upstream.broken = True
    return [upstream]


def without_audio(cuts):
    rows = json.dumps([cut.to_dict() for cut in cuts])
    return type(cuts).from_dicts(json.loads(rows.replace(".wav", ".gone")))


def other_rate() -> list[Planted]:
    upstream = Planted("telephone", {})
    upstream.sample_rate = 8000
    return [*encoders(), upstream]


@pytest.mark.parametrize(
    ("upstreams", "change", "options", "error", "message"),
    [
        (encoders, None, {"label": "dialect"}, CorpusError, "no label 'dialect'"),
        (encoders, None, {"label": lambda cut: 1}, CorpusError, "all 64 cuts are of one class, 1"),
        (encoders, None, {"label": lambda cut: cut.id}, CorpusError, "has 1 of the 64 utterances"),
        (encoders, lambda cuts: [], {}, AudioError, "there are no cuts"),
        (encoders, lambda cuts: [cut.truncate(duration=0.02) for cut in cuts], {}, AudioError, "shorter than a frame"),
        (encoders, lambda cuts: "nowhere.jsonl", {}, CorpusError, "nowhere.jsonl: no such file"),
        (encoders, without_audio, {}, AudioError, "audio cannot be read"),
        (broken, None, {}, ConfigError, "cracked: layer 1 is not finite for cut"),
        (other_rate, None, {}, ConfigError, "telephone: 8000 Hz"),
        (list, None, {}, ConfigError, "no list with an entry per encoder"),
        (lambda: [torch.nn.Linear(2, 2)], None, {}, ConfigError, "a Linear is no NeMo model"),
        (lambda: [{"nemo": 5}], None, {}, ConfigError, "nemo=5 is no path or name"),
        (encoders, None, {"layers": [0, 9]}, ConfigError, r"low: layers=\[0, 9\] are not some of its \[0, 1, 2\]"),
        (encoders, None, {"seconds": 0}, ConfigError, "seconds=0"),
        (lambda: [Planted("wide", {}, dim=20_000)], None, {}, ConfigError, "take fewer, for example layers=1"),
    ],
)
def test_what_cannot_be_compared_is_refused(cuts, upstreams, change, options, error, message):
    with pytest.raises(error, match=message):
        compare_upstreams(upstreams(), change(cuts) if change else cuts, **options)


def test_without_nemo_its_models_are_refused(monkeypatch):
    monkeypatch.setattr(sources, "find_spec", lambda name: None)
    with pytest.raises(ConfigError, match=r"a\.nemo: NeMo models need NeMo; pip install 'nemo-merge\[fusion\]'"):
        sources.build({"kind": "nemo", "nemo": "a.nemo", "config": {}})


@pytest.mark.nemo
def test_encoders_of_files_models_and_a_preprocessor_give_the_same(tmp_path):
    pytest.importorskip("nemo.collections.asr")
    lhotse, soundfile = pytest.importorskip("lhotse"), pytest.importorskip("soundfile")
    from nemo_merge.fusion import FusedUpstreamPreprocessor
    from tests.fixtures import nemo_models

    models = [nemo_models.ctc(seed) for seed in (0, 1)]
    models[0].save_to(str(tmp_path / "first.nemo"))
    made = []
    for index in range(8):
        audio = 0.1 * np.random.default_rng(index).standard_normal(8000 + 500 * index)
        soundfile.write(tmp_path / f"{index}.wav", audio, 16000)
        made.append(lhotse.Recording.from_file(tmp_path / f"{index}.wav").to_cut())
    cuts, options = lhotse.CutSet.from_cuts(made), {"label": lambda cut: int(cut.id) % 2}
    for index, cut in enumerate(made):
        cut.id = str(index)
    fused = FusedUpstreamPreprocessor(models, mode="ws")
    whole = compare_upstreams(fused, cuts, **options)
    listed = compare_upstreams([{"nemo": str(tmp_path / "first.nemo")}, models[1]], cuts, **options)
    assert listed.upstreams[0].name == "first.nemo"
    assert listed.cka == whole.cka
    assert [item.by_layer for item in listed.upstreams] == [item.by_layer for item in whole.upstreams]
