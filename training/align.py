"""Stage 2: the speech encoder, tuned against the whole frozen face space.

Pre-training compares a voice with the faces of one batch. With the face encoder frozen, the embeddings of all training
faces fit in memory, so each voice is compared with every one of them; and what the corpus knows of a person besides,
sex and age, is asked for too. For small corpora and small encoders: the papers have no such stage.
"""

from __future__ import annotations

import dataclasses
import logging
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from PIL import Image
from torch import Tensor, nn
from torch.nn.functional import binary_cross_entropy_with_logits, cross_entropy, mse_loss, normalize

from training.checkpoint import Checkpoint, encoders_hash, load_pretrained, save_checkpoint
from training.config import Config
from training.corpus.table import read_corpus
from training.data import Pairs, fingerprint, load_pairs
from training.encoded import CHUNK, encoded_faces
from training.loop import Stage, clear_state, device_of_training, run_stage
from training.losses import MAX_LOGIT_SCALE
from training.pretrain import LogScale, masked, retrieval_line
from training.sheets import grid

logger = logging.getLogger(__name__)

AGE_CENTRE, AGE_SPREAD = 45.0, 16.0  # years; only scales the loss


@dataclass(frozen=True)
class People:
    """All training identities: unit face embeddings float32 [n, E], and `attributes_of` them float32 [n, 2]."""

    gallery: Tensor
    attributes: Tensor


def align(config: Config, corpus: Path, run: Path) -> Path:
    """Tunes the speech encoder of the pretrain stage; writes RUN/align.safetensors and logs retrieval before and after.

    Raises CheckpointInvalid, CorpusInvalid, OutputUnwritable, TrainingDiverged.
    """
    settings = config.align
    key = fingerprint(read_corpus(corpus))
    pretrained, speech, encoder, _ = load_pretrained(run, config, key, aligned=False)
    train, val = (load_pairs(corpus, split, config.face.size, run / "cache") for split in ("train", "val"))
    device = device_of_training()
    gallery, val_gallery = (
        normalize(encoded_faces(pairs, split, run, encoder).embeddings.mean(dim=1), dim=1).to(device)
        for pairs, split in ((train, "train"), (val, "val"))
    )
    people = People(gallery, attributes_of(train).to(device))
    torch.manual_seed(config.seed)
    model = nn.ModuleDict(
        {"speech": speech, "temperature": LogScale(), "attributes": nn.Linear(config.embedding, 2)}
    ).to(device)
    model["temperature"].load_state_dict(pretrained.group("temperature"))
    optimiser = torch.optim.AdamW(model.parameters(), lr=settings.lr, weight_decay=settings.weight_decay)
    logger.info("before: %s", retrieval_line(embeddings_of(model["speech"], val, device), val_gallery))

    def loss(_: int, rng: np.random.Generator) -> dict[str, Tensor]:
        rows = train.draw(rng, settings.batch)
        pcm = train.speech(rows, rng).to(device)
        return align_loss(config, model, pcm, people, torch.from_numpy(rows).to(device))

    def sheet() -> Image.Image:
        """Validation faces, and under each the face of the training set that its voice calls first."""
        voices = embeddings_of(model["speech"], val, device, 8)
        called = (voices @ gallery.T).argmax(dim=1).cpu().numpy()
        return grid([val.faces(range(len(voices))), train.faces(called)])

    origin = dataclasses.replace(pretrained.origin, parent=encoders_hash(run, "align"))
    stage = Stage("align", config, settings.steps, model, optimiser, loss, sheet, origin)
    run_stage(stage, run)
    embeddings = embeddings_of(model["speech"], val, device)
    logger.info("after, all portraits of the person: %s", retrieval_line(embeddings, val_gallery))
    logger.info("read from the embedding: %s", attributes_line(model["attributes"], embeddings, val))
    path = run / "align.safetensors"
    tensors = {f"speech.{name}": value for name, value in model["speech"].state_dict().items()}
    save_checkpoint(path, Checkpoint(tensors, config, "align", stage.steps, origin))
    clear_state(stage, run)
    return path


def attributes_of(pairs: Pairs) -> Tensor:
    """Of each identity: 1 for a man and 0 for a woman, and the scaled age; float32 [n, 2]."""
    rows = [((i.sex == "M"), (i.age - AGE_CENTRE) / AGE_SPREAD) for i in pairs.identities]
    return torch.tensor(rows, dtype=torch.float32)


def align_loss(config: Config, model: nn.ModuleDict, pcm: Tensor, people: People, rows: Tensor) -> dict[str, Tensor]:
    """Cross-entropy of the person among all training faces, and sex and age from the embedding.

    `pcm`: float32 [batch, 96000]; `rows`: int64 [batch], who of `people` speaks.
    """
    spectrogram = model["speech"].frontend(pcm)
    with torch.autocast(pcm.device.type, torch.bfloat16, enabled=config.precision == "bfloat16"):
        embedding = model["speech"].embed(masked(spectrogram, config.pretrain))
    embedding = embedding.float()
    scale = model["temperature"].value.clamp(max=MAX_LOGIT_SCALE).exp()
    identity = cross_entropy(embedding @ people.gallery.T * scale, rows, label_smoothing=config.align.label_smoothing)
    sex, age = read_attributes(model["attributes"], embedding)
    wanted = people.attributes[rows]
    attributes = binary_cross_entropy_with_logits(sex, wanted[:, 0]) + mse_loss(age, wanted[:, 1])
    total = identity + config.align.attribute_weight * attributes
    return {"loss": total, "identity": identity, "attributes": attributes}


def read_attributes(layer: nn.Module, embedding: Tensor) -> tuple[Tensor, Tensor]:
    """Logit of being a man and scaled age, float32 [n] each, of unit embeddings [n, E]."""
    sex, age = layer(embedding * embedding.shape[1] ** 0.5).unbind(dim=1)
    return sex, age


@torch.no_grad()
def attributes_line(layer: nn.Module, embeddings: Tensor, pairs: Pairs) -> str:
    """How well sex and age of a split are read from its voices."""
    sex, age = (value.cpu() for value in read_attributes(layer, embeddings))
    wanted = attributes_of(pairs)
    right = 100 * float(((sex > 0) == (wanted[:, 0] > 0)).float().mean())
    errors = AGE_SPREAD * (age - wanted[:, 1]).abs()
    within = 100 * float((errors <= 10).float().mean())
    return f"sex {right:.1f} %, age ± {float(errors.mean()):.1f} years, {within:.1f} % within 10 (n = {len(pairs)})"


@torch.no_grad()
def embeddings_of(speech: nn.Module, pairs: Pairs, device: torch.device, count: int | None = None) -> Tensor:
    """Embeddings of each identity's first window, float32 [n, E]; leaves the encoder's mode as it was."""
    training = speech.training
    speech.eval()
    rows = torch.arange(len(pairs) if count is None else min(count, len(pairs)))
    embeddings = torch.cat([speech(pairs.speech(chunk).to(device)) for chunk in rows.split(CHUNK)])
    speech.train(training)
    return embeddings
