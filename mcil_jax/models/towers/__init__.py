"""Towers: one file each, an encoder of one modality.

A tower's file has these, the first two as literals that are read without importing it:

  KINDS     the kinds of modalities that it takes, or ("text",)
  SETTINGS  its settings, which become `config.model.towers.MODALITY.*`; may be missing
  make      (settings, `ModalitySpec`, `base.Options`) → `base.Tower`

For "text" the spec is None, and the tower is called with tokens and the positions of
their ends, see `byte_transformer`.
"""
