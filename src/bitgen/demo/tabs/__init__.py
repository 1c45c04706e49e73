"""The tabs of the page as a person sees them, and the page around them. This folder alone imports gradio."""
