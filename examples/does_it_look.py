"""Does it look, and which is better? Trains two small captioners on drawn scenes, one of them with the captions of other images.

python examples/does_it_look.py OUT            # 400 steps each, about 8 minutes on two CPU cores
python examples/does_it_look.py OUT 40         # fewer steps: neither has learned much
"""

import sys
from pathlib import Path

import sightline as sl
from sightline.data.dataset import open_dataset
from sightline.data.prepare.run import PrepareOptions, prepare
from sightline.data.readers import SourceOptions

out, steps = Path(sys.argv[1]), int(sys.argv[2]) if len(sys.argv) > 2 else 400

# Data: 600 drawn scenes with captions.
data = out / "scenes"
if not data.exists():
    prepare(Path("-"), "scenes", PrepareOptions(out=data, source=SourceOptions(count=600, seed=1)))

# Two runs. The second one is trained on exchanged captions, so that it cannot learn what an image shows.
settings = {"data.path": data, "train.steps": steps, "train.batch_size": 8}
seeing = sl.train("scenes_tiny", out / "seeing", settings)
misled = sl.train("scenes_tiny", out / "misled", settings | {"data.noise": 1.0})

# Ask one of them about an image.
model = sl.load(seeing.run)
record = next(open_dataset(data).records("val"))
print(f"{record.id}: {model.generate(data / record.images[0], max_new_tokens=16)}")

# A score, with its interval.
done = sl.evaluate(model, data, limit=100, max_new_tokens=16)
score = done.scores["cider_d"]
print(f"CIDEr-D x 100: {100 * score.value:.1f} [{100 * score.low:.1f}, {100 * score.high:.1f}] on {score.n} images")

# Does it look?
found = sl.look(model, data, controls=("blur:8", "shuffled"), limit=100, max_new_tokens=16, page=out / "looking.html")
print(found.sentence())

# Which is better? The page has verdicts, scores, differences, curves, costs and images.
result = sl.compare({"seeing": seeing.run, "misled": misled.run}, out / "compared", data, limit=100, max_new_tokens=16)
for sentence in result.sentences():
    print(sentence)
print(result.page)
