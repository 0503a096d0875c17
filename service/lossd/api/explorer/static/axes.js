/**
 * What a loss is drawn along: one number x, the inputs at each x, and how those change with it.
 *
 * An axis has a `name` (losses that share it can share a plot), a `label`, its ends `low` and `high`, and a
 * `scene(xs, parameters, given)`, which makes the inputs: of all points, row by row, where the loss takes rows that know
 * nothing of each other, else of a single one. Points are `dense` at both ends where curves are steep. `toward` has the
 * inputs' change where the slope is measured, which is what the gradient is multiplied with, and `subject` says with
 * respect to what that is. `given` are further numbers that the reader may set; `start` are parameters that a loss must
 * be given, `hides` those that the axis itself sets; `picture` names a sketch of a point.
 */

const zeros = (xs) => xs.map(() => 0);
const ones = (xs) => xs.map(() => 1);
const column = (xs) => xs.map((x) => [x]);
const every = (xs, value) => xs.map(() => value);
const logit = (p) => Math.log(p) - Math.log1p(-p);
const sigmoid = (z) => 1 / (1 + Math.exp(-z));
const softplus = (z) => Math.max(z, 0) + Math.log1p(Math.exp(-Math.abs(z)));

const CHOICE = { target: { label: "the true class", value: 1, choices: { 1: "positive", 0: "negative" } } };
const CLASSES = { classes: { label: "classes", value: 2, min: 2, max: 20, step: 1 } };
const PAIR = { similar: { label: "the pair is", value: 1, choices: { 1: "similar", 0: "dissimilar" } } };

// Regression

const ERROR = {
  name: "error",
  label: "error: prediction − target",
  low: -3,
  high: 3,
  scene: (xs) => ({
    inputs: { prediction: xs, target: zeros(xs) },
    toward: { prediction: ones(xs) },
    subject: "the prediction",
  }),
};
const NORMAL = {
  ...ERROR,
  given: { variance: { label: "variance", value: 1, min: 0.05, max: 4, step: 0.05 } },
  scene: (xs, _, { variance }) => ({
    inputs: { prediction: xs, target: zeros(xs), variance: every(xs, variance) },
    toward: { prediction: ones(xs) },
    subject: "the prediction",
  }),
};
const VARIANCE = {
  name: "variance",
  label: "variance",
  low: 0.1,
  high: 4,
  given: { error: { label: "error", value: 1, min: 0, max: 3, step: 0.05 } },
  scene: (xs, _, { error }) => ({
    inputs: { prediction: every(xs, error), target: zeros(xs), variance: xs },
    toward: { variance: ones(xs) },
    subject: "the variance",
  }),
};
const RATE = {
  name: "rate",
  label: "predicted rate",
  low: 0.2,
  high: 10,
  given: { count: { label: "counted", value: 3, min: 0, max: 10, step: 1 } },
  scene: (xs, { log_input: log }, { count }) => ({
    inputs: { prediction: log ? xs.map(Math.log) : xs, target: every(xs, count) },
    toward: { prediction: ones(xs) },
    subject: log ? "the logarithm of the rate" : "the rate",
  }),
};
const FEATURE = {
  ...ERROR,
  scene: (xs) => ({
    inputs: { "prediction.0": column(xs), "target.0": column(zeros(xs)) },
    toward: { "prediction.0": column(ones(xs)) },
    subject: "the feature",
  }),
};

// Classification

/** One score, or probability, of a sample; `margins` is how far it is on the right side of 0. */
function scored(
  margins,
  { from_logits: logits = true },
  { target = 1 },
  { probabilities = false, signs = false } = {},
) {
  const side = target ? 1 : -1;
  const plain = probabilities || !logits;
  return {
    inputs: {
      prediction: margins.map((m) => (plain ? sigmoid(side * m) : side * m)),
      target: every(margins, signs ? side : target),
    },
    toward: { prediction: every(margins, side) },
    subject: plain ? "the true class's probability" : "the true class's score",
  };
}

