"""Networks: the front end against torchaudio, shapes, parameter counts that the papers imply, unknown settings."""

import dataclasses
import math
from pathlib import Path

import pytest

torch = pytest.importorskip("torch")
torchaudio = pytest.importorskip("torchaudio")

from runtime.errors import ConfigInvalid
from training.config import FrontendConfig, config_from_dict, config_to_dict, load_config, shipped_configs
from training.losses import colour_difference, contrastive, feature_loss, laplacian_pyramid
from training.models.denoiser import Denoiser
from training.models.face import build_face_decoder, build_face_encoder, latent_shape
from training.models.frontend import TINY, Frontend
from training.models.speech import PaperSpeechEncoder, build_speech_encoder


def speechlike(batch=2, seconds=6):
    t = torch.arange(16_000 * seconds) / 16_000
    tone = sum(torch.sin(2 * math.pi * 120 * k * t) / k for k in range(1, 20))
    return 0.05 * torch.stack([tone * (1 + 0.3 * torch.sin(2 * math.pi * (2 + b) * t)) for b in range(batch)])


def test_complex_front_end_equals_torchaudio():
    config = FrontendConfig()
    pcm = speechlike()
    got = Frontend(config)(pcm)
    assert got.shape == (2, 2, 598, 257)  # NOTES: 1 + (96000 - 400) / 160 frames, 257 bins, two channels
    spectrogram = torchaudio.transforms.Spectrogram(512, 400, 160, center=False, power=None)
    padded = torch.nn.functional.pad(pcm, (56, 56))  # torchaudio centres the 400-sample window in the 512-sample frame
    want = spectrogram(padded)
    shift = torch.exp(2j * math.pi * torch.arange(257) * 56 / 512)[None, :, None]
    want = (want * shift).transpose(1, 2)
    expected = torch.stack([part.sign() * part.abs() ** 0.3 for part in (want.real, want.imag)], dim=1)
    # Compression is steep at zero (|s|^0.3 of 1e-6 is 0.016), so float32 rounding is compared where there is signal.
    loud = torch.stack([want.abs() > 0.05] * 2, dim=1)
    assert (got - expected)[loud].abs().max() < 0.05
    assert (got - expected)[loud].abs().mean() < 1e-3


