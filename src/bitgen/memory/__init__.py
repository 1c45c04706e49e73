"""Episodic memory of a trained model: teach, recall, edit and forget without training."""

from bitgen.memory.encoder import open_model
from bitgen.memory.episodic_memory import EpisodicMemory

__all__ = ["EpisodicMemory", "open_model"]
