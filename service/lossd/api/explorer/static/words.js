/** The catalogue's names as text. */

const TASKS = {
  binary: "Binary classification",
  multiclass: "Multiclass classification",
  multilabel: "Multilabel classification",
  sets: "Sets of labels",
  boxes: "Boxes",
  composed: "Composed losses",
  segmentation: "Segmentation",
  pairs: "Pairs",
  cosine_pairs: "Pairs by angle",
  triplets: "Triplets",
  labelled_embeddings: "Labelled embeddings",
  paired_views: "Paired views",
  custom: "Formulas",
  gan: "Discriminators",
  gan_generator: "Generators",
  lsgan: "Least-squares discriminators",
  lsgan_generator: "Least-squares generators",
  vae: "Variational autoencoders",
  distances: "Distances",
  ranking: "Ranking",
  queries: "Queries",
  features: "Features of networks",
  regression: "Regression",
  quantiles: "Quantiles",
  ensembles: "Ensembles",
  intervals: "Intervals",
  sequences: "Sequences",
  distillation: "Distillation",
  preferences: "Preferences",
  desirability: "Desirable answers",
  policy: "Policies",
};

/** The heading of a task. */
export const taskName = (task) =>
  TASKS[task] ?? task.replaceAll("_", " ").replace(/^./, (letter) => letter.toUpperCase());

// The order on the page: a family's most used task is first, and the catalogue has a task's most used loss first.
const FAMILIES = {
  Regression: ["regression", "quantiles", "ensembles", "intervals"],
  Classification: ["multiclass", "binary", "multilabel", "sets", "distillation"],
  Segmentation: ["segmentation"],
  Boxes: ["boxes"],
  "Embeddings and rankings": [
    "pairs",
    "distances",
    "cosine_pairs",
    "triplets",
    "labelled_embeddings",
    "paired_views",
    "ranking",
    "queries",
  ],
  "Generative models": ["gan", "gan_generator", "lsgan", "lsgan_generator", "vae", "features"],
  Sequences: ["sequences", "preferences", "desirability", "policy"],
  "Composed and custom": ["composed", "custom"],
};

/** The headings of the families of tasks, in their order; the last is for all other tasks. */
export const FAMILY_NAMES = [...Object.keys(FAMILIES), "Others"];
export const familyOf = (task) => FAMILY_NAMES.find((name) => FAMILIES[name]?.includes(task)) ?? "Others";

/** The losses of a family by task, each task's in the order of the catalogue. */
export function byTask(family, losses) {
  const place = ({ task }) => FAMILIES[family]?.indexOf(task) ?? 0;
  return losses.filter(({ task }) => familyOf(task) === family).toSorted((a, b) => place(a) - place(b));
}

/** A text of the service as a sentence: a capital at its beginning, a period at its end. */
export const sentence = (text) => `${text.charAt(0).toUpperCase()}${text.slice(1)}${/[.!?]$/.test(text) ? "" : "."}`;

const GREEK = {
  alpha: "α",
  beta: "β",
  gamma: "γ",
  delta: "δ",
  eps: "ε",
  epsilon: "ε",
  tau: "τ",
  temperature: "τ",
};

/** A parameter in a legend: γ = 2. */
export const parameterName = (name) => GREEK[name] ?? name.replaceAll("_", " ");

/** A loss with its parameters, in a legend: focal, γ = 2. */
export function curveName(loss, parameters) {
  const settings = Object.entries(parameters).map(
    ([name, value]) => `${parameterName(name)} = ${typeof value === "object" ? JSON.stringify(value) : value}`,
  );
  return [loss, ...settings].join(", ");
}