/** Scores of several classes of which the first is true and the others share the rest. */
function classified(margins, { classes = 2 }, { logs = false, targets } = {}) {
  const others = (value) => Array(classes - 1).fill(value);
  return {
    inputs: {
      prediction: margins.map((m) => {
        // Of the margin over all others together, as p says it; the same as over the other one where there are two.
        const rest = -Math.log(classes - 1);
        return logs ? [-softplus(-m), ...others(-softplus(m) + rest)] : [m, ...others(rest)];
      }),
      target: targets ?? zeros(margins),
    },
    toward: { prediction: every(margins, [1, ...others(0)]) },
    subject: logs ? "the true class's log-probability" : "the true class's score",
  };
}

const probability = (scene, given, rest) => ({
  name: "probability",
  label: "probability of the true class",
  low: 0.005,
  high: 0.995,
  dense: true,
  given,
  ...rest,
  scene: (xs, parameters, values) => scene(xs.map(logit), parameters, values),
});
const margin = (scene, given, rest) => ({
  name: "margin",
  label: "margin: the true class's score less the others'",
  low: -5,
  high: 5,
  given,
  scene,
  ...rest,
});

const binary = (m, parameters, given) => scored(m, parameters, given);
const ofProbabilities = (m, parameters, given) => scored(m, parameters, given, { probabilities: true });
const signed = (m, parameters, given) => scored(m, parameters, given, { signs: true });
const multiclass = (m, _, given) => classified(m, given);
const logProbabilities = (m, _, given) => classified(m, given, { logs: true });
const hinge = (xs, _, { classes }) => ({
  ...classified(xs, { classes }),
  inputs: { prediction: xs.map((m) => [m, ...Array(classes - 1).fill(0)]), target: zeros(xs) },
});
const SHARE = {
  name: "probability",
  label: "predicted probability of the first class",
  low: 0.005,
  high: 0.995,
  dense: true,
  given: { share: { label: "its target", value: 0.75, min: 0, max: 1, step: 0.01 } },
  scene: (xs, { log_target: logs }, { share }) => {
    const target = [share, 1 - share].map((t) => (logs ? Math.max(Math.log(t), -100) : t));
    return {
      ...classified(xs.map(logit), {}, { logs: true, targets: every(xs, target) }),
      subject: "the first class's log-probability",
    };
  },
};
const LABELS = { labels: { label: "labels", value: 3, min: 1, max: 10, step: 1 } };
const labels = (margins, _, { labels: count }) => {
  const rest = (value) => Array(count - 1).fill(value);
  return {
    inputs: { prediction: margins.map((m) => [m, ...rest(-m)]), target: every(margins, [1, ...rest(0)]) },
    toward: { prediction: every(margins, [1, ...rest(-1)]) },
    subject: "the margin",
  };
};
const SET = (xs, _, { classes }) => ({
  inputs: {
    prediction: xs.map((x) => [x, ...Array(classes - 1).fill(0)]),
    target: every(xs, [0, ...Array(classes - 1).fill(-1)]),
  },
  toward: { prediction: every(xs, [1, ...Array(classes - 1).fill(0)]) },
  subject: "the score of the label that applies",
});
const SAMPLES = (margins) => {
  const [m] = margins;
  return {
    inputs: {
      prediction: [
        [m, 0],
        [m, 0],
        [0, m],
        [0, m],
      ],
      target: [0, 0, 1, 1],
    },
    toward: {
      prediction: [
        [1, 0],
        [1, 0],
        [0, 1],
        [0, 1],
      ],
    },
    subject: "every sample's score of its class",
  };
};
const FRAMES = ([m]) => {
  // Four frames that say "1 1 2 2", each with probability p for its own symbol and the rest for the other two.
  const frames = [1, 1, 2, 2];
  const row = (own) => [0, 1, 2].map((symbol) => (symbol === own ? -softplus(-m) : -softplus(m) - Math.LN2));
  return {
    inputs: { prediction: frames.map((own) => [row(own)]), target: [[1, 2]], input_lengths: [4], target_lengths: [2] },
    toward: { prediction: frames.map((own) => [[0, 1, 2].map((symbol) => Number(symbol === own))]) },
    subject: "every frame's log-probability of its symbol",
  };
};

// Regions

const PIXELS = 20;

