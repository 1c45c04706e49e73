"""The (Super)GLUE component: the whole model learns each task, with a new head."""
