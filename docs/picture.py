"""Draws the picture of the README from the tables of docs/results.md.

python docs/picture.py
"""

import pathlib
import re

FOLDER = pathlib.Path(__file__).parent
DATASETS = {
  "sounding_shapes": "SoundingShapes",
  "gridwords": "gridwords",
  "avdigits": "avdigits",
}
# Method → suffix of its config, what its row is called, colour.
METHODS = {
  "finetune": ("", "finetune", "#0072b2"),
  "mife": (":trimodal", "mife, no memory", "#009e73"),
  "replay": ("", "replay", "#d55e00"),
  "joint": ("", "joint", "#cc79a7"),
}
LEFT, COLUMN, BAR, TOP, ROW = 142, 192, 108, 62, 27  # pixels


def final_accuracies(results: str) -> dict[tuple[str, str], tuple[str, str]]:
  """Returns (config, method) → mean and deviation, from the text of docs/results.md."""
  row = re.compile(
    r"^\| (\S+) \| (\w+) \| [^|]+ \| ([\d.]+) ± ([\d.]+) \|(?:[^|]+\|){6}$",
    re.MULTILINE,
  )
  return {
    (config, method): (mean, std) for config, method, mean, std in row.findall(results)
  }


def draw(results: str) -> str:
  """Returns the picture as SVG."""
  accuracies = final_accuracies(results)
  lines = [
    '<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 720 176" '
    'font-family="sans-serif" font-size="14">',
    "  <title>Accuracy on all classes after the last task, percent</title>",
    "  <style>text{fill:#1f2328}"
    "@media(prefers-color-scheme:dark){text{fill:#e6edf3}}</style>",
    '  <text x="8" y="20">Accuracy on all classes after the last task, percent</text>',
  ]
  for i, name in enumerate(DATASETS.values()):
    lines.append(
      f'  <text x="{LEFT + i * COLUMN}" y="48" font-weight="bold">{name}</text>'
    )
  for j, (method, (suffix, label, colour)) in enumerate(METHODS.items()):
    y = TOP + j * ROW
    lines.append(f'  <text x="8" y="{y + 14}">{label}</text>')
    for i, config in enumerate(DATASETS):
      mean, std = accuracies[config + suffix, method]
      x, width = LEFT + i * COLUMN, round(BAR * float(mean) / 100)
      lines.append(
        f'  <rect x="{x}" y="{y}" width="{width}" height="18" fill="{colour}"/>'
        f'<text x="{x + width + 5}" y="{y + 14}">{mean} ± {std}</text>'
      )
  return "\n".join([*lines, "</svg>", ""])


if __name__ == "__main__":
  text = draw((FOLDER / "results.md").read_text(encoding="utf-8"))
  (FOLDER / "picture.svg").write_text(text, encoding="utf-8")
