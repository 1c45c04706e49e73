"""Episodic memory of a trained model: teach, recall, edit and forget without training."""

from bitgen.memory.encoder import open_model
from bitgen.memory.episodic_memory import EpisodicMemory
from bitgen.memory.spoken import Spoken
from bitgen.memory.whitening import Whitening, training_whitening

__all__ = ["EpisodicMemory", "Spoken", "Whitening", "open_model", "training_whitening"]
