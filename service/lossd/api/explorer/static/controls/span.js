/** The ends of a number's slider. */

// The ends of sliders for numbers without bounds in their schema: beyond these the curve hardly changes.
const SPANS = {
  gamma: [0, 6],
  alpha: [0, 1],
  beta: [0, 2],
  delta: [0, 3],
  margin: [0, 3],
  temperature: [0, 1],
  smooth: [0, 10],
  over_penalty: [0, 8],
  factor: [0, 2],
  pos_weight: [0, 8],
  p: [1, 6],
  progress: [0, 1],
  "vae.beta": [0, 8],
  "gradnorm.alpha": [0, 3],
  "hinge_embedding.margin": [0, 3],
  "margin_ranking.margin": [-1, 3],
};

/** The ends and the step of a number's slider; without `max` there is no slider. */
export function span(loss, name, schema, fallback) {
  const known = SPANS[`${loss}.${name}`] ?? SPANS[name];
  const tiny = typeof fallback === "number" && fallback !== 0 && Math.abs(fallback) < 1e-3;
  if (schema.type === "integer" || tiny || name === "eps")
    return { min: schema.minimum ?? null, max: null, step: "any" };
  let min = schema.minimum ?? schema.exclusiveMinimum ?? known?.[0] ?? 0;
  const max = schema.maximum ?? known?.[1] ?? Math.max(1, 4 * (fallback ?? 1));
  const step = max - min <= 2 ? 0.01 : 0.05;
  if ("exclusiveMinimum" in schema && min === schema.exclusiveMinimum) min += step;
  return { min, max, step, least: schema.minimum ?? schema.exclusiveMinimum ?? null };
}
