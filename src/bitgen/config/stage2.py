"""Stage 2, reasoning: the settings are those of stage 1, of which it goes on, with what is asked."""

from __future__ import annotations

from dataclasses import dataclass

from bitgen.config.common import RunSchema
from bitgen.config.stage1 import Config

ENTRY = "src/train_stage2_reasoning.py"

_DESCRIPTION = """\
Train BitGen's stage 2: a captioner learns to answer questions about pictures, with rationales whose steps can be
checked, and to point at what it means with boxes. It goes on from a run of stage 1 (init_from). Every setting below is
a flag, and a line in a YAML file under its group. A flag beats the file, and the file beats the default."""

_EXAMPLES = f"""\
examples:
  python {ENTRY} --config configs/stage2_scenes.yaml
      on built-in scenes of several objects, after configs/scenes_captions_84.yaml: no data, no GPU, no download
  python {ENTRY} --config configs/stage2_scenes.yaml --rationale none
      the same without rationales, to compare
  python {ENTRY} --resume auto --config configs/stage2_scenes.yaml
      go on where the run in output_dir stopped

exit status: 0 the run is finished; 1 it failed; 2 what was asked for cannot be; 128 + N signal N stopped it, after
a checkpoint (130 Ctrl-C, 143 SIGTERM, 129 a closed terminal)."""


@dataclass
class Stage2Config(Config):
    """The settings of a run of stage 2."""

    entry = ENTRY
    description = _DESCRIPTION
    examples = _EXAMPLES
    scored_by = ("question_val_data", "scenes_val", "val_max_images")
    rescored = RunSchema.rescored
