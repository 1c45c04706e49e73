"""The network. Its files import only their siblings, torch, transformers and peft, so that an export can carry them."""
