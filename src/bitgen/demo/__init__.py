"""A page in the browser where a person plays with a trained model.

What a tab of the page does stands in a module of its own here, without the page, and in ``tabs/`` as a person sees it.
Only ``tabs/`` imports gradio, the library that makes pages.
"""