/** An image, part of it foreground, whose pixels all give probability p to what they are. */
function regions(xs, { mode = "binary", from_logits: logits = true }, { share }) {
  const foreground = Array.from({ length: PIXELS }, (_, i) => Number(i < share * PIXELS));
  const score = (p) => (logits ? logit(p) : p);
  const image = (p) => foreground.map((own) => score(own ? p : 1 - p));
  const signs = foreground.map((own) => (own ? 1 : -1));
  if (mode !== "multiclass") {
    const wrap = (pixels) => (mode === "multilabel" ? [pixels] : pixels);
    return {
      inputs: { prediction: xs.map((p) => wrap(image(p))), target: every(xs, wrap(foreground)) },
      toward: { prediction: every(xs, wrap(signs)) },
      subject: "every pixel's score",
    };
  }
  const own = [foreground.map((f) => 1 - f), foreground];
  const scores = (p) => own.map((of) => of.map((is) => (logits ? Math.log(is ? p : 1 - p) : is ? p : 1 - p)));
  return {
    inputs: { prediction: xs.map(scores), target: every(xs, foreground) },
    toward: { prediction: every(xs, own) },
    subject: "every pixel's score of its class",
  };
}

const OVERLAP = {
  name: "overlap",
  picture: "image",
  label: "probability of every pixel's own class",
  low: 0.01,
  high: 0.99,
  dense: true,
  given: { share: { label: "foreground", value: 0.5, min: 0.05, max: 0.95, step: 0.05 } },
};
const IMAGES = { ...OVERLAP, scene: regions };
const composedImages = (mode) => ({ ...OVERLAP, scene: (xs, _, given) => regions(xs, { mode }, given) });

// Boxes

const OFFSET = {
  name: "offset",
  picture: "boxes",
  label: "offset of the predicted box, in widths",
  low: -2.5,
  high: 2.5,
  given: {
    size: { label: "its size", value: 1, min: 0.2, max: 3, step: 0.05 },
    below: { label: "offset below", value: 0, min: 0, max: 2, step: 0.05 },
  },
  scene: (xs, { format }, { size, below }) => {
    const box = (x, y, side) =>
      ({
        xyxy: [x - side / 2, y - side / 2, x + side / 2, y + side / 2],
        xywh: [x - side / 2, y - side / 2, side, side],
        cxcywh: [x, y, side, side],
      })[format];
    return {
      inputs: { prediction: xs.map((x) => box(x, below, size)), target: every(xs, box(0, 0, 1)) },
      toward: { prediction: every(xs, format === "xyxy" ? [1, 0, 1, 0] : [1, 0, 0, 0]) },
      subject: "the offset",
    };
  },
};

const IOU = {
  ...OFFSET,
  name: "overlap",
  picture: "iou",
  label: "intersection over union of two equal boxes",
  low: 0,
  high: 1,
  given: undefined,
  scene: (xs, parameters) =>
    OFFSET.scene(
      xs.map((x) => (1 - x) / (1 + x)),
      parameters,
      { size: 1, below: 0 },
    ),
};

// Embeddings

const distance = (label, scene, given, rest) => ({
  name: "distance",
  label,
  low: 0.01,
  high: 3,
  given,
  scene,
  ...rest,
});
const apart = (xs, _, { similar }) => ({
  inputs: { first: every(xs, [0, 0]), second: xs.map((x) => [x, 0]), similar: every(xs, similar) },
  toward: { second: every(xs, [1, 0]) },
  subject: "the distance",
});
const givenDistance = (xs, _, { similar }) => ({
  inputs: { prediction: xs, target: every(xs, similar ? 1 : -1) },
  toward: { prediction: ones(xs) },
  subject: "the distance",
});
const POSITIVE = { positive: { label: "distance of the positive", value: 1, min: 0, max: 3, step: 0.05 } };
const triplet = (xs, _, { positive }) => ({
  inputs: { anchor: every(xs, [0, 0]), positive: every(xs, [0, positive]), negative: xs.map((x) => [x, 0]) },
  toward: { negative: every(xs, [1, 0]) },
  subject: "the negative's distance",
});
const classesApart = ([x]) => ({
  // Two classes of two samples that are 1 apart, in directions of their own, across from each other.
  inputs: {
    embedding: [
      [0.5, 0, 0],
      [-0.5, 0, 0],
      [0, 0.5, x],
      [0, -0.5, x],
    ],
    label: [0, 0, 1, 1],
  },
  toward: {
    embedding: [
      [0, 0, 0],
      [0, 0, 0],
      [0, 0, 1],
      [0, 0, 1],
    ],
  },
  subject: "the distance",
});

