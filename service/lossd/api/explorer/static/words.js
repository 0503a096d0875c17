/** What the catalogue's names are called in a sentence. */

const TASKS = {
  binary: "Binary classification",
  multiclass: "Multiclass classification",
  multilabel: "Multilabel classification",
  sets: "Sets of labels",
  boxes: "Boxes",
  composed: "Made of other losses",
  segmentation: "Segmentation",
  pairs: "Pairs",
  cosine_pairs: "Pairs by angle",
  triplets: "Triplets",
  labelled_embeddings: "Labelled embeddings",
  paired_views: "Paired views",
  custom: "Your own formula",
  gan: "Discriminators",
  gan_generator: "Generators",
  lsgan: "Least-squares discriminators",
  lsgan_generator: "Least-squares generators",
  vae: "Variational autoencoders",
  distances: "Distances",
  ranking: "Ranking",
  features: "Features of networks",
  regression: "Regression",
  sequences: "Sequences",
};

/** A task, as a heading. */
export const taskName = (task) =>
  TASKS[task] ?? task.replaceAll("_", " ").replace(/^./, (letter) => letter.toUpperCase());

const FAMILIES = {
  Regression: ["regression"],
  Classification: ["binary", "multiclass", "multilabel", "sets"],
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
  ],
  "Generative models": ["gan", "gan_generator", "lsgan", "lsgan_generator", "vae", "features"],
  Sequences: ["sequences"],
  "Made of others, or by you": ["composed", "custom"],
};

/** The families of tasks, as headings, in the order in which they are shown; what is in none is in the last. */
export const FAMILY_NAMES = [...Object.keys(FAMILIES), "Others"];
export const familyOf = (task) => FAMILY_NAMES.find((name) => FAMILIES[name]?.includes(task)) ?? "Others";

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
  const said = Object.entries(parameters).map(
    ([name, value]) => `${parameterName(name)} = ${typeof value === "object" ? JSON.stringify(value) : value}`,
  );
  return [loss, ...said].join(", ");
}
