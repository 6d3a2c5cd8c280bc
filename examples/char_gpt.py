"""A small GPT on bytes, in plain PyTorch, trained on the sources of Python's own library; judged in bits per byte.

budgettune study create examples/char_gpt.toml
PYTHONPATH=examples budgettune worker --allow-import char_gpt
"""

import math
import sysconfig
from functools import cache
from pathlib import Path

import torch
from torch import nn
from torch.nn import functional

LONGEST = 2_000_000  # bytes to train on
HELD_OUT = 32  # sequences that judge


@cache
def load():
    """Return the bytes of some modules to train on, and those of others that judge: uint8 tensors."""
    files = sorted(Path(sysconfig.get_paths()["stdlib"]).glob("*.py"))
    parts = [
        b"".join(file.read_bytes() for place, file in enumerate(files) if (place % 10 == 0) == held_out)
        for held_out in (False, True)
    ]
    return [torch.frombuffer(bytearray(part[:LONGEST]), dtype=torch.uint8) for part in parts]


class Block(nn.Module):
    """Attention to what came before, then a layer on each position by itself."""

    def __init__(self, width, heads):
        super().__init__()
        self.heads = heads
        self.norms = nn.ModuleList([nn.LayerNorm(width), nn.LayerNorm(width)])
        self.attend, self.project = nn.Linear(width, 3 * width), nn.Linear(width, width)
        self.widen, self.narrow = nn.Linear(width, 4 * width), nn.Linear(4 * width, width)

    def forward(self, x):
        query, key, value = (
            part.unflatten(-1, (self.heads, -1)).transpose(1, 2) for part in self.attend(self.norms[0](x)).chunk(3, -1)
        )
        seen = functional.scaled_dot_product_attention(query, key, value, is_causal=True)
        x = x + self.project(seen.transpose(1, 2).flatten(2))
        return x + self.narrow(functional.gelu(self.widen(self.norms[1](x))))


class Gpt(nn.Module):
    """Logits of the next byte at each position."""

    def __init__(self, width, layers, heads, context):
        super().__init__()
        self.bytes, self.places = nn.Embedding(256, width), nn.Embedding(context, width)
        self.blocks = nn.Sequential(*(Block(width, heads) for _ in range(layers)))
        self.norm = nn.LayerNorm(width)

    def forward(self, text):
        x = self.bytes(text) + self.places(torch.arange(text.shape[1], device=text.device))
        return functional.linear(self.norm(self.blocks(x)), self.bytes.weight)


def train(trial):
    p = trial.params
    device, context = torch.device(trial.device), p["context"]
    with trial.aside("load"):
        text, held_out = (part.to(device) for part in load())
    model = Gpt(p["width"], p["layers"], p["heads"], context).to(device)
    optimizer = torch.optim.AdamW(model.parameters(), lr=p["lr"], betas=(0.9, 0.95), weight_decay=0.1)
    generator = torch.Generator().manual_seed(trial.seed)
    within = torch.arange(context + 1, device=device)

    def loss_of(sequences):
        logits = model(sequences[:, :-1])
        return functional.cross_entropy(logits.flatten(0, 1), sequences[:, 1:].flatten())

    def evaluate():
        model.eval()
        begins = torch.linspace(0, len(held_out) - context - 1, HELD_OUT, device=device).long()
        with torch.inference_mode():
            loss = loss_of(held_out[begins[:, None] + within].long())
        model.train()
        return float(loss) / math.log(2)

    if trial.restored is not None:
        model.load_state_dict(trial.restored["model"])
        optimizer.load_state_dict(trial.restored["optimizer"])
        generator.set_state(trial.restored["generator"])
    for _ in trial.epochs(steps=p["steps"]):
        with trial.clock():
            for _ in range(p["steps"]):
                for group in optimizer.param_groups:
                    group["lr"] = p["lr"] * (1 - trial.progress)
                begins = torch.randint(len(text) - context - 1, (p["batch_size"],), generator=generator).to(device)
                loss = loss_of(text[begins[:, None] + within].long())
                optimizer.zero_grad()
                loss.backward()
                optimizer.step()
                if not trial.step(p["batch_size"] * context, loss):
                    break
        trial.report(bits_per_byte=evaluate())
        trial.save(
            {"model": model.state_dict(), "optimizer": optimizer.state_dict(), "generator": generator.get_state()}
        )
    trial.describe(model)