const PAIRS = 4;
const unit = (i) => Array.from({ length: 2 * PAIRS }, (_, j) => Number(i === j));

/** Vectors at right angles, others at a cosine to one each, and how those change with it. */
function turned(cosine) {
  const sine = Math.sqrt(1 - cosine ** 2);
  const all = [...Array(PAIRS).keys()];
  const mixed = (i, a, b) => unit(i).map((u, j) => a * u + b * unit(i + PAIRS)[j]);
  return {
    first: all.map(unit),
    second: all.map((i) => mixed(i, cosine, sine)),
    toward: all.map((i) => mixed(i, 1, -cosine / sine)),
  };
}

const cosine = (label, scene, rest) => ({
  name: "cosine",
  picture: "cosine",
  label,
  low: -0.99,
  high: 0.99,
  scene,
  ...rest,
});
const cosinePair = (xs, _, { similar }) => {
  const all = xs.map(turned);
  return {
    inputs: {
      first: all.map(({ first }) => first[0]),
      second: all.map(({ second }) => second[0]),
      similar: every(xs, similar ? 1 : -1),
    },
    toward: { second: all.map(({ toward }) => toward[0]) },
    subject: "the cosine",
  };
};
const views = ([x]) => {
  const { first, second, toward } = turned(x);
  return { inputs: { first, second }, toward: { second: toward }, subject: "the cosine" };
};
const labelled = ([x]) => {
  const { first, second, toward } = turned(x);
  return {
    inputs: { embedding: [...first, ...second], label: [...Array(2 * PAIRS).keys()].map((i) => i % PAIRS) },
    toward: { embedding: [...first.map((v) => v.map(() => 0)), ...toward] },
    subject: "the cosine",
  };
};
const ORTHOGONAL = "cosine of each of 4 pairs, all others at right angles";

// Generative

const separated =
  (fake) =>
  ([x]) => ({ inputs: { real: [x], fake: [fake(x)] }, toward: { real: [1], fake: [-1] }, subject: "the separation" });
const fake = (xs) => ({ inputs: { fake: xs }, toward: { fake: ones(xs) }, subject: "the score" });
const latent = (name, label, low, high) => ({
  name,
  label,
  low,
  high,
  scene: (xs) => {
    const inputs = {
      prediction: column(ones(xs)),
      target: column(ones(xs)),
      mean: column(zeros(xs)),
      log_variance: column(zeros(xs)),
    };
    return { inputs: { ...inputs, [name]: column(xs) }, toward: { [name]: column(ones(xs)) }, subject: label };
  },
});

// Losses made of losses, each along what it adds to them

const WEIGHTED = {
  ...ERROR,
  start: {
    terms: [
      { loss: { name: "mse" }, weight: 0.5 },
      { loss: { name: "mae" }, weight: 1 },
    ],
  },
};
const UNCERTAINTY = {
  name: "log_variance",
  label: "the task's log-variance",
  low: -3,
  high: 3,
  start: { terms: [{ loss: { name: "mse" } }] },
  given: { error: { label: "error", value: 1, min: 0, max: 4, step: 0.05 } },
  scene: ([x], _, { error }) => ({
    inputs: { prediction: [error], target: [0], log_variance: [x] },
    toward: { log_variance: [1] },
    subject: "the log-variance",
  }),
};
const CURRICULUM = {
  name: "progress",
  label: "progress: how far along the curriculum is",
  low: 0,
  high: 1,
  points: 41,
  start: { loss: { name: "mse" } },
  hides: ["progress"],
  scene: ([x]) => ({
    // Eleven samples from easy to hard, whose errors grow with their difficulty.
    inputs: {
      prediction: [...Array(11).keys()].map((i) => i / 5),
      target: Array(11).fill(0),
      difficulty: [...Array(11).keys()].map((i) => i / 10),
    },
    parameters: { progress: x },
    toward: {},
    subject: null,
  }),
};
const GRADNORM = {
  name: "weight",
  label: "weight of the first of two tasks",
  low: 0,
  high: 3,
  given: { speed: { label: "its loss now, of 1 at first", value: 0.5, min: 0.05, max: 1.5, step: 0.05 } },
  scene: ([x], _, { speed }) => ({
    inputs: { losses: [speed, 0.8], initial_losses: [1, 1], gradient_norms: [1, 1], task_weight: [x, 1] },
    toward: { task_weight: [1, 0] },
    subject: "the weight",
  }),
};
const FORMULA = {
  ...ERROR,
  start: { formula: "e = prediction - target; log1p(square(e / c))", parameters: { c: 1 } },
};

