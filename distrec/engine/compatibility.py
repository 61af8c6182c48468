"""What goes together: how a language model is held and trained, and over what it is spread.

`python -m distrec.engine.compatibility` prints the table that README shows.  Activation checkpointing goes with all of it.
"""

from typing import Any

WAYS = ("copies", "ZeRO-1", "ZeRO-2", "ZeRO-3", "compiled")  # copies: one process, or DDP
HELD = (("none", "frozen"), ("none", "lora"), ("none", "full"), ("nf4", "frozen"), ("nf4", "lora"), ("nf4", "full"))


def reason(quantise: str, tune: str) -> str | None:
    """Why this is refused, whatever it is spread over; None where it is supported, and was run."""
    if quantise == "nf4" and tune == "full":
        return "4-bit weights have no gradient: model.backbone.tune=lora or frozen"
    return None


def check(stage: int, compiled: bool, backbone: Any) -> None:
    """Raises: ValueError, one line, where a launch and a backbone (its config; None: no language model) do not go together."""
    if compiled and stage:
        raise ValueError("DeepSpeed with a dynamo_backend is not tested here: leave one of them out of the launch")
    if backbone is not None and (why := reason(backbone.quantise, backbone.tune)):
        raise ValueError(f"model.backbone.quantise={backbone.quantise}, tune={backbone.tune}: {why}")


def table() -> str:
    """In Markdown."""
    lines = ["| `quantise`, `tune` | " + " | ".join(WAYS) + " |", "|---" * (len(WAYS) + 1) + "|"]
    for held in HELD:
        marks = ["refused" if reason(*held) else "yes"] * len(WAYS)
        lines.append(f"| {held[0]}, {held[1]} | " + " | ".join(marks) + " |")
    return "\n".join(lines)


if __name__ == "__main__":
    print(table())
