"""The built-in scenes: what they show, how they are drawn and worded, and what can be asked about them."""