def test_mel_front_end_equals_torchaudio_magnitudes():
    config = FrontendConfig(features="mel", window=1024, hop=256, fft=1024, mels=96, max_hz=6000.0)
    front = Frontend(config)
    pcm = speechlike()
    got = front(pcm)
    assert got.shape == (2, 1, 1 + (96_000 - 1024) // 256, 96)
    magnitude = torchaudio.transforms.Spectrogram(1024, 1024, 256, center=False, power=1)(pcm)[:, : len(front.bank)]
    floored = (magnitude**2 + TINY).sqrt()
    expected = (floored.transpose(1, 2) @ front.bank) ** 0.3
    assert (got[:, 0] - expected).abs().max() < 2e-3


def test_mel_bands_are_never_empty():
    for config in (load_config(name) for name in shipped_configs()):
        if config.speech.frontend.features == "mel":
            assert (Frontend(config.speech.frontend).bank.sum(dim=0) > 0.5).all()


def test_paper_encoder_has_the_parameters_of_speech2face():
    with torch.device("meta"):
        encoder = build_speech_encoder(load_config("paper"))
    assert isinstance(encoder, PaperSpeechEncoder)
    assert encoder.head[0].in_features == 29_184
    assert sum(p.numel() for p in encoder.parameters()) / 1e6 == pytest.approx(148, abs=1)


def test_paper_speech_encoder_runs_on_a_narrow_head():
    encoder = PaperSpeechEncoder(config_from_dict({"name": "narrow", "embedding": 8}), hidden=16).eval()
    with torch.no_grad():
        embedding = encoder(speechlike())
    assert embedding.shape == (2, 8)
    assert torch.allclose(embedding.norm(dim=1), torch.ones(2), atol=1e-5)


@pytest.mark.parametrize("name", ["tiny", "demo"])
def test_shapes_through_the_system(name):
    config = load_config(name)
    speech, encoder = build_speech_encoder(config).eval(), build_face_encoder(config).eval()
    decoder, denoiser = build_face_decoder(config).eval(), Denoiser(config).eval()
    with torch.no_grad():
        latent, face = encoder(torch.zeros(2, 3, config.face.size, config.face.size))
        assert latent.shape[1:] == latent_shape(config)
        assert decoder(latent).shape == (2, 3, config.face.size, config.face.size)
        voice = speech(speechlike())
        assert voice.shape == face.shape == (2, config.embedding)
        tokens = denoiser.tokens(voice)
        assert tokens.shape == (2, config.diffusion.tokens, config.diffusion.token_width)
        assert denoiser(latent, torch.tensor([0.0, 999.0]), tokens).shape == latent.shape


def test_condition_reaches_the_denoiser():
    torch.manual_seed(0)
    denoiser = Denoiser(load_config("tiny")).eval()
    x, t = torch.randn(1, *latent_shape(load_config("tiny"))), torch.tensor([500.0])
    with torch.no_grad():
        a, b = (denoiser(x, t, denoiser.tokens(torch.eye(32)[i : i + 1])) for i in range(2))
    assert (a - b).abs().max() > 1e-4


def test_vgg_pair_is_symmetric_at_224():
    config = load_config("paper")
    with torch.device("meta"):
        encoder, decoder = build_face_encoder(config), build_face_decoder(config)
    kernels = [
        [tuple(p.shape[:2]) for p in m.parameters() if p.dim() == 4 and p.shape[2] == 3] for m in (encoder, decoder)
    ]
    assert len(kernels[0]) == 13
    assert latent_shape(config) == (8, 14, 14)
    assert decoder(torch.zeros(1, 8, 14, 14, device="meta")).shape == (1, 3, 224, 224)


def test_contrastive_is_low_only_for_the_right_pairing():
    embeddings = torch.nn.functional.normalize(torch.randn(16, 32, generator=torch.Generator().manual_seed(0)), dim=1)
    scale = torch.tensor(3.0)
    right, logits = contrastive(embeddings, embeddings, scale)
    wrong, _ = contrastive(embeddings, embeddings.roll(1, 0), scale)
    assert right < 0.1 < wrong
    assert logits.shape == (16, 16)


def test_laplacian_pyramid_sees_blur_that_keeps_the_mean():
    image = torch.rand(1, 3, 32, 32, generator=torch.Generator().manual_seed(0))
    assert laplacian_pyramid(image, image) == 0
    blurred = torch.nn.functional.avg_pool2d(image, 3, 1, 1)
    assert laplacian_pyramid(blurred, image) > 0.1
    assert torch.allclose(laplacian_pyramid(image + 0.1, image), torch.tensor(0.1), atol=1e-6)


def test_colour_difference_sees_hue_and_no_brightness():
    grey = torch.rand(1, 1, 8, 8).expand(1, 3, 8, 8)
    assert float(colour_difference(grey, grey * 0.5)) == pytest.approx(0, abs=1e-6)
    tinted = grey + torch.tensor([0.1, 0.0, 0.0]).view(1, 3, 1, 1)
    assert float(colour_difference(tinted, grey)) == pytest.approx((0.1 + 0.05) / 2, abs=1e-5)


def test_missing_lpips_weights_are_said(caplog, monkeypatch, tmp_path):
    monkeypatch.setattr(torch.hub, "get_dir", lambda: str(tmp_path))
    loss, name = feature_loss("lpips", torch.device("cpu"))
    assert name == "laplacian-pyramid"
    assert loss is laplacian_pyramid
    assert "replaces LPIPS" in caplog.text


def test_configurations_round_trip_and_refuse_what_they_do_not_know():
    for name in shipped_configs():
        config = load_config(name)
        assert config_from_dict(config_to_dict(config)) == config
    for broken, message in (
        ({"name": "x", "colour": 1}, "colour"),
        ({}, "name"),
        ({"name": "x", "seed": 1.5}, "seed"),
        ({"name": "x", "seed": True}, "seed"),
        ({"name": "x", "precision": "int3"}, "precision"),
        ({"name": "x", "face": {"decoder_widths": "wide"}}, r"face\.decoder_widths"),
        ({"name": "x", "diffusion": {"attention": [1]}}, "attention"),
        ({"name": "x", "speech": 3}, "speech"),
        ({"name": "x", "save_every": 0}, "save_every"),
        ({"name": "x", "diffusion": {"ema": 1.0}}, r"diffusion\.ema"),
        ({"name": "x", "diffusion": {"prior_mode": "interpolate", "prior_weight": 1.0}}, "prior_weight"),
        ({"name": "x", "prior": {"counts": [500, 100]}}, "counts"),
        ({"name": "x", "face": {"size": 100}}, r"multiple of 16"),
        ({"name": "x", "face": {"encoder_widths": [16, 32]}}, r"decoder_widths"),
        ({"name": "x", "diffusion": {"norm_groups": 7}}, "norm_groups"),
        ({"name": "x", "diffusion": {"timesteps": 10}}, "preview_steps"),
    ):
        with pytest.raises(ConfigInvalid, match=message):
            config_from_dict(broken)
    with pytest.raises(ConfigInvalid, match="tiny"):
        load_config("no-such-config")


def test_the_paper_encoder_is_compared_with_all_else_equal():
    """benchmarks/gpu/paper-encoder.toml differs from the demo in the encoder, and in masks that fit its bins."""
    paper = load_config(str(Path(__file__).parents[1] / "benchmarks" / "gpu" / "paper-encoder.toml"))
    demo = load_config("demo")
    masks = {key: getattr(paper.pretrain, key) for key in ("mask_frames", "mask_bands")}
    assert paper.pretrain == dataclasses.replace(demo.pretrain, **masks)
    same = ("seed", "embedding", "precision", "face", "align")
    assert [getattr(paper, name) for name in same] == [getattr(demo, name) for name in same]