const BY_TASK = {
  regression: [ERROR],
  binary: [probability(binary, CHOICE), margin(binary, CHOICE)],
  multiclass: [probability(multiclass, CLASSES), margin(multiclass, CLASSES)],
  multilabel: [probability(labels, LABELS), margin(labels, LABELS)],
  sets: [margin(SET, CLASSES)],
  segmentation: [IMAGES],
  boxes: [OFFSET, IOU],
  pairs: [distance("distance between the two", apart, PAIR, { picture: "pair" })],
  distances: [distance("the distance", givenDistance, PAIR, { picture: "pair" })],
  triplets: [distance("distance of the negative", triplet, POSITIVE, { picture: "triplet" })],
  cosine_pairs: [cosine("cosine of the two", cosinePair, { given: PAIR })],
  paired_views: [cosine(ORTHOGONAL, views)],
  labelled_embeddings: [cosine(ORTHOGONAL, labelled)],
  ranking: [
    {
      name: "margin",
      label: "score of the one less the other's",
      low: -3,
      high: 3,
      given: { higher: { label: "what should be higher", value: 1, choices: { 1: "the one", "-1": "the other" } } },
      scene: (xs, _, { higher }) => ({
        inputs: { first: xs, second: zeros(xs), target: every(xs, higher) },
        toward: { first: ones(xs) },
        subject: "the one's score",
      }),
    },
  ],
  gan: [
    {
      name: "score",
      label: "score of the real; the generated have the opposite",
      low: -4,
      high: 4,
      scene: separated((x) => -x),
    },
  ],
  lsgan: [
    {
      name: "score",
      label: "score s of the real; the generated have 1 − s",
      low: -1,
      high: 2,
      scene: separated((x) => 1 - x),
    },
  ],
  gan_generator: [{ name: "score", label: "score of the generated", low: -4, high: 4, scene: fake }],
  lsgan_generator: [{ name: "score", label: "score of the generated", low: -1, high: 2, scene: fake }],
  vae: [
    latent("prediction", "the reconstruction of what is 1", 0.005, 1),
    latent("mean", "the latent's mean", -3, 3),
    latent("log_variance", "the latent's log-variance", -4, 3),
  ],
  features: [FEATURE],
  sequences: [probability(FRAMES, undefined, { label: "probability of each frame's symbol" })],
  custom: [FORMULA],
};

const BY_NAME = {
  bce: [probability(ofProbabilities, CHOICE), margin(ofProbabilities, CHOICE)],
  sigmoid_focal: [probability(binary, CHOICE), margin(binary, CHOICE)],
  soft_margin: [margin(signed, CHOICE), probability(signed, CHOICE)],
  nll: [probability(logProbabilities, CLASSES), margin(logProbabilities, CLASSES)],
  multi_margin: [margin(hinge, CLASSES)],
  kl_div: [SHARE],
  soft_f1: [probability(SAMPLES, undefined, { label: "probability of every sample's class" })],
  gaussian_nll: [NORMAL, VARIANCE],
  poisson_nll: [RATE],
  mined_triplet: [distance("distance of two classes whose samples are 1 apart", classesApart)],
  bce_dice: [composedImages("binary")],
  ce_dice: [composedImages("multiclass")],
  weighted_sum: [WEIGHTED],
  uncertainty: [UNCERTAINTY],
  curriculum: [CURRICULUM],
  gradnorm: [GRADNORM],
  perceptual: [],
};

/** The axes a loss of the catalogue can be drawn along, the first by default; none where a curve would say nothing. */
export const axesOf = (loss) => BY_NAME[loss.name] ?? BY_TASK[loss.task] ?? [];

/** The given numbers of an axis as they are at first. */
export const givenOf = (axis) =>
  Object.fromEntries(Object.entries(axis.given ?? {}).map(([name, { value }]) => [name, value]));
